"""Axis groups: what an axis runs over, a symbol, a product of them, or a concatenation.

Two axes that a model adds, multiplies or contracts run over the same thing: their groups are
unified, as terms with variables are in logic. A variable is a `Symbol`; what is known of it is
bound to it. What is left unbound at the end are the groups of channels that can be removed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

Tensor = TypeVar("Tensor", np.ndarray, Array)


@dataclasses.dataclass(eq=False)
class Symbol:
    """Variable that stands for what an axis runs over.

    Attributes:
      size: Number of its entries.
      reason: Why none may be removed, "" if any may.
      bound: Group that it was found to equal, or None.
    """

    size: int
    reason: str = ""
    bound: AxisGroup | None = None


class Product(NamedTuple):
    """Every combination of the entries of several groups, the last one fastest."""

    parts: tuple[AxisGroup, ...]

    @property
    def size(self) -> int:
        """Number of combinations."""
        return math.prod(part.size for part in self.parts)


class Concatenation(NamedTuple):
    """Entries of several groups, one group after another."""

    parts: tuple[AxisGroup, ...]

    @property
    def size(self) -> int:
        """Number of entries."""
        return sum(part.size for part in self.parts)


AxisGroup: TypeAlias = "Symbol | Product | Concatenation"

_CROSSED = "axes that are laid out in different ways meet"


def product(parts: Sequence[AxisGroup]) -> AxisGroup:
    """Makes the product of groups; those of size 1 change nothing and are left out.

    Args:
      parts: Groups, at least one.
    """
    flat: list[AxisGroup] = []
    for part in map(resolve, parts):
        flat += part.parts if isinstance(part, Product) else [part]
    kept = [part for part in flat if part.size != 1] or flat[:1]
    return kept[0] if len(kept) == 1 else Product(tuple(kept))


def concatenate(parts: Sequence[AxisGroup]) -> AxisGroup:
    """Puts groups one after another.

    Args:
      parts: Groups, at least one.
    """
    flat: list[AxisGroup] = []
    for part in map(resolve, parts):
        flat += part.parts if isinstance(part, Concatenation) else [part]
    return flat[0] if len(flat) == 1 else Concatenation(tuple(flat))


def resolve(group: AxisGroup) -> AxisGroup:
    """Replaces bound symbols in a group by what they equal.

    Args:
      group: Group.
    """
    if isinstance(group, Symbol):
        return group if group.bound is None else resolve(group.bound)
    if isinstance(group, Product):
        return product(group.parts) if any(map(_has_bound, group.parts)) else group
    return concatenate(group.parts) if any(map(_has_bound, group.parts)) else group


def _has_bound(group: AxisGroup) -> bool:
    if isinstance(group, Symbol):
        return group.bound is not None
    return any(map(_has_bound, group.parts))


def symbols(group: AxisGroup) -> list[Symbol]:
    """Lists the unbound symbols of a group.

    Args:
      group: Group.
    """
    group = resolve(group)
    if isinstance(group, Symbol):
        return [group]
    return [symbol for part in group.parts for symbol in symbols(part)]


def same(a: AxisGroup, b: AxisGroup) -> bool:
    """Tells if two axes run over the same thing.

    Args:
      a: Group.
      b: Group.
    """
    a, b = resolve(a), resolve(b)
    if isinstance(a, Symbol) or isinstance(b, Symbol):
        return a is b
    if type(a) is not type(b) or len(a.parts) != len(b.parts):
        return False
    return all(map(same, a.parts, b.parts))


def factor_count(group: AxisGroup, wanted: AxisGroup) -> int:
    """Counts how often what one axis runs over is a factor of another.

    Args:
      group: What the other axis runs over.
      wanted: What the one runs over.
    """
    group = resolve(group)
    if same(group, wanted):
        return 1
    parts = group.parts if isinstance(group, Product) else ()
    return sum(factor_count(part, wanted) for part in parts)


def resized(group: AxisGroup, sizes: Mapping[Symbol, int]) -> int:
    """Counts the entries of a group once some symbols have another size.

    Args:
      group: Group.
      sizes: New sizes of symbols.
    """
    group = resolve(group)
    if isinstance(group, Symbol):
        return sizes.get(group, group.size)
    parts = [resized(part, sizes) for part in group.parts]
    return math.prod(parts) if isinstance(group, Product) else sum(parts)


def freeze(group: AxisGroup, reason: str) -> None:
    """Forbids to remove any entry of a group; the first reason stays.

    Args:
      group: Group.
      reason: Why, in words.
    """
    for symbol in symbols(group):
        symbol.reason = symbol.reason or reason


def unify(a: AxisGroup, b: AxisGroup) -> None:
    """Makes two groups of the same size equal; where that is impossible they are frozen.

    Args:
      a: Group.
      b: Group of the same size.
    """
    a, b = resolve(a), resolve(b)
    if a is b:
        return
    if isinstance(b, Symbol) and not isinstance(a, Symbol):
        a, b = b, a
    if isinstance(a, Symbol):
        if a.reason:
            freeze(b, a.reason)
        a.bound = b
        return
    if isinstance(a, Product) and isinstance(b, Product):
        pairs = _match_parts(list(a.parts), list(b.parts), factorize)
    elif isinstance(a, Concatenation) and isinstance(b, Concatenation):
        pairs = _match_parts(list(a.parts), list(b.parts), _split_symbol)
    else:
        pairs = None
    if pairs is None:
        freeze(a, _CROSSED)
        freeze(b, _CROSSED)
        return
    for one, other in pairs:
        unify(one, other)


def _match_parts(
    a: list[AxisGroup],
    b: list[AxisGroup],
    split: Callable[[AxisGroup, int], tuple[AxisGroup, AxisGroup] | None],
) -> list[tuple[AxisGroup, AxisGroup]] | None:
    """Pairs parts of equal size, the larger of two split where need be; None where it cannot be."""
    pairs: list[tuple[AxisGroup, AxisGroup]] = []
    while a and b:
        one, other = resolve(a.pop(0)), resolve(b.pop(0))
        if one.size > other.size:
            if (parts := split(one, other.size)) is None:
                return None
            one, rest = parts
            a.insert(0, rest)
        elif other.size > one.size:
            if (parts := split(other, one.size)) is None:
                return None
            other, rest = parts
            b.insert(0, rest)
        pairs.append((one, other))
    return None if a or b else pairs


def factorize(group: AxisGroup, lead: int) -> tuple[AxisGroup, AxisGroup] | None:
    """Writes a group as a product whose first factor has a given size.

    Args:
      group: Group.
      lead: Size of the first factor.

    Returns:
      The two factors, None where the group cannot be such a product.
    """
    group = resolve(group)
    if group.size % lead:
        return None
    trail = group.size // lead
    if isinstance(group, Symbol):
        parts = Symbol(lead, group.reason), Symbol(trail, group.reason)
        group.bound = product(parts)
        return parts
    if isinstance(group, Product):
        for i in range(1, len(group.parts)):
            if product(group.parts[:i]).size == lead:
                return product(group.parts[:i]), product(group.parts[i:])
        return None
    if any(part.size % trail for part in group.parts):
        return None
    leads, shared = list[AxisGroup](), Symbol(trail)
    for part in group.parts:
        if part.size == trail:
            leads.append(Symbol(1))
            unify(part, shared)
        elif (parts := factorize(part, part.size // trail)) is None:
            return None
        else:
            leads.append(parts[0])
            unify(parts[1], shared)
    return concatenate(leads), shared


def _split_symbol(group: AxisGroup, first: int) -> tuple[AxisGroup, AxisGroup] | None:
    """Splits a symbol into its first entries and the others; None for other groups."""
    if not isinstance(group, Symbol):
        return None
    parts = Symbol(first, group.reason), Symbol(group.size - first, group.reason)
    group.bound = concatenate(parts)
    return parts


def reshape_groups(
    groups: Sequence[AxisGroup], shape: Sequence[int], reason: str
) -> list[AxisGroup]:
    """Finds the groups of an array's axes after a reshape; what cannot be told apart is frozen.

    Args:
      groups: Groups of the axes before.
      shape: Shape after.
      reason: Why to freeze, in words.
    """
    left = [group for group in map(resolve, groups) if group.size != 1]
    out: list[AxisGroup] = []
    for size in shape:
        factors: list[AxisGroup] = []
        need = size
        while need > 1:
            factor = resolve(left.pop(0))
            if factor.size > need or need % factor.size:
                parts = factorize(factor, need) if factor.size > need else None
                if parts is None:
                    return _freeze_all([*groups], shape, reason)
                factor, rest = parts
                left.insert(0, rest)
            factors.append(factor)
            need //= factor.size
        out.append(product(factors) if factors else Symbol(size))
    return out


def _freeze_all(groups: Sequence[AxisGroup], shape: Sequence[int], reason: str) -> list[AxisGroup]:
    for group in groups:
        freeze(group, reason)
    return [Symbol(size, reason) for size in shape]


def kept_entries(
    group: AxisGroup, keep: Mapping[Symbol, Bool[np.ndarray, " n"]]
) -> Bool[np.ndarray, " size"]:
    """Finds the entries of a group that remain.

    Args:
      group: Group of an axis.
      keep: Mask of the entries that remain, by symbol; all entries of other symbols do.
    """
    group = resolve(group)
    if isinstance(group, Symbol):
        return np.asarray(keep.get(group, np.ones(group.size, bool)))
    parts = [kept_entries(part, keep) for part in group.parts]
    if isinstance(group, Concatenation):
        return np.concatenate(parts)
    found = parts[0]
    for part in parts[1:]:
        found = (found[:, None] & part).ravel()
    return found


def sum_by_symbol(
    group: AxisGroup, of: Float[np.ndarray, " size"]
) -> dict[Symbol, Float[np.ndarray, " n"]]:
    """Sums numbers of the entries of a group by entries of each symbol.

    Args:
      group: Group of an axis.
      of: Number for each entry of the group.
    """
    group = resolve(group)
    if isinstance(group, Symbol):
        return {group: of}
    found: dict[Symbol, Float[np.ndarray, " n"]] = {}
    sizes = [part.size for part in group.parts]
    for i, part in enumerate(group.parts):
        if isinstance(group, Product):
            others = tuple(j for j in range(len(sizes)) if j != i)
            own = of.reshape(sizes).sum(others)
        else:
            own = np.split(of, np.cumsum(sizes)[:-1])[i]
        for symbol, numbers in sum_by_symbol(part, own).items():
            found[symbol] = found.get(symbol, 0) + numbers
    return found


Layout: TypeAlias = "int | tuple[type, tuple[Layout, ...]] | None"
"""A group as it lies around one symbol: None for this, a size for any other, or parts."""


def layout_around(group: AxisGroup, symbol: Symbol) -> Layout:
    """Says how a group lies around a symbol, in what is equal for groups of equal sizes.

    Args:
      group: Group of an axis.
      symbol: Symbol in it.
    """
    group = resolve(group)
    if isinstance(group, Symbol):
        return None if group is symbol else int(group.size)
    return type(group), tuple(layout_around(part, symbol) for part in group.parts)


def group_around(layout: Layout, symbol: Symbol) -> AxisGroup:
    """Builds a group that lies so around a symbol.

    Args:
      layout: What `layout_around` says of a group.
      symbol: Symbol to lie in it.
    """
    if layout is None:
        return symbol
    if isinstance(layout, int):
        return Symbol(layout)
    kind, parts = layout
    return kind(tuple(group_around(part, symbol) for part in parts))


def map_along(
    array: Tensor,
    axis: int,
    group: AxisGroup,
    symbol: Symbol,
    change: Callable[[Tensor], Tensor],
) -> Tensor:
    """Changes an array along what of an axis runs over a symbol.

    Args:
      array: Array, of NumPy or of JAX.
      axis: One of its axes.
      group: Group of the axis.
      symbol: Symbol in it; where it is not, the array stays.
      change: Function of an array whose last axis runs over the symbol, to one of the same shape.
    """
    group = resolve(group)
    xp: Any = np if isinstance(array, np.ndarray) else jnp
    if isinstance(group, Symbol):
        if group is not symbol:
            return array
        return xp.moveaxis(change(xp.moveaxis(array, axis, -1)), -1, axis)
    sizes = [part.size for part in group.parts]
    if isinstance(group, Concatenation):
        pieces = xp.split(array, np.cumsum(sizes)[:-1], axis)
        changed = (
            map_along(piece, axis, part, symbol, change)
            for piece, part in zip(pieces, group.parts, strict=True)
        )
        return xp.concatenate(list(changed), axis)
    parts: Any = array.reshape(*array.shape[:axis], *sizes, *array.shape[axis + 1 :])
    for i, part in enumerate(group.parts):
        parts = map_along(parts, axis + i, part, symbol, change)
    return parts.reshape(array.shape)
