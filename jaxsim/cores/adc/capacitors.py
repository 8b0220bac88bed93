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
    bits: int,
    key: Key[Array, ""],
    arrays: int,
    columns: int,
    dacs: int,
    errors: dict[str, Array],
    more: int = 0,
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
      more: capacitors of a DAC beside those of its bits and one.
    """
    found: dict[str, Array] = {}
    if "mismatch" in errors:
        of_capacitors = jax.random.fold_in(key, 0)
        found["capacitors"] = unit_errors(
            of_capacitors, bits + more, errors["mismatch"], arrays, dacs
        )
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


def split_weights(errors: Array | None, bits: int, low: int, parasitic: Array | None) -> Weights:
    """What each bit adds to the level, in steps, where a capacitor bridges two arrays of them.

    The lower `low` bits and one unit that is never switched hang on one node, the upper bits, of
    1, 2, 4, … units again, on the other, which is compared; a bridge of 2^low / (2^low - 1) units
    joins the nodes. With C_l and C_m the sums on either and C_b the bridge, a lower capacitor adds
    its C_k C_b / D and an upper one C_k (C_l + C_b) / D of the reference, D = C_l C_m +
    C_b (C_l + C_m): Kirchhoff's law at both nodes.

    Args:
      errors: of `unit_errors`, of at least so many bits, the last two of the unit that is never
        switched and of the bridge; None for ideal capacitors.
      bits: how many are used, from the least significant on.
      low: how many of them are on the lower node, at least 1 and below `bits`.
      parasitic: capacitance from the lower node to ground, in units; None for none.
    """
    if errors is None and parasitic is None:
        return bit_weights(None, bits)
    units = [2.0 ** (k if k < low else k - low) for k in range(bits)]
    ideal = 2.0**low / (2.0**low - 1)
    off: list[Any] = [0.0] * bits
    dummy: Any = 0.0
    bridge: Any = 0.0
    if errors is not None:
        off = [n**0.5 * errors[k] for k, n in enumerate(units)]
        dummy, bridge = errors[-2], ideal**0.5 * errors[-1]
    # in deviations from the ideal, of which nothing is left where there are none
    lower = sum(off[:low]) + dummy + (0.0 if parasitic is None else parasitic)
    upper = sum(off[low:])
    C_b, L, M = ideal + bridge, 2.0**low, 2.0 ** (bits - low) - 1
    excess = lower * M + L * upper + lower * upper + bridge * (L + M - 2.0**bits)
    gain = 1 / (1 + (excess + C_b * (lower + upper)) / (C_b * 2.0**bits))
    step = L + (lower - (L - 1) * bridge) / C_b
    switched = [n + e for n, e in zip(units, off, strict=True)]
    return [c * gain for c in switched[:low]] + [c * step * gain for c in switched[low:]]


def amplified(level: Any, bits: int | None, amplifier: Array | None) -> Any:
    """A level behind an amplifier of finite gain A: v / (1 + (1 + C / C_f) / A).

    Args:
      level: in steps; C / C_f is its share of 2^bits.
      bits: of the converter; None for a follower, which has no capacitor of feedback.
      amplifier: its open-loop gain; None for an ideal one.
    """
    if amplifier is None:
        return level
    share = 0.0 if bits is None else level / 2.0**bits
    return level / (1 + (1 + share) / amplifier)
