"""The grids of integer codes that numbers are stored on, and the ranges they cover."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Key

from jaxsim.numerics.checks import check_called, check_range, checked_int
from jaxsim.numerics.gradients import clip_ste, round_ste
from jaxsim.numerics.scaling import FAR, divide, step_of, unit_of

Clip = Callable[..., "Range"]
"""`(rows, bits, symmetric) -> Range`: what part of the values [..., n] a grid covers.

A `jax.tree_util.Partial`, so that its numbers are traced; see `jaxsim.formats.clipping`.
"""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["clip", "average"],
    meta_fields=["bits", "symmetric", "per", "dynamic", "rows", "spacing", "rounding"],
)
@dataclass(frozen=True)
class Grid:
    """The grid a tensor is stored on: integer codes, a step, and where zero lies.

    Attributes:
      bits: width of a stored code, 1 to 8. One bit holds the signs, and the step is their mean
        magnitude: zero has no code and is held as a positive number, except where all that share
        a step are zero, and where a weight is pruned. Two symmetric bits are ternary.
      symmetric: codes are ±(2^(bits-1) - 1) around an exact zero; otherwise the grid is affine and
        a zero point places the range on all 2^bits codes.
      per: what has a step of its own: the whole "tensor"; an output "channel" (weights); a "group"
        of `rows` products of one output (weights); a "token", which is one input vector, or one
        image of a convolution (inputs; the range is then always the batch's).
      clip: what part of the values the range covers (`js.clipping`); None for all of them.
      dynamic: the range is taken from each batch rather than stored at calibration (inputs only).
      average: share of the stored range that stays when calibration sees another batch, its range
        making up the rest; None widens the stored range to hold the new one. Traced.
      rows: products in a group, where `per` is "group".
      spacing: "even", or "powers" of two: 0, ±1, ±2, ±4 … times the step, so that a product is a
        shift (2 to 4 bits, symmetric).
      rounding: "nearest", or "stochastic": up with the probability of the fraction, so that the
        mean is exact. Needs a key.

    Examples:
      >>> import jaxsim as js
      >>> js.Grid(4, per="channel").code_range
      (-7, 7)
      >>> js.Grid(4, symmetric=False).code_range
      (-8, 7)
    """

    bits: int = 8
    symmetric: bool = True
    per: Literal["tensor", "channel", "group", "token"] = "tensor"
    clip: Clip | None = None
    dynamic: bool = False
    average: float | None = None
    rows: int | None = None
    spacing: Literal["even", "powers"] = "even"
    rounding: Literal["nearest", "stochastic"] = "nearest"

    def __str__(self) -> str:
        parts = [f"int{self.bits}", "symmetric" if self.symmetric else "affine"]
        parts.append(f"per {self.per}" + (f" of {self.rows}" if self.rows else ""))
        parts += ["clipped"] if self.clip is not None else []
        parts += ["dynamic"] if self.dynamic else []
        parts += ["powers of two"] if self.spacing == "powers" else []
        parts += ["stochastic"] if self.rounding == "stochastic" else []
        return " ".join(parts)

    @property
    def code_range(self) -> tuple[int, int]:
        """Smallest and largest code."""
        if self.bits == 1:
            return -1, 1
        half = 2 ** (self.bits - 1)
        if self.spacing == "powers":
            return -(2 ** (half - 2)), 2 ** (half - 2)
        return (1 - half if self.symmetric else -half), half - 1

    def checked(self, side: Literal["weights", "inputs"]) -> Grid:
        """This grid with settings that fit together, what is traced of them an array.

        An int would be static, and a sweep over it compile anew.

        Args:
          side: The operand that it is to store.

        Raises:
          ValueError: A setting out of range, or one that this operand does not take.
        """
        bits = checked_int(f"{side}: bits", self.bits, 1, 8)
        rows = checked_per(side, self.per, self.rows, ("tensor", "channel", "group", "token"))
        if self.spacing not in ("even", "powers"):
            raise ValueError(f"{side}: spacing={self.spacing!r}, must be 'even' or 'powers'")
        if self.rounding not in ("nearest", "stochastic"):
            raise ValueError(
                f"{side}: rounding={self.rounding!r}, must be 'nearest' or 'stochastic'"
            )
        if not self.symmetric and (bits == 1 or self.spacing == "powers"):
            raise ValueError(
                f"{side}: symmetric=False with bits={bits}, spacing={self.spacing!r}: one bit and "
                "powers of two have a sign and no zero point"
            )
        if self.spacing == "powers" and not 2 <= bits <= 4:
            raise ValueError(f"{side}: bits={bits} of powers of two, must be from 2 to 4")
        if bits == 1 and self.rounding == "stochastic":
            raise ValueError(f"{side}: rounding='stochastic' with bits=1: a sign has no fraction")
        check_called(f"{side}: clip", self.clip)
        if self.clip is not None and not callable(self.clip):
            raise ValueError(f"{side}: clip={self.clip!r}, must be a rule of js.clipping or None")
        average = self.average
        if average is not None:
            check_range(f"{side}: average", average, 0, 1)
            average = jnp.asarray(average, jnp.float32)
        self._check_side(side)
        return replace(self, bits=bits, average=average, rows=rows)

    def _check_side(self, side: str) -> None:
        if side == "weights" and (self.dynamic or self.average is not None or self.per == "token"):
            raise ValueError(f"weights={self}: dynamic, average and per='token' are for inputs")
        if side == "inputs" and self.per not in ("tensor", "token"):
            raise ValueError(f"inputs: per={self.per!r}, must be 'tensor' or 'token'")
        if self.average is not None and (self.dynamic or self.per == "token"):
            raise ValueError(
                f"inputs: average={self.average} has no effect on ranges of each batch"
            )


def checked_per(side: str, per: str, rows: int | None, known: Sequence[str]) -> int | None:
    """The rows of a group, where scales are one a group.

    Raises:
      ValueError: `per` is not among those that are known, or rows are given without a group.
    """
    if per not in known:
        raise ValueError(f"{side}: per={per!r}, must be one of {', '.join(map(repr, known))}")
    if (rows is None) == (per == "group"):
        raise ValueError(f"{side}: rows={rows} with per={per!r}: rows are of a group")
    return None if rows is None else checked_int(f"{side}: rows", rows, 1)


class Range(NamedTuple):
    """Lower and upper end of what a tensor takes; (inf, -inf) before anything was seen."""

    lo: Float[Array, "..."]
    hi: Float[Array, "..."]


def no_range(shape: tuple[int, ...] = ()) -> Range:
    """The empty range: every `widen` replaces it."""
    return Range(jnp.full(shape, jnp.inf), jnp.full(shape, -jnp.inf))


def update_range(a: Range, b: Range, average: float | Array | None = None) -> Range:
    """The smallest range that holds both, or `average` of the first and the rest of the second."""
    if average is None:
        return Range(jnp.minimum(a.lo, b.lo), jnp.maximum(a.hi, b.hi))
    unseen = a.lo > a.hi
    return Range(
        *(
            jnp.where(unseen, new, average * jnp.where(unseen, new, old) + (1 - average) * new)
            for old, new in zip(a, b, strict=True)
        )
    )


def observe_range(
    x: Float[Array, "..."],
    *,
    axes: Sequence[int] | None = None,
    clip: Clip | None = None,
    bits: int = 8,
    symmetric: bool = False,
    among: Bool[Array, "..."] | None = None,
) -> Range:
    """The range of `x`, to which no gradient flows from `x`.

    Args:
      x: the values.
      axes: axes to reduce, kept with size 1; None reduces all of them to a scalar.
      clip: what part of them it covers; None for all, and for one bit their mean magnitude.
      bits: width of the codes that are to cover it.
      symmetric: the range is (-r, r).
      among: which of the values the mean magnitude is of; None for all.

    Returns:
      The range, with the reduced axes of size 1 (or scalars); the empty one of no values.
    """
    x = lax.stop_gradient(x).astype(jnp.float32)
    summed = tuple(range(x.ndim)) if axes is None else tuple(axes)
    left = tuple(a for a in range(x.ndim) if a not in summed)
    lead, count = [x.shape[a] for a in left], math.prod(x.shape[a] for a in summed)

    def to_rows(a: Array) -> Array:
        return jnp.transpose(a, left + summed).reshape(*lead, count)

    # along the axes as they are: a transposed copy to reduce would cost more than the reduction
    if x.size == 0:
        r = no_range(tuple(lead))
    elif clip is not None:
        r = Range(*clip(to_rows(x), bits=bits, symmetric=symmetric))
    elif bits == 1:
        mean = _mean_magnitude(to_rows(x), None if among is None else to_rows(among))
        r = Range(-mean, mean)
    elif symmetric:
        most = jnp.max(jnp.abs(x), summed)
        r = Range(-most, most)
    else:
        r = Range(jnp.min(x, summed), jnp.max(x, summed))
    if axes is None:
        return r
    return Range(*(jnp.expand_dims(end, summed) for end in r))


def _mean_magnitude(
    rows: Float[Array, "*rows n"], among: Bool[Array, "*rows n"] | None
) -> Float[Array, "*rows"]:
    magnitude = jnp.abs(rows)
    unit = unit_of(rows, (-1,))
    shares, unit = magnitude / unit, jnp.squeeze(unit, -1)
    if among is None:
        return unit * jnp.mean(shares, -1)
    count = jnp.maximum(jnp.sum(among, -1), 1).astype(jnp.float32)
    return unit * (jnp.sum(shares, -1, where=among) / count)


def scale_and_zero(grid: Grid, r: Range) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Step of the grid over a range, and the code of zero.

    A range of zero width (an all-zero tensor) has step 1, and on one bit, where zero has no code,
    step 0. No other step is below the smallest normal float. An affine range is stretched to hold
    zero, which then has a code of its own: padding and pruned weights stay exact.
    """
    qmin, qmax = grid.code_range
    if grid.symmetric:
        width = jnp.maximum(-r.lo, r.hi)
        scale = step_of(width, qmax, empty=0.0 if grid.bits == 1 else 1.0)
        return scale, jnp.zeros_like(scale)
    lo, hi = jnp.minimum(r.lo, 0.0), jnp.maximum(r.hi, 0.0)
    # halves: the difference of two of the largest floats is none
    scale = step_of(hi * 0.5 - lo * 0.5, (qmax - qmin) * 0.5, empty=1.0)
    return scale, jnp.round(qmin - divide(lo, scale))


def encode(
    grid: Grid,
    x: Float[Array, "..."],
    scale: Float[Array, "..."],
    zero: Float[Array, "..."],
    key: Key[Array, ""] | None = None,
    *,
    kept: bool = False,
) -> Float[Array, "..."]:
    """Codes of `x`, as floats; the gradient passes inside the range and is zero outside.

    Args:
      grid: what codes there are.
      x: the values.
      scale: step of the grid, broadcastable to them.
      zero: its code of zero.
      key: for stochastic rounding; without one it rounds to the nearest.
      kept: a zero stays zero although the grid has no code for it.
    """
    scale = jnp.where(scale > 0, scale, 1.0) if grid.bits == 1 else scale  # zero only there
    steps = divide(x, scale)
    if grid.bits > 1 and grid.spacing == "even" and (grid.rounding == "nearest" or key is None):
        return clip_ste(round_ste(steps) + zero, *grid.code_range)
    # far beyond the last code, and finite where a range that was stored is left far behind
    steps = jnp.clip(steps, -FAR, FAR)
    if grid.bits == 1:
        rounded = jnp.where(steps >= 0, 1.0, -1.0)
        rounded = jnp.where(steps == 0, 0.0, rounded) if kept else rounded
    elif grid.spacing == "powers":
        rounded = _power(steps, key if grid.rounding == "stochastic" else None)
    else:
        assert key is not None
        rounded = jnp.floor(steps + jax.random.uniform(key, steps.shape))
    through = steps + lax.stop_gradient(rounded - steps)
    clipped = clip_ste(through + zero, *grid.code_range)
    # On one bit every value rounds to an end of the range; the gradient passes within it.
    inside = jnp.abs(steps) <= 1
    return clipped if grid.bits > 1 else jnp.where(inside, clipped, lax.stop_gradient(clipped))


def _power(x: Float[Array, "..."], key: Key[Array, ""] | None) -> Float[Array, "..."]:
    """The nearest of 0, ±1, ±2, ±4 …, or with a key one of the two neighbors, exact on average."""
    magnitude = jnp.abs(x)
    below = jnp.where(magnitude < 1, 0.0, 2.0 ** jnp.floor(jnp.log2(jnp.maximum(magnitude, 1.0))))
    gap = jnp.maximum(below, 1.0)
    share = (magnitude - below) / gap
    threshold = 0.5 if key is None else jax.random.uniform(key, x.shape)
    return jnp.sign(x) * (below + gap * (share > threshold))
