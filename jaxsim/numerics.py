"""Rounding with a gradient, and the grids that numbers are stored on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Float, Num


@jax.custom_jvp
def round_through(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Rounds half to even; its derivative is that of the identity.

    Source: straight-through estimator, Bengio, Léonard and Courville (2013), arXiv 1308.3432.
    """
    return jnp.round(x)


round_through.defjvps(lambda tangent, ans, x: tangent)


def clip_through(
    x: Float[Array, "..."], lo: float | Array, hi: float | Array
) -> Float[Array, "..."]:
    """Clips to [lo, hi]; its derivative is one on the closed range and zero outside.

    That of `jnp.clip` is a half at the ends, where all the values lie that round to the last code.
    """
    inside = (x >= lo) & (x <= hi)
    return jnp.where(inside, x, jnp.clip(jax.lax.stop_gradient(x), lo, hi))


def is_traced(value: Any) -> bool:
    """Whether a value is known only inside a compiled programme, where no check can see it."""
    return isinstance(value, Tracer)


def check_range(
    name: str, value: Any, lo: float, hi: float = math.inf, *, above: bool = False
) -> None:
    """Checks that a number is finite and in [lo, hi], or (lo, hi]; a traced one is not looked at.

    Args:
      name: of the argument, for the error.
      value: a number, or an array that holds one.
      lo: lower end.
      hi: upper end.
      above: whether `lo` itself is out of range.

    Raises:
      ValueError: it is not.
    """
    if is_traced(value):
        return
    number = np.asarray(value)
    if (
        number.ndim == 0
        and number.dtype.kind in "iuf"
        and np.isfinite(number)
        and (number > lo if above else number >= lo)
        and number <= hi
    ):
        return
    upper = "" if hi == math.inf else f" and at most {hi}"
    raise ValueError(
        f"{name}={value}: must be a number {'above' if above else 'of at least'} {lo}{upper}"
    )


def checked_int(name: str, value: Any, lo: int, hi: int | None = None) -> int:
    """A whole number in [lo, hi] as an int, numpy's included.

    Raises:
      ValueError: it is not one.
    """
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < lo or (hi is not None and value > hi):
        allowed = f"of at least {lo}" if hi is None else f"from {lo} to {hi}"
        raise ValueError(f"{name}={value!r}: must be an int {allowed}")
    return int(value)


def straight_through(
    exact: Callable[..., Array], smooth: Callable[..., Array]
) -> Callable[..., Array]:
    """A function with the values of `exact` and the derivative of `smooth`.

    Args:
      exact: computes the result, for instance in integers.
      smooth: the same function of the same arguments, differentiable; it also gives the value
        where a derivative is taken, so that nothing is computed twice.
    """
    through = jax.custom_jvp(exact)
    through.defjvp(lambda primals, tangents: jax.jvp(smooth, primals, tangents))
    return through


@jax.custom_jvp
def derivative_alone(y: Float[Array, "..."]) -> Float[Array, "..."]:
    """Zeros, whose derivative is that of `y`: added to a value, they lend it a derivative.

    What computes `y` itself is then dead code, and costs nothing under `jit`.
    """
    return jnp.zeros_like(y)


derivative_alone.defjvps(lambda tangent, ans, y: tangent)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["percentile"],
    meta_fields=["bits", "symmetric", "per", "dynamic"],
)
@dataclass(frozen=True)
class Grid:
    """The uniform grid a tensor is stored on.

    Attributes:
      bits: width of a stored code, 2 to 8.
      symmetric: codes are ±(2^(bits-1) - 1) around an exact zero; otherwise the grid is affine and
        a zero point places the range on all 2^bits codes.
      per: "tensor" for one scale, "channel" for one scale an output channel (weights only).
      percentile: share of the values, in percent, that the range covers; None for the exact
        minimum and maximum. Traced, so a sweep over it compiles once.
      dynamic: the range is taken from each batch rather than stored at calibration (inputs only).
    """

    bits: int = 8
    symmetric: bool = True
    per: Literal["tensor", "channel"] = "tensor"
    percentile: float | None = None
    dynamic: bool = False

    def __str__(self) -> str:
        parts = [f"int{self.bits}", "symmetric" if self.symmetric else "affine", f"per {self.per}"]
        if self.percentile is not None:
            parts.append("clipped")
        if self.dynamic:
            parts.append("dynamic")
        return " ".join(parts)

    @property
    def code_range(self) -> tuple[int, int]:
        """Smallest and largest code."""
        half = 2 ** (self.bits - 1)
        return (1 - half if self.symmetric else -half), half - 1


class Range(NamedTuple):
    """Lower and upper end of what a tensor takes; (inf, -inf) before anything was seen."""

    lo: Float[Array, "..."]
    hi: Float[Array, "..."]


def no_range(shape: tuple[int, ...] = ()) -> Range:
    """The empty range: every `widen` replaces it."""
    return Range(jnp.full(shape, jnp.inf), jnp.full(shape, -jnp.inf))


def widen(a: Range, b: Range) -> Range:
    """The smallest range that holds both."""
    return Range(jnp.minimum(a.lo, b.lo), jnp.maximum(a.hi, b.hi))


