"""Whole numbers of two or four bits, four or two in a byte."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int, UInt8

Bits = Literal[2, 4]


def bits_to_pack(lo: int, hi: int) -> Bits | None:
    """Bits that a byte is divided into to hold numbers from `lo` to `hi`; None for a byte each.

    Args:
      lo: Smallest number; below zero for numbers with a sign.
      hi: Largest number.

    Examples:
      >>> from jaxsim.numerics.packed import bits_to_pack
      >>> bits_to_pack(-1, 1), bits_to_pack(-7, 7), bits_to_pack(0, 3), bits_to_pack(0, 255)
      (2, 4, 2, None)
    """
    bits: Bits
    for bits in (2, 4):
        least, most = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if lo < 0 else (0, 2**bits - 1)
        if least <= lo and hi <= most:
            return bits
    return None


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["packs"],
    meta_fields=["axis", "count", "signed", "bits"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class Packed:
    """Numbers of a few bits, those of equal parts of an axis beside each other in a byte.

    Attributes:
      packs: Bytes, each with a number of the first part in its lowest bits, one of the second in
        those above and so on; the axis is as long as a part, rounded up.
      axis: The axis that is divided, counted from the last, so below zero: further axes in front
        change nothing.
      count: Numbers along it.
      signed: Whether half of them are below zero: of four bits from -8 to 7; from 0 to 15
        otherwise.
      bits: Bits of a number.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jaxsim.numerics.packed import Packed
      >>> held = Packed.of(jnp.arange(-3, 4, dtype=jnp.int8), -1, 4)
      >>> held.packs.shape, held.numbers().tolist()
      ((4,), [-3, -2, -1, 0, 1, 2, 3])
    """

    packs: UInt8[Array, "..."]
    axis: int
    count: int
    signed: bool
    bits: Bits

    @classmethod
    def of(cls, numbers: Int[Array, "..."], axis: int, bits: Bits) -> Packed:
        """Packs numbers.

        Args:
          numbers: Numbers of so many bits, with a sign where their type has one.
          axis: Axis to divide, below zero.
          bits: Bits of a number.
        """
        parts, count = 8 // bits, numbers.shape[axis]
        fill = [(0, 0)] * numbers.ndim
        fill[axis] = (0, -count % parts)
        split = jnp.split(jnp.pad(numbers, fill).astype(jnp.uint8), parts, axis)
        packs = split[0] & (2**bits - 1)
        for at, part in enumerate(split[1:], 1):
            packs |= (part & (2**bits - 1)) << (bits * at)
        signed = jnp.issubdtype(numbers.dtype, jnp.signedinteger)
        return cls(packs, axis, count, bool(signed), bits)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The numbers, for NumPy."""
        del copy  # they are unpacked, so always a copy
        return np.asarray(self.numbers(), dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the numbers."""
        at, shape = self.axis + self.packs.ndim, self.packs.shape
        return (*shape[:at], self.count, *shape[at + 1 :])

    def numbers(self) -> Int[Array, "..."]:
        """The numbers, as int8 or uint8."""
        if self.count == 0:
            return self.packs.astype(jnp.int8 if self.signed else jnp.uint8)
        return self.between(0, self.count)

    def between(self, start: int, stop: int) -> Int[Array, "..."]:
        """The numbers of some places along the axis, as int8 or uint8.

        Nothing is put together where they are of one part.

        Args:
          start: First place.
          stop: Place behind the last, above `start`.
        """
        axis, kind = self.axis + self.packs.ndim, jnp.int8 if self.signed else jnp.uint8
        length, rest = self.packs.shape[axis], 8 - self.bits
        found: list[Array] = []
        for part in range(start // length, -(-stop // length)):
            first, last = max(start - part * length, 0), min(stop - part * length, length)
            packs, at = lax.slice_in_dim(self.packs, first, last, axis=axis), part * self.bits
            found.append((packs << (rest - at) if at < rest else packs).astype(kind) >> rest)
        return found[0] if len(found) == 1 else jnp.concatenate(found, axis)

    def parts(self) -> list[slice]:
        """Places of each part along the axis."""
        length = self.packs.shape[self.axis] or 1
        return [slice(at, min(at + length, self.count)) for at in range(0, self.count, length)]


def unpacked(numbers: Array | Packed) -> Array:
    """Whole numbers as an array, which they are already or are packed in.

    Args:
      numbers: Array, or `Packed`.
    """
    return numbers.numbers() if isinstance(numbers, Packed) else numbers
