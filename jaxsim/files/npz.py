"""Arrays in a `.npz` file, read without pickles and with their sizes checked first."""

from __future__ import annotations

import math
import zipfile
import zlib
from pathlib import Path

import numpy as np

from jaxsim.numerics import memory

_SMALL = 64 << 20
"""Bytes that may be unpacked from however few."""
_RATIO = 100
"""Times its size that a larger file may unpack to: random numbers and images stay below 5."""


def read_npz(path: str | Path) -> dict[str, np.ndarray]:
    """Reads the arrays of a file by `np.savez` or `np.savez_compressed`, by name.

    Args:
      path: The file.

    Raises:
      ValueError: There is no such file, it is damaged, holds objects, or unpacks to more than
        `jaxsim.numerics.memory.LIMIT` bytes or, beyond 64 MiB, to more than a hundred times its
        size.
    """
    path = Path(path)
    try:
        packed = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            entries = {e.filename.removesuffix(".npy"): e for e in archive.infolist()}
            unpacked = sum(e.file_size for e in archive.infolist())
            if unpacked > memory.LIMIT or unpacked > max(_SMALL, _RATIO * packed):
                raise ValueError(
                    f"its {packed} bytes unpack to {unpacked}; allowed: {memory.LIMIT}, and beyond "
                    f"{_SMALL} at most {_RATIO} times the file's size"
                )
            return {name: _array(archive, entry) for name, entry in entries.items()}
    # What zipfile raises of damaged, encrypted and unknown archives, and numpy of headers.
    except (
        OSError,
        ValueError,
        EOFError,
        SyntaxError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise ValueError(f"{str(path)!r}: not an npz of arrays: {error}") from None


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    """One array, if as many bytes follow its header as the header says."""
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        header = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = header(file)
        if dtype.hasobject:
            raise ValueError(f"{entry.filename} holds Python objects")
        need = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or need != entry.file_size - file.tell():
            raise ValueError(f"{entry.filename} has shape {shape} and {entry.file_size} bytes")
    with archive.open(entry) as file:
        return np.lib.format.read_array(file, allow_pickle=False)
