"""What part of the values a grid covers: rules for `Grid.clip`.

Each function returns a `jax.tree_util.Partial` of `(rows, bits, symmetric) -> Range`, where rows
are [..., n]: its numbers are traced, so that a sweep over them compiles once. A rule of your own is
a Partial too.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Float

from jaxsim.formats.grid import Clip, Grid, Range, encode, scale_and_zero
from jaxsim.numerics.checks import check_range, is_traced
from jaxsim.numerics.quantiles import quantile
from jaxsim.numerics.scaling import unit_of

__all__ = [
    "percentile",
    "least_squares",
    "entropy",
    "rms",
    "fixed",
    "learned",
    "pact",
    "cut",
]

SAMPLE = 2**16  # values of a row that a search looks at, beside its largest
BINS = 2048
MOST = float(np.finfo(np.float32).max)


def percentile(share: float | Array) -> Clip:
    """All but the largest magnitudes; on an affine grid the same share is left out at each end.

    Args:
      share: of the values, in percent, that the range covers, in (0, 100].

    Raises:
      ValueError: a share outside.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> values = jnp.array([[-1.0, 0.0, 1.0, 10.0]])
      >>> r = js.clipping.percentile(50.0)(values, bits=8, symmetric=False)
      >>> bool(r.hi[0] < 10)
      True
    """
    check_range("percentile: share", share, 0, 100, above=True)
    return Partial(_percentile, share * 1.0)


def least_squares() -> Clip:
    """The range whose grid has the smallest mean squared error, found by a search.

    Two bits make ternary weights, with the best threshold rather than the rule of thumb of
    ternary weight networks. Values beyond 65 536 a row are sampled evenly.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> values = jnp.array([[-1.0, 0.0, 1.0, 10.0]])
      >>> r = js.clipping.least_squares()(values, bits=4, symmetric=True)
      >>> bool(0 < r.hi[0] <= 10)
      True

    Source: OMSE of Choukroun et al. (2019), arXiv 1902.06822; Li and Liu (2016), arXiv 1605.04711.
    """
    return Partial(_least_squares)


def entropy() -> Clip:
    """The threshold whose coded histogram of magnitudes diverges least from the original one.

    2048 bins; of an affine grid the ends beyond the threshold are cut. The divergence is
    Kullback-Leibler's, as TensorRT minimizes it. Zeros are not counted: they have a code of their
    own, and the many that follow a ReLU would outweigh all else.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> values = jnp.array([[-1.0, 0.0, 1.0, 10.0]])
      >>> r = js.clipping.entropy()(values, bits=8, symmetric=True)
      >>> bool(0 < r.hi[0] <= 10)
      True

    Source: Migacz, 8-bit inference with TensorRT (GTC 2017).
    """
    return Partial(_entropy)


def rms(width: float | Array) -> Clip:
    """±width root mean squares; on an affine grid, the mean ± width standard deviations.

    Args:
      width: of the range, above 0.

    Raises:
      ValueError: a width out of range.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> values = jnp.array([[-1.0, 0.0, 1.0, 10.0]])
      >>> r = js.clipping.rms(1.0)(values, bits=4, symmetric=True)
      >>> round(float(r.hi[0]), 2)
      5.05
    """
    check_range("rms: width", width, 0, above=True)
    return Partial(_rms, width * 1.0)


def fixed(lo: float | Array, hi: float | Array) -> Clip:
    """This range, whatever the values.

    Args:
      lo: its lower end; a number, or one for each channel, behind the axes of the weight's stack
        where layers have a range each.
      hi: its upper end, likewise.

    Raises:
      ValueError: an end that is not finite, or lo above hi.

    Examples:
      >>> import jaxsim as js
      >>> grid = js.Grid(4, clip=js.clipping.fixed(-1.0, 1.0))
      >>> print(grid)
      int4 symmetric per tensor clipped
    """
    _check_ends(lo, hi)
    return Partial(_fixed, jnp.asarray(lo, jnp.float32), jnp.asarray(hi, jnp.float32))


def learned(lo: float | Array, hi: float | Array) -> Clip:
    """This range to begin with, trained with the weights by the derivative of the rounding.

    A symmetric grid takes its upper end alone.

    The derivative with respect to the step is scaled by 1/√(n · largest code), n being the number
    of values that share the step. `js.learn_ranges` sets it for a whole network.

    Args:
      lo: its lower end; a number, or one for each channel, behind the axes of the weight's stack
        where layers have a range each.
      hi: its upper end, likewise.

    Raises:
      ValueError: an end that is not finite, or lo above hi.

    Examples:
      >>> import jaxsim as js
      >>> print(js.Grid(4, clip=js.clipping.learned(-1.0, 1.0)))
      int4 symmetric per tensor clipped

    Source: Esser et al. (2020), LSQ, arXiv 1902.08153, eq. 3 and section 2.2; with a zero point,
    Bhalgat et al. (2020), arXiv 2004.09576.
    """
    _check_ends(lo, hi)
    return Partial(_learned, jnp.asarray(lo, jnp.float32), jnp.asarray(hi, jnp.float32))


def pact(hi: float | Array) -> Clip:
    """From zero to `hi`, or ±hi on a symmetric grid; trained by what it cuts off alone.

    For inputs: values beyond the range pass their derivative to its end, those within none.

    Args:
      hi: upper end, above 0; a number, or one for each slice of a stack of layers.

    Raises:
      ValueError: `hi` not above 0.

    Examples:
      >>> import jaxsim as js
      >>> print(js.Grid(4, symmetric=False, clip=js.clipping.pact(6.0)))
      int4 affine per tensor clipped

    Source: Choi et al. (2018), PACT, arXiv 1805.06085, eq. 1 to 3.
    """
    for end in (hi,) if is_traced(hi) else np.ravel(hi):
        check_range("pact: hi", end, 0, above=True)
    return Partial(_pact, jnp.asarray(hi, jnp.float32))


def cut(clip: Clip | None, x: Float[Array, "..."], r: Range) -> tuple[Float[Array, "..."], Range]:
    """The values and the range, such that derivatives reach the range as its rule wants.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> from jaxsim.formats.grid import Range
      >>> x, r = js.clipping.cut(js.clipping.pact(1.0), jnp.array([0.5, 3.0]), Range(0.0, 1.0))
      >>> x.tolist()
      [0.5, 1.0]
    """
    if not isinstance(clip, Partial) or clip.func is not _pact:
        return x, r
    return jnp.clip(x, r.lo, r.hi), Range(*map(lax.stop_gradient, r))


def is_set(clip: Clip | None) -> bool:
    """Whether the range is numbers held by the rule, so that changed values would not move it."""
    return isinstance(clip, Partial) and clip.func in (_fixed, *TRAINED)


def over_kept(clip: Clip | None) -> Clip | None:
    """The rule of weights some of which are pruned: it looks at those that are not zero.

    Where zeros do not move a rule it is what it was.
    """
    if not isinstance(clip, Partial) or clip.func not in (_percentile, _rms, _least_squares):
        return clip
    return partial(clip.func, *clip.args, kept=True)


def _check_ends(lo: Any, hi: Any) -> None:
    if is_traced(lo) or is_traced(hi):
        return
    low, high = np.asarray(lo), np.asarray(hi)
    if not (np.isfinite(low).all() and np.isfinite(high).all() and (low <= high).all()):
        raise ValueError(f"lo={lo}, hi={hi}: must be finite, and lo at most hi")


def _percentile(
    share: Array, rows: Array, *, bits: int, symmetric: bool, kept: bool = False
) -> Range:
    share, among = jnp.asarray(share, jnp.float32) / 100, rows != 0 if kept else None
    if symmetric:
        hi = quantile(jnp.abs(rows), share, among)
        return Range(-hi, hi)
    return Range(*(quantile(rows, (1 + sign * share) / 2, among) for sign in (-1, 1)))


def _rms(width: Array, rows: Array, *, bits: int, symmetric: bool, kept: bool = False) -> Range:
    unit = unit_of(rows, (-1,))
    near = rows / unit
    among = near != 0 if kept else jnp.ones(rows.shape, bool)
    count = jnp.maximum(jnp.sum(among, -1), 1).astype(jnp.float32)

    def mean(values: Array) -> Array:
        return jnp.sum(values, -1, where=among) / count

    unit = jnp.squeeze(unit, -1)
    if symmetric:
        hi = jnp.minimum(width * jnp.sqrt(mean(near**2)), MOST / unit) * unit
        return Range(-hi, hi)
    middle = mean(near)
    spread = width * jnp.sqrt(mean((near - middle[..., None]) ** 2))
    return Range(
        jnp.maximum((middle - spread) * unit, jnp.min(rows, -1)),
        jnp.minimum((middle + spread) * unit, jnp.max(rows, -1)),
    )


def _fixed(lo: Array, hi: Array, rows: Array, *, bits: int, symmetric: bool) -> Range:
    return Range(*(jnp.broadcast_to(end, rows.shape[:-1]) for end in (lo, hi)))


def _learned(lo: Array, hi: Array, rows: Array, *, bits: int, symmetric: bool) -> Range:
    top = 2 ** (bits - 1) - 1 if symmetric else 2**bits - 1
    share = 1 / math.sqrt(max(rows.shape[-1], 1) * max(top, 1))

    def scaled(end: Array) -> Array:
        return end * share + lax.stop_gradient(end * (1 - share))

    low = -hi if symmetric else lo
    return _fixed(scaled(low), scaled(hi), rows, bits=bits, symmetric=symmetric)


def _pact(hi: Array, rows: Array, *, bits: int, symmetric: bool) -> Range:
    lo = -hi if symmetric else jnp.zeros_like(hi)
    return _fixed(lo, hi, rows, bits=bits, symmetric=symmetric)


TRAINED = (_learned, _pact)
"""Rules whose numbers derivatives reach."""


def _sampled(rows: Array) -> Array:
    """Evenly spaced values of each row, so that a search is bounded."""
    return rows[..., :: -(-rows.shape[-1] // SAMPLE)]


def _least_squares(rows: Array, *, bits: int, symmetric: bool, kept: bool = False) -> Range:
    grid, unit = Grid(bits, symmetric=symmetric), unit_of(rows, (-1,))
    rows = rows / unit
    values = _sampled(rows)
    most = jnp.max(jnp.abs(rows), -1)
    ends = (-most, most) if symmetric else (jnp.min(rows, -1), jnp.max(rows, -1))

    def error(share: Array) -> Array:
        """Mean squared error of each row, its range scaled by a share [rows]."""
        scale, zero = scale_and_zero(grid, Range(*(end * share for end in ends)))
        scale, zero = scale[..., None], zero[..., None]
        decoded = (encode(grid, values, scale, zero, kept=kept) - zero) * scale
        return jnp.mean((decoded - values) ** 2, -1)

    def best(shares: Array) -> Array:
        """The share [rows] of each row that errs least, of candidates [c, rows]."""
        errors = lax.map(error, shares)
        at = jnp.argmin(errors, 0)
        return jnp.squeeze(jnp.take_along_axis(shares, at[None], 0), 0)

    shape = most.shape
    ratio = 0.01 ** (1 / 63)
    coarse = ratio ** jnp.arange(64.0)
    found = best(jnp.broadcast_to(coarse.reshape(64, *(1,) * len(shape)), (64, *shape)))
    near = jnp.linspace(ratio, 1 / ratio, 17).reshape(17, *(1,) * len(shape))
    found = best(jnp.minimum(found * near, 1.0))
    return Range(*(end * found * jnp.squeeze(unit, -1) for end in ends))


def _entropy(rows: Array, *, bits: int, symmetric: bool) -> Range:
    flat = rows.reshape(-1, rows.shape[-1])
    found = lax.map(partial(_threshold, bits=bits, symmetric=symmetric), flat)
    found = found.reshape(rows.shape[:-1])
    if symmetric:
        return Range(-found, found)
    return Range(jnp.maximum(jnp.min(rows, -1), -found), jnp.minimum(jnp.max(rows, -1), found))


def _threshold(x: Float[Array, " n"], *, bits: int, symmetric: bool) -> Float[Array, ""]:
    """The threshold of magnitudes [n] that loses the least information."""
    levels = 2 ** (bits - 1) if symmetric else 2**bits
    unit = jnp.squeeze(unit_of(x, (0,)), 0)
    magnitude = jnp.abs(x) / unit
    most = jnp.max(magnitude)
    width = jnp.where(most > 0, most, 1.0) / BINS
    place = jnp.minimum((magnitude / width).astype(jnp.int32), BINS - 1)
    counts = jnp.zeros(BINS).at[place].add((x != 0).astype(jnp.float32))
    index = jnp.arange(BINS)

    def divergence(bins: Array) -> Array:
        inside = index < bins
        beyond = jnp.sum(jnp.where(inside, 0, counts))
        p = jnp.where(inside, counts, 0) + jnp.where(index == bins - 1, beyond, 0)
        level = jnp.minimum(index * levels // bins, levels - 1)
        some = inside & (counts > 0)
        total = jnp.zeros(levels).at[level].add(jnp.where(inside, counts, 0))
        filled = jnp.zeros(levels).at[level].add(some.astype(jnp.float32))
        q = jnp.where(some, total[level] / jnp.maximum(filled[level], 1), 0)
        p, q = p / jnp.maximum(jnp.sum(p), 1), q / jnp.maximum(jnp.sum(q), 1)
        # A bin with outliers alone has no code of its own; a tiny share keeps the sum finite.
        q = jnp.maximum(q, 1e-9)
        return jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.maximum(p, 1e-30) / q), 0))

    candidates = np.unique(np.append(np.arange(levels, BINS, max(levels // 8, 8)), BINS))
    divergences = lax.map(divergence, jnp.asarray(candidates))
    found = jnp.asarray(candidates, jnp.float32)[jnp.argmin(divergences)] * width
    return jnp.minimum(found, most) * unit
