"""Settings of the benchmark of decoders."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from benchmarks.common.settings import CACHE, Settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageSettings(Settings):
    """Settings of the run."""

    window: int = 128
    """Tokens of a window."""
    windows: int = 64
    """Windows of the test text."""
    calibration_windows: int = 64
    """Windows of the validation text that statistics are of."""
    only: tuple[str, ...] = ()
    """Names of recipes; none is all of them."""
    tiny: bool = False
    """A small random decoder and random text, to see that everything runs."""
    log: Path = CACHE / "language.json"
    """What was measured so far: a stopped run goes on."""
