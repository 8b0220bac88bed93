"""The parts of a benchmark, of which a run may ask for one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any


def run_parts(
    settings: Any,
    parts: Mapping[str, Callable[[Any], None]],
    *,
    data: Path | None = None,
    reading: Collection[str] = (),
) -> None:
    """Runs the part that `settings.only` names, or all; those without their data say so.

    Args:
      settings: handed to each part.
      parts: by name.
      data: folder that some parts read.
      reading: their names.
    """
    for name, part in parts.items():
        if settings.only not in ("all", name):
            continue
        if data is not None and name in reading and not data.exists():
            print(f"no part {name}: {data} is absent")
            continue
        part(settings)
