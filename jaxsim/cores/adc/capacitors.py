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
