"""Vectors held as codes, each with its own scale: what is stored one after the other."""

from __future__ import annotations

from functools import singledispatch
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxsim.formats.block_grid import ROWS, BlockCodes, BlockGrid, decode_blocks, encode_blocks
from jaxsim.formats.codebook import Floating
from jaxsim.formats.grid import Grid, encode, observe_range, scale_and_zero
from jaxsim.formats.microscaling import (
    MicroCodes,
    Microscaled,
    decode_micro,
    encode_micro,
    exponents,
    powers,
    stored_elements,
    to_elements,
)
from jaxsim.numerics.packed import Packed, unpacked
from jaxsim.numerics.scaling import divide, step_of


class VectorForm(NamedTuple):
    """A format as a pair of pure functions.

    Each array that `encode` returns has the axes of the vectors in front, so that vectors are
    taken and replaced one by one.

    Attributes:
      encode: From vectors [..., d] in float32 to arrays, of four bits as `Packed`.
      decode: From these to vectors in float32.
    """

    encode: Any
    decode: Any


@singledispatch
def vector_form(form: Any, width: int) -> VectorForm:
    """Makes of a format the functions that store vectors in it.

    Args:
      form: A `Grid` of steps per "token" or "group", `js.mx(…)`, `js.nvfp4()`, a `BlockGrid` or a
        `Floating`; every vector, or part of one, has its own scale.
      width: Number d of entries of a vector.

    Raises:
      ValueError: Another format, a setting that vectors on their own cannot have, or blocks that
        do not divide the width.
    """
    raise ValueError(f"form={form!r}: must be a Grid, mx(…), nvfp4(), a BlockGrid or a Floating")


@vector_form.register
def _(form: Grid, width: int) -> VectorForm:
    rows = width if form.per == "token" else form.rows
    if form.per not in ("token", "group") or form.clip is not None or form.average is not None:
        raise ValueError(
            f"form={form}: a vector has its own range: per='token' or 'group', no clip, no average"
        )
    if form.rounding == "stochastic":
        raise ValueError(f"form={form}: must round to the nearest; there is no key")
    side = "inputs" if form.per == "token" else "weights"
    form.checked(side)
    count = _blocks(form, width, rows)

    def encode_vectors(x: Float[Array, "*n d"]) -> tuple[Any, Array, Array | None]:
        blocks = x.reshape(*x.shape[:-1], count, -1)
        seen = observe_range(blocks, axes=(-1,), bits=form.bits, symmetric=form.symmetric)
        scale, zero = scale_and_zero(form, seen)
        codes = encode(form, blocks, scale, zero).astype(jnp.int8).reshape(x.shape)
        shift = None if form.symmetric else zero[..., 0].astype(jnp.int8)
        return _packed(codes, form.bits), scale[..., 0], shift

    def decode_vectors(held: tuple[Any, Array, Array | None]) -> Float[Array, "*n d"]:
        codes, scale, zero = held
        steps = unpacked(codes).reshape(*scale.shape, -1).astype(jnp.float32)
        steps = steps if zero is None else steps - zero[..., None].astype(jnp.float32)
        values = steps * scale[..., None]
        return values.reshape(*values.shape[:-2], width)

    return VectorForm(encode_vectors, decode_vectors)


@vector_form.register
def _(form: Microscaled, width: int) -> VectorForm:
    form.checked("inputs")
    count = _blocks(form, width, form.rows)

    def encode_vectors(x: Float[Array, "*n d"]) -> tuple[Any, ...]:
        lead = x.shape[:-1]
        blocks = x.reshape(-1, count, form.rows)
        held = jax.vmap(lambda one: encode_micro(form, one, (-1,)))(blocks)
        codes = stored_elements(form, held.elements).reshape(*lead, width)
        scale = held.scale.reshape(*lead, count)
        if held.tensor is None:
            return _packed(codes, form.kind.bits), exponents(scale)
        scale = scale.astype(jnp.float8_e4m3fn)
        return _packed(codes, form.kind.bits), scale, held.tensor.reshape(*lead, 1)

    def decode_vectors(held: tuple[Any, ...]) -> Float[Array, "*n d"]:
        codes, scale, *tensor = held
        scale = scale.astype(jnp.float32) if tensor else powers(scale)
        elements = to_elements(form, unpacked(codes)).reshape(*scale.shape, form.rows)
        whole = tensor[0][..., None] if tensor else None
        values = decode_micro(MicroCodes(elements, scale[..., None], whole))
        return values.reshape(*values.shape[:-2], width)

    return VectorForm(encode_vectors, decode_vectors)


@vector_form.register
def _(form: BlockGrid, width: int) -> VectorForm:
    form.checked("weights")
    if form.scale is not None:
        raise ValueError(f"form={form}: scales of a file are of its weights; give the kind alone")
    count = _blocks(form, width, ROWS)
    kind = jnp.uint8 if form.shifted else jnp.int8

    def encode_vectors(x: Float[Array, "*n d"]) -> tuple[Any, Array, Array | None]:
        blocks = x.reshape(*x.shape[:-1], count, ROWS)
        held = encode_blocks(form, blocks, (blocks.ndim - 1,), None)
        codes = held.codes.astype(kind).reshape(x.shape)
        minimum = None if held.minimum is None else held.minimum[..., 0]
        return _packed(codes, form.bits), held.scale[..., 0], minimum

    def decode_vectors(held: tuple[Any, Array, Array | None]) -> Float[Array, "*n d"]:
        codes, scale, minimum = held
        blocks = unpacked(codes).reshape(*scale.shape, ROWS)
        shift = None if minimum is None else minimum[..., None]
        values = decode_blocks(BlockCodes(blocks, scale[..., None], shift))
        return values.reshape(*values.shape[:-2], width)

    return VectorForm(encode_vectors, decode_vectors)


@vector_form.register
def _(form: Floating, width: int) -> VectorForm:
    form.checked("weights")
    if form.per != "tensor":
        raise ValueError(f"form={form}: a vector has its own scale; leave per='tensor'")

    def encode_vectors(x: Float[Array, "*n d"]) -> tuple[Array, Array]:
        most = jnp.max(jnp.abs(x), -1, keepdims=True)
        scale = step_of(most, form.largest, empty=1.0) if form.scaled else jnp.ones_like(most)
        held = jnp.clip(divide(x, scale), -form.largest, form.largest)
        return held.astype(form.dtype), scale

    def decode_vectors(held: tuple[Array, Array]) -> Float[Array, "*n d"]:
        return held[0].astype(jnp.float32) * held[1]

    return VectorForm(encode_vectors, decode_vectors)


def _blocks(form: Any, width: int, rows: int | None) -> int:
    """Number of blocks of a vector."""
    if not rows or width % rows:
        raise ValueError(f"form={form}: blocks of {rows} do not divide vectors of {width} entries")
    return width // rows


def _packed(codes: Int[Array, "..."], bits: int) -> Any:
    """Codes as they are held, more than one in a byte where they have four bits or fewer."""
    return codes if bits > 4 else Packed.of(codes, -1, 2 if bits <= 2 else 4)
