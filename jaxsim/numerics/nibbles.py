"""Whole numbers of four bits, two in a byte."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt8

SIGNED = (-8, 7)
"""Smallest and largest number of four bits with a sign."""

UNSIGNED = (0, 15)
"""Smallest and largest number of four bits without one."""


@partial(
    jax.tree_util.register_dataclass, data_fields=["pairs"], meta_fields=["axis", "count", "signed"]
)
@dataclasses.dataclass(frozen=True, eq=False)
class Nibbles:
    """Numbers of four bits, those of the first half of an axis beside those of its second half.

    Attributes:
      pairs: Bytes, each a number of the first half in its low bits and one of the second in its
        high ones; the axis is half as long, rounded up.
      axis: The axis that is halved, counted from the last, so below zero: further axes in front
        change nothing.
      count: Numbers along it.
      signed: Whether they are from -8 to 7; from 0 to 15 otherwise.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jaxsim.numerics.nibbles import Nibbles
      >>> held = Nibbles.of(jnp.arange(-3, 4, dtype=jnp.int8), -1)
      >>> held.pairs.shape, held.numbers().tolist()
      ((4,), [-3, -2, -1, 0, 1, 2, 3])
    """

    pairs: UInt8[Array, "..."]
    axis: int
    count: int
    signed: bool

    @classmethod
    def of(cls, numbers: Int[Array, "..."], axis: int) -> Nibbles:
        """Packs numbers.

        Args:
          numbers: From -8 to 7 where their type has a sign, from 0 to 15 otherwise.
          axis: Axis to halve, below zero.
        """
        count = numbers.shape[axis]
        half = -(-count // 2)
        fill = [(0, 0)] * numbers.ndim
        fill[axis] = (0, 2 * half - count)
        low, high = jnp.split(jnp.pad(numbers, fill).astype(jnp.uint8), 2, axis)
        signed = jnp.issubdtype(numbers.dtype, jnp.signedinteger)
        return cls((low & 15) | (high << 4), axis, count, bool(signed))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The numbers, for NumPy."""
        del copy  # they are unpacked, so always a copy
        return np.asarray(self.numbers(), dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the numbers."""
        at, shape = self.axis + self.pairs.ndim, self.pairs.shape
        return (*shape[:at], self.count, *shape[at + 1 :])

    def numbers(self) -> Int[Array, "..."]:
        """The numbers, as int8 or uint8."""
        kind = jnp.int8 if self.signed else jnp.uint8
        halves = [(self.pairs << 4).astype(kind) >> 4, self.pairs.astype(kind) >> 4]
        both = jnp.concatenate(halves, self.axis)
        return both if both.shape[self.axis] == self.count else _first(both, self.count, self.axis)


def unpacked(numbers: Array | Nibbles) -> Array:
    """Whole numbers as an array, which they are already or are packed in.

    Args:
      numbers: Array, or `Nibbles`.
    """
    return numbers.numbers() if isinstance(numbers, Nibbles) else numbers


def _first(a: Array, count: int, axis: int) -> Array:
    return jax.lax.slice_in_dim(a, 0, count, axis=axis + a.ndim)
