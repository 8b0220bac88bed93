"""Arrays from `.safetensors` files."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, deserialize

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
_MAX_RANK = 64  # numpy's own limit


def read_safetensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads every array of a `.safetensors` file, as the format's own package does.

    Args:
      path: The file.

    Returns:
      The arrays by name, sorted; writable.

    Raises:
      FileNotFoundError: There is no such file.
      ValueError: It is not a whole file of this format, or holds an array of a type that NumPy and
        `ml_dtypes` lack. The message names the file and what is wrong.
    """
    content = Path(path).read_bytes()
    try:
        held = dict(deserialize(content))
    except SafetensorError as error:
        said = str(error).removeprefix("Error while deserializing: ")
        raise ValueError(f"{str(path)!r}: {said}") from error
    header = content[8 : 8 + int.from_bytes(content[:8], "little")]
    named = Counter(name for name, _ in json.loads(header, object_pairs_hook=list))
    if twice := sorted(name for name, times in named.items() if times > 1):
        raise ValueError(f"{str(path)!r}: its header has {', '.join(twice)} twice")
    for name, of in held.items():
        if of["dtype"] not in _TYPES:
            raise ValueError(
                f"{str(path)!r}: {name} is of type {of['dtype']!r}; "
                f"must be one of {', '.join(_TYPES)}"
            )
        if len(of["shape"]) > _MAX_RANK:
            raise ValueError(f"{str(path)!r}: {name} has {len(of['shape'])} axes")
    return {name: _array(of) for name, of in sorted(held.items())}


def _array(of: dict[str, Any]) -> np.ndarray:
    found = np.frombuffer(of["data"], _TYPES[of["dtype"]]).reshape(of["shape"])
    return found if found.flags.writeable else found.copy()
