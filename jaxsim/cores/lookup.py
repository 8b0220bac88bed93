"""Weights that point into a table of levels."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxsim.cores.core import Core
from jaxsim.cores.op import Op
from jaxsim.cores.product import multiplies, of_written, operands_of
from jaxsim.cores.role import role
from jaxsim.formats.codebook import Codebook, index_bits, k_means, nearest
from jaxsim.numerics.awaited import awaited
from jaxsim.numerics.packed import Packed, bits_to_pack, unpacked
from jaxsim.numerics.scaling import divide, step_of


class LookupState(NamedTuple):
    """State of weights that point into a table.

    Attributes:
      pointers: index of each weight, in its shape; of each vector [n], where they point together;
        at deployment two in a byte, if the table has at most 16 entries.
      levels: the table: numbers [size], or vectors [size, length].
      scale: what the numbers are multiplied by, of the weight's rank, contracted axes of size 1.
      passed: what lends the weight its derivative before deployment; None after it.
      kept: which weights are not pruned; None where all are kept, or zero has a place in the table.
    """

    pointers: Int[Array, "..."] | Packed
    levels: Float[Array, "size ..."]
    scale: Float[Array, "..."]
    passed: Array | None
    kept: Bool[Array, "..."] | None = None


@role("floats", at_rest="looked_up")
def codebook_lookup(core: Core, *, weights: Codebook) -> Core:
    """Holds weights as indices into a table, and looks them up at each read.

    Args:
      core: contracts the values.
      weights: the table.

    Source: Han et al. (2016), arXiv 1510.00149, section 3 (k-means); Jégou et al. (2011), Product
    quantization for nearest neighbor search, and Stock et al. (2020), arXiv 1907.05686 (vectors).
    """

    def vectors(op: Op, w: Array) -> Array:
        """Weights [n, length], the contracted axes last, filled up with zeros."""
        w = _contracted_last(op, w)
        short = -w.shape[-1] % weights.length
        return jnp.pad(w, ((0, 0), (0, short))).reshape(-1, weights.length)

    def write(op: Op, w: Array, key: Any) -> LookupState:
        w = w.astype(jnp.float32)
        passed = None if op.integer else w
        values = lax.stop_gradient(w)
        outputs = op.channel_shape()
        has_zero = weights.levels is not None and 0.0 in weights.levels
        kept = values != 0 if (op.masked or op.filled > 0) and not has_zero else None
        if op.masked and not has_zero:
            op.count("weight_bits", w.size)  # one says of each whether it is pruned
        if weights.levels is None:
            rows = vectors(op, values)
            size = min(weights.size, len(rows))
            among = None if kept is None else vectors(op, kept)
            levels, pointers = k_means(rows, size=size, iterations=weights.iterations, kept=among)
            pointers = pointers.astype(jnp.uint8 if size <= 256 else jnp.int32)
            op.count("weight_bits", 32 * levels.size + index_bits(size) * pointers.size)
            op.count("cells", pointers.size)
            packed = bits_to_pack(0, size - 1)
            if op.layout != "plain" and packed is not None:
                pointers = Packed.of(pointers, -1, packed)
            return LookupState(pointers, levels, jnp.ones(outputs), passed, kept)
        levels = jnp.asarray(weights.levels, jnp.float32)
        axes = op.scale_axes(weights.per)
        most = jnp.max(jnp.abs(values), axes, keepdims=True)
        most = step_of(most, 1, empty=0.0)
        pointers = nearest(divide(values, jnp.where(most > 0, most, 1.0)), levels)
        op.count("weight_bits", index_bits(levels.size) * w.size)
        op.count("cells", w.size)
        packed = bits_to_pack(0, levels.size - 1)
        if op.layout != "plain" and packed is not None:
            pointers = Packed.of(pointers, op.geometry.contracted[-1] - w.ndim, packed)
        return LookupState(pointers, levels, jnp.broadcast_to(most, outputs), passed, kept)

    def weight(op: Op, state: LookupState) -> Array:
        pointers = unpacked(state.pointers).astype(jnp.int32)
        values = jnp.take(state.levels, pointers, axis=0)
        if weights.levels is None:
            values = _contracted_home(op, values)
        values = values * state.scale
        if state.kept is not None:
            values = jnp.where(state.kept, values, 0)
        if state.passed is None:
            return values
        return state.passed + lax.stop_gradient(values - state.passed)

    def calibrate(op: Op, state: LookupState, x: Array) -> LookupState:
        return state

    def written(op: Op, state: LookupState) -> Any:
        return core.write(dataclasses.replace(op, meter=None), weight(op, state), None)

    apart = weights.levels is not None

    @multiplies(of_written(operands_of(core), written, divides=apart))
    def read(op: Op, state: LookupState, x: Array, key: Any) -> Array:
        held = state._replace(pointers=awaited(state.pointers, x))
        return core.read(op, written(op, held), x, key)

    return Core(write, calibrate, read)


def _contracted_last(op: Op, w: Array) -> Array:
    axes = op.geometry.contracted
    kept = tuple(a for a in range(w.ndim) if a not in axes)
    return jnp.transpose(w, kept + axes).reshape(math.prod(w.shape[a] for a in kept), -1)


def _contracted_home(op: Op, values: Array) -> Array:
    """The inverse of `_contracted_last`, from vectors [n, length] with their filling."""
    shape, axes = op.geometry.w_shape, op.geometry.contracted
    kept = tuple(a for a in range(len(shape)) if a not in axes)
    outputs, depth = (math.prod(shape[a] for a in some) for some in (kept, axes))
    rows = values.reshape(outputs, -1)[:, :depth]
    rows = rows.reshape(*(shape[a] for a in kept + axes))
    home = sorted(range(len(shape)), key=lambda i: (kept + axes)[i])
    return jnp.transpose(rows, home)
