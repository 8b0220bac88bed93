"""Digital-to-analog converters of binary-weighted capacitors, inside of converters."""

from __future__ import annotations

from typing import Any

import jax
from jaxtyping import Array, Float, Key

Weights = list[Any]
"""Steps that the capacitor of each bit adds, least significant first."""


def unit_errors(
    key: Key[Array, ""], bits: int, sigma: Array, arrays: int, columns: int
) -> Float[Array, "b a c"]:
    """Errors of capacitors, [bits + 1, arrays, columns], those of the feedback last.

    A capacitor of n units, each off by `sigma` of itself, is off by sqrt(n) times that.
    """
    return sigma * jax.random.normal(key, (bits + 1, arrays, columns))


def draw_parts(
    bits: int, key: Key[Array, ""], arrays: int, columns: int, dacs: int, errors: dict[str, Array]
) -> dict[str, Array]:
    """Draws what differs from chip to chip of converters with one DAC and one comparator.

    Args:
      bits: resolution.
      key: random key of the converters.
      arrays: number of arrays.
      columns: number of comparators of each.
      dacs: number of DACs of each: as many, or one that all share.
      errors: standard deviations, "mismatch" of a unit capacitor and "offset" of a comparator;
        what is not there is ideal.
    """
    found: dict[str, Array] = {}
    if "mismatch" in errors:
        of_capacitors = jax.random.fold_in(key, 0)
        found["capacitors"] = unit_errors(of_capacitors, bits, errors["mismatch"], arrays, dacs)
    if "offset" in errors:
        shape = (arrays, columns)
        found["offset"] = errors["offset"] * jax.random.normal(jax.random.fold_in(key, 1), shape)
    return found


def bit_weights(errors: Array | None, bits: int) -> Weights:
    """What each bit adds to the level, in steps: C_k / C_f in units of the ideal smallest.

    Args:
      errors: of `unit_errors`, of at least so many bits; None for ideal capacitors.
      bits: how many are used, from the least significant on; the feedback has 2^bits units.
    """
    if errors is None:
        return [2.0**k for k in range(bits)]
    feedback = 2.0**bits + 2.0 ** (bits / 2) * errors[-1]
    return [(2.0**k + 2.0 ** (k / 2) * errors[k]) / (feedback / 2.0**bits) for k in range(bits)]


def amplified(level: Any, bits: int, amplifier: Array | None) -> Any:
    """A level behind an amplifier of finite gain A: v / (1 + (1 + C / C_f) / A).

    Args:
      level: in steps; C / C_f is its share of 2^bits.
      bits: of the converter.
      amplifier: its open-loop gain; None for an ideal one.
    """
    return level if amplifier is None else level / (1 + (1 + level / 2.0**bits) / amplifier)
