"""Sparse storage formats: bits of sparse weights by formula, and bytes that encode them.

A format says which entries it stores and which whole numbers say where they belong; both the count
of bits and the encoded bytes follow from that. A tensor is a matrix here: its last axis are the
columns, the others together the rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Num

from jaxsim.numerics.checks import checked_int

__all__ = [
    "Field",
    "Format",
    "storage_bits",
    "lower_bound",
    "encode",
    "decode",
    "dense",
    "bitmap",
    "coo",
    "csr",
    "bsr",
    "delta",
    "nm",
]


class Field(NamedTuple):
    """Whole numbers that are stored in a fixed number of bits each.

    Attributes:
      numbers: Numbers, at least 0.
      bits: Bits of each.

    Examples:
      >>> import numpy as np
      >>> import jaxsim as js
      >>> js.storage.Field(np.arange(4), 2).bits
      2
    """

    numbers: Int[np.ndarray, " n"]
    bits: int


class Format(NamedTuple):
    """Way to store a sparse tensor.

    Attributes:
      name: Name shown in tables.
      places: Function from a mask [rows, columns] to the flat positions of the values it stores,
        fillers included, and the fields that say where they belong.
      find: Function from a reader of bits, the shape and the bits of a value to those positions.

    Examples:
      >>> import jaxsim as js
      >>> [form.name for form in (js.storage.csr(), js.storage.bsr(2, 2), js.storage.nm(2, 4))]
      ['CSR', 'BSR 2×2', '2:4']
    """

    name: str
    places: Callable[[Bool[np.ndarray, "R C"]], tuple[Int[np.ndarray, " k"], list[Field]]]
    find: Callable[[_Reader, tuple[int, int], int], Int[np.ndarray, " k"]]


class _Reader:
    """Bits of a byte string, read from the front."""

    def __init__(self, content: bytes):
        self.bits = np.unpackbits(np.frombuffer(content, np.uint8))
        self.at = 0

    @property
    def left(self) -> int:
        """Number of bits that were not read."""
        return self.bits.size - self.at

    def take(self, count: int, bits: int) -> Int[np.ndarray, " count"]:
        """Reads `count` numbers of `bits` bits each."""
        end = self.at + count * bits
        if end > self.bits.size:
            raise ValueError(f"content: {self.bits.size} bits are too few for {end}")
        ones = self.bits[self.at : end].reshape(count, bits).astype(np.int64)
        self.at = end
        return ones @ (1 << np.arange(bits - 1, -1, -1, dtype=np.int64))


def storage_bits(mask: Bool[np.ndarray, "..."], form: Format, value_bits: int = 32) -> int:
    """Counts the bits that a format takes for the values under a mask.

    Args:
      mask: True where an entry is stored, of any rank.
      form: Format, such as `storage.csr()`.
      value_bits: Bits of a value, at least 1.

    Raises:
      ValueError: A mask that the format cannot store, or bits out of range.

    Examples:
      >>> import numpy as np
      >>> import jaxsim as js
      >>> mask = np.eye(8, dtype=bool)
      >>> [js.storage_bits(mask, form) for form in (js.storage.dense(), js.storage.bitmap())]
      [2048, 320]
    """
    checked_int("value_bits", value_bits, 1)
    stored, fields = form.places(_matrix(np.asarray(mask, bool)))
    return value_bits * len(stored) + sum(f.bits * len(f.numbers) for f in fields)


def lower_bound(mask: Bool[np.ndarray, "..."], value_bits: int = 32) -> int:
    """Computes the bits below which no format can go that stores every mask with as many entries.

    ⌈log2 C(n, k)⌉ for where the k values are, and the values.

    Args:
      mask: True where an entry is stored, of any rank.
      value_bits: Bits of a value.

    Examples:
      >>> import numpy as np
      >>> import jaxsim as js
      >>> js.storage.lower_bound(np.eye(4, dtype=bool), value_bits=8)
      43
    """
    n, k = np.size(mask), int(np.count_nonzero(mask))
    if n <= 2**14:
        where = (math.comb(n, k) - 1).bit_length()
    else:
        nats = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
        where = math.ceil(nats / math.log(2))
    return where + k * value_bits


def encode(mask: Bool[np.ndarray, "..."], values: Num[np.ndarray, "..."], form: Format) -> bytes:
    """Encodes the values under a mask, and their positions, in ⌈storage_bits / 8⌉ bytes.

    Args:
      mask: True where an entry is stored, of any rank.
      values: Array of the mask's shape; values outside the mask are not stored.
      form: Format, such as `storage.csr()`.

    Raises:
      ValueError: Shapes that differ, or a mask that the format cannot store.

    Examples:
      >>> import numpy as np
      >>> import jaxsim as js
      >>> values = np.diag([1.0, 2.0]).astype(np.float32)
      >>> len(js.storage.encode(values != 0, values, js.storage.bitmap()))
      9
    """
    mask, values = np.asarray(mask, bool), np.asarray(values)
    if mask.shape != values.shape:
        raise ValueError(f"values: shape {values.shape} for a mask of {mask.shape}")
    stored, fields = form.places(_matrix(mask))
    flat = np.where(mask, values, np.zeros((), values.dtype)).ravel()[stored]
    bits = [_bits(f.numbers, f.bits) for f in fields]
    bits.append(np.unpackbits(np.frombuffer(flat.tobytes(), np.uint8)))
    return np.packbits(np.concatenate(bits)).tobytes()


def decode(
    content: bytes, shape: Sequence[int], dtype: Any, form: Format
) -> Num[np.ndarray, "..."]:
    """Decodes the tensor that `encode` was given, zeros outside its mask.

    Args:
      content: Bytes from `encode`.
      shape: Shape of the tensor.
      dtype: Type of its values.
      form: Format that it was encoded in.

    Raises:
      ValueError: The bytes are not those of such a tensor.

    Examples:
      >>> import numpy as np
      >>> import jaxsim as js
      >>> values = np.diag([1.0, 2.0]).astype(np.float32)
      >>> content = js.storage.encode(values != 0, values, js.storage.csr())
      >>> js.storage.decode(content, (2, 2), np.float32, js.storage.csr()).tolist()
      [[1.0, 0.0], [0.0, 2.0]]
    """
    wide = 8 * np.dtype(dtype).itemsize
    rows, columns = _matrix(np.broadcast_to(np.True_, tuple(shape))).shape
    reader = _Reader(content)
    stored = form.find(reader, (rows, columns), wide)
    whole = np.zeros(rows * columns, dtype)
    end = reader.at + wide * len(stored)
    if end > reader.bits.size:
        raise ValueError(f"content: {reader.bits.size} bits are too few for {end}")
    body = np.packbits(reader.bits[reader.at : end])
    whole[stored] = np.frombuffer(body.tobytes(), dtype)
    return whole.reshape(tuple(shape))


def dense() -> Format:
    """Stores every entry.

    Examples:
      >>> import numpy as np
      >>> import jaxsim as js
      >>> js.storage_bits(np.eye(2, dtype=bool), js.storage.dense(), value_bits=8)
      32
    """

    def places(mask: Any) -> Any:
        return np.arange(mask.size), []

    return Format("dense", places, lambda reader, shape, wide: np.arange(math.prod(shape)))


def bitmap() -> Format:
    """Stores one bit per entry, and the values: n + k·b.

    Examples:
      >>> import numpy as np
      >>> import jaxsim as js
      >>> js.storage_bits(np.eye(2, dtype=bool), js.storage.bitmap(), value_bits=8)
      20
    """

    def places(mask: Any) -> Any:
        return np.flatnonzero(mask), [Field(mask.ravel().astype(np.int64), 1)]

    def find(reader: _Reader, shape: tuple[int, int], wide: int) -> Any:
        return np.flatnonzero(reader.take(math.prod(shape), 1))

    return Format("bitmap", places, find)


def coo() -> Format:
    """Stores the position of each value: k (b + ⌈log2 n⌉).

    Examples:
      >>> import numpy as np
      >>> import jaxsim as js
      >>> js.storage_bits(np.eye(2, dtype=bool), js.storage.coo(), value_bits=8)
      20
    """

    def places(mask: Any) -> Any:
        stored = np.flatnonzero(mask)
        return stored, [Field(stored, _width(mask.size))]

    def find(reader: _Reader, shape: tuple[int, int], wide: int) -> Any:
        width = _width(math.prod(shape))
        return reader.take(reader.left // (wide + width), width)

    return Format("COO", places, find)


def csr() -> Format:
    """Stores the column of each value and where each row begins (compressed sparse rows).

    k (b + ⌈log2 columns⌉) + (rows + 1) ⌈log2(k + 1)⌉.

    Examples:
      >>> import numpy as np
      >>> import jaxsim as js
      >>> js.storage_bits(np.eye(2, dtype=bool), js.storage.csr(), value_bits=8)
      24
    """
    return _rows_of_blocks("CSR", 1, 1)


def bsr(rows: int, columns: int) -> Format:
    """Stores blocks as `csr` does values, whole if any of their entries is stored.

    Args:
      rows: Number of rows of a block, at least 1.
      columns: Number of columns of a block, at least 1.

    Raises:
      ValueError: A size below 1; when used, a matrix that blocks do not tile.

    Examples:
      >>> import numpy as np
      >>> import jaxsim as js
      >>> mask = np.kron(np.eye(2), np.ones((2, 2))).astype(bool)
      >>> js.storage_bits(mask, js.storage.bsr(2, 2), value_bits=8)
      72
    """
    rows, columns = checked_int("rows", rows, 1), checked_int("columns", columns, 1)
    return _rows_of_blocks(f"BSR {rows}×{columns}", rows, columns)


def _rows_of_blocks(name: str, r: int, c: int) -> Format:
    def grid(shape: tuple[int, int]) -> tuple[int, int]:
        if shape[0] % r or shape[1] % c:
            raise ValueError(f"mask: blocks of {r}×{c} do not tile {shape[0]}×{shape[1]}")
        return shape[0] // r, shape[1] // c

    def positions(blocks: Any, shape: tuple[int, int]) -> Any:
        """Flat positions of the entries of blocks, block by block."""
        _, across = grid(shape)
        down, right = np.divmod(blocks, across)
        corner = down * r * shape[1] + right * c
        inside = np.arange(r)[:, None] * shape[1] + np.arange(c)
        return (corner[:, None] + inside.ravel()).ravel()

    def places(mask: Any) -> Any:
        down, across = grid(mask.shape)
        held = mask.reshape(down, r, across, c).any((1, 3))
        blocks = np.flatnonzero(held)
        begins = np.concatenate([[0], np.cumsum(held.sum(1))])
        fields = [
            Field(begins, _width(len(blocks) + 1)),
            Field(blocks % across, _width(across)),
        ]
        return positions(blocks, mask.shape), fields

    def find(reader: _Reader, shape: tuple[int, int], wide: int) -> Any:
        down, across = grid(shape)
        # The number of blocks is not stored: it is what fills the bits that are there.
        for count in range(reader.left // (wide * r * c + _width(across)), -1, -1):
            pointer = _width(count + 1)
            whole = (down + 1) * pointer + count * (_width(across) + wide * r * c)
            if -(-whole // 8) * 8 == reader.left:
                ahead = reader.at
                begins = reader.take(down + 1, pointer)
                if begins[-1] == count and begins[0] == 0 and (np.diff(begins) >= 0).all():
                    columns = reader.take(count, _width(across))
                    rows = np.repeat(np.arange(down), np.diff(begins))
                    return positions(rows * across + columns, shape)
                reader.at = ahead
        raise ValueError(f"content: {reader.left} bits are not those of such blocks")

    return Format(name, places, find)


def delta(bits: int) -> Format:
    """Stores with each value the number of zeros since the last: (k + fillers)(b + bits).

    Where more than 2^bits - 1 zeros lie between, a zero is stored as a value.

    Args:
      bits: Bits of a number of zeros, 1 to 32.

    Raises:
      ValueError: `bits` out of range.

    Examples:
      >>> import numpy as np
      >>> import jaxsim as js
      >>> js.storage_bits(np.array([1, 0, 0, 1], bool), js.storage.delta(2), value_bits=8)
      20
    """
    bits = checked_int("bits", bits, 1, 32)

    def places(mask: Any) -> Any:
        at = np.flatnonzero(mask)
        gaps = np.diff(at, prepend=-1) - 1
        fillers = gaps >> bits
        owner = np.repeat(np.arange(at.size), fillers + 1)
        order = np.arange(owner.size) - np.repeat(np.cumsum(fillers + 1) - fillers - 1, fillers + 1)
        before = at - gaps  # the first place after the value before
        own = order == fillers[owner]
        stored = np.where(own, at[owner], before[owner] + ((order + 1) << bits) - 1)
        codes = np.where(own, gaps[owner] & ((1 << bits) - 1), (1 << bits) - 1)
        return stored, [Field(codes, bits)]

    def find(reader: _Reader, shape: tuple[int, int], wide: int) -> Any:
        codes = reader.take(reader.left // (wide + bits), bits)
        return np.cumsum(codes + 1) - 1

    return Format(f"delta {bits} bits", places, find)


def nm(n: int, m: int) -> Format:
    """Stores n values of each m rows in a column, each with its place: ⌈log2 m⌉ bits per value.

    Fewer than n are filled up with zeros.

    Args:
      n: Number of values of a group, 1 to m.
      m: Number of rows of a group, at least 2.

    Raises:
      ValueError: n or m out of range; when used, rows that groups do not tile, or a group with more
        than n values.

    Examples:
      >>> import numpy as np
      >>> import jaxsim as js
      >>> js.storage_bits(np.array([[1], [0], [0], [1]], bool), js.storage.nm(2, 4), value_bits=8)
      20
    """
    m = checked_int("m", m, 2)
    n = checked_int("n", n, 1, m)

    def order(shape: tuple[int, int]) -> Any:
        """Flat positions of the entries of each group [groups, m]."""
        if shape[0] % m:
            raise ValueError(f"mask: groups of {m} do not tile {shape[0]} rows")
        return np.arange(math.prod(shape)).reshape(shape).T.reshape(-1, m)

    def places(mask: Any) -> Any:
        where = order(mask.shape)
        groups = mask.ravel()[where]
        if (groups.sum(1) > n).any():
            raise ValueError(f"mask: a group of {m} holds more than {n} values")
        chosen = np.sort(np.argsort(~groups, 1, kind="stable")[:, :n], 1)
        stored = np.take_along_axis(where, chosen, 1).ravel()
        return stored, [Field(chosen.ravel(), _width(m))]

    def find(reader: _Reader, shape: tuple[int, int], wide: int) -> Any:
        where = order(shape)
        chosen = reader.take(len(where) * n, _width(m)).reshape(-1, n)
        return np.take_along_axis(where, chosen, 1).ravel()

    return Format(f"{n}:{m}", places, find)


def _matrix(a: np.ndarray) -> np.ndarray:
    return a.reshape(-1, a.shape[-1]) if a.ndim > 1 else a.reshape(1, -1)


def _width(count: int) -> int:
    """Counts the bits of a number below `count`: ⌈log2 count⌉."""
    return (count - 1).bit_length() if count > 0 else 0


def _bits(numbers: Any, bits: int) -> Any:
    places = np.arange(bits - 1, -1, -1)
    return ((np.asarray(numbers, np.int64)[:, None] >> places) & 1).astype(np.uint8).ravel()
