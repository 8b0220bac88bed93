"""Results that are kept as long as a value they were made for, or a copy of it, lives.

A network's stages and their compiled programs are too dear to make at every call, and too large to
keep in a cache of the process. A value of this kind has a field `memo: Memo`, static in its pytree,
and holds what was made for it; copies by `dataclasses.replace` or through a pytree hold the same.
Values that are equal share what was made for one of them while it lives.
"""

from __future__ import annotations

import atexit
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")

_LIMIT = 256
"""Results that a value holds at most; the one that was not used for longest goes first."""


class _Cell:
    """A result; tuples cannot be referred to weakly."""

    def __init__(self, value: Any):
        self.value = value


class _Holder:
    """Results that live as long as the values that hold this."""

    def __init__(self) -> None:
        self.cells: OrderedDict[Hashable, _Cell] = OrderedDict()

    def __reduce__(self) -> Any:  # a copy in another process, or a deep one, begins anew
        return _Holder, ()


class Memo:
    """Tells copies of a value which results to hold: static, and equal to any other.

    It refers to them weakly. Compiled functions keep the structure of their arguments, and this
    with it, for as long as the process lives.

    Examples:
      >>> from jaxsim.values.memo import Memo
      >>> Memo() == Memo(), len({Memo(), Memo()})
      (True, 1)
    """

    def __init__(self) -> None:
        """Refers to nothing yet."""
        self._holder: Callable[[], _Holder | None] = lambda: None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Memo)

    def __hash__(self) -> int:
        return hash(Memo)

    def __reduce__(self) -> Any:
        return Memo, ()

    def attach(self, owner: Any) -> _Holder:
        """Makes a value hold the results of those that have this memo.

        Args:
          owner: A frozen dataclass with this memo in its field `memo`.
        """
        holder = self._holder()
        if holder is None:
            holder = vars(owner).get("_holder") or _Holder()
            self._holder = weakref.ref(holder)
        object.__setattr__(owner, "_holder", holder)
        return holder


class Memoizing:
    """A frozen dataclass with a field `memo`, which it holds the results of from the beginning."""

    memo: Memo

    def __post_init__(self) -> None:
        """Before the value that this is a copy of may be dropped."""
        self.memo.attach(self)


_shared: weakref.WeakValueDictionary[Hashable, _Cell] = weakref.WeakValueDictionary()
"""Results of all values that live; it keeps none of them."""
# Keys hold shapes, which JAX can no longer compare while the interpreter goes down.
atexit.register(_shared.clear)


def memoized(owner: Memoizing, make: Callable[..., T], *args: Hashable) -> T:
    """Calls a pure function once for a value, its copies and its equals.

    Args:
      owner: Value that holds the result.
      make: Function of the arguments; its result must not refer to the owner.
      *args: Arguments, compared by `==`.

    Returns:
      The result, the same object for as long as a value that asked for it lives.
    """
    key, cells = (make, *args), owner.memo.attach(owner).cells
    cell = cells.pop(key, None) or _shared.get(key)
    if cell is None:
        cell = _shared.setdefault(key, _Cell(make(*args)))
    cells[key] = cell
    while len(cells) > _LIMIT:
        cells.popitem(last=False)
    return cell.value
