"""Arrays from `.safetensors` files: a length, a header in JSON, the bytes."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

_TYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "U8": np.dtype("<u1"),
    "I8": np.dtype("<i1"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
}
_MAX_HEADER = 100_000_000  # bytes; the limit of the format's own reader
_MAX_RANK = 64  # numpy's own limit


def read_safetensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads every array of a `.safetensors` file.

    The header is checked as a whole before any array is made: each array lies where the one before
    it ends, and the last one ends with the file.

    Args:
      path: The file.

    Returns:
      The arrays by name, in the order of their bytes; writable.

    Raises:
      FileNotFoundError: There is no such file.
      ValueError: It is not a whole file of this format. The message names the file and what is
        wrong.

    Source: https://github.com/huggingface/safetensors, "Format".
    """
    content = Path(path).read_bytes()
    try:
        return _parse(content)
    except ValueError as error:
        raise ValueError(f"{str(path)!r}: {error}") from error


def _parse(content: bytes) -> dict[str, np.ndarray]:
    if len(content) < 8:
        raise ValueError(f"{len(content)} bytes; the length of the header takes 8")
    size = int.from_bytes(content[:8], "little")
    if not 2 <= size <= min(_MAX_HEADER, len(content) - 8):
        raise ValueError(f"a header of {size} bytes in a file of {len(content)}")
    try:
        header = json.loads(content[8 : 8 + size].decode(), object_pairs_hook=_unique)
    except RecursionError as error:
        raise ValueError("its header is nested too deeply") from error
    if not isinstance(header, dict):
        raise ValueError(f"its header is a {type(header).__name__}; must be an object")
    header.pop("__metadata__", None)
    data = memoryview(content)[8 + size :]
    entries = sorted(((name, *_entry(name, of)) for name, of in header.items()), key=_offsets)
    arrays: dict[str, np.ndarray] = {}
    end = 0
    for name, dtype, shape, start, stop in entries:
        if start != end:
            raise ValueError(f"{name} begins at byte {start}; the array before it ends at {end}")
        if stop > len(data):
            raise ValueError(f"{name} ends at byte {stop} of {len(data)}")
        arrays[name] = np.array(np.frombuffer(data[start:stop], dtype).reshape(shape))
        end = stop
    if end != len(data):
        raise ValueError(f"the arrays end at byte {end} of {len(data)}")
    return arrays


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("its header says something twice")
    return found


def _offsets(entry: Any) -> tuple[int, int]:
    return entry[3:]


def _entry(name: str, of: Any) -> tuple[np.dtype[Any], tuple[int, ...], int, int]:
    """Type, shape and place of one array."""
    if not isinstance(of, dict) or set(of) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name} is {of!r}; must have dtype, shape and data_offsets")
    kind, shape, place = of["dtype"], of["shape"], of["data_offsets"]
    if not isinstance(kind, str) or kind not in _TYPES:
        raise ValueError(f"{name} is of type {kind!r}; must be one of {', '.join(_TYPES)}")
    for part in (shape, place):
        if not isinstance(part, list) or any(type(n) is not int or n < 0 for n in part):
            raise ValueError(f"{name} has {part!r}; must be whole numbers of at least 0")
    if len(shape) > _MAX_RANK or len(place) != 2:
        raise ValueError(f"{name} has {len(shape)} axes and {len(place)} offsets")
    expected = math.prod(shape) * _TYPES[kind].itemsize
    if place[1] - place[0] != expected:
        raise ValueError(
            f"{name} takes {place[1] - place[0]} bytes; {kind}{shape} takes {expected}"
        )
    return _TYPES[kind], tuple(shape), place[0], place[1]
