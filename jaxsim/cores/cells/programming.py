"""Devices made of others: verified writes, cells that are stuck, another temperature."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Float, Key

from jaxsim.cores.cells.device import Aging, Device, Pulses
from jaxsim.cores.cells.layers import require_layers
from jaxsim.numerics.checks import Count, check_range, checked_int, is_traced

BOLTZMANN = 8.617333e-5
"""In eV / K."""

STUCK = 0x57C
"""What the key of programming is folded with for cells that are stuck."""


def verified(device: Device, *, tolerance: float | Array, pulses: int) -> Device:
    """Programs, reads, and programs those cells again that missed, up to so many pulses each.

    Each pulse is a programming of the device with an error of its own; the read between is exact.
    `js.count_pulses` says how many pulses a chip took.

    Args:
      device: what one pulse yields.
      tolerance: largest error that is left, in units of the largest conductance, at least 0.
        Traced.
      pulses: largest number for a cell, at least 1; one is the device as it is.

    Raises:
      ValueError: an argument out of range, or a device whose cells are stuck, at another
        temperature or verified already.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> import jaxsim as js
      >>> device = js.cells.verified(js.cells.independent(0.05), tolerance=0.02, pulses=20)
      >>> g = device.program(jnp.full(1000, 0.5), jax.random.key(0))
      >>> bool(jnp.mean(jnp.abs(g - 0.5) <= 0.02) > 0.99)
      True
    """
    require_layers("verified", device, refused=("stuck", "at_temperature"))
    if device.pulses is not None:
        raise ValueError(f"verified: {device} counts its pulses already")
    check_range("tolerance", tolerance, 0)
    most = checked_int("pulses", pulses, 1)
    loop = {"tolerance": jnp.asarray(tolerance, jnp.float32)}
    return device._replace(
        program=Partial(_verified, device, Count(most), **loop),
        pulses=Pulses(Partial(_pulses, device, Count(most), **loop), most),
    )


def _verified(
    device: Device, most: Count, g: Array, key: Key[Array, ""], *, tolerance: Array
) -> Array:
    return _until_close(device, most, g, key, tolerance)[0]


def _pulses(
    device: Device, most: Count, g: Array, key: Key[Array, ""], *, tolerance: Array
) -> Array:
    return _until_close(device, most, g, key, tolerance)[1]


def _until_close(
    device: Device, most: Count, g: Array, key: Key[Array, ""], tolerance: Array
) -> tuple[Array, Array]:
    """What is reached, and by how many pulses; the first is that of the device with this key."""

    def pulse(there: tuple[Array, Array], i: Array) -> tuple[tuple[Array, Array], None]:
        reached, count = there
        missed = jnp.abs(reached - g) > tolerance
        again = device.program(g, jax.random.fold_in(key, i))
        return (jnp.where(missed, again, reached), count + missed), None

    first = (device.program(g, key), jnp.ones_like(g))
    return lax.scan(pulse, first, jnp.arange(1, len(most)))[0]


def stuck(device: Device, *, low: float | Array = 0.0, high: float | Array = 0.0) -> Device:
    """Cells of which a share holds the smallest or the largest conductance, whatever is written.

    Which ones they are is decided by the key of the chip. They do not age, and take all pulses of a
    verified write.

    Args:
      device: of the others.
      low: share that is stuck at the smallest conductance, 1 / on_off, 0 to 1. Traced.
      high: share that is stuck at the largest, 0 to 1 - low. Traced.

    Raises:
      ValueError: a share out of range, or a device with stuck cells or another temperature.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> import jaxsim as js
      >>> device = js.cells.stuck(js.cells.proportional(0.0), low=0.5)
      >>> sorted(set(device.program(jnp.full(100, 0.25), jax.random.key(0)).tolist()))
      [0.0, 0.25]
    """
    require_layers("stuck", device, refused=("at_temperature",))
    require_layers("stuck", device, refused=("stuck",))
    check_range("low", low, 0, 1)
    check_range("high", high, 0, 1)
    if not is_traced(low) and not is_traced(high) and float(low) + float(high) > 1:
        raise ValueError(f"low={low}, high={high}: must be at most 1 together")
    shares = {k: jnp.asarray(v, jnp.float32) for k, v in (("low", low), ("high", high))}
    aging, pulses = device.aging, device.pulses
    if aging is not None:
        aging = Aging(Partial(_stuck_fate, device, **shares), Partial(_stuck_at, device))
    if pulses is not None:
        pulses = Pulses(Partial(_stuck_pulses, device, **shares), pulses.most)
    return device._replace(program=Partial(_stuck, device, **shares), aging=aging, pulses=pulses)


def _levels(device: Device, g: Array, key: Key[Array, ""], low: Array, high: Array) -> Array:
    """Conductance at which each cell is stuck, NaN where it is not."""
    share = jax.random.uniform(jax.random.fold_in(key, STUCK), g.shape)
    smallest = 0.0 if device.on_off is None else 1.0 / device.on_off
    return jnp.where(share < low, smallest, jnp.where(share >= 1 - high, 1.0, jnp.nan))


def _put(levels: Array, others: Array) -> Array:
    there = jnp.isfinite(levels)
    return jnp.where(there, jnp.where(there, levels, 0), others)


def _stuck(device: Device, g: Array, key: Key[Array, ""], *, low: Array, high: Array) -> Array:
    return _put(_levels(device, g, key, low, high), device.program(g, key))


def _stuck_fate(device: Device, g: Array, key: Key[Array, ""], *, low: Array, high: Array) -> Any:
    assert device.aging is not None
    return _levels(device, g, key, low, high), device.aging.draw(g, key)


def _stuck_at(device: Device, g: Array, fate: Any, time: Any) -> Array:
    assert device.aging is not None
    return _put(fate[0], device.aging.at(g, fate[1], time))


def _stuck_pulses(
    device: Device, g: Array, key: Key[Array, ""], *, low: Array, high: Array
) -> Array:
    assert device.pulses is not None
    taken = device.pulses.taken(g, key)
    return jnp.where(jnp.isfinite(_levels(device, g, key, low, high)), device.pulses.most, taken)


def at_temperature(
    device: Device,
    kelvin: float | Array,
    *,
    reading_energy: float | Array = 0.0,
    aging_energy: float | Array | None = None,
    reference: float | Array = 300.0,
) -> Device:
    """Cells that are read, and kept, at another temperature, by Arrhenius' law.

    A conductance is exp(-E / k (1 / T - 1 / T0)) times that at the reference; ageing takes place
    exp(E / k (1 / T0 - 1 / T)) times as fast. Cells are programmed at the reference. The energies
    are those of a material; none is assumed.

    Args:
      device: at the reference temperature.
      kelvin: temperature T, 200 to 500. Traced.
      reading_energy: activation energy of conduction in eV, 0 to 2. Traced.
      aging_energy: activation energy of what makes cells age in eV, 0 to 2; None where ageing does
        not depend on temperature. Traced.
      reference: temperature T0 of the measurements, 200 to 500. Traced.

    Raises:
      ValueError: an argument out of range, a device at a temperature already, or an energy of
        ageing for one that does not age.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> import jaxsim as js
      >>> warm = js.cells.at_temperature(js.cells.proportional(0.0), 330.0, reading_energy=0.1)
      >>> round(float(warm.program(jnp.ones(()), jax.random.key(0))), 2)
      1.42
    """
    require_layers("at_temperature", device, refused=("at_temperature",))
    check_range("kelvin", kelvin, 200, 500)
    check_range("reference", reference, 200, 500)
    check_range("reading_energy", reading_energy, 0, 2)
    if aging_energy is not None:
        check_range("aging_energy", aging_energy, 0, 2)
        if device.aging is None:
            raise ValueError(f"aging_energy={aging_energy}: has no effect, {device} does not age")
    colder = jnp.asarray(1 / jnp.asarray(reference, jnp.float32) - 1 / jnp.asarray(kelvin))
    factor = jnp.exp(reading_energy / BOLTZMANN * colder)
    faster = jnp.exp((0.0 if aging_energy is None else aging_energy) / BOLTZMANN * colder)
    noise, aging = device.noise, device.aging
    if noise is not None:
        noise = Partial(_warm_noise, device, factor=factor)
    if aging is not None:
        aging = Aging(aging.draw, Partial(_warm_at, device, factor=factor, faster=faster))
    program = Partial(_at_temperature, device, factor=factor)
    return device._replace(program=program, noise=noise, aging=aging)


def _at_temperature(
    device: Device, g: Array, key: Key[Array, ""], *, factor: Array
) -> Float[Array, "..."]:
    return factor * device.program(g, key)


def _warm_noise(device: Device, g: Array, *, factor: Array) -> Array:
    assert device.noise is not None
    return factor * device.noise(g / factor)


def _warm_at(
    device: Device, g: Array, fate: Any, time: Any, *, factor: Array, faster: Array
) -> Array:
    assert device.aging is not None
    return factor * device.aging.at(g / factor, fate, time * faster)
