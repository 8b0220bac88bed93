"""Grids of blocks of 32 weights, as GGUF files have them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

Kind = Literal["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]
"""Names of the grids."""

ROWS = 32
"""Weights of a block."""

_HALF = float(np.finfo(np.float16).max)


class BlockCodes(NamedTuple):
    """Weights on a grid of blocks.

    Attributes:
      codes: Whole numbers, as floats.
      scale: Step of each block, in float16.
      minimum: What a code of zero stands for, in float16; None for zero.
    """

    codes: Float[Array, "..."]
    scale: Float[Array, "..."]
    minimum: Float[Array, "..."] | None


@partial(jax.tree_util.register_dataclass, data_fields=["scale", "minimum"], meta_fields=["kind"])
@dataclass(frozen=True)
class BlockGrid:
    """A grid of blocks of 32 weights of an output, each with a scale in float16.

    "Q4_0", "Q5_0" and "Q8_0" are `scale · code`; a scale of the first two has a sign, so that the
    weight of the largest magnitude is the code that has no opposite. "Q4_1" and "Q5_1" are
    `scale · code + minimum`, from the smallest weight of a block to its largest: none has a code
    for zero. What they stand for is bit for bit what the package `gguf` decodes.

    Attributes:
      kind: Name of the grid in GGUF files; its first digit is the bits of a code.
      scale: Scales that a file has, [*stack, K / 32, N] for a weight that sums K products to N
        outputs, so that its codes are found again; None for scales from the weights. Traced.
      minimum: Minima that a file has, likewise.

    Examples:
      >>> import jaxsim as js
      >>> form = js.BlockGrid("Q4_1")
      >>> print(form, form.bits)
      Q4_1 4
      >>> js.quantize(form, None)  # weights alone; inputs may be of any grid
      quantize(weights=BlockGrid(kind='Q4_1'), inputs=None)

    Source: ggml, https://github.com/ggml-org/ggml, `quantize_row_q4_0_ref` and its like.
    """

    kind: Kind = "Q4_0"
    scale: Num[Array, "..."] | None = None
    minimum: Num[Array, "..."] | None = None

    def __str__(self) -> str:
        return self.kind + ("" if self.scale is None else " of given scales")

    def checked(self, side: Literal["weights", "inputs"]) -> BlockGrid:
        """This grid, of a kind that there is, its numbers arrays.

        Args:
          side: The operand that it is to store.

        Raises:
          ValueError: Another kind, inputs, or a minimum without a scale or of a grid without one.
        """
        if side == "inputs":
            raise ValueError(f"inputs={self}: must be an int, a Grid, a Floating or None")
        if self.kind not in get_args(Kind):
            kinds = ", ".join(map(repr, get_args(Kind)))
            raise ValueError(f"{side}: kind={self.kind!r}: must be one of {kinds}")
        if (self.minimum is not None) != (self.scale is not None and self.shifted):
            raise ValueError(
                f"{side}: minimum is {'given' if self.minimum is not None else 'None'}: "
                f"{self.kind} takes {'scale and minimum' if self.shifted else 'a scale alone'}, "
                "or neither"
            )
        arrays = {
            name: None if a is None else jnp.asarray(a, jnp.float16)
            for name, a in (("scale", self.scale), ("minimum", self.minimum))
        }
        return replace(self, **arrays)

    @property
    def bits(self) -> int:
        """Width of a code."""
        return int(self.kind[1])

    @property
    def shifted(self) -> bool:
        """Whether blocks have a minimum, and codes are from zero."""
        return self.kind.endswith("_1")

    @property
    def code_range(self) -> tuple[int, int]:
        """Smallest and largest code."""
        half = 2 ** (self.bits - 1)
        return (0, 2 * half - 1) if self.shifted else (-half, half - 1)


def encode_blocks(
    form: BlockGrid,
    w: Float[Array, "..."],
    axes: tuple[int, ...],
    given: tuple[Array, Array | None] | None,
) -> BlockCodes:
    """Rounds weights to a grid of blocks.

    Args:
      form: The grid.
      w: Weights in float32.
      axes: Axes that the weights of a block are along.
      given: Scales and minima to use, with these axes of size 1; None for those of the weights.
    """
    lo, hi = form.code_range
    if given is not None:
        scale, minimum = given
        base = 0.0 if minimum is None else minimum.astype(jnp.float32)
        codes = jnp.round((w - base) * _reciprocal(scale.astype(jnp.float32)))
        return BlockCodes(jnp.clip(codes, lo, hi), scale, minimum)
    least, most = jnp.min(w, axes, keepdims=True), jnp.max(w, axes, keepdims=True)
    if form.shifted:
        step = (most - least) / hi
        codes = jnp.floor((w - least) * _reciprocal(step) + 0.5)
        return BlockCodes(jnp.clip(codes, lo, hi), _half(step), _half(least))
    if form.bits == 8:
        step = jnp.maximum(-least, most) / hi
        steps = w * _reciprocal(step)
        codes = jnp.sign(steps) * jnp.floor(jnp.abs(steps) + 0.5)
        return BlockCodes(jnp.clip(codes, lo, hi), _half(step), None)
    # the first of two that are as large decides the sign
    flat = _block_last(w, axes)
    first = jnp.take_along_axis(flat, jnp.argmax(jnp.abs(flat), -1, keepdims=True), -1)
    step = first.reshape(least.shape) / lo
    codes = jnp.floor(w * _reciprocal(step) - lo + 0.5) + lo
    return BlockCodes(jnp.clip(codes, lo, hi), _half(step), None)


def decode_blocks(held: BlockCodes) -> Float[Array, "..."]:
    """The weights that codes stand for; codes times scales are exact, so that one rounding is left.

    Args:
      held: Codes with their scales and minima.
    """
    values = held.codes.astype(jnp.float32) * held.scale.astype(jnp.float32)
    return values if held.minimum is None else values + held.minimum.astype(jnp.float32)


def _reciprocal(step: Array) -> Array:
    return jnp.where(step == 0, 0.0, 1.0 / jnp.where(step == 0, 1.0, step))


def _half(a: Array) -> Array:
    return jnp.clip(a, -_HALF, _HALF).astype(jnp.float16)


def _block_last(w: Array, axes: tuple[int, ...]) -> Array:
    others = tuple(a for a in range(w.ndim) if a not in axes)
    moved = jnp.transpose(w, (*others, *axes))
    return moved.reshape(*moved.shape[: len(others)], -1)
