"""Integers from one grid to another, by multipliers b/2^c in 32 bits.

A scale between two grids is rounded to a fraction b/2^c with |b| < 2^15, and what is added to a
fraction of the same c; the product of 47 bits is held as two words of int32.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

MOST_MULTIPLIER = 2**15 - 1
MOST_SHIFT = 44
MOST_OFFSET = 2.0**MOST_SHIFT


class Rescale(NamedTuple):
    """Map `q -> ⌊(q b + B) / 2^c⌋`, clipped: arrays of int32 that broadcast to q.

    Attributes:
      multiplier: Multiplier b, of magnitude below 2^15.
      high, low: Words of B = 2^16 high + low, 0 ≤ low < 2^16; B contains the half that rounds.
      shift: Exponent c, 0 to 44.
      lo, hi: Bounds of the result.
      min_code, max_code: Bounds that q is clipped to first, where the result could leave int32; or
        None.
    """

    multiplier: Int[Array, "..."]
    high: Int[Array, "..."]
    low: Int[Array, "..."]
    shift: Int[Array, "..."]
    lo: Int[Array, "..."]
    hi: Int[Array, "..."]
    min_code: Int[Array, "..."] | None = None
    max_code: Int[Array, "..."] | None = None


def rescale(q: Int[Array, "..."], r: Rescale) -> Int[Array, "..."]:
    """Maps integers to another grid, as int32.

    Exact wherever the result before the clip fits in 31 bits, which `dyadic` sees to: with
    q = 2^16 h + l, the sum q b + B is 2^16 (h b + high) + (l b + low), and neither word overflows.

    Args:
      q: Integers of up to 32 bits.
      r: Map between the grids, from `dyadic`.

    Source: requantization of Jacob et al. (2018), arXiv 1712.05877, §2.2, and the dyadic numbers of
      Yao et al. (2021), arXiv 2011.10680.
    """
    q = q.astype(jnp.int32)
    if r.min_code is not None:
        q = jnp.clip(q, r.min_code, r.max_code)
    high = (q >> 16) * r.multiplier + r.high
    low = (q & 0xFFFF) * r.multiplier + r.low
    small = jnp.minimum(r.shift, 16)
    total = (high << (16 - small)) + (low >> small)
    return jnp.clip(total >> (r.shift - small), r.lo, r.hi)


def dyadic(
    scale: Float[np.ndarray, "..."],
    offset: Float[np.ndarray, "..."],
    *,
    lo: Float[np.ndarray, "..."],
    hi: Float[np.ndarray, "..."],
    min_code: Float[np.ndarray, "..."],
    max_code: Float[np.ndarray, "..."],
) -> Rescale:
    """Finds the nearest `Rescale` to a scale, an offset and a clip, halves rounded up.

    It approximates `q -> clip(round(q scale + offset), lo, hi)`. The exponent c is the largest for
    which b and B fit their words, so b has 15 bits unless the offset is huge.

    Args:
      scale: Step of q in units of the result, float64, magnitudes below 2^15.
      offset: Result for q = 0, float64, magnitudes below 2^28.
      lo: Least result, whole numbers of 31 bits.
      hi: Largest result, whole numbers of 31 bits.
      min_code: Least q that occurs.
      max_code: Largest q that occurs.

    Raises:
      ValueError: A scale or an offset that is not finite or too large.
    """
    scale, offset, lo, hi, min_code, max_code = (
        np.asarray(a, np.float64) for a in (scale, offset, lo, hi, min_code, max_code)
    )
    for name, value, largest in (("scale", scale, 2.0**15), ("offset", offset, 2.0**28)):
        if not (np.isfinite(value).all() and (np.abs(value) < largest).all()):
            raise ValueError(f"{name}={value}: must be finite and below {largest} in magnitude")
    scale, offset = np.broadcast_arrays(scale, offset)
    shift = np.full(scale.shape, MOST_SHIFT)
    while (over := _too_large(scale, offset, shift)).any():
        shift = shift - over
    # a scale that rounds to 2^15 has no smaller shift to go to
    multiplier = np.minimum(np.round(np.ldexp(scale, shift)), MOST_MULTIPLIER)
    half = np.where(shift > 0, np.ldexp(0.5, shift), 0.0)
    added = (np.round(np.ldexp(offset, shift)) + half).astype(np.int64)
    ends: dict[str, Array] = {}
    slope = np.abs(np.ldexp(multiplier, -shift))
    if (np.maximum(np.abs(min_code), np.abs(max_code)) * slope + np.abs(offset) >= 2.0**30).any():
        # where the result is outside [lo, hi] by far, q is as good as nearer to zero
        room = np.maximum(np.abs(lo), np.abs(hi)) + np.abs(offset) + 2
        bound = np.minimum(np.ceil(room / np.maximum(slope, 2.0**-MOST_SHIFT)), 2.0**31 - 128)
        ends = {"min_code": _int32(-bound), "max_code": _int32(bound)}
    return Rescale(
        multiplier=_int32(multiplier),
        high=_int32(added >> 16),
        low=_int32(added & 0xFFFF),
        shift=_int32(shift),
        lo=_int32(lo),
        hi=_int32(hi),
        **ends,
    )


def _too_large(scale: np.ndarray, offset: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Finds where a multiplier or the term added does not fit its words."""
    multiplier = np.abs(np.round(np.ldexp(scale, shift)))
    added = np.ldexp(np.abs(offset) + 1, shift)
    return ((multiplier > MOST_MULTIPLIER) | (added > MOST_OFFSET)) & (shift > 0)


def _int32(a: np.ndarray) -> Array:
    return jnp.asarray(np.asarray(a).astype(np.int32))
