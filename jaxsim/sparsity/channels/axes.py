"""What an axis runs over: a unit of its own, a product of units, or several one after the other.

Two axes that a model adds, multiplies or contracts run over the same thing: their labels are
unified, as terms with variables are in logic. A variable is an `Atom`; what is known of it is bound
to it. What is left unbound at the end are the groups of channels that can be removed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Bool, Float


@dataclasses.dataclass(eq=False)
class Atom:
    """Something an axis runs over.

    Attributes:
      size: number of its entries.
      reason: why none may be removed, "" if any may.
      bound: what it turned out to be.
    """

    size: int
    reason: str = ""
    bound: Label | None = None


class Product(NamedTuple):
    """Every combination of the entries of several labels, the last one fastest."""

    parts: tuple[Label, ...]

    @property
    def size(self) -> int:
        """Number of combinations."""
        return math.prod(part.size for part in self.parts)


class Chain(NamedTuple):
    """The entries of several labels, one after the other."""

    parts: tuple[Label, ...]

    @property
    def size(self) -> int:
        """Number of entries."""
        return sum(part.size for part in self.parts)


Label: TypeAlias = "Atom | Product | Chain"

_CROSSED = "axes that are laid out in different ways meet"


def product(parts: Sequence[Label]) -> Label:
    """The product of labels; those of size 1 change nothing and are left out."""
    flat: list[Label] = []
    for part in map(resolved, parts):
        flat += part.parts if isinstance(part, Product) else [part]
    kept = [part for part in flat if part.size != 1] or flat[:1]
    return kept[0] if len(kept) == 1 else Product(tuple(kept))


def chain(parts: Sequence[Label]) -> Label:
    """Labels one after the other."""
    flat: list[Label] = []
    for part in map(resolved, parts):
        flat += part.parts if isinstance(part, Chain) else [part]
    return flat[0] if len(flat) == 1 else Chain(tuple(flat))


def resolved(label: Label) -> Label:
    """A label with what its atoms turned out to be in their places."""
    if isinstance(label, Atom):
        return label if label.bound is None else resolved(label.bound)
    if isinstance(label, Product):
        return product(label.parts) if any(map(_bound, label.parts)) else label
    return chain(label.parts) if any(map(_bound, label.parts)) else label


def _bound(label: Label) -> bool:
    if isinstance(label, Atom):
        return label.bound is not None
    return any(map(_bound, label.parts))


def atoms(label: Label) -> list[Atom]:
    """The unbound atoms of a label."""
    label = resolved(label)
    if isinstance(label, Atom):
        return [label]
    return [atom for part in label.parts for atom in atoms(part)]


def freeze(label: Label, reason: str) -> None:
    """Forbids to remove any entry of a label; the first reason stays."""
    for atom in atoms(label):
        atom.reason = atom.reason or reason


def unify(a: Label, b: Label) -> None:
    """Makes two labels of the same size the same; what cannot be made the same is frozen."""
    a, b = resolved(a), resolved(b)
    if a is b:
        return
    if isinstance(b, Atom) and not isinstance(a, Atom):
        a, b = b, a
    if isinstance(a, Atom):
        if a.reason:
            freeze(b, a.reason)
        a.bound = b
        return
    if isinstance(a, Product) and isinstance(b, Product):
        pairs = _matched(list(a.parts), list(b.parts), divide)
    elif isinstance(a, Chain) and isinstance(b, Chain):
        pairs = _matched(list(a.parts), list(b.parts), _cut)
    else:
        pairs = None
    if pairs is None:
        freeze(a, _CROSSED)
        freeze(b, _CROSSED)
        return
    for one, other in pairs:
        unify(one, other)


def _matched(
    a: list[Label],
    b: list[Label],
    split: Callable[[Label, int], tuple[Label, Label] | None],
) -> list[tuple[Label, Label]] | None:
    """Parts of equal size, the larger of two split where need be; None where it cannot be."""
    pairs: list[tuple[Label, Label]] = []
    while a and b:
        one, other = resolved(a.pop(0)), resolved(b.pop(0))
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


def divide(label: Label, lead: int) -> tuple[Label, Label] | None:
    """A label as a product whose first factor has this size, if it can be one."""
    label = resolved(label)
    if label.size % lead:
        return None
    trail = label.size // lead
    if isinstance(label, Atom):
        parts = Atom(lead, label.reason), Atom(trail, label.reason)
        label.bound = product(parts)
        return parts
    if isinstance(label, Product):
        for i in range(1, len(label.parts)):
            if product(label.parts[:i]).size == lead:
                return product(label.parts[:i]), product(label.parts[i:])
        return None
    if any(part.size % trail for part in label.parts):
        return None
    leads, shared = list[Label](), Atom(trail)
    for part in label.parts:
        if part.size == trail:
            leads.append(Atom(1))
            unify(part, shared)
        elif (parts := divide(part, part.size // trail)) is None:
            return None
        else:
            leads.append(parts[0])
            unify(parts[1], shared)
    return chain(leads), shared


def _cut(label: Label, first: int) -> tuple[Label, Label] | None:
    """A label as so many entries and the others behind them, if it can be."""
    if not isinstance(label, Atom):
        return None
    parts = Atom(first, label.reason), Atom(label.size - first, label.reason)
    label.bound = chain(parts)
    return parts


def regroup(labels: Sequence[Label], shape: Sequence[int], reason: str) -> list[Label]:
    """Labels of an array's axes after a reshape; what cannot be told apart is frozen.

    Args:
      labels: of the axes before.
      shape: after.
      reason: to freeze with.
    """
    left = [label for label in map(resolved, labels) if label.size != 1]
    out: list[Label] = []
    for size in shape:
        factors: list[Label] = []
        need = size
        while need > 1:
            factor = resolved(left.pop(0))
            if factor.size > need or need % factor.size:
                parts = divide(factor, need) if factor.size > need else None
                if parts is None:
                    return _lost([*labels], shape, reason)
                factor, rest = parts
                left.insert(0, rest)
            factors.append(factor)
            need //= factor.size
        out.append(product(factors) if factors else Atom(size))
    return out


def _lost(labels: Sequence[Label], shape: Sequence[int], reason: str) -> list[Label]:
    for label in labels:
        freeze(label, reason)
    return [Atom(size, reason) for size in shape]


def kept(label: Label, keep: Mapping[Atom, Bool[np.ndarray, " n"]]) -> Bool[np.ndarray, " size"]:
    """Which entries of a label remain.

    Args:
      label: of an axis.
      keep: for some atoms, which of their entries remain; all of the others do.
    """
    label = resolved(label)
    if isinstance(label, Atom):
        return np.asarray(keep.get(label, np.ones(label.size, bool)))
    parts = [kept(part, keep) for part in label.parts]
    if isinstance(label, Chain):
        return np.concatenate(parts)
    found = parts[0]
    for part in parts[1:]:
        found = (found[:, None] & part).ravel()
    return found


def shares(label: Label, of: Float[np.ndarray, " size"]) -> dict[Atom, Float[np.ndarray, " n"]]:
    """What the entries of each atom hold, of numbers that the entries of a label hold."""
    label = resolved(label)
    if isinstance(label, Atom):
        return {label: of}
    found: dict[Atom, Float[np.ndarray, " n"]] = {}
    sizes = [part.size for part in label.parts]
    for i, part in enumerate(label.parts):
        if isinstance(label, Product):
            others = tuple(j for j in range(len(sizes)) if j != i)
            own = of.reshape(sizes).sum(others)
        else:
            own = np.split(of, np.cumsum(sizes)[:-1])[i]
        for atom, numbers in shares(part, own).items():
            found[atom] = found.get(atom, 0) + numbers
    return found
