"""Settings of the benchmark of learned meta-solvers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from benchmarks.common.settings import CACHE, Logged, Timed


@dataclasses.dataclass(frozen=True, kw_only=True)
class NacSettings(Timed, Logged):
    """Settings of the run."""

    only: Literal["all", "timing", "skill", "published", "modes", "poker"] = "all"
    """Which part."""
    runs: int = 7
    seeds: int = 3
    """Trainings of each network."""
    games: int = 128
    """Test games."""
    steps: int = 600
    """Of meta-training of our network."""
    log: Path = CACHE / "nac.json"
