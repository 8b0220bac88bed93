"""A pytree as its arrays and a static rest."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from jaxsim.numerics.arrays import native
from jaxsim.values.value import PytreeValue


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["arrays"],
    meta_fields=["treedef", "static"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class Partitioned(PytreeValue):
    """A pytree as its arrays and the rest, which is static; made by `Partitioned.of`.

    Attributes:
      treedef: its structure.
      static: its leaves, a marker where an array was.
      arrays: those arrays, in order.
    """

    treedef: Any
    static: tuple[Any, ...]
    arrays: tuple[Any, ...]

    @classmethod
    def of(cls, tree: Any, is_array: Callable[[Any], bool]) -> Partitioned:
        """Takes a pytree apart; `is_array` says which leaves are traced.

        Arrays of another byte order come into this machine's.
        """
        leaves, treedef = jax.tree.flatten(jax.tree.map(native, tree))
        static = tuple(_ARRAY if is_array(leaf) else leaf for leaf in leaves)
        return cls(treedef, static, tuple(leaf for leaf in leaves if is_array(leaf)))

    def combine(self) -> Any:
        """The pytree again."""
        arrays = iter(self.arrays)
        leaves = [next(arrays) if leaf is _ARRAY else leaf for leaf in self.static]
        return jax.tree.unflatten(self.treedef, leaves)


class _Place(enum.Enum):
    """What stands for an array among static leaves: one object, in every process."""

    ARRAY = enum.auto()


_ARRAY = _Place.ARRAY
