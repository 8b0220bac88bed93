"""Reader of the IDX format, the files that MNIST and its successors come in."""

import gzip
import hashlib
import io
import math
import os
import stat
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Shaped

from jaxsim.numerics.checks import checked_int

# Third byte of the magic number -> element type, most significant byte first.
DTYPES = {
    0x08: np.dtype(">u1"),
    0x09: np.dtype(">i1"),
    0x0B: np.dtype(">i2"),
    0x0C: np.dtype(">i4"),
    0x0D: np.dtype(">f4"),
    0x0E: np.dtype(">f8"),
}
MAX_RANK = 64  # numpy's own limit
_GZIP_MAGIC = b"\x1f\x8b"
_CHUNK = 1 << 16


def read_idx(
    path_or_bytes: str | os.PathLike[str] | bytes,
    *,
    max_bytes: int = 1 << 30,
    sha256: str | None = None,
) -> Shaped[np.ndarray, "..."]:
    """Reads one array from an IDX file, plain or gzip-compressed (told by content, not by name).

    The header is read first and the size it announces is checked against `max_bytes`, and for a
    plain file against the length of the file, before anything of that size is allocated. What is
    unpacked from gzip never exceeds the announced size by more than a chunk, whatever the
    compressed stream holds.

    Args:
      path_or_bytes: The file, or its content.
      max_bytes: The largest size that the file, and what it holds unpacked, may have, in bytes.
      sha256: Hexadecimal SHA-256 that the unpacked content (header and elements) must have, so
        one digest serves however a file was compressed; None checks nothing.

    Returns:
      The array, in native byte order, writable, with the shape the header gives.

    Raises:
      FileNotFoundError: There is no such file.
      ValueError: Everything else: the file cannot be read, or is not exactly one IDX array
        within `max_bytes` and with digest `sha256`. The message names the file, what was
        found and what is expected.

    Source: http://yann.lecun.com/exdb/mnist/, "The IDX file format".

    Examples:
      >>> from jaxsim.data import read_idx
      >>> header = bytes([0, 0, 0x08, 1, 0, 0, 0, 3])  # bytes, one axis, three of them
      >>> read_idx(header + bytes([5, 6, 7])).tolist()
      [5, 6, 7]
    """
    max_bytes = checked_int("max_bytes", max_bytes, 0)
    if isinstance(path_or_bytes, bytes):
        return _read_file(
            io.BytesIO(path_or_bytes), len(path_or_bytes), "<bytes>", max_bytes, sha256
        )
    try:
        path = Path(path_or_bytes)
        status = path.stat()
    except FileNotFoundError:
        raise
    except (TypeError, ValueError, OSError) as error:
        raise ValueError(
            f"path_or_bytes is {path_or_bytes!r} ({error}); expected bytes or the path of a file"
        ) from error
    # Opening a pipe would wait for ever, and a device has no length to check against.
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{str(path)!r}: found a directory or device; expected a regular file")
    try:
        with path.open("rb") as file:
            return _read_file(file, status.st_size, str(path), max_bytes, sha256)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(
            f"{str(path)!r}: cannot be read ({error}); expected a readable file"
        ) from error


def _read_file(
    file: BinaryIO, size: int, name: str, max_bytes: int, sha256: str | None
) -> Shaped[np.ndarray, "..."]:
    """Reads an array from an open file of `size` bytes, unpacking it where it is gzip."""
    if size > max_bytes:
        raise ValueError(f"{name!r}: found {size} bytes; expected at most max_bytes={max_bytes}")
    magic = file.read(len(_GZIP_MAGIC))
    file.seek(0)
    if magic != _GZIP_MAGIC:
        return _parse(file.read, size, name, max_bytes, sha256)
    try:
        with gzip.GzipFile(fileobj=file, mode="rb") as unpacked:
            return _parse(unpacked.read, None, name, max_bytes, sha256)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(
            f"{name!r}: found a damaged gzip stream ({error}); expected an intact one"
        ) from error


def _parse(
    read: Callable[[int], bytes],
    size: int | None,
    name: str,
    max_bytes: int,
    sha256: str | None,
) -> Shaped[np.ndarray, "..."]:
    """Parses an IDX stream of `size` bytes (None where only reading on will tell)."""
    magic = read(4)
    if len(magic) < 4:
        raise ValueError(f"{name!r}: found {len(magic)} bytes; expected a magic number of 4")
    code, rank = magic[2], magic[3]
    if magic[:2] != b"\0\0":
        raise ValueError(
            f"{name!r}: found magic number 0x{magic.hex()}; expected it to start with two zero "
            "bytes, as an IDX file's does"
        )
    if code not in DTYPES:
        allowed = ", ".join(f"0x{known:02x} ({dtype.name})" for known, dtype in DTYPES.items())
        raise ValueError(f"{name!r}: found element type 0x{code:02x}; expected one of {allowed}")
    if rank > MAX_RANK:
        raise ValueError(f"{name!r}: found {rank} dimensions; expected at most {MAX_RANK}")
    dimensions = read(4 * rank)
    if len(dimensions) < 4 * rank:
        raise ValueError(
            f"{name!r}: found {len(dimensions)} bytes of dimensions; expected 4 for each of {rank}"
        )
    shape = tuple(int.from_bytes(dimensions[i : i + 4], "big") for i in range(0, 4 * rank, 4))
    dtype = DTYPES[code]
    header = magic + dimensions
    # An axis of length 0 makes the product 0 and would let any other length pass, on which numpy
    # then overflows, so it counts as 1 here.
    extent = len(header) + dtype.itemsize * math.prod(max(length, 1) for length in shape)
    if extent > max_bytes:
        raise ValueError(
            f"{name!r}: found shape {shape} of {dtype.name}, {extent} bytes; "
            f"expected at most max_bytes={max_bytes}"
        )
    expected = dtype.itemsize * math.prod(shape)
    if size is not None and size - len(header) != expected:
        raise _wrong_length(name, f"{size - len(header)}", expected, shape, dtype)

    digest = hashlib.sha256(header)
    # One byte more than expected is asked for: it shows trailing data, and it brings the gzip
    # reader to the end of its stream, where the checksum is compared.
    elements = bytearray()
    while block := read(min(_CHUNK, expected + 1 - len(elements))):
        elements += block
        digest.update(block)
    if len(elements) != expected:
        found = f"{len(elements)}" if len(elements) < expected else f"more than {expected}"
        raise _wrong_length(name, found, expected, shape, dtype)
    if sha256 is not None and digest.hexdigest() != sha256.lower():
        raise ValueError(f"{name!r}: found SHA-256 {digest.hexdigest()}; expected {sha256.lower()}")
    array = np.frombuffer(elements, dtype=dtype).reshape(shape)
    return array.astype(dtype.newbyteorder("="))


def _wrong_length(
    name: str, found: str, expected: int, shape: tuple[int, ...], dtype: np.dtype[np.generic]
) -> ValueError:
    """Builds the error for elements that are fewer or more than the header announces."""
    return ValueError(
        f"{name!r}: found {found} bytes of elements; expected {expected} for shape {shape} "
        f"of {dtype.name}"
    )
