"""A converter that counts until a ramp exceeds its input."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Key

from jaxsim.cores.adc.capacitors import amplified, bit_weights, draw_parts
from jaxsim.cores.adc.converter import (
    ADC,
    RangeRule,
    amplifier_gain,
    circuit,
    from_codes,
    in_steps,
    numbers,
)
from jaxsim.numerics.checks import Count, checked_int


def ramp(
    bits: int,
    *,
    mismatch: float | Array | None = None,
    offset: float | Array | None = None,
    amplifier: float | Array | None = None,
    noise: float | Array | None = None,
    span: RangeRule | float | Array = "calibrated",
    percentile: float | Array = 99.98,
) -> ADC:
    """A ramp that all columns of an array share, and a comparator for each column.

    A DAC of binary-weighted capacitors climbs code by code, from the lower end of the range to the
    upper one. A column's code is the last one before the ramp, half a step below its level,
    exceeds the column's input. Where a level lies below the one before, its code is missing; codes
    rise with the input whatever the errors. Behind a pair the ramp's magnitude has one bit less and
    its sign is that of the reference. Without errors it is `uniform`, bit for bit.

    Args:
      bits: Resolution, 1 to 16 (at least 2 behind a pair).
      mismatch: Standard deviation of a capacitor of one unit, relative to it, at least 0; one of n
        units has sqrt(n) times that. None for ideal ones. Traced.
      offset: Standard deviation of the offset of a column's comparator, as a share of the range
        hi - lo, at least 0; None for none. Traced.
      amplifier: Open-loop gain of the amplifier behind the capacitors, above 0; None for an ideal
        one. Traced.
      noise: As of `uniform`.
      span: As of `uniform`.
      percentile: As of `uniform`.

    Raises:
      ValueError: An argument out of range.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> adc = js.adc.ramp(4, offset=0.1)
      >>> parts = adc.parts(jax.random.key(0), 1, 8)  # an array of eight columns
      >>> len(set(adc.convert(jnp.full((1, 8), 7.0), 0.0, 15.0, False, parts)[0].tolist())) > 1
      True

    Source: the circuit is that of Spear et al. (2023), IEEE JxCDC, as CrossSim 3.2 describes it;
      levels from its definition.
    """
    bits = checked_int("bits", bits, 1, 16)
    errors = numbers(mismatch=mismatch, offset=offset)
    convert = Partial(climbing_ramp, Count(bits), amplifier=amplifier_gain(amplifier))
    parts = Partial(_parts, Count(bits), **errors) if errors else None
    return circuit(convert, bits, span, percentile, parts, noise, "ramp")


def _parts(
    bits: Count, key: Key[Array, ""], arrays: int, columns: int, **errors: Array
) -> dict[str, Array]:
    """The capacitors of each array, and a comparator for each column."""
    return draw_parts(len(bits), key, arrays, columns, 1, errors)


def climbing_ramp(
    bits: Count,
    y: Array,
    lo: Array,
    hi: Array,
    signed: bool,
    parts: dict[str, Array] | None = None,
    *,
    amplifier: Array | None,
) -> Array:
    """`ADC.convert` of `ramp`."""
    parts = parts or {}
    u, lsb, steps = in_steps(y, lo, hi, len(bits), signed)
    seen = u + parts["offset"] * steps if "offset" in parts else u
    count = len(bits) - signed
    first = 1 - 2**count if signed else 0
    thresholds = _thresholds(parts.get("capacitors"), count, signed, amplifier)
    code = first + _passed(thresholds, seen, first)
    return from_codes(code, u, lsb, (lo, hi), steps, signed)


def _thresholds(capacitors: Array | None, count: int, signed: bool, amplifier: Any) -> Array:
    """Where the ramp leaves each code but the last, [codes - 1, *arrays]; none lies below another.

    A level below one that came before is not seen.
    """
    weights = bit_weights(capacitors, count)
    codes = np.arange(2**count)
    level: Any = jnp.zeros((), jnp.float32)
    for k in range(count):
        some = ((codes >> k) & 1).astype(np.float32)
        weight = jnp.asarray(weights[k], jnp.float32)
        level = level + some.reshape(-1, *(1,) * weight.ndim) * weight
    level = amplified(level, count, amplifier)
    if signed:
        level = jnp.concatenate([-level[:0:-1], level])
    return lax.cummax(level[1:] - 0.5, axis=0)


def _passed(thresholds: Array, u: Array, first: int) -> Array:
    """The number of thresholds [n, *arrays] at or below values: the even code where they meet."""
    n = thresholds.shape[0]
    arrays = thresholds.shape[1:]
    each = jnp.arange(thresholds[0].size).reshape(arrays)
    table = thresholds.reshape(n, -1).T.ravel()
    below = jnp.zeros(u.shape, jnp.int32)
    for k in reversed(range(n.bit_length())):
        tried = below + 2**k
        threshold = table[each * n + jnp.minimum(tried, n) - 1]
        even = (first + tried) % 2 == 0
        hit = (tried <= n) & ((u > threshold) | ((u == threshold) & even))
        below = jnp.where(hit, tried, below)
    return below.astype(u.dtype)
