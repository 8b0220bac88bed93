"""Compensation of drift: outputs scaled by what a readout of the array has lost."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxsim.cores.cells.device import Device
from jaxsim.cores.conductance import AgingState
from jaxsim.cores.core import Core, State
from jaxsim.cores.geometry import other_axes
from jaxsim.cores.op import Op
from jaxsim.cores.role import role

Readout = Literal["array", "column", "reference"]

OWN = 0x4EF
"""What the key of a site is folded with for its column of reference cells."""


class CompensationState(NamedTuple):
    """State behind a compensation of drift.

    Attributes:
      inner: what the inner core wrote.
      first: the readout at the first read after programming, a number for each array or column.
      reference: cells of the reference columns, None where the array itself is read out.
    """

    inner: State
    first: Float[Array, "..."]
    reference: AgingState | None


@role("cells")
def drift_compensation(core: Core, *, per: Readout, device: Device, paired: bool) -> Core:
    """Scales outputs by what a readout at the first read was over what it is now.

    The readout drives one row after the other and adds up magnitudes, for a pair those of its
    differences. It is taken at the time of the cells (`js.age`), exactly, and outside of the
    converter: outputs are scaled digitally. Cells that have drifted use less of a converter's
    range, which `js.recalibrate` is for.

    Args:
      core: reads an array, its converter included.
      per: "array" has a factor for each array, "column" one for each column; "reference" reads out
        one more column of each array, whose cells are programmed to the largest conductance.
      device: of the cells.
      paired: whether the array has pairs of cells.
    """

    def aging(g: AgingState) -> Array:
        assert device.aging is not None
        return device.aging.at(g.cells, g.fate, g.time)

    def readout(op: Op, state: State, reference: AgingState | None) -> Array:
        """[*planes, *weight], with contracted axes of size 1, and those that share a factor."""
        planes, summed = op.planes, op.geometry.contracted
        rank = len(op.geometry.w_shape)
        if reference is not None:
            g = aging(reference)
        else:
            g = aging(_cells(state))
            g = jnp.abs(g[0] - g[1]) if paired else jnp.abs(g)
        if per == "array":
            batch = getattr(op.geometry, "w_batch", ())
            summed = other_axes(rank, batch)
        return jnp.mean(g, [planes + a for a in summed], keepdims=True)

    def write(op: Op, w: Array, key: Any) -> CompensationState:
        inner = core.write(op, w, key)
        reference = None if per != "reference" else _reference(op, w, key)
        return CompensationState(inner, readout(op, inner, reference), reference)

    def _reference(op: Op, w: Array, key: Any) -> AgingState:
        assert device.aging is not None
        key = jax.random.fold_in(key, OWN)
        kept = {*getattr(op.geometry, "w_batch", ()), *op.geometry.contracted}
        shape = [n if a in kept else 1 for a, n in enumerate(op.geometry.w_shape)]
        g = jnp.ones((*op.w_planes(w), *shape))
        return AgingState((), device.program(g, key), device.aging.draw(g, key), jnp.zeros(()))

    def calibrate(op: Op, state: CompensationState, x: Array) -> CompensationState:
        return state._replace(inner=core.calibrate(op, state.inner, x))

    def read(op: Op, state: CompensationState, x: Array, key: Any) -> Array:
        y = core.read(op, state.inner, x, key)
        now = readout(op, state.inner, state.reference)
        some = now > 0
        factor = jnp.where(some, state.first / jnp.where(some, now, 1), 1)
        lead = factor.shape[: op.planes]
        op.count_digital(multiplies=y.size, bits=8 * factor.nbytes)
        factor = jax.vmap(op.to_output)(factor.reshape(-1, *factor.shape[op.planes :]))
        return y * factor.reshape(*lead, *factor.shape[1:])

    return Core(write, calibrate, read)


def _cells(state: State) -> AgingState:
    leaves = jax.tree.leaves(state, is_leaf=lambda s: isinstance(s, AgingState))
    (found,) = (s for s in leaves if isinstance(s, AgingState))
    return found
