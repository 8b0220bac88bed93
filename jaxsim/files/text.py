"""Text files read as lines: UTF-8, with or without a byte-order mark, any line ends."""

from __future__ import annotations

import codecs
import os
from pathlib import Path

_PACKED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}
_WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)


def read_text(path: str | os.PathLike[str]) -> str:
    """Reads the text of a file, its byte-order mark left out and its lines ended by newlines.

    Args:
      path: File in UTF-8.

    Raises:
      ValueError: The file is compressed, or in another encoding, with the line where that shows.
      OSError: It cannot be read.
    """
    content = Path(path).read_bytes()
    for magic, name in _PACKED.items():
        if content.startswith(magic):
            raise ValueError(f"path={str(path)!r}: is compressed ({name}); unpack it first")
    if content.startswith(_WIDE):
        raise ValueError(f"path={str(path)!r}: is in UTF-16 or UTF-32; must be UTF-8")
    if (at := content.find(b"\0")) >= 0:
        line = content.count(b"\n", 0, at) + 1
        raise ValueError(
            f"path={str(path)!r}, line {line}: holds a zero byte; must be UTF-8, not UTF-16"
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"path={str(path)!r}, line {line}: byte 0x{content[error.start]:02x} is not UTF-8; is "
            "the file in Latin-1, or no text?"
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_lines(path: str | os.PathLike[str], *, skip: int = 0) -> list[tuple[int, str]]:
    """Reads the lines of a file that say something, each with its number, counted from 1.

    Empty lines and those that begin with # or % are left out, and white space around each.

    Args:
      path: File in UTF-8.
      skip: Number of lines to leave out at the start.

    Raises:
      ValueError: See `read_text`.
      OSError: It cannot be read.
    """
    lines = enumerate(map(str.strip, read_text(path).split("\n")[skip:]), skip + 1)
    return [(number, line) for number, line in lines if line and line[0] not in "#%"]
