"""Which weights of a layer go together, and which of them compete."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxsim.numerics.checks import checked_int


class Layout(NamedTuple):
    """A layer's weights as groups of units: reshaped, transposed, reshaped.

    Attributes:
      shape: of the layer.
      split: shape that the weights are first given.
      order: its axes in the order groups, units, weights of a unit.
      groups: G, how many groups there are; units compete within theirs.
      units: U, how many units a group has.
      size: S, how many weights a unit has.
    """

    shape: tuple[int, ...]
    split: tuple[int, ...]
    order: tuple[int, ...]
    groups: int
    units: int
    size: int

    def gather(self, w: Array) -> Array:
        """The weights [B, *shape] of B layers as [B, G, U, S]."""
        parts = w.reshape(-1, *self.split).transpose(0, *(1 + i for i in self.order))
        return parts.reshape(-1, self.groups, self.units, self.size)

    def spread(self, units: Array) -> Array:
        """One value a unit, [B, G, U], at each of its weights, [B, *shape]."""
        parts = jnp.broadcast_to(units[..., None], (*units.shape, self.size))
        parts = parts.reshape(-1, *(self.split[i] for i in self.order))
        back = (1 + int(i) for i in np.argsort(self.order))
        return parts.transpose(0, *back).reshape(-1, *self.shape)


class Pattern(NamedTuple):
    """What a mask may look like.

    Attributes:
      layout: `(name, shape, contracted axes) -> Layout` of a layer.
      sparsity: the share that every group loses, where the pattern fixes it.
      tied: whether the layers of one module, such as an attention's four, lose the same units.
      needs_axes: whether `layout` looks at the contracted axes, which are empty otherwise.
    """

    layout: Callable[[str, tuple[int, ...], tuple[int, ...]], Layout]
    sparsity: float | None = None
    tied: bool = False
    needs_axes: bool = False


def unstructured() -> Pattern:
    """Every weight for itself."""

    def layout(name: str, shape: tuple[int, ...], contracted: tuple[int, ...]) -> Layout:
        n = math.prod(shape)
        return Layout(shape, (n,), (0,), 1, n, 1)

    return Pattern(layout)


def n_of_m(n: int, m: int, *, axis: int | None = None) -> Pattern:
    """Of every m neighbours along an axis exactly n stay; this fixes the sparsity at 1 - n/m.

    Args:
      n: how many stay, from 1 to m - 1.
      m: of how many, at least 2. It divides the axis.
      axis: of the layer's weight, without the axes that scans stack; None for the last of those
        that are summed over, the input channels of a Flax kernel.

    Raises:
      ValueError: an argument out of range; when applied, m does not divide the axis.

    Source: Mishra et al. (2021), arXiv 2104.08378, for 2 of 4; Zhou et al. (2021),
    arXiv 2102.04010.
    """
    m = checked_int("m", m, 2)
    n = checked_int("n", n, 1, m - 1)

    def layout(name: str, shape: tuple[int, ...], contracted: tuple[int, ...]) -> Layout:
        at = _axis(name, shape, contracted[-1] if axis is None else axis)
        if shape[at] % m:
            raise ValueError(
                f"m={m}: does not divide axis {at} of {name} {list(shape)}; leave it out by sites="
            )
        split = (*shape[:at], shape[at] // m, m, *shape[at + 1 :])
        others = tuple(i for i in range(len(split)) if i != at + 1)
        return Layout(shape, split, (*others, at + 1), math.prod(shape) // m, m, 1)

    return Pattern(layout, sparsity=1 - n / m, needs_axes=axis is None)


def block(rows: int, columns: int) -> Pattern:
    """Blocks of the last two axes, which Flax kernels have their channels on.

    Args:
      rows: of a block, along the last axis but one.
      columns: of a block, along the last axis.

    Raises:
      ValueError: a size below 1; when applied, a layer of one axis, or a size that does not divide
        its axis.

    Source: Gray et al. (2017), GPU kernels for block-sparse weights; Narang et al. (2017),
    arXiv 1711.02782.
    """
    rows, columns = checked_int("rows", rows, 1), checked_int("columns", columns, 1)

    def layout(name: str, shape: tuple[int, ...], contracted: tuple[int, ...]) -> Layout:
        if len(shape) < 2 or shape[-2] % rows or shape[-1] % columns:
            raise ValueError(
                f"rows={rows}, columns={columns}: do not divide the last axes of {name} "
                f"{list(shape)}; leave it out by sites="
            )
        R, C = shape[-2] // rows, shape[-1] // columns
        split = (*shape[:-2], R, rows, C, columns)
        k = len(shape) - 2
        order = (*range(k), k, k + 2, k + 1, k + 3)
        return Layout(shape, split, order, 1, math.prod(shape[:-2]) * R * C, rows * columns)

    return Pattern(layout)


def channel(axis: int = -1) -> Pattern:
    """Whole channels: all weights of one index of an axis.

    Args:
      axis: of the layer's weight, without the axes that scans stack: -1 for the output channels of
        a Flax kernel, -2 for its input channels.

    Raises:
      ValueError: when applied, a layer without that axis.

    Source: Li et al. (2017), arXiv 1608.08710.
    """

    def layout(name: str, shape: tuple[int, ...], contracted: tuple[int, ...]) -> Layout:
        return _along(name, shape, axis)

    return Pattern(layout)


def head(heads: int) -> Pattern:
    """Attention heads, the same ones in every layer of a module.

    The weights of a head are those of its index on the axis of that length: [D, heads, depth] of
    queries, keys and values, [heads, depth, D] of what leaves. Choose the four by `sites`.

    Args:
      heads: how many there are, at least 2.

    Raises:
      ValueError: an argument out of range; when applied, a layer with no axis of that length, or
        with several.

    Source: Michel, Levy and Neubig (2019), arXiv 1905.10650.
    """
    heads = checked_int("heads", heads, 2)

    def layout(name: str, shape: tuple[int, ...], contracted: tuple[int, ...]) -> Layout:
        axes = [i for i, n in enumerate(shape) if n == heads]
        if len(axes) != 1:
            found = "no axis" if not axes else "several axes"
            raise ValueError(f"heads={heads}: {name} {list(shape)} has {found} of that length")
        return _along(name, shape, axes[0])

    return Pattern(layout, tied=True)


def _along(name: str, shape: tuple[int, ...], axis: int) -> Layout:
    """Units along one axis."""
    at = _axis(name, shape, axis)
    others = tuple(i for i in range(len(shape)) if i != at)
    return Layout(shape, shape, (at, *others), 1, shape[at], math.prod(shape) // shape[at])


def _axis(name: str, shape: Sequence[int], axis: int) -> int:
    """An axis, counted from the front."""
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"axis={axis}: {name} {list(shape)} has no such axis")
    return axis % len(shape)
