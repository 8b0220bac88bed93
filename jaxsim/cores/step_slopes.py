"""The derivative of a scale by what sets it, which rounding does not hand on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxsim.cores.core import Core, State
from jaxsim.cores.op import Op
from jaxsim.cores.product import Operands, multiplies, operands_of
from jaxsim.cores.role import role
from jaxsim.formats.clipping import is_set
from jaxsim.formats.grid import Grid
from jaxsim.formats.microscaling import Microscaled


class Sloped(NamedTuple):
    """State of a site whose scales have derivatives.

    Attributes:
      inner: What the core inside wrote.
      one: A one with the derivative of each scale of the weights, contracted axes of size 1.
    """

    inner: State
    one: Float[Array, "..."]


@role("scale")
def step_slopes(core: Core, *, weights: Any, inputs: Any) -> Core:
    """Hands on the derivative of the steps of rounding, which grow with what sets their range.

    A straight-through derivative takes the error of rounding for a constant. Where a range follows
    the values the error is a share of a step, and a smaller range has smaller errors. Here values
    are divided by a one before they are rounded and multiplied by it afterwards, and that one has
    the derivative of the logarithm of their range: so the error has it too. Values are what they
    were, and a step towards smaller ranges is seen.

    Args:
      core: Rounds and contracts.
      weights: Format that it rounds weights to, a `Grid` or short elements. Of any other, and where
        ranges are set, steps have no derivative.
      inputs: That of inputs, likewise.
    """
    operands = operands_of(core)

    def of_inputs(op: Op, x: Array) -> Array:
        alone = isinstance(inputs, Microscaled) or getattr(inputs, "per", "") == "token"
        axes = [a % x.ndim for a in op.geometry.x_summed] if alone else range(x.ndim)
        return _one(inputs, x, tuple(axes))

    def write(op: Op, w: Array, key: Any) -> Sloped:
        w = w.astype(jnp.float32)
        one = _one(weights, w, op.scale_axes(getattr(weights, "per", "")))
        return Sloped(core.write(op, w / one, key), jnp.broadcast_to(one, op.channel_shape()))

    def calibrate(op: Op, state: Sloped, x: Array) -> Sloped:
        return state._replace(inner=core.calibrate(op, state.inner, x))

    def weight(op: Op, state: Sloped) -> Array:
        assert operands is not None
        return operands.weight(op, state.inner) * state.one

    def rounded(op: Op, state: Sloped, x: Array, key: Any) -> Array:
        assert operands is not None
        one = of_inputs(op, x)
        return operands.inputs(op, state.inner, x / one, key) * one

    @multiplies(operands and Operands(weight, rounded, operands.divides))
    def read(op: Op, state: Sloped, x: Array, key: Any) -> Array:
        one = of_inputs(op, x)
        y = core.read(op, state.inner, x / one, key) * op.to_output(state.one)
        return y * (one.reshape(()) if one.size == 1 else op.geometry.x_to_output(one))

    return Core(write, calibrate, read)


def _one(form: Any, x: Float[Array, "..."], axes: Sequence[int]) -> Float[Array, "..."]:
    """A one for each range, with the derivative of the logarithm of its width."""
    x, axes = x.astype(jnp.float32), tuple(axes)
    follows = isinstance(form, Grid) and not is_set(form.clip)
    follows |= isinstance(form, Microscaled) and form.steps is None
    if not follows or x.size == 0:
        return jnp.ones((1,) * x.ndim)
    width = jnp.max(jnp.abs(x), axes, keepdims=True)
    if isinstance(form, Grid) and not form.symmetric:
        ends = (f(x, axes, keepdims=True, initial=0) for f in (jnp.max, jnp.min))
        width = jnp.subtract(*ends)
    here = lax.stop_gradient(width)
    return 1 + jnp.where(here > 0, (width - here) / jnp.where(here > 0, here, 1), 0)
