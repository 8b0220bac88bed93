"""Chips after some time: cells that have drifted, ranges that are set again, pulses counted."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxsim.cores.adc.column import AdcState
from jaxsim.cores.cells.aging import TEN_YEARS
from jaxsim.cores.conductance import AgingState, ProgrammedState
from jaxsim.formats.grid import Range
from jaxsim.network.deployment import widen_ranges
from jaxsim.network.network import Net, Network
from jaxsim.numerics.checks import check_range


def age(chip: Net, time: float | Array) -> Net:
    """Returns the chip as it is some time after it was programmed.

    Times count from the first read after programming, whatever the chip's time was before. Ranges
    stay those that were calibrated; `recalibrate` sets those of converters again.

    Args:
      chip: Deployed network with cells that age (`js.cells.Device.aging`).
      time: Seconds since the first read, 0 to 3.15576e8 (ten years). Traced, so that a sweep over
        it compiles once.

    Raises:
      ValueError: The chip is not deployed, none of its cells ages, or the time is out of range.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> x = jnp.ones((1, 8))
      >>> net = js.trace(lambda p, x: x @ p["w"], {"w": jnp.ones((8, 2))}, x)
      >>> array = js.analog(cells=js.cells.drifting(js.cells.proportional(0.0), 0.05))
      >>> chip = js.deploy(array(js.quantize(8, 8)(net)), key=jax.random.key(0), calibrate=x)
      >>> round(float(js.age(chip, 86400.0)(x)[0, 0]) / 8, 2)  # (86420 / 20)^-0.05
      0.66
    """
    _require_deployed(chip)
    check_range("time", time, 0, TEN_YEARS)

    def at(state: Any) -> Any:
        if not isinstance(state, AgingState):
            return state
        return state._replace(time=jnp.zeros_like(state.time) + time)

    if not _found(chip, AgingState):
        raise ValueError("chip: none of its cells ages; js.cells.drifting, pcm_… and rram_cmo do")
    return dataclasses.replace(chip, states=_mapped(at, chip.states, AgingState))


def recalibrate(chip: Net, *args: Any, **kwargs: Any) -> Net:
    """Sets the calibrated ranges of converters anew, as the chip is now; other ranges stay.

    `widen_ranges` only widens them, and cells that have drifted draw less current.

    Args:
      chip: Deployed network with converters of calibrated ranges.
      *args: Inputs, as `widen_ranges` takes them: a batch or an iterable of batches.
      **kwargs: Keyword arguments of the model.

    Raises:
      ValueError: The chip is not deployed, has no converters, or what `widen_ranges` raises.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> x = jnp.ones((1, 8))
      >>> net = js.trace(lambda p, x: x @ p["w"], {"w": jnp.ones((8, 2))}, x)
      >>> cells = js.cells.drifting(js.cells.proportional(0.0), 0.05)
      >>> chip = js.compose(js.quantize(8, 8), js.analog(adc=8, cells=cells))(net)
      >>> chip = js.deploy(chip, key=jax.random.key(0), calibrate=x)
      >>> old = js.age(chip, 86400.0)
      >>> ends = [c.states["w"].inner.outputs.hi for c in (js.recalibrate(old, x), old)]
      >>> bool(ends[0] < ends[1])
      True
    """
    _require_deployed(chip)
    if not _found(chip, AdcState):
        raise ValueError("chip: it has no converters; js.analog(adc=…) puts them at sites")

    def unseen(state: Any) -> Any:
        if not isinstance(state, AdcState):
            return state
        nothing = jnp.full_like(state.outputs.lo, jnp.inf)
        return state._replace(outputs=Range(nothing, -nothing))

    def seen(state: Any, new: Any) -> Any:
        return state._replace(outputs=new.outputs) if isinstance(state, AdcState) else state

    fresh = dataclasses.replace(chip, states=_mapped(unseen, chip.states, AdcState))
    new = widen_ranges(fresh, *args, **kwargs)
    return dataclasses.replace(chip, states=_mapped(seen, chip.states, AdcState, new.states))


def count_pulses(chip: Network) -> dict[str, int]:
    """Counts the pulses that programmed the cells of each site.

    Times the energy of a pulse, it is what programming the chip has cost.

    Args:
      chip: Deployed network with cells whose writes are verified (`js.cells.verified`).

    Returns:
      The number by name of the site.

    Raises:
      ValueError: The chip is not deployed, or no site counts its pulses.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> x = jnp.ones((1, 8))
      >>> net = js.trace(lambda p, x: x @ p["w"], {"w": jnp.ones((8, 2))}, x)
      >>> cells = js.cells.verified(js.cells.independent(0.0), tolerance=0.01, pulses=5)
      >>> chip = js.compose(js.quantize(8, 8), js.analog(cells=cells))(net)
      >>> chip = js.deploy(chip, key=jax.random.key(0), calibrate=x)
      >>> js.count_pulses(chip)  # one for each cell of the 16 pairs
      {'w': 32}
    """
    _require_deployed(chip)
    found: dict[str, int] = {}
    for name, state in chip.states.items():
        counts = [s.pulses for s in _leaves(state, ProgrammedState)]
        if counts:
            found[name] = int(sum(np.sum(np.asarray(n, np.float64)) for n in counts))
    if not found:
        raise ValueError("chip: none of its sites counts pulses; js.cells.verified does")
    return found


def _require_deployed(chip: Network) -> None:
    if not isinstance(chip, Network) or not chip.deployed:
        raise ValueError("chip is not deployed: deploy(net, key=…) programs its cells")


def _leaves(states: Any, kind: type) -> list[Any]:
    leaves = jax.tree.leaves(states, is_leaf=lambda s: isinstance(s, kind))
    return [s for s in leaves if isinstance(s, kind)]


def _found(chip: Network, kind: type) -> bool:
    return bool(_leaves(chip.states, kind))


def _mapped(function: Any, states: Any, kind: type, *others: Any) -> Any:
    return jax.tree.map(function, states, *others, is_leaf=lambda s: isinstance(s, kind))
