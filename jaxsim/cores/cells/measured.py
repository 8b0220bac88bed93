"""Measured devices, as fitted by others: what programming yields, and what reading adds."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from jaxsim.cores.cells.device import Device, normal
from jaxsim.numerics.checks import check_range, is_traced


def sonos(
    largest: float | Array = 1600.0, *, on_off: float | Array = 1e7, days: float | Array = 0.0
) -> Device:
    """A 40 nm SONOS charge trap, whose state is a current: spread, drift and read noise.

    The spread and the drift of the mean after `days` are interpolated between those measured at 0,
    1, … 5 days.

    Args:
      largest: current of a full cell in nA, above 0 and at most 3200; below 1800 once it has
        drifted. Traced.
      on_off: ratio of the largest to the smallest current, above 1. Traced.
      days: since programming, 0 to 5. Traced.

    Raises:
      ValueError: an argument out of range.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> js.cells.sonos().program(jnp.full(3, 0.5), jax.random.key(0)).shape
      (3,)

    Source: measurements of Agrawal et al. (2022), IEDM 21.7, figs. 10 and 11, as fitted in
      CrossSim 3.2 (Sandia National Laboratories).
    """
    check_range("days", days, 0, 5)
    check_range("largest", largest, 0, 3200, above=True)
    if not _is_zero(days):
        check_range("largest", largest, 0, 1800, above=True)
    check_range("on_off", on_off, 1, above=True)
    top, days = (jnp.asarray(v, jnp.float32) for v in (largest, days))
    return Device(
        jax.tree_util.Partial(_sonos, top=top, days=days),
        jnp.asarray(on_off, jnp.float32),
        jax.tree_util.Partial(_sonos_noise, top=top),
    )


def rram_milo(largest: float | Array = 225.0, *, on_off: float | Array = 4.5) -> Device:
    """Resistive memory programmed with verification: errors shrink towards large conductances.

    Args:
      largest: conductance of a full cell in µS, above 0 and at most 225. Traced.
      on_off: ratio of the largest to the smallest, above 1; the measurements end at 50 µS. Traced.

    Raises:
      ValueError: an argument out of range.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> js.cells.rram_milo().program(jnp.full(3, 0.5), jax.random.key(0)).shape
      (3,)

    Source: measurements of Milo et al. (2021), IRPS, fig. 4 (IGVVA-100), as fitted in CrossSim 3.2.
    """
    return _measured((-0.009107, 4.782321), largest, 225.0, on_off)


def rram_wan(largest: float | Array = 39.26, *, on_off: float | Array = 39.26) -> Device:
    """Resistive memory of a compute-in-memory chip, one second after programming.

    Args:
      largest: conductance of a full cell in µS, above 0 and at most 39.26. Traced.
      on_off: ratio of the largest to the smallest, above 1. Traced.

    Raises:
      ValueError: an argument out of range.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> js.cells.rram_wan().program(jnp.full(3, 0.5), jax.random.key(0)).shape
      (3,)

    Source: measurements of Wan et al. (2022), Nature 608, extended data fig. 3, as fitted in
      CrossSim 3.2.
    """
    return _measured((1.536e-4, -1.167e-2, 2.374e-1, 1.053), largest, 39.26, on_off)


def pcm_joshi(largest: float | Array = 25.0, *, on_off: float | Array = 100.0) -> Device:
    """Phase-change memory, 27 seconds after programming; no conductance falls below zero.

    Args:
      largest: conductance of a full cell in µS, above 0 and at most 25. Traced.
      on_off: ratio of the largest to the smallest, above 1. Traced.

    Raises:
      ValueError: an argument out of range.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> js.cells.pcm_joshi().program(jnp.full(3, 0.5), jax.random.key(0)).shape
      (3,)

    Source: measurements of Joshi et al. (2020), Nature Communications 11, 2473, fig. 3b, as fitted
      in CrossSim 3.2.
    """
    fit = (-0.00178767, 0.07585724, 0.28638599)
    return _measured(fit, largest, 25.0, on_off, floor=0.0)


def _is_zero(value: float | Array) -> bool:
    return not is_traced(value) and float(value) == 0


def _measured(
    fit: tuple[float, ...],
    largest: float | Array,
    limit: float,
    on_off: float | Array,
    floor: float = -math.inf,
) -> Device:
    check_range("largest", largest, 0, limit, above=True)
    check_range("on_off", on_off, 1, above=True)
    program = jax.tree_util.Partial(
        _fitted, top=jnp.asarray(largest, jnp.float32), fit=jnp.asarray(fit), floor=floor
    )
    return Device(program, jnp.asarray(on_off, jnp.float32))


def _fitted(g: Array, key: Key[Array, ""], *, top: Array, fit: Array, floor: float) -> Array:
    """Spread of a polynomial of the conductance, highest power first, in µS."""
    sigma = jnp.maximum(jnp.polyval(fit, g * top), 0)
    return jnp.maximum(g + sigma / top * normal(key, g.shape), floor)


# By day: spread A (1 - exp(-I / B)) in nA, and the drift of the mean, lowest power of I first.
_SONOS_SPREAD = (
    (19.88665, 176.3115),
    (25.59102, 186.85544),
    (28.72753, 193.56834),
    (31.04318, 198.90332),
    (33.76214, 204.77023),
    (34.57909, 207.34309),
)
_SONOS_DRIFT = np.array(
    [
        *[0.0] * 11,  # by definition
        1.72684e-01,
        5.72552e-02,
        -6.85715e-04,
        3.50271e-06,
        -9.37682e-09,
        1.40575e-11,
        -1.19803e-14,
        5.41293e-18,
        -8.85448e-22,
        -1.66869e-25,
        5.95180e-29,
        2.50712e-01,
        6.62195e-02,
        -6.83218e-04,
        2.99442e-06,
        -6.78255e-09,
        7.70482e-12,
        -3.04983e-15,
        -2.15919e-18,
        2.94617e-21,
        -1.23359e-24,
        1.85329e-28,
        -1.75300e-02,
        9.76883e-02,
        -9.63791e-04,
        4.55551e-06,
        -1.22391e-08,
        1.93786e-11,
        -1.85899e-14,
        1.07659e-17,
        -3.58211e-21,
        5.96785e-25,
        -3.30410e-29,
        4.03338e-02,
        1.03111e-01,
        -1.04740e-03,
        4.83961e-06,
        -1.28132e-08,
        1.99484e-11,
        -1.85139e-14,
        1.00008e-17,
        -2.84944e-21,
        3.01008e-25,
        1.18747e-29,
        3.19927e-01,
        1.06596e-01,
        -1.04054e-03,
        4.50290e-06,
        -1.10352e-08,
        1.56477e-11,
        -1.27592e-14,
        5.45513e-18,
        -7.26841e-22,
        -2.43893e-25,
        7.14608e-29,
    ]
).reshape(6, 11)
_SONOS_NOISE = (12.58037, 215.36557)


def _sonos(g: Array, key: Key[Array, ""], *, top: Array, days: Array) -> Array:
    measured = jnp.arange(6.0)

    def on_the_day(values: Any) -> Array:
        return jnp.interp(days, measured, jnp.asarray(values, jnp.float32))

    current = g * top
    # powers of I / 1000: the smallest coefficients lie below the smallest normal float
    drift = [on_the_day(_SONOS_DRIFT[:, power] * 1e3**power) for power in range(11)]
    current = current + jnp.polyval(jnp.stack(drift[::-1]), current / 1e3)
    spread = (on_the_day([day[i] for day in _SONOS_SPREAD]) for i in (0, 1))
    sigma = _saturating(current, *spread)
    return jnp.maximum(current + sigma * normal(key, g.shape), 0) / top


def _sonos_noise(g: Array, *, top: Array) -> Array:
    return _saturating(g * top, *_SONOS_NOISE) / top


def _saturating(current: Array, most: Any, scale: Any) -> Array:
    return jnp.maximum(most * (1 - jnp.exp(-current / scale)), 0)
