"""Signed codes on cells that hold no sign."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from jaxsim.core import Core, Op, State
from jaxsim.numerics import code_dtype


def differential(core: Core) -> Core:
    """Holds a code as the difference of two: positive part minus negative part.

    One of the two is always zero, so a zero code stores nothing: the mapping is proportional. The
    two are weight planes, positive first.

    Source: Xiao et al. (2022), arXiv 2109.01262, fig. 5b.
    """

    def parts(op: Op) -> Op:
        if op.w_lo is None or op.w_hi is None:
            return op
        zero = np.zeros_like(op.w_hi)
        return op.codes(
            np.stack([zero, zero]), np.stack([np.maximum(op.w_hi, 0), np.maximum(-op.w_lo, 0)])
        )

    def write(op: Op, w: Array, key: Any) -> State:
        inner = parts(op)
        w = _with_room(w, inner)
        zero = jnp.zeros((), w.dtype)
        return core.write(inner, jnp.stack([jnp.maximum(w, zero), jnp.maximum(-w, zero)]), key)

    def calibrate(op: Op, state: State, x: Array) -> State:
        return core.calibrate(parts(op), state, x)

    def read(op: Op, state: State, x: Array, key: Any) -> Array:
        y = core.read(parts(op), state, x, key)
        axis = op.x_planes(x)
        positive, negative = (lax.index_in_dim(y, i, axis, keepdims=False) for i in (0, 1))
        return positive - negative

    return Core(write, calibrate, read)


def offset(core: Core) -> Core:
    """Holds a code above zero by adding the largest magnitude, and subtracts its share digitally.

    A zero code stores the middle level: the mapping is not proportional.

    Source: Xiao et al. (2022), arXiv 2109.01262, fig. 5a.
    """

    def shifted(op: Op) -> tuple[Op, int]:
        if op.w_lo is None or op.w_hi is None:
            raise ValueError("offset: the weight is a float; wrap it in quantized(weights=…)")
        z = max(0, -int(op.w_lo.min()))
        return op.codes(op.w_lo + z, op.w_hi + z), z

    def write(op: Op, w: Array, key: Any) -> State:
        inner, z = shifted(op)
        w = _with_room(w, inner)
        return core.write(inner, w + jnp.asarray(z, w.dtype), key)

    def calibrate(op: Op, state: State, x: Array) -> State:
        return core.calibrate(shifted(op)[0], state, x)

    def read(op: Op, state: State, x: Array, key: Any) -> Array:
        inner, z = shifted(op)
        y = core.read(inner, state, x, key)
        planes = op.x_planes(x)
        total = jnp.expand_dims(op.row_sum(x), tuple(range(planes, planes + inner.w_hi.ndim)))  # pyright: ignore
        return y - z * total

    return Core(write, calibrate, read)


def _with_room(w: Array, op: Op) -> Array:
    """Integer codes in a type that also holds the largest code of `op`; floats as they are."""
    if op.w_hi is None or not jnp.issubdtype(w.dtype, jnp.integer):
        return w
    return w.astype(jnp.promote_types(w.dtype, code_dtype(0, int(op.w_hi.max()))))
