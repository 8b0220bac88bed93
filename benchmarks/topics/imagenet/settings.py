"""Settings of the benchmark."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from benchmarks.common.settings import Settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImagenetSettings(Settings):
    """Settings of the run."""

    only: Literal[
        "all", "digital", "places", "rounded", "mixed", "sparse", "blocked", "analog", "devices"
    ] = "all"
    """Which rows; each group has a record of its own."""
    pictures: int = 500
    """Pictures that are classified, every second of the thousand."""
    calibration: int = 48
    """Others, which set ranges."""
    adapting: int = 400
    """Others again, without labels, for rounding and corrections."""
    statistics: int = 256
    """The first of those, on which statistics of norms are moved."""
    searched: int = 200
    """The first of those, with labels, which a search looks at."""
    programmings: int = 5
    """Times each chip with errors is programmed."""
    cache: Annotated[Path, tyro.conf.arg(help="what an interrupted run has measured")] = Path(
        "~/.cache/jaxsim/imagenet"
    )
