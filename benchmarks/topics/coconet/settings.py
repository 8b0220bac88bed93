"""Settings of the benchmark of collaborative heads."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from benchmarks.common.settings import CACHE, Logged, Timed


@dataclasses.dataclass(frozen=True, kw_only=True)
class CoconetSettings(Timed, Logged):
    """Settings of the run."""

    only: Literal["all", "timing", "accuracy"] = "all"
    """Which part."""
    runs: int = 11
    seeds: int = 20
    """Seeds 0, 1, …: each has samples and an initial backbone of its own."""
    tasks: tuple[str, ...] = ("Fashion-MNIST, 4 kinds", "Omniglot", "flowers")
    """Sets to learn from."""
    tuning: tuple[int, ...] = (100, 101, 102)
    """Seeds that hyper-parameters are chosen with; none of them is reported."""
    log: Path = CACHE / "coconet.json"
