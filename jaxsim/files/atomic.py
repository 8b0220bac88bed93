"""Files written whole or not at all, and locks beside paths that only one writes to."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def whole(path: str | os.PathLike[str]) -> Generator[Path]:
    """Opens a path to write to, which takes the file's place once it is complete.

    A full disk or a kill leaves what was there before. Devices and pipes are written to directly.

    Args:
      path: File to write; its folder must exist.

    Yields:
      A path beside it, with the same ending, to write to.

    Raises:
      OSError: It cannot be written, with the path that was asked for.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        yield target
        return
    part = target.with_name(f".{target.stem}.{os.getpid()}.{threading.get_ident()}{target.suffix}")
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(target)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        part.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a file of UTF-8, whole or not at all.

    Args:
      path: File to write; its folder must exist.
      text: Content.
    """
    with whole(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes a value as JSON, whole or not at all.

    Args:
      path: File to write; its folder must exist.
      value: Value that JSON can write.
    """
    write_text(path, json.dumps(value, indent=1) + "\n")


def check_target(name: str, path: str | os.PathLike[str] | None, *, image: bool = False) -> None:
    """Checks before a long computation that its result can be written where it is asked for.

    Args:
      name: Name of the argument, for the error.
      path: File to write; None for none.
      image: Whether it is a figure, whose format its ending picks.

    Raises:
      ValueError: There is no such folder, the path is one itself, or no such format of images.
    """
    if path is None:
        return
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{name}={str(path)!r}: is a folder; must be a file")
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"{name}={str(path)!r}: no folder {str(path.parent)!r} to write to")
    if image:
        from matplotlib.backend_bases import FigureCanvasBase

        known = sorted(FigureCanvasBase.get_supported_filetypes())
        if path.suffix.lower().removeprefix(".") not in known:
            raise ValueError(f"{name}={str(path)!r}: must end in one of .{', .'.join(known)}")


@contextlib.contextmanager
def locked(name: str, path: str | os.PathLike[str]) -> Generator[None]:
    """Keeps other threads and processes from writing to the same path, without waiting.

    Args:
      name: Name of the argument, for the error.
      path: Path that is written to; the lock lies beside it meanwhile. Its folder is made.

    Raises:
      ValueError: Another thread or process writes to it.
      OSError: Its folder cannot be made or written to.
    """
    from filelock import FileLock, Timeout

    target = Path(path).absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.lock")
    with beside.open("a"):  # what is wrong with the folder is said here; the lock would only wait
        pass
    lock = FileLock(beside, timeout=0, thread_local=False)
    try:
        lock.acquire()
    # What filelock raises of one thread that asks twice is a RuntimeError.
    except (Timeout, RuntimeError):
        raise ValueError(
            f"{name}={str(path)!r}: another thread or process writes to it; wait for it, or choose "
            "another folder"
        ) from None
    try:
        yield
    finally:
        # While it is held: who asks for it now makes a new one. Some systems keep an open file.
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        lock.release()
