"""Inputs turned by an orthogonal matrix before hardware sees them, and weights turned likewise."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxsim.cores.core import Core, State
from jaxsim.cores.geometry import Dot
from jaxsim.cores.op import Op
from jaxsim.cores.role import role
from jaxsim.numerics.hadamard import mix_along


@role("scale")
def rotated_inputs(
    core: Core,
    *,
    signs: Float[Array, " K"],
    outer: Float[Array, "m m"],
    inner: Float[Array, "p p"],
) -> Core:
    """Turns the summed axis of inputs and weights by one orthogonal matrix; products stay.

    The matrix is the diagonal one of the signs, then the Kronecker product of two, each of which is
    a product over a few numbers.

    Args:
      core: Contracts turned inputs with turned weights; one axis of a `dot_general` is summed.
      signs: Ones and minus ones.
      outer: Orthogonal matrix that mixes numbers p places apart.
      inner: Orthogonal matrix that mixes neighbors, m · p = K.

    Source: Ashkboos et al. (2024), arXiv 2404.00456, section 4 (online Hadamard transforms).
    """

    def turned(a: Array, axis: int) -> Array:
        along = signs.reshape(-1, *[1] * (a.ndim - 1 - axis))
        return mix_along(a.astype(jnp.float32) * along, axis, outer, inner)

    def of_inputs(op: Op, x: Array) -> Array:
        assert isinstance(op.geometry, Dot)
        return turned(x, op.x_planes(x) + op.geometry.x_contract[0])

    def write(op: Op, w: Array, key: Any) -> State:
        return core.write(op, turned(w, op.geometry.contracted[0]), key)

    def calibrate(op: Op, state: State, x: Array) -> State:
        return core.calibrate(op, state, of_inputs(op, x))

    def read(op: Op, state: State, x: Array, key: Any) -> Array:
        products = x.size * sum(n for n in (outer.shape[0], inner.shape[0]) if n > 1)
        bits = 8 * (signs.nbytes + outer.nbytes + inner.nbytes)
        op.count_digital(adds=products + x.size, multiplies=products, bits=bits)
        return core.read(op, state, of_inputs(op, x), key)

    return Core(write, calibrate, read)


@role("correction")
def mixed_rows(core: Core, *, matrix: Float[Array, "*stack K K"]) -> Core:
    """Multiplies the weight from the side of its inputs by a matrix, at this site alone.

    Args:
      core: Contracts the product; one axis of a `dot_general` is summed.
      matrix: The matrix, its last axis summed with the weight's, behind the axes of its stack.
    """

    def write(op: Op, w: Array, key: Any) -> State:
        (axis,) = op.geometry.contracted
        mixed = jnp.tensordot(
            op.slice_for_layer(matrix).astype(w.dtype),
            w,
            ((1,), (axis,)),
            precision=lax.Precision.HIGHEST,
        )
        return core.write(op, jnp.moveaxis(mixed, 0, axis), key)

    return Core(write, core.calibrate, core.read)
