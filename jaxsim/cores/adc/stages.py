"""Converters of stages that each find a digit and hand twice what is left on."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Key

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


def pipeline(
    bits: int,
    *,
    mismatch: float | Array | None = None,
    offset: float | Array | None = None,
    amplifier: float | Array | None = None,
    noise: float | Array | None = None,
    columns_per_adc: int = 1,
    span: RangeRule | float | Array = "calibrated",
    percentile: float | Array = 99.98,
) -> ADC:
    """Stages of one and a half bits in a row, each with capacitors and comparators of its own.

    A stage compares its input v, in a range of ±V, with ±V / 4 for a digit D of -1, 0 or 1, and
    hands on the residue v (1 + C2 / C1) - D V C2 / C1, ideally 2 v - D V. There are bits - 1 of
    them; at the end v is compared with ±V / 2. Digits overlap, so offsets of comparators up to
    V / 4 do no harm before the end; mismatch and a finite gain do, most in the first stages, and
    codes need not rise with the input. Without errors it is `uniform`, bit for bit.

    Args:
      bits: Resolution, 1 to 16 (at least 2 behind a pair).
      mismatch: Standard deviation of each of the two capacitors of a stage, relative to it, at
        least 0; None for ideal ones. Traced.
      offset: Standard deviation of the offset of each comparator, as a share of the range 2 V, at
        least 0; None for none. Traced.
      amplifier: Open-loop gain of the amplifier of a stage, above 0; None for an ideal one. Traced.
      noise: As of `uniform`.
      columns_per_adc: As of `uniform`.
      span: As of `uniform`.
      percentile: As of `uniform`.

    Raises:
      ValueError: An argument out of range.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> adc = js.adc.pipeline(4, offset=0.02)  # of 2 V: less than V / 4
      >>> y = jnp.arange(-7.0, 8.0)[:, None]
      >>> parts = adc.parts(jax.random.key(0), 1, 1)
      >>> bool(jnp.all(adc.convert(y, -7.0, 7.0, True, parts) == y))
      True

    Source: the stage is that of Spear et al. (2023), IEEE JxCDC, as CrossSim 3.2 describes it;
      residues from its definition.
    """
    bits = checked_int("bits", bits, 1, 16)
    return _staged(
        bits, bits - 1, mismatch, offset, amplifier, noise, columns_per_adc, span, percentile
    )


def cyclic(
    bits: int,
    *,
    mismatch: float | Array | None = None,
    offset: float | Array | None = None,
    amplifier: float | Array | None = None,
    noise: float | Array | None = None,
    columns_per_adc: int = 1,
    span: RangeRule | float | Array = "calibrated",
    percentile: float | Array = 99.98,
) -> ADC:
    """One stage of one and a half bits that is used again and again: `pipeline` with one stage.

    Its errors are the same at every digit. Without errors it is `uniform`, bit for bit.

    Args:
      bits: Resolution, 1 to 16 (at least 2 behind a pair).
      mismatch: Standard deviation of each of the two capacitors, relative to it, at least 0; None
        for ideal ones. Traced.
      offset: Standard deviation of the offset of each comparator, as a share of the range 2 V, at
        least 0; None for none. Traced.
      amplifier: Open-loop gain of the amplifier, above 0; None for an ideal one. Traced.
      noise: As of `uniform`.
      columns_per_adc: As of `uniform`.
      span: As of `uniform`.
      percentile: As of `uniform`.

    Raises:
      ValueError: An argument out of range.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> js.adc.cyclic(3).convert(jnp.array([0.2, 4.4]), 0.0, 7.0, False).tolist()
      [0.0, 4.0]

    Source: as of `pipeline`.
    """
    bits = checked_int("bits", bits, 1, 16)
    return _staged(
        bits, None, mismatch, offset, amplifier, noise, columns_per_adc, span, percentile
    )


def _staged(
    bits: int,
    stages: int | None,
    mismatch: float | Array | None,
    offset: float | Array | None,
    amplifier: float | Array | None,
    noise: float | Array | None,
    columns_per_adc: int,
    span: RangeRule | float | Array,
    percentile: float | Array,
) -> ADC:
    """A converter of so many stages, None for one that is used again."""
    kind, function = ("cyclic", cyclic_residues) if stages is None else ("pipeline", residues)
    errors = numbers(mismatch=mismatch, offset=offset)
    convert = Partial(function, Count(bits), amplifier=amplifier_gain(amplifier))
    each = Partial(_parts, Count(1 if stages is None else stages), **errors)
    parts = drawn(each, errors, columns_per_adc)
    return circuit(convert, bits, span, percentile, parts, noise, kind)


def _parts(
    stages: Count, key: Key[Array, ""], arrays: int, columns: int, **errors: Array
) -> dict[str, Array]:
    """Two capacitors and two comparators a stage, and two comparators at the end."""
    found = {}
    if "mismatch" in errors:
        shape = (len(stages), 2, arrays, columns)
        found["capacitors"] = errors["mismatch"] * _normal(key, 0, shape)
    if "offset" in errors:
        shape = (len(stages) + 1, 2, arrays, columns)
        found["offset"] = errors["offset"] * _normal(key, 1, shape)
    return found


def _normal(key: Key[Array, ""], which: int, shape: tuple[int, ...]) -> Array:
    return jax.random.normal(jax.random.fold_in(key, which), shape)


def residues(
    bits: Count,
    y: Array,
    lo: Array,
    hi: Array,
    signed: bool,
    parts: dict[str, Array] | None = None,
    *,
    amplifier: Array | None,
) -> Array:
    """`ADC.convert` of `pipeline`; of `cyclic` where `parts` have one stage.

    A residue is the input less what the digits so far stand for, which floats hold exactly, plus
    what errors have added; so without errors nothing is rounded before the end.
    """
    parts = parts or {}
    u, lsb, steps = in_steps(y, lo, hi, len(bits), signed)
    stages = len(bits) - 1
    V = 2.0**stages  # of the range ±V, in steps around the middle code
    seen = jnp.clip(u, -steps / 2, steps / 2) if signed else jnp.clip(u, 0, steps)
    code = jnp.full_like(seen, 0.0 if signed else V)
    added = jnp.zeros_like(seen)
    for stage in range(stages):
        full = V / 2**stage  # V as the input sees it
        left = (seen - code) + added
        digit = _digit(left, full / 4, _offsets(parts, stage, False, 2 * full))
        rest = left - digit * full / 2
        ratio = _ratio(parts, stage)  # C2 / C1 - 1
        gain = 1.0 if amplifier is None else 1 / (1 + (2 + ratio) / amplifier)
        added = added + (gain - 1) * rest + gain * ratio * (left - digit * full) / 2
        code = code + digit * full / 2
    left = (seen - code) + added
    offsets = _offsets(parts, stages, True, 2.0)
    # at the threshold itself the even code is taken, as rounding does
    met = (code % 2).astype(bool)
    digit = _digit(left, 0.5, offsets, met=met)
    return from_codes(_within(code + digit, steps, signed), u, lsb, (lo, hi), steps, signed)


def cyclic_residues(*args: Any, **kwargs: Any) -> Array:
    """`ADC.convert` of `cyclic`."""
    return residues(*args, **kwargs)


def _digit(left: Array, threshold: float, offsets: Any, met: Any = False) -> Array:
    """-1, 0 or 1 by two comparators; `met` says whether meeting a threshold is beyond it."""
    upper, lower = threshold + offsets[0], offsets[1] - threshold
    above = (left > upper) | ((left == upper) & met)
    below = (left < lower) | ((left == lower) & met)
    return above.astype(left.dtype) - below.astype(left.dtype)


def _offsets(parts: dict[str, Array], stage: int, last: bool, width: float) -> Any:
    """Those of the two comparators of a stage, in steps at the input."""
    if "offset" not in parts:
        return 0.0, 0.0
    there = parts["offset"]
    return width * there[-1 if last else min(stage, len(there) - 2)]


def _ratio(parts: dict[str, Array], stage: int) -> Any:
    """C2 / C1 - 1 of a stage."""
    if "capacitors" not in parts:
        return 0.0
    first, second = parts["capacitors"][min(stage, len(parts["capacitors"]) - 1)]
    return (second - first) / (1 + first)


def _within(code: Array, steps: Array, signed: bool) -> Array:
    return jnp.clip(code, -steps / 2, steps / 2) if signed else jnp.clip(code, 0, steps)
