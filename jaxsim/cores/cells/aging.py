"""Cells that change after they were programmed: drift, and noise that grows with time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, Key

from jaxsim.cores.cells.device import Aging, Device, normal
from jaxsim.cores.cells.layers import require_layers
from jaxsim.numerics.checks import check_range, checked_int

Conductance = Float[Array, "..."]

TEN_YEARS = 10 * 365.25 * 24 * 3600
"""The longest time after programming, in seconds, that devices are asked about."""

OWN = 0xA6E
"""What the key of programming is folded with for what happens later."""


class Fate(NamedTuple):
    """What was decided about each cell when it was programmed.

    Attributes:
      exponent: nu of the cell's drift; standard normal numbers where drift adds instead.
      flicker: Standard normal number by which its 1/f noise is scaled.
    """

    exponent: Conductance
    flicker: Conductance


def drifting(
    device: Device,
    exponent: float | Array,
    *,
    spread: float | Array = 0.0,
    flicker: float | Array = 0.0,
    first: float | Array = 20.0,
    pulse: float | Array = 250e-9,
) -> Device:
    """A device whose conductances fall as a power of time, g (t / t0)^-nu, with 1/f noise.

    Each cell has a nu of its own. The noise of a cell is what 1/f fluctuations have added since
    programming: of deviation flicker · g · sqrt(ln((t + t_r) / 2 t_r)), by one number a cell, so
    that reads at one time agree and noise grows from one time to the next.

    Args:
      device: what programming yields, and read noise beside that.
      exponent: mean of nu, 0 to 1. Traced.
      spread: standard deviation of nu from cell to cell, at least 0. Traced.
      flicker: Q of the 1/f noise, relative to the conductance, at least 0. Traced.
      first: t0, time of the first read, in seconds after programming, above 0. Traced.
      pulse: t_r, duration of a read in seconds, above 0. Traced.

    Raises:
      ValueError: an argument out of range, or a device that ages already or has cells that are
        stuck or at another temperature: what would drift then.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> import jaxsim as js
      >>> aging = js.cells.drifting(js.cells.proportional(0.01), 0.05).aging
      >>> fate = aging.draw(jnp.ones(3), jax.random.key(0))
      >>> [round(float(aging.at(jnp.ones(3), fate, t)[0]), 3) for t in (0.0, 20 * 99.0)]
      [1.0, 0.794]
    """
    require_layers("drifting", device, refused=("stuck", "at_temperature"))
    if device.aging is not None:
        raise ValueError(f"drifting: {device} drifts in its own way already")
    check_range("exponent", exponent, 0, 1)
    check_range("spread", spread, 0)
    check_range("flicker", flicker, 0)
    check_range("first", first, 0, above=True)
    check_range("pulse", pulse, 0, above=True)
    nu, deviation, noise = (jnp.asarray(v, jnp.float32) for v in (exponent, spread, flicker))
    aging = _power_law(
        Partial(_constant, nu=nu, deviation=deviation),
        Partial(_constant_noise, q=noise),
        first,
        pulse,
    )
    return device._replace(aging=aging)


def _constant(g: Array, *, nu: Array, deviation: Array) -> tuple[Array, Array]:
    return nu + 0 * g, deviation + 0 * g


def _constant_noise(g: Array, *, q: Array) -> Array:
    return q + 0 * g


def pcm_nandakumar(*, on_off: float | Array | None = None) -> Device:
    """Phase-change memory with the drift and the 1/f noise of a million cells of up to 25 µS.

    No conductance falls below zero. The first read is 20 s after programming, a read takes 250 ns.

    Args:
      on_off: ratio of the largest to the smallest conductance, above 1; None for infinity. Traced.

    Raises:
      ValueError: on_off out of range.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> import jaxsim as js
      >>> js.cells.pcm_nandakumar().program(jnp.full(3, 0.5), jax.random.key(0)).shape
      (3,)

    Source: Nandakumar et al. (2019), ICECS, and Joshi et al. (2020), Nature Communications 11,
      2473, in the formulas that IBM's aihwkit documents for its PCM-like noise model.
    """
    aging = _power_law(Partial(_nandakumar_exponent), Partial(_nandakumar_noise), 20.0, 250e-9)
    return _pcm(_nandakumar, (0.26348, 1.9650, -1.1731), 25.0, aging, on_off)


def _nandakumar_exponent(g: Array) -> tuple[Array, Array]:
    log = _log(g)
    return jnp.clip(-0.0155 * log + 0.0244, 0.049, 0.1), jnp.clip(
        -0.0125 * log - 0.0059, 0.008, 0.045
    )


def _nandakumar_noise(g: Array) -> Array:
    return jnp.minimum(0.0088 / jnp.maximum(_power(g, 0.65), 1e-3), 0.2)


def pcm_hermes(devices: int = 2, *, on_off: float | Array | None = None) -> Device:
    """Phase-change memory of the HERMES chip: one or two devices a cell, 10.35 or 20.7 µS.

    No conductance falls below zero. The first read is 200 or 300 s after programming, a read takes
    512 ns. Two devices are taken to hold the same.

    Args:
      devices: in a cell, 1 or 2.
      on_off: ratio of the largest to the smallest conductance, above 1; None for infinity. Traced.

    Raises:
      ValueError: an argument out of range.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> import jaxsim as js
      >>> js.cells.pcm_hermes().program(jnp.full(3, 0.5), jax.random.key(0)).shape
      (3,)

    Source: Le Gallo et al. (2023), Nature Electronics, and Khaddam-Aljameh et al. (2022), JSSC, in
      the fits that IBM's aihwkit documents for its Hermes noise model.
    """
    one = checked_int("devices", devices, 1, 2) == 1
    largest = 10.35 if one else 20.7
    fit = (0.15781817, 2.32443916, -2.16310839, 0.68841818)
    fit = fit if one else (0.16603222, 4.71806468, -8.48101252, 4.68961419)
    exponent = _hermes_single_exponent if one else _hermes_double_exponent
    noise = _hermes_single_noise if one else _hermes_double_noise
    first = 200.0 if one else 300.0
    aging = _power_law(Partial(exponent), Partial(noise), first, 512e-9)
    return _pcm(_hermes, fit, largest, aging, on_off)


def _hermes_mean(g: Array) -> Array:
    low = jnp.clip(-0.0387 * _log(g) - 0.0182, 0.0720, 0.13)
    return jnp.where(g < 0.0945, low, -0.0436 * g**2 - 0.0126 * g + 0.0736)


def _hermes_single_exponent(g: Array) -> tuple[Array, Array]:
    low = jnp.clip(-0.0120 * _log(g) - 0.0023, 0.0124, 0.04)
    return _hermes_mean(g), jnp.where(g < 0.3039, low, -0.0165 * g**2 + 0.0116 * g + 0.0104)


def _hermes_double_exponent(g: Array) -> tuple[Array, Array]:
    low = jnp.clip(-0.0117 * _log(g) - 0.0057, 0.0091, 0.04)
    return _hermes_mean(g), jnp.where(g < 0.3055, low, -0.0118 * g**2 + 0.0093 * g + 0.0073)


def _hermes_single_noise(g: Array) -> Array:
    low = jnp.clip(-0.0078 * _log(g) + 0.0038, 0.0179, 0.04)
    high = 0.0664 * g**3 - 0.1352 * g**2 + 0.0768 * g + 0.0088
    return jnp.where(g < 0.1591, low, high)


def _hermes_double_noise(g: Array) -> Array:
    low = jnp.clip(-0.0117 * _log(g) - 0.0069, 0.015, 0.04)
    high = 0.0069 * g**3 - 0.0280 * g**2 + 0.0211 * g + 0.0123
    return jnp.where(g < 0.16, low, high)


def _pcm(
    program: Callable[..., Array],
    fit: tuple[float, ...],
    largest: float,
    aging: Aging,
    on_off: float | Array | None,
) -> Device:
    """A device of a spread in µS, lowest power of the relative conductance first."""
    if on_off is not None:
        check_range("on_off", on_off, 1, above=True)
        on_off = jnp.asarray(on_off, jnp.float32)
    return Device(Partial(program, fit=jnp.asarray(fit) / largest), on_off, aging=aging)


def _nandakumar(g: Array, key: Key[Array, ""], *, fit: Array) -> Array:
    return _pcm_spread(g, key, fit)


def _hermes(g: Array, key: Key[Array, ""], *, fit: Array) -> Array:
    return _pcm_spread(g, key, fit)


def _pcm_spread(g: Array, key: Key[Array, ""], fit: Array) -> Array:
    return jnp.maximum(g + jnp.polyval(fit[::-1], g) * normal(key, g.shape), 0)


def _power_law(
    exponent: Callable[..., Any],
    noise: Callable[..., Any],
    first: float | Array,
    pulse: float | Array,
) -> Aging:
    """Drift by a power of time, whose exponents do not fall below zero, and 1/f noise.

    Args:
      exponent: from the conductance that was asked for to mean and deviation of nu.
      noise: from the conductance that was reached to Q.
      first: time of the first read.
      pulse: duration of a read.
    """
    times = {"first": jnp.asarray(first, jnp.float32), "pulse": jnp.asarray(pulse, jnp.float32)}
    return Aging(Partial(_draw, exponent), Partial(_faded, noise, **times))


def _draw(exponent: Callable[..., Any], g: Array, key: Key[Array, ""]) -> Fate:
    mean, deviation = exponent(jnp.maximum(g, 0))
    first, second = jax.random.split(jax.random.fold_in(key, OWN))
    # mirrored at zero, as the fits of measured exponents are
    nu = jnp.abs(mean + deviation * normal(first, g.shape))
    return Fate(nu, normal(second, g.shape))


def _faded(
    noise: Callable[..., Any], g: Array, fate: Fate, time: Any, *, first: Array, pulse: Array
) -> Array:
    drifted = g * jnp.exp(-fate.exponent * jnp.log1p(time / first))
    sigma = noise(jnp.maximum(g, 0)) * _grown(time + first, pulse)
    # cells whose errors were left below zero keep their sign
    return drifted * jnp.maximum(1 + sigma * fate.flicker, 0)


def _grown(t: Any, pulse: Array) -> Array:
    """What 1/f noise from a duration of a read to a time t adds up to, relative to its Q."""
    return jnp.sqrt(jnp.log((t + pulse) / (2 * pulse)))


def _log(g: Array) -> Array:
    return jnp.log(jnp.clip(g, 1e-7, None))


def _power(g: Array, exponent: float) -> Array:
    return jnp.exp(exponent * _log(g))


def rram_cmo(
    acceptance: float = 0.2, *, largest: float | Array = 88.2, on_off: float | Array = 9.8
) -> Device:
    """Resistive memory of a conductive metal oxide on HfOx: relaxation and 1/f noise.

    Conductances stay between the smallest and the largest. Their mean falls, and their spread
    grows, with the logarithm of the time in seconds; the first read is after 1 s and takes 1 µs.

    Args:
      acceptance: range in percent within which a cell is programmed, 0.2 or 2.
      largest: conductance of a full cell in µS, above 0 and at most 88.2. Traced.
      on_off: ratio of the largest to the smallest, above 1; the measurements end at 9 µS. Traced.

    Raises:
      ValueError: an argument out of range.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> import jaxsim as js
      >>> js.cells.rram_cmo().program(jnp.full(3, 0.5), jax.random.key(0)).shape
      (3,)

    Source: Falcone et al. (2025), arXiv 2502.04524, in the fits that IBM's aihwkit documents for
      its CMO/HfOx noise model.
    """
    if acceptance not in _CMO_SPREAD:
        raise ValueError(f"acceptance={acceptance!r}: must be 0.2 or 2")
    check_range("largest", largest, 0, 88.2, above=True)
    check_range("on_off", on_off, 1, above=True)
    top, ratio = (jnp.asarray(v, jnp.float32) for v in (largest, on_off))
    fit = jnp.asarray(_CMO_SPREAD[acceptance], jnp.float32)
    aging = Aging(Partial(_cmo_draw), Partial(_cmo_relaxed, top=top, ratio=ratio))
    return Device(Partial(_cmo, top=top, fit=fit), ratio, aging=aging)


_CMO_SPREAD = {0.2: (0.00081107, 0.00106879), 2: (0.0112185391, 0.01129027418)}
_CMO_FIRST, _CMO_PULSE, _CMO_NOISE = 1.0, 1e-6, 0.0277316483
_CMO_MEAN, _CMO_RELAXATION = -0.08900206, (0.41183342, 0.04201137)


def _cmo(g: Array, key: Key[Array, ""], *, top: Array, fit: Array) -> Array:
    """Spread of a constant and a share of the conductance, in µS."""
    return g + (fit[0] / top + fit[1] * g) * normal(key, g.shape)


def _cmo_draw(g: Array, key: Key[Array, ""]) -> Fate:
    return Fate(*(normal(k, g.shape) for k in jax.random.split(jax.random.fold_in(key, OWN))))


def _cmo_relaxed(g: Array, fate: Fate, time: Any, *, top: Array, ratio: Array) -> Array:
    t = time + _CMO_FIRST
    log = jnp.log(t)
    moved = g * top + _CMO_MEAN * log
    moved = moved + (_CMO_RELAXATION[0] + _CMO_RELAXATION[1] * log) * fate.exponent
    q = _CMO_NOISE * jnp.log(jnp.maximum(moved, 1.0)) / math.log(10)
    moved = moved + q * _grown(t, jnp.asarray(_CMO_PULSE)) * fate.flicker
    return jnp.clip(moved / top, 1 / ratio, 1)
