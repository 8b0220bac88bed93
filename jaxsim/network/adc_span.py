"""One range for all converters of a chip, from those that each was calibrated for."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from jaxsim.cores.adc.column import AdcState, column_adc
from jaxsim.cores.adc.converter import ADC, Column
from jaxsim.cores.wrapper import Wrapper, place_of
from jaxsim.formats.grid import Range
from jaxsim.network.network import Network, run_network
from jaxsim.network.unheld import Absent


def common_span(chip: Network) -> float:
    """Measures the range that holds what every converter of a chip was calibrated for.

    A chip has one supply, and converters that each have a range of their own ask for as many
    references. The range is in currents of one full cell whose row is driven fully, so sites of
    other formats, slices and mappings have it in common: `js.adc.uniform(8, span=…)` takes it, and
    is static in training, too.

    Args:
      chip: Deployed network whose converters are calibrated (`js.analog(adc=…)`).

    Returns:
      The largest of the ranges' ends, above 0.

    Raises:
      ValueError: The chip is not deployed or calibrated, has no converters, or they saw nothing but
        zeros.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> x = jnp.ones((1, 8))
      >>> net = js.trace(lambda p, x: x @ p["w"], {"w": jnp.ones((8, 2))}, x)
      >>> eight = js.quantize(8, 8)
      >>> chip = js.deploy(js.compose(eight, js.analog(adc=8))(net), calibrate=x)
      >>> span = js.common_span(chip)
      >>> round(span, 4)  # eight full cells
      8.0
      >>> one = js.compose(eight, js.analog(adc=js.adc.uniform(8, span=span)))(net)
      >>> round(float(one(x)[0, 0]), 2)
      8.0

    Source: one static range of all converters is that of Büchel et al. (2025), Analog Foundation
      Models, arXiv 2505.09663.
    """
    if not isinstance(chip, Network) or not chip.calibrated:
        raise ValueError("chip is not calibrated: deploy(net, calibrate=inputs) sets its ranges")
    columns = _columns(chip)
    found = 0.0
    for name, state in chip.states.items():
        for r in _calibrated(state):
            found = max(found, _in_cells(r, columns[name]))
    if not np.isfinite(found) or found <= 0:
        raise ValueError(
            "chip: none of its converters has seen more than zeros; js.analog(adc=8) and deploy(…, "
            "calibrate=inputs) give it ranges"
        )
    return found


def _calibrated(state: Any) -> list[Range]:
    leaves = jax.tree.leaves(state, is_leaf=lambda s: isinstance(s, AdcState))
    ranges = [s.outputs for s in leaves if isinstance(s, AdcState)]
    return [r for r in ranges if np.all(np.asarray(r.lo) <= np.asarray(r.hi))]


def _in_cells(r: Range, column: Column) -> float:
    """The larger end of a range [*stack, *planes] in currents of a full cell."""
    drive = max(-column.x_lo, column.x_hi)
    most = np.maximum(np.abs(np.asarray(r.lo)), np.abs(np.asarray(r.hi)))
    return float(np.max(most / (drive * np.maximum(column.w_hi, 1))))


def _columns(chip: Network) -> dict[str, Column]:
    """What meets in a column of each site, as its converter is told."""
    found: dict[str, Column] = {}

    def chain_of(name: str, chain: tuple[Wrapper, ...]) -> tuple[Wrapper, ...]:
        at = place_of(chain, "adc")
        if at == len(chain):
            return chain

        def span(column: Column, bits: Any, signed: bool) -> tuple[Any, Any]:
            found[name] = column
            return column.w_hi, column.w_hi

        told = ADC(lambda y, lo, hi, signed, *parts: y, _unseen, span, 1.0)
        signed = chain[at].settings["signed"]
        return (*chain[:at], Wrapper.of(column_adc, adc=told, signed=signed), *chain[at + 1 :])

    cores = {name: chain_of(name, chain) for name, chain in chip.cores.items()}
    plain = dataclasses.replace(chip, states={}, deployed=False, calibrated=False, absent=Absent())
    probe = dataclasses.replace(plain, cores=cores)
    key = jax.eval_shape(lambda: jax.random.key(0))
    jax.eval_shape(run_network, probe, chip.example, key)
    return found


def _unseen(*_: Any) -> Any:
    raise AssertionError("a range that follows from codes observes nothing")
