"""Settings of the benchmark of quantum dilated convolutions."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from benchmarks.common.settings import CACHE, Logged, Timed


@dataclasses.dataclass(frozen=True, kw_only=True)
class QdcnnSettings(Timed, Logged):
    """Settings of the run."""

    only: Literal["all", "timing", "accuracy"] = "all"
    """Which part."""
    runs: int = 11
    first: int = 100
    """The first seed; those below it served to try out the benchmark."""
    seeds: int = 20
    """How many, each with training images and circuits of its own."""
    trained_seeds: int = 20
    """For how many of them filters are trained too."""
    sets: tuple[str, ...] = ("MNIST-10k", "Fashion-MNIST")
    """Images to classify."""
    log: Path = CACHE / "qdcnn.json"
