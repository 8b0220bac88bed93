"""What does a collaborative head classify beside others, and what does leaving one out cost?"""

from __future__ import annotations

from benchmarks.common.parts import run_parts
from benchmarks.topics.coconet import accuracy, timing
from benchmarks.topics.coconet.settings import CoconetSettings

SHORT = ("--runs 5 --seeds 2 --tuning 100 --tasks 'Fashion-MNIST, 4 kinds'",)


def main(args: list[str]) -> None:
    """Measures the parts asked for."""
    settings = CoconetSettings.read(args)
    parts = {"timing": timing.timing, "accuracy": accuracy.accuracy}
    run_parts(settings, parts)
