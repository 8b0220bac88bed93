"""The parts of a benchmark, of which a run may ask for one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.common.files import unless_missing


def run_parts(
    settings: Any,
    parts: Mapping[str, Callable[[Any], None]],
) -> None:
    """Runs the part that `settings.only` names, or all; those without their files say so.

    Args:
      settings: handed to each part.
      parts: by name.
    """
    for name, part in parts.items():
        if settings.only in ("all", name):
            with unless_missing(f"part {name}"):
                part(settings)
