"""Weights and inputs rounded to short floats: FP8, bfloat16 and others."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxsim.cores.core import Core, State
from jaxsim.cores.op import Op
from jaxsim.cores.product import Operands, multiplies, operands_of
from jaxsim.cores.role import role
from jaxsim.formats.codebook import Floating
from jaxsim.numerics.awaited import awaited
from jaxsim.numerics.scaling import divide, scale_product, step_of, unit_of


class MinifloatState(NamedTuple):
    """State of a site of short floats.

    Attributes:
      inner: what the inner core wrote of the scaled weights.
      scale: of the weights, of their rank, contracted axes of size 1.
    """

    inner: State
    scale: Float[Array, "..."]


@role("floats", at_rest="floated")
def minifloat(core: Core, *, weights: Floating | None, inputs: Floating | None) -> Core:
    """Rounds weights and inputs to short floats, scaled to their largest magnitude.

    The scale of the inputs is the batch's. Products are summed in float32.

    Args:
      core: contracts the numbers.
      weights: format of the weights; None leaves them.
      inputs: format of the inputs; None leaves them.

    Source: Micikevicius et al. (2022), FP8 formats for deep learning, arXiv 2209.05433.
    """
    multiplied = operands_of(core)

    def write(op: Op, w: Array, key: Any) -> MinifloatState:
        w = w.astype(jnp.float32)
        if weights is None:
            # near one, so that products with scaled inputs do not leave the floats' range
            unit = unit_of(w, tuple(range(w.ndim)))
            state = core.write(op, w / unit, key)
            return MinifloatState(state, jnp.broadcast_to(unit, op.channel_shape()))
        axes = op.scale_axes(weights.per)
        stored, scale = _rounded(weights, w, axes)
        if op.integer:
            stored = stored.astype(weights.dtype)
        state = core.write(op, stored, key)
        return MinifloatState(state, jnp.broadcast_to(scale, op.channel_shape()))

    def calibrate(op: Op, state: MinifloatState, x: Array) -> MinifloatState:
        return state

    def dense(op: Op, state: MinifloatState) -> Array:
        """The floats that weights are stored as."""
        assert multiplied is not None
        return multiplied.weight(op, state.inner).astype(jnp.float32) * state.scale

    def rounded(op: Op, state: MinifloatState, x: Array, key: Any) -> Array:
        """The floats that inputs are rounded to."""
        assert multiplied is not None
        scale: Any = 1.0
        if inputs is not None:
            x, scale = _rounded(inputs, x.astype(jnp.float32), tuple(range(x.ndim)))
        return multiplied.inputs(op, state.inner, x, key) * scale

    @multiplies(multiplied and Operands(dense, rounded, multiplied.divides))
    def read(op: Op, state: MinifloatState, x: Array, key: Any) -> Array:
        x, x_scale, scale = x.astype(jnp.float32), None, op.to_output(state.scale)
        if inputs is not None:
            x, x_scale = _rounded(inputs, x, tuple(range(x.ndim)))
        # Not every backend multiplies short floats; float32 holds each of them.
        inner = state.inner
        if weights is not None:
            inner = awaited(inner, x).astype(jnp.float32)
        y = core.read(op, inner, x, key).astype(jnp.float32)
        return y * scale if x_scale is None else scale_product(y, jnp.reshape(x_scale, ()), scale)

    return Core(write, calibrate, read)


def _rounded(form: Floating, x: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """Values that the format has, as float32 with the derivative of `x / scale`, and the scale."""
    most = jnp.max(jnp.abs(lax.stop_gradient(x)), axes, keepdims=True, initial=0)
    # a power of two moves the exponent alone
    scale = step_of(most, form.largest, empty=1.0) if form.scaled else unit_of(x, axes)
    steps = divide(x, scale)
    # what lies beyond the largest is not rounded to infinity, which a scale rounded down would do
    held = jnp.clip(lax.stop_gradient(steps), -form.largest, form.largest)
    near = held.astype(form.dtype).astype(jnp.float32)
    return steps + lax.stop_gradient(near - steps), scale
