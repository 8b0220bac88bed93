"""Formats of weights that are no uniform grid: tables of values, and short floats."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxsim.formats.grid import checked_per
from jaxsim.numerics.checks import checked_int
from jaxsim.numerics.scaling import unit_of

_SHORT = ("float8_e4m3fn", "float8_e5m2", "bfloat16", "float16")


@dataclass(frozen=True)
class Codebook:
    """A table of values that weights point into.

    Attributes:
      levels: the table, for weights divided by the largest magnitude that shares a scale; None
        fits one to each tensor by k-means, and then there is no scale. A table without a zero, and
        a fitted one, holds a zero as the value nearest to it; pruned weights stay zero, and so do
        weights all of whose scale are.
      size: entries of a fitted table, where there are as many vectors.
      length: weights that point together, as one vector along the contracted axes (product
        quantization); 1 for a table of numbers.
      per: "tensor" for one scale, "channel" for one an output channel; "group" for one for each
        `rows` products of an output. A fitted table is one a tensor.
      rows: products in a group.
      iterations: of k-means.

    Examples:
      >>> import jaxsim as js
      >>> print(js.Codebook((-1.0, 0.0, 1.0)), "|", js.Codebook(size=16, length=2))
      table of 3 per channel | k-means of 16 × 2
    """

    levels: tuple[float, ...] | None = None
    size: int = 16
    length: int = 1
    per: Literal["tensor", "channel", "group"] = "channel"
    rows: int | None = None
    iterations: int = 25

    def __str__(self) -> str:
        if self.levels is not None:
            return f"table of {len(self.levels)} per {self.per}"
        return f"k-means of {self.size}" + (f" × {self.length}" if self.length > 1 else "")

    def checked(self, side: Literal["weights", "inputs"]) -> Codebook:
        """This table with settings that fit together.

        Args:
          side: The operand that it is to store.

        Raises:
          ValueError: A setting out of range, or inputs, which no table holds.
        """
        if side == "inputs":
            raise ValueError(f"inputs={self!r}: must be an int, a Grid, a Floating or None")
        rows = checked_per(side, self.per, self.rows, ("tensor", "channel", "group"))
        if self.levels is None:
            if self.per == "group":
                raise ValueError(f"{side}: per='group': a fitted table is one a tensor")
            size = checked_int(f"{side}: size", self.size, 2, 2**16)
            length = checked_int(f"{side}: length", self.length, 1)
            steps = checked_int(f"{side}: iterations", self.iterations, 1)
            return replace(self, size=size, length=length, iterations=steps, rows=rows)
        levels = np.asarray(self.levels, np.float32)
        if self.length != 1:
            raise ValueError(f"{side}: length={self.length}: only fitted tables hold vectors")
        if levels.ndim != 1 or not 2 <= levels.size <= 2**16 or not np.isfinite(levels).all():
            raise ValueError(f"{side}: levels={self.levels}: must be 2 to 65536 finite numbers")
        if not (np.diff(levels) > 0).all():
            raise ValueError(f"{side}: levels={self.levels}: must rise")
        return replace(self, levels=tuple(map(float, levels)), rows=rows)


@dataclass(frozen=True)
class Floating:
    """A float of fewer bits, scaled so that the largest magnitude is its largest.

    One with the exponents of float32 is scaled by a power of two, which changes no digit.

    Attributes:
      dtype: "float8_e4m3fn", "float8_e5m2", "bfloat16" or "float16".
      per: "tensor" or "channel" (weights only) for what shares a scale.

    Examples:
      >>> import jaxsim as js
      >>> js.Floating("float8_e4m3fn").largest
      448.0
    """

    dtype: Literal["float8_e4m3fn", "float8_e5m2", "bfloat16", "float16"] = "float8_e4m3fn"
    per: Literal["tensor", "channel"] = "tensor"

    def __str__(self) -> str:
        return f"{self.dtype} per {self.per}"

    def checked(self, side: Literal["weights", "inputs"]) -> Floating:
        """This format, of a dtype and a scale that there are.

        Args:
          side: The operand that it is to store.

        Raises:
          ValueError: Another dtype, or scales that this operand does not take.
        """
        checked_per(side, self.per, None, ("tensor", "channel"))
        if self.dtype not in _SHORT:
            raise ValueError(f"{side}: dtype={self.dtype!r}, must be one of {', '.join(_SHORT)}")
        if side == "inputs" and self.per != "tensor":
            raise ValueError(f"inputs: per={self.per!r}, must be 'tensor' or 'token'")
        return self

    @property
    def bits(self) -> int:
        """Width."""
        return 8 * jnp.dtype(self.dtype).itemsize

    @property
    def largest(self) -> float:
        """Largest finite magnitude."""
        return float(jnp.finfo(self.dtype).max)

    @property
    def scaled(self) -> bool:
        """Whether it has fewer exponents than float32, so that numbers are scaled to fit."""
        return jnp.finfo(self.dtype).nexp < jnp.finfo(jnp.float32).nexp


def nf4(
    *, per: Literal["tensor", "channel", "group"] = "channel", rows: int | None = None
) -> Codebook:
    """Four bits whose values are quantiles of a normal distribution, zero among them.

    Eight of the sixteen lie at or above zero: quantiles evenly spaced in probability on each side,
    divided by the largest.

    Args:
      per: what has a scale of its own, see `Codebook`.
      rows: products in a group.

    Examples:
      >>> import jaxsim as js
      >>> len(js.nf4().levels), 0.0 in js.nf4().levels
      (16, True)

    Source: Dettmers et al. (2023), arXiv 2305.14314, section 3.
    """
    return Codebook(_normal_levels(), per=per, rows=rows)


def fp4(
    *, per: Literal["tensor", "channel", "group"] = "channel", rows: int | None = None
) -> Codebook:
    """Four bits as a float of two exponent bits and one of mantissa: ±0, .5, 1, 1.5, 2, 3, 4, 6.

    Args:
      per: what has a scale of its own, see `Codebook`.
      rows: products in a group.

    Examples:
      >>> import jaxsim as js
      >>> js.fp4().levels[-3:]
      (0.5, 0.6666666666666666, 1.0)

    Source: OCP Microscaling Formats (MX) specification 1.0, section 5.3.3.
    """
    positive = [0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    levels = [-v / 6 for v in reversed(positive)] + [0.0] + [v / 6 for v in positive]
    return Codebook(tuple(levels), per=per, rows=rows)


def _normal_levels() -> tuple[float, ...]:
    """The sixteen values of NF4: 8 from the positive side, 7 from the negative one, and zero."""
    end = (1 - 1 / 32 + 1 - 1 / 30) / 2  # between the tails that 16 and 15 even bins leave out
    above = _normal_quantile(np.linspace(end, 0.5, 9)[:-1])
    below = -_normal_quantile(np.linspace(end, 0.5, 8)[:-1])
    levels = np.sort(np.concatenate([below, [0.0], above]))
    return tuple(float(v) for v in levels / levels.max())


def _normal_quantile(p: np.ndarray) -> np.ndarray:
    """Quantiles of the standard normal distribution."""
    from statistics import NormalDist

    return np.asarray([NormalDist().inv_cdf(float(v)) for v in p])


def index_bits(size: int) -> int:
    """Bits of an index into a table."""
    return max(1, (size - 1).bit_length())


def nearest(x: Float[Array, "..."], levels: Float[Array, " size"]) -> Int[Array, "..."]:
    """Index of the level nearest to each value; levels rise."""
    between = (levels[1:] + levels[:-1]) / 2
    return jnp.searchsorted(between, x).astype(jnp.uint8 if levels.size <= 256 else jnp.int32)


@partial(jax.jit, static_argnames=("size", "iterations"))
def k_means(
    x: Float[Array, "n length"],
    *,
    size: int,
    iterations: int,
    kept: Bool[Array, "n length"] | None = None,
) -> tuple[Float[Array, "size length"], Int[Array, " n"]]:
    """Centers that vectors cluster around, and the nearest of each vector.

    Numbers begin at their quantiles, vectors at those of rows evenly spaced by norm. A center
    without a vector moves to the one that is served worst.

    Args:
      x: vectors.
      size: number of centers, at most that of the vectors.
      iterations: of Lloyd's algorithm.
      kept: which numbers of the vectors count, the others being zero; None for all. Distances and
        means are of those that count.

    Source: Lloyd (1982), Least squares quantization in PCM, IEEE Trans. Inf. Theory 28.
    """
    n, length = x.shape
    unit = unit_of(x, (0, 1))
    x = x / unit
    counted = None if kept is None else kept.astype(x.dtype)
    some = jnp.ones(n, bool) if kept is None else jnp.any(kept, -1)
    first = x[:, 0] if length == 1 else jnp.sum(x**2, -1)
    order = jnp.argsort(jnp.where(some, first, jnp.inf))
    begin = jnp.arange(0.5, size) * (jnp.sum(some) / size)
    centres = x[order[begin.astype(jnp.int32)]]

    def assign(centres: Array) -> Array:
        if length == 1:
            return nearest(x[:, 0], centres[:, 0]).astype(jnp.int32)
        squares = jnp.sum(centres**2, -1)[None] if counted is None else counted @ (centres**2).T
        return jnp.argmin(squares - 2 * x @ centres.T, -1)

    def move(_: int, centres: Array) -> Array:
        index = assign(centres)
        weight = jnp.ones(x.shape) if counted is None else counted
        sums = jnp.zeros((size, length)).at[index].add(x)
        counts = jnp.zeros((size, length)).at[index].add(weight)
        worst = x[jnp.argmax(jnp.sum(weight * (x - centres[index]) ** 2, -1))]
        empty = jnp.all(counts == 0, -1)
        first_empty = empty & (jnp.cumsum(empty) == 1)
        means = jnp.where(counts == 0, centres, sums / jnp.maximum(counts, 1))
        moved = jnp.where(first_empty[:, None], worst, means)
        return jnp.sort(moved, 0) if length == 1 else moved

    centres = lax.fori_loop(0, iterations, move, centres)
    return centres * unit, assign(centres)