def quantile(x: Float[Array, "*rows n"], q: Float[Array, ""]) -> Float[Array, "*rows"]:
    """The q-quantile along the last axis, interpolated between neighbours as numpy does.

    The two order statistics are found by bisection on the bits of the floats, 32 counting passes:
    exact, and far faster than a sort on every backend.

    Args:
      x: float32 values without NaN, n at least 1.
      q: share in [0, 1].
    """
    position = jnp.clip(q, 0, 1) * (x.shape[-1] - 1)
    below = jnp.floor(position).astype(jnp.int32)
    bits = lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)
    order = jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # integers that sort as the floats do

    def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        lo, hi = ends
        middle = (lo & hi) + ((lo ^ hi) >> 1)
        enough = jnp.sum(order <= middle[..., None], -1) > below
        return jnp.where(enough, lo, middle + 1), jnp.where(enough, middle, hi)

    ends = (jnp.min(order, -1), jnp.max(order, -1))
    found, _ = lax.fori_loop(0, 32, halve, ends)
    more = jnp.sum(order <= found[..., None], -1) > below + 1
    beyond = jnp.where(order > found[..., None], order, jnp.max(order, -1, keepdims=True))
    above = jnp.where(more, found, jnp.min(beyond, -1))
    lo, hi = (
        lax.bitcast_convert_type(jnp.where(o < 0, o ^ 0x7FFFFFFF, o), jnp.float32)
        for o in (found, above)
    )
    return lo + (hi - lo) * (position - below)


def observe(
    x: Float[Array, "..."],
    *,
    axes: Sequence[int] | None = None,
    percentile: float | Array | None = None,
    symmetric: bool = False,
) -> Range:
    """The range of `x`, to which no gradient flows.

    Args:
      x: the values.
      axes: axes to reduce, kept with size 1; None reduces all of them to a scalar.
      percentile: percent of the values to cover, None for all. An affine range leaves out the same
        share below and above; a symmetric one leaves out the largest magnitudes.
      symmetric: return (-r, r).

    Returns:
      The range, with the reduced axes of size 1 (or scalars).
    """
    x = lax.stop_gradient(x).astype(jnp.float32)
    x = jnp.abs(x) if symmetric else x
    summed = tuple(range(x.ndim)) if axes is None else tuple(axes)
    kept = tuple(a for a in range(x.ndim) if a not in summed)
    rows = jnp.transpose(x, kept + summed).reshape(*(x.shape[a] for a in kept), -1)
    if percentile is None:
        lo, hi = jnp.min(rows, -1), jnp.max(rows, -1)
    else:
        share = jnp.asarray(percentile, jnp.float32) / 100
        hi = quantile(rows, share if symmetric else (1 + share) / 2)
        lo = hi if symmetric else quantile(rows, (1 - share) / 2)
    r = Range(-hi, hi) if symmetric else Range(lo, hi)
    if axes is None:
        return r
    return Range(*(jnp.expand_dims(end, summed) for end in r))


def scale_and_zero(grid: Grid, r: Range) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Step of the grid over a range, and the code of zero.

    A range of zero width (an all-zero tensor) has step 1. An affine range is stretched to hold
    zero, which then has a code of its own: padding and pruned weights stay exact.
    """
    qmin, qmax = grid.code_range
    if grid.symmetric:
        width = jnp.maximum(jnp.abs(r.lo), jnp.abs(r.hi))
        scale = jnp.where(width > 0, width / qmax, 1.0)
        return scale, jnp.zeros_like(scale)
    lo, hi = jnp.minimum(r.lo, 0.0), jnp.maximum(r.hi, 0.0)
    scale = jnp.where(hi > lo, (hi - lo) / (qmax - qmin), 1.0)
    return scale, jnp.clip(jnp.round(qmin - lo / scale), qmin, qmax)


def encode(
    grid: Grid,
    x: Float[Array, "..."],
    scale: Float[Array, "..."],
    zero: Float[Array, "..."],
) -> Float[Array, "..."]:
    """Codes of `x`, as floats; the gradient passes inside the range and is zero outside."""
    return clip_through(round_through(x / scale) + zero, *grid.code_range)


def digit_count(largest: int, bits: int) -> int:
    """Digits of `bits` bits that the magnitudes up to `largest` take, at least one."""
    return max(1, -(-largest.bit_length() // bits))


def digit(code: Num[Array, "..."], place: int, bits: int, count: int) -> Num[Array, "..."]:
    """One digit of the magnitude of each code, with the code's sign.

    Args:
      code: whole numbers, as integers or floats.
      place: value of the digit's place, a power of two.
      bits: bits of a digit.
      count: digits of a code; the gradient of each is an equal share of the code's.
    """
    if jnp.issubdtype(code.dtype, jnp.integer):
        wide = code.astype(jnp.int32)
        found = jnp.sign(wide) * ((jnp.abs(wide) // place) % 2**bits)
        return found.astype(code_dtype(-(2**bits) + 1, 2**bits - 1))
    magnitude = jnp.floor(jnp.abs(code) / place) % 2**bits
    found = lax.stop_gradient(jnp.sign(code) * magnitude)
    return found + (code - lax.stop_gradient(code)) / (place * count)


def over_planes(values: Any, ndim: int) -> Array:
    """One value a plane, as it broadcasts to an array of that rank which begins with the planes."""
    return jnp.reshape(values, (*values.shape, *(1,) * (ndim - values.ndim)))


def code_dtype(lo: int, hi: int) -> np.dtype[np.signedinteger]:
    """The narrowest signed integer type that holds every code from `lo` to `hi`."""
    return next(
        np.dtype(t)
        for t in ("int8", "int16", "int32")
        if lo >= np.iinfo(t).min and hi <= np.iinfo(t).max
    )
