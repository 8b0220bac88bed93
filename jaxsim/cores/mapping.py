"""Signed codes on cells that hold no sign."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from jaxsim.cores.core import Core, State
from jaxsim.cores.geometry import Matmul
from jaxsim.cores.op import Op
from jaxsim.cores.product import subtraction_of
from jaxsim.cores.role import role
from jaxsim.numerics.digits import code_dtype


@role("mapping")
def differential(core: Core, *, apart: bool = False) -> Core:
    """Holds a code as the difference of two: positive part minus negative part.

    One of the two is always zero, so a zero code stores nothing: the mapping is proportional. The
    two are weight planes, positive first, with one largest code: what their empty cells add is
    the same. Where the core inside is linear in what it wrote, the difference is taken of what was
    written, and a read is one product instead of two.

    Args:
      core: writes and reads the two parts.
      apart: keep them two in every case, as earlier versions did.

    Source: Xiao et al. (2022), arXiv 2109.01262, fig. 5b.
    """
    subtraction = None if apart else subtraction_of(core)

    def parts(op: Op) -> Op:
        if op.w_lo is None or op.w_hi is None:
            return op
        most = np.maximum(-op.w_lo, op.w_hi)
        return op.codes(np.stack([0 * most, 0 * most]), np.stack([most, most]))

    def held(op: Op) -> Op:
        """The op of what was written."""
        if subtraction is None or op.w_lo is None or op.w_hi is None:
            return parts(op)
        most = np.maximum(-op.w_lo, op.w_hi)
        return op.codes(0 * most, most)

    def write(op: Op, w: Array, key: Any) -> State:
        if subtraction is not None and subtraction.write is not None and op.meter is None:
            return subtraction.write(held(op), w, key)
        inner = parts(op)
        w = _with_room(w, inner)
        zero = jnp.zeros((), w.dtype)
        both = jnp.stack([jnp.maximum(w, zero), jnp.maximum(-w, zero)])
        state = core.write(inner, both, key)
        return state if subtraction is None else subtraction.of(state)

    def calibrate(op: Op, state: State, x: Array) -> State:
        return core.calibrate(held(op), state, x)

    def read(op: Op, state: State, x: Array, key: Any) -> Array:
        y = core.read(held(op), state, x, key)
        if subtraction is not None:
            op.count("macs", y.size * op.depth)  # the other half of the cells
            return y
        axis = op.x_planes(x)
        positive, negative = (lax.index_in_dim(y, i, axis, keepdims=False) for i in (0, 1))
        return positive - negative

    return Core(write, calibrate, read)


@role("mapping")
def offset(core: Core) -> Core:
    """Holds a code above zero by adding the largest magnitude, and subtracts its share digitally.

    A zero code stores the middle level: the mapping is not proportional.

    Source: Xiao et al. (2022), arXiv 2109.01262, fig. 5a.
    """

    def write(op: Op, w: Array, key: Any) -> State:
        inner, z = _shifted(op)
        w = _with_room(w, inner)
        return core.write(inner, w + jnp.asarray(z, w.dtype), key)

    def calibrate(op: Op, state: State, x: Array) -> State:
        return core.calibrate(_shifted(op)[0], state, x)

    def read(op: Op, state: State, x: Array, key: Any) -> Array:
        inner, z = _shifted(op)
        y = core.read(inner, state, x, key)
        return y - z * op.row_sum(x)

    return Core(write, calibrate, read)


class UnitColumnState(NamedTuple):
    """State of an array with a column of zeros.

    Attributes:
      inner: what the inner core wrote of the shifted codes.
      column: what it wrote of one more column, in which every code is zero.
    """

    inner: State
    column: State


@role("mapping", at_rest="referred")
def unit_column(core: Core) -> Core:
    """Holds codes like `offset`, and subtracts the output of one more column that stores zeros.

    The column goes through the same hardware: its cells have errors of their own, shared by all
    outputs, and what empty cells add is taken off with it.

    Source: Xiao et al. (2022), arXiv 2109.01262, fig. 5a (unit column).
    """

    def column(op: Op) -> tuple[Op, Matmul]:
        matmul = op.geometry.as_matmul()
        B, K, _ = matmul.geometry.w_shape
        unit = dataclasses.replace(matmul.geometry, w_shape=(B, K, 1))
        return dataclasses.replace(_shifted(op)[0], geometry=unit), matmul

    def own(key: Any) -> Any:
        return None if key is None else jax.random.fold_in(key, 1)

    def write(op: Op, w: Array, key: Any) -> UnitColumnState:
        inner, z = _shifted(op)
        w = _with_room(w, inner)
        z = jnp.asarray(z, w.dtype)
        unit = column(op)[0]
        zeros = jnp.full(unit.geometry.w_shape, z)
        return UnitColumnState(core.write(inner, w + z, key), core.write(unit, zeros, own(key)))

    def calibrate(op: Op, state: UnitColumnState, x: Array) -> UnitColumnState:
        unit, matmul = column(op)
        return UnitColumnState(
            core.calibrate(_shifted(op)[0], state.inner, x),
            core.calibrate(unit, state.column, matmul.x(x)),
        )

    def read(op: Op, state: UnitColumnState, x: Array, key: Any) -> Array:
        unit, matmul = column(op)
        y = core.read(_shifted(op)[0], state.inner, x, key)
        zero = core.read(unit, state.column, matmul.x(x), own(key))
        zero = jnp.broadcast_to(zero, (*zero.shape[:-1], matmul.geometry.w_shape[-1]))
        return y - matmul.y(zero, x.shape[op.x_planes(x) :])

    return Core(write, calibrate, read)


def _shifted(op: Op) -> tuple[Op, int]:
    """The op on codes moved up to zero, and by how much."""
    if op.w_lo is None or op.w_hi is None:
        raise ValueError("offset: the weight is a float; wrap it in quantized(weights=…)")
    z = max(0, -int(op.w_lo.min()))
    return op.codes(op.w_lo + z, op.w_hi + z), z


def _with_room(w: Array, op: Op) -> Array:
    """Integer codes in a type that also holds the largest code of `op`; floats as they are."""
    if op.w_hi is None or not jnp.issubdtype(w.dtype, jnp.integer):
        return w
    return w.astype(jnp.promote_types(w.dtype, code_dtype(0, int(op.w_hi.max()))))
