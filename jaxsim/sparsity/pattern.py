"""Which weights of a layer form a unit, and which units compete."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxsim.numerics.checks import check_share, checked_int


class Layout(NamedTuple):
    """Layout of a layer's weights as groups of units: reshaped, transposed, reshaped.

    Attributes:
      shape: Shape of the layer.
      split: Shape that the weights are first given.
      order: Axes of `split` in the order groups, units, weights of a unit.
      groups: Number of groups, G; units compete within theirs.
      units: Number of units of a group, U.
      size: Number of weights of a unit, S.
    """

    shape: tuple[int, ...]
    split: tuple[int, ...]
    order: tuple[int, ...]
    groups: int
    units: int
    size: int

    @partial(jax.jit, static_argnums=0)
    def gather(self, w: Array) -> Array:
        """Rearranges the weights of B layers into units.

        Args:
          w: Weights [B, *shape].

        Returns:
          The weights [B, G, U, S].
        """
        parts = w.reshape(-1, *self.split).transpose(0, *(1 + i for i in self.order))
        return parts.reshape(-1, self.groups, self.units, self.size)

    @partial(jax.jit, static_argnums=0)
    def spread(self, units: Array) -> Array:
        """Repeats one value per unit at each of its weights.

        Args:
          units: Values [B, G, U].

        Returns:
          The values [B, *shape].
        """
        parts = jnp.broadcast_to(units[..., None], (*units.shape, self.size))
        parts = parts.reshape(-1, *(self.split[i] for i in self.order))
        back = (1 + int(i) for i in np.argsort(self.order))
        return parts.transpose(0, *back).reshape(-1, *self.shape)


class Pattern(NamedTuple):
    """Pattern that a mask has.

    Attributes:
      layout: Function `(name, shape, contracted axes) -> Layout` of a layer.
      sparsity: Fraction that every group loses, where the pattern fixes it.
      tied: If True, the layers of one module, such as an attention's four, lose the same units.
      needs_axes: If True, `layout` reads the contracted axes, which are empty otherwise.

    Examples:
      >>> import jaxsim as js
      >>> js.sparsity.n_of_m(2, 4).sparsity, js.sparsity.head(2).tied
      (0.5, True)
    """

    layout: Callable[[str, tuple[int, ...], tuple[int, ...]], Layout]
    sparsity: float | None = None
    tied: bool = False
    needs_axes: bool = False


def unstructured() -> Pattern:
    """Prunes every weight for itself.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> w = jnp.array([[1.0, 4.0], [3.0, 2.0]])
      >>> net = js.trace(lambda p, x: x @ p["w"], {"w": w}, jnp.ones((1, 2)))
      >>> js.prune(0.5, pattern=js.sparsity.unstructured())(net).masks["w"].tolist()
      [[False, True], [True, False]]
    """

    def layout(name: str, shape: tuple[int, ...], contracted: tuple[int, ...]) -> Layout:
        n = math.prod(shape)
        return Layout(shape, (n,), (0,), 1, n, 1)

    return Pattern(layout)


def n_of_m(n: int, m: int, *, axis: int | None = None) -> Pattern:
    """Keeps exactly n of every m neighbors along an axis; this fixes the sparsity at 1 - n/m.

    Args:
      n: Number of weights that stay, from 1 to m - 1.
      m: Number of neighbors, at least 2. It divides the axis.
      axis: Axis of the layer's weight, without the axes that scans stack; None for the last of
        those that are summed over, the input channels of a Flax kernel.

    Raises:
      ValueError: An argument out of range; when applied, m does not divide the axis.

    Source: Mishra et al. (2021), arXiv 2104.08378, for 2 of 4; Zhou et al. (2021),
    arXiv 2102.04010.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> w = jnp.array([[1.0], [4.0], [3.0], [2.0]])
      >>> net = js.trace(lambda p, x: x @ p["w"], {"w": w}, jnp.ones((1, 4)))
      >>> js.prune(pattern=js.sparsity.n_of_m(2, 4))(net).masks["w"].ravel().tolist()
      [False, True, True, False]
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


