"""A converter that decides bit by bit, from the most significant one on."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Key

from jaxsim.cores.adc.capacitors import amplified, bit_weights, draw_parts, split_weights
from jaxsim.cores.adc.converter import (
    ADC,
    RangeRule,
    amplifier_gain,
    circuit,
    drawn,
    from_codes,
    in_steps,
    numbers,
)
from jaxsim.numerics.checks import Count, checked_int


def sar(
    bits: int,
    *,
    mismatch: float | Array | None = None,
    offset: float | Array | None = None,
    amplifier: float | Array | None = None,
    noise: float | Array | None = None,
    split: int | None = None,
    parasitic: float | Array | None = None,
    columns_per_adc: int = 1,
    span: RangeRule | float | Array = "calibrated",
    percentile: float | Array = 99.98,
) -> ADC:
    """Successive approximation: a comparator and a DAC of binary-weighted capacitors.

    Bit by bit, the level of the code so far with the next bit set is compared with the input, half
    a step below, and the bit is kept where the input is larger. A level is the charge of the
    capacitors whose bits are set over one of feedback, so the threshold of code c lies at
    c + δ with a deviation of mismatch · sqrt(c + c² / 2^bits) steps, to first order. Behind a pair
    the sign is decided first, by the comparator alone, and the magnitude has one bit less: what is
    near zero is converted by small capacitors. With `split` there are far fewer units, and the
    mismatch of one of the upper bits weighs 2^split steps. Its codes rise with its input, whatever
    the errors; some may be missing. Without errors it is `uniform`, bit for bit.

    Args:
      bits: Resolution, 1 to 16 (at least 2 behind a pair).
      mismatch: Standard deviation of a capacitor of one unit, relative to it, at least 0; one of n
        units has sqrt(n) times that. None for ideal ones. Traced.
      offset: Standard deviation of the comparator's offset, as a share of the range hi - lo, at
        least 0; None for none. Traced.
      amplifier: Open-loop gain of the amplifier behind the capacitors, above 0; None for an ideal
        one. Traced.
      split: Number of bits, from the least significant on, whose capacitors are an array of their
        own, 1 to bits - 2; a bridge of 2^split / (2^split - 1) units joins it to that of the
        others, which begin at one unit again. None for one array.
      parasitic: Capacitance to ground at the lower array's end of the bridge, in units, at least 0,
        as the plate of the bridge has; None for none. Traced.
      noise: As of `uniform`.
      columns_per_adc: As of `uniform`.
      span: As of `uniform`.
      percentile: As of `uniform`.

    Raises:
      ValueError: An argument out of range, or a parasitic without a split.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> adc = js.adc.sar(4, mismatch=0.02)
      >>> y = jnp.linspace(0.0, 15.0, 64)[:, None]
      >>> codes = adc.convert(y, 0.0, 15.0, False, adc.parts(jax.random.key(0), 1, 1))
      >>> bool(jnp.all(jnp.diff(codes[:, 0]) >= 0))
      True

    Source: the circuit with an amplifier and a comparator is that of Spear et al. (2023), IEEE
      JxCDC, as CrossSim 3.2 describes it; levels from its definition.
    """
    bits = checked_int("bits", bits, 1, 16)
    low = None if split is None else Count(checked_int("split", split, 1, bits - 2))
    if parasitic is not None and split is None:
        raise ValueError(f"parasitic={parasitic}: has no effect with split=None")
    errors = numbers(mismatch=mismatch, offset=offset)
    bridged = numbers(parasitic=parasitic)
    gain = amplifier_gain(amplifier)
    convert = Partial(successive_approximation, Count(bits), amplifier=gain, split=low, **bridged)
    more = Count(0 if low is None else 1)  # a unit never switched, and a bridge for the feedback
    parts = drawn(Partial(_parts, Count(bits), more, **errors), errors, columns_per_adc)
    return circuit(convert, bits, span, percentile, parts, noise, "sar", split)


def _parts(
    bits: Count, more: Count, key: Key[Array, ""], arrays: int, columns: int, **errors: Array
) -> dict[str, Array]:
    """Capacitors and comparators of converters, one for each column."""
    return draw_parts(len(bits), key, arrays, columns, columns, errors, len(more))


def successive_approximation(
    bits: Count,
    y: Array,
    lo: Array,
    hi: Array,
    signed: bool,
    parts: dict[str, Array] | None = None,
    *,
    amplifier: Array | None,
    split: Count | None = None,
    parasitic: Array | None = None,
) -> Array:
    """`ADC.convert` of `sar`."""
    parts = parts or {}
    u, lsb, steps = in_steps(y, lo, hi, len(bits), signed)
    seen = u + parts["offset"] * steps if "offset" in parts else u
    count = len(bits) - signed
    capacitors, feedback = parts.get("capacitors"), count if split is None else None
    if split is None:
        weights = bit_weights(capacitors, count)
    else:
        weights = split_weights(capacitors, count, len(split), parasitic)
    magnitude = jnp.abs(seen) if signed else seen
    charge: Any = jnp.zeros_like(seen)
    code = jnp.zeros_like(seen)
    for k in reversed(range(count)):
        trial = charge + weights[k]
        threshold = amplified(trial, feedback, amplifier) - 0.5
        # at the threshold itself the even code is taken, as rounding does: all but the last are
        kept = magnitude > threshold if k == 0 else magnitude >= threshold
        charge, code = jnp.where(kept, trial, charge), jnp.where(kept, code + 2.0**k, code)
    code = jnp.where(seen < 0, -code, code) if signed else code
    return from_codes(code, u, lsb, (lo, hi), steps, signed)
