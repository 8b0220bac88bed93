"""Settings of the benchmark of pyramids, and its data sets."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from benchmarks.common.settings import CACHE, Checkpointed, Timed

NAMES = {"ag": "AG News", "sst2": "SST-2", "joined": "AG News, joined"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PyramidSettings(Timed, Checkpointed):
    """Settings of the run."""

    only: Literal["all", "flops", "check", "accuracy", "lengths", "timing", "int8"] = "all"
    """Which part."""
    data: tuple[Literal["ag", "sst2", "joined"], ...] = ("ag", "sst2", "joined")
    """Which texts to learn."""
    runs: int = 7
    rows: int = 512
    """Rows timed."""
    texts: int = 7000
    """Of each part of a data set, at most."""
    log: Path = CACHE / "pyramid_levels.json"
    checkpoints: Path = CACHE / "pyramid_levels"