def per_output(sparsity: float) -> Pattern:
    """Prunes weights for themselves, each output the same fraction of its own.

    Args:
      sparsity: Fraction that goes, in [0, 1): round(sparsity · n) of the n weights that an output
        sums over.

    Raises:
      ValueError: `sparsity` out of range.

    Source: Sun et al. (2024), arXiv 2306.11695, section 3 (comparison groups).

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> w = jnp.array([[1.0, 8.0], [2.0, 9.0]])
      >>> net = js.trace(lambda p, x: x @ p["w"], {"w": w}, jnp.ones((1, 2)))
      >>> js.prune(pattern=js.sparsity.per_output(0.5))(net).masks["w"].tolist()
      [[False, False], [True, True]]
    """
    check_share("sparsity", sparsity)
    sparsity = float(sparsity)

    def layout(name: str, shape: tuple[int, ...], contracted: tuple[int, ...]) -> Layout:
        outputs = tuple(i for i in range(len(shape)) if i not in contracted)
        units = math.prod(shape[i] for i in contracted)
        return Layout(shape, shape, (*outputs, *contracted), math.prod(shape) // units, units, 1)

    return Pattern(layout, sparsity=sparsity, needs_axes=True)


def block(rows: int, columns: int) -> Pattern:
    """Prunes blocks of the last two axes, which are the channels of Flax kernels.

    Args:
      rows: Number of rows of a block, along the last axis but one.
      columns: Number of columns of a block, along the last axis.

    Raises:
      ValueError: A size below 1; when applied, a layer of one axis, or a size that does not divide
        its axis.

    Source: Gray et al. (2017), GPU kernels for block-sparse weights; Narang et al. (2017),
    arXiv 1711.02782.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> w = jnp.array([[1.0, 1.0, 3.0, 3.0]])
      >>> net = js.trace(lambda p, x: x @ p["w"], {"w": w}, jnp.ones((1, 1)))
      >>> js.prune(0.5, pattern=js.sparsity.block(1, 2))(net).masks["w"].tolist()
      [[False, False, True, True]]
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
    """Prunes whole channels: all weights of one index of an axis.

    Args:
      axis: Axis of the layer's weight, without the axes that scans stack: -1 for the output
        channels of a Flax kernel, -2 for its input channels.

    Raises:
      ValueError: When applied, a layer without that axis.

    Source: Li et al. (2017), arXiv 1608.08710.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> w = jnp.array([[1.0, 2.0], [1.0, 2.0]])
      >>> net = js.trace(lambda p, x: x @ p["w"], {"w": w}, jnp.ones((1, 2)))
      >>> js.prune(0.5, pattern=js.sparsity.channel())(net).masks["w"].tolist()
      [[False, True], [False, True]]
    """

    def layout(name: str, shape: tuple[int, ...], contracted: tuple[int, ...]) -> Layout:
        return _along(name, shape, axis)

    return Pattern(layout)


def head(heads: int) -> Pattern:
    """Prunes attention heads, the same ones in every layer of a module.

    The weights of a head are those of its index on the axis of that length: [D, heads, depth] of
    queries, keys and values, [heads, depth, D] of what leaves. Choose the four by `sites`.

    Args:
      heads: Number of heads, at least 2.

    Raises:
      ValueError: An argument out of range; when applied, a layer with no axis of that length, or
        with several.

    Source: Michel, Levy and Neubig (2019), arXiv 1905.10650.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> w = jnp.stack([jnp.ones((3, 4)), jnp.full((3, 4), 2.0)], 1)
      >>> heads = lambda p, x: jnp.einsum("bd,dhk->bhk", x, p["w"])
      >>> net = js.trace(heads, {"w": w}, jnp.ones((1, 3)))
      >>> js.prune(0.5, pattern=js.sparsity.head(2))(net).masks["w"].any((0, 2)).tolist()
      [False, True]
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
    """Makes units along one axis."""
    at = _axis(name, shape, axis)
    others = tuple(i for i in range(len(shape)) if i != at)
    return Layout(shape, shape, (at, *others), 1, shape[at], math.prod(shape) // shape[at])


def _axis(name: str, shape: Sequence[int], axis: int) -> int:
    """Counts an axis from the front."""
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"axis={axis}: {name} {list(shape)} has no such axis")
    return axis % len(shape)
