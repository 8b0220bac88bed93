"""Packs arrays into bytes: integers in as few bits as their range takes, all else as it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

_HEAD = np.dtype([("lo", "<i8"), ("bits", "u1")])
_WHOLE = 255  # stands for the bytes of an array as they are


class Form(NamedTuple):
    """Shape and dtype of an array.

    Attributes:
      shape: Sizes of its axes.
      dtype: NumPy dtype, or its name.
    """

    shape: tuple[int, ...]
    dtype: Any

    @property
    def size(self) -> int:
        """Number of its entries."""
        return math.prod(self.shape)


def pack(arrays: Sequence[np.ndarray]) -> bytes:
    """Packs arrays into bytes that `unpack` takes apart.

    Integers and bools are stored less their minimum, in the bits that the largest then takes: 4-bit
    codes in half a byte, a mask in a bit an entry, equal numbers in none.

    Args:
      arrays: Arrays of any shapes and dtypes.

    Returns:
      A head for each array, and then the bytes of each.
    """
    heads = np.zeros(len(arrays), _HEAD)
    bodies: list[bytes] = []
    for head, array in zip(heads, arrays, strict=True):
        whole = array.dtype.kind not in "iub" or array.dtype.itemsize > 4 or array.size == 0
        if whole:
            head["bits"] = _WHOLE
            bodies.append(array.tobytes())
            continue
        numbers = array.ravel().astype(np.int64)
        head["lo"] = numbers.min()
        numbers -= head["lo"]
        head["bits"] = bits = int(numbers.max()).bit_length()
        bodies.append(_pack_bits(numbers.astype(np.uint32), bits))
    return b"".join([heads.tobytes(), *bodies])


def unpack(content: bytes, forms: Sequence[Form]) -> list[np.ndarray]:
    """Restores the arrays that `pack` was given.

    Args:
      content: Bytes from `pack`.
      forms: Shape and dtype of each array.

    Raises:
      ValueError: The bytes are not those of such arrays.
    """
    at = len(forms) * _HEAD.itemsize
    heads = np.frombuffer(content[:at].ljust(at, b"\0"), _HEAD)
    arrays: list[np.ndarray] = []
    for head, form in zip(heads, forms, strict=True):
        bits, dtype = int(head["bits"]), np.dtype(form.dtype)
        if bits != _WHOLE and (bits > 32 or dtype.kind not in "iub"):
            raise ValueError(f"{bits} bits an entry of {dtype}")
        count = form.size * dtype.itemsize if bits == _WHOLE else -(-form.size * bits // 8)
        body = content[at : at + count]
        at += count
        if len(body) < count:
            break
        if bits == _WHOLE:
            arrays.append(np.frombuffer(body, dtype).reshape(form.shape))
        else:
            numbers = _unpack_bits(body, bits, form.size) + int(head["lo"])
            arrays.append(numbers.astype(dtype).reshape(form.shape))
    if len(arrays) < len(forms) or at != len(content):
        raise ValueError(f"{len(content)} bytes are not those of {len(forms)} such arrays")
    return arrays


def _pack_bits(numbers: np.ndarray, bits: int) -> bytes:
    """Numbers below 2^bits, each in so many bits, the most significant first."""
    places = np.arange(bits - 1, -1, -1, dtype=np.uint32)
    return np.packbits(((numbers[:, None] >> places) & 1).astype(np.uint8)).tobytes()


def _unpack_bits(body: bytes, bits: int, count: int) -> np.ndarray:
    ones = np.unpackbits(np.frombuffer(body, np.uint8), count=count * bits).reshape(count, bits)
    return ones.astype(np.int64) @ (1 << np.arange(bits - 1, -1, -1, dtype=np.int64))
