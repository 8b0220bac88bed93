"""What one transformed site computes: its weight is written or was, and read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
from jax import lax
from jaxtyping import Array

from jaxsim.cores.core import Core, State
from jaxsim.cores.op import Op
from jaxsim.cores.wrapper import build
from jaxsim.network.lookups import as_looked_up, read_rows, row_axes, row_ids
from jaxsim.network.mesh_places import everyone
from jaxsim.network.plan import Contraction
from jaxsim.numerics.arrays import own_promotion
from jaxsim.numerics.gradients import straight_through


class SiteCall(NamedTuple):
    """What is static of a site's call; sites that are alike are traced once.

    Attributes:
      op: Contraction of the site.
      written: True if there is a state, False if its weight is written in the call.
      calibrating: True if ranges are updated.
      sharing: Names and sizes of the axes of a mesh along which other devices hold the weight too.
    """

    op: Op
    written: bool
    calibrating: bool
    sharing: tuple[tuple[str, int], ...]

    def states(self, wrappers: Any, w: Any, at: Any, key: Any, *, integer: bool) -> Any:
        """The core of a site, its op, and what is written or was.

        Args:
          wrappers: Wrappers of the site, outermost first.
          w: The weight, or its state where that is written.
          at: Iteration of each loop around that has weights of its own.
          key: Random key to write by.
          integer: True to compute in codes, False as derivatives are taken.
        """
        core, op = build(wrappers), dataclasses.replace(self.op, integer=integer, scan_index=at)
        return core, op, w if self.written else core.write(op, w, key)


@partial(jax.jit, static_argnums=0)
def multiply(
    call: SiteCall,
    wrappers: Any,
    x: Array,
    w: Any,
    at: Any,
    write_key: Any,
    read_key: Any,
    places: tuple[Any, ...],
    rows: Array | None = None,
) -> tuple[Array, State | None]:
    """Multiplies by a weight, or by what was written of it, which is calibrated first if asked.

    Args:
      call: What is static.
      wrappers: Wrappers of the site, outermost first.
      x: Input.
      w: The weight, or its state.
      at: Iteration of each loop around that has weights of its own.
      write_key: Random key to write by.
      read_key: Random key to read by.
      places: Place of this device along the axes that `call` names.
      rows: How often each row of the input counts; None for once.

    Returns:
      The output, and the state where it is calibrated.
    """

    def read(integer: bool) -> Callable[..., Array]:
        @own_promotion()
        def run(wrappers: Any, w: Any, x: Array, at: Any, write_key: Any, read_key: Any) -> Array:
            core, op, state = call.states(wrappers, w, at, write_key, integer=integer)
            return core.read(op, state, x, read_key)

        return run

    updated = None
    if call.calibrating and call.written:
        op = dataclasses.replace(
            call.op, integer=True, ranges="stored", scan_index=at, deterministic=False
        )
        with own_promotion():
            xs, counts = jax.tree.map(partial(everyone, call.sharing, places), (x, rows))
            w = updated = calibrated(build(wrappers), op, w, xs, counts)
    smooth = read(False)
    if call.written and _is_short(w):
        # Derivatives make floats of what is stored again: kept, they are the float model.
        smooth = jax.checkpoint(smooth)
    y = straight_through(read(True), smooth)(wrappers, w, x, at, write_key, read_key)
    return y, updated


def _is_short(state: State) -> bool:
    """Tells if a state holds numbers of a weight in a byte or less."""
    return any(a.ndim > 1 and a.dtype.itemsize == 1 for a in jax.tree.leaves(state))


def look_up(
    call: SiteCall,
    eqn: jex.JaxprEqn,
    entry: Contraction,
    wrappers: Any,
    ins: list[Any],
    w: Any,
    at: Any,
    write_key: Any,
    read_key: Any,
) -> Array:
    """Takes rows of a table, or of what was written of it.

    Args:
      call: What is static.
      eqn: Equation that looks up.
      entry: Its site in the plan.
      wrappers: Wrappers of the site, outermost first.
      ins: Values of the equation's operands.
      w: The table, or its state.
      at: Iteration of each loop around that has tables of its own.
      write_key: Random key to write by.
      read_key: Random key to read by.
    """

    def read(integer: bool) -> Callable[..., Array]:
        @own_promotion()
        def run(wrappers: Any, w: Any, ids: Array, at: Any, write_key: Any, read_key: Any) -> Array:
            core, op, state = call.states(wrappers, w, at, write_key, integer=integer)
            held = dataclasses.replace(op, integer=integer or call.written)
            written = state if call.written else None
            axes = row_axes(wrappers, held, entry.w, entry.site.name, written)
            return read_rows(core, op, state, ids, axes, read_key)

        return run

    ids = row_ids(eqn, ins)
    rows = straight_through(read(True), read(False))(wrappers, w, ids, at, write_key, read_key)
    return as_looked_up(eqn, ins, rows)


def calibrated(core: Core, op: Op, state: State, xs: Array, rows: Array | None = None) -> State:
    """Updates a state by inputs, one after the other.

    Args:
      core: Core of a site.
      op: Contraction of the site.
      state: State before.
      xs: Inputs, with a leading axis.
      rows: How often each of their rows counts, with a leading axis; None for once.
    """

    def one(state: State, inputs: tuple[Array, Array | None]) -> tuple[State, None]:
        x, counts = inputs
        return core.calibrate(dataclasses.replace(op, rows=counts), state, x), None

    if len(xs) == 1:
        return one(state, jax.tree.map(lambda a: a[0], (xs, rows)))[0]
    return lax.scan(one, state, (xs, rows))[0]
