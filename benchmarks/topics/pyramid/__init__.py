"""What do token pruning and early exit save on a BERT, and what of it on the clock?"""

from __future__ import annotations

from benchmarks.common.parts import run_parts
from benchmarks.topics.pyramid import accuracy, check, flops, int8, lengths, timing
from benchmarks.topics.pyramid.settings import PyramidSettings

SHORT = ("--only flops", "--only accuracy --data sst2 --seeds 1 --texts 64")


def main(args: list[str]) -> None:
    """Measures the parts asked for."""
    settings = PyramidSettings.read(args)
    parts = {
        "flops": flops.flops,
        "check": check.check,
        "accuracy": accuracy.accuracy,
        "lengths": lengths.lengths,
        "timing": timing.timing,
        "int8": int8.int8,
    }
    run_parts(settings, parts)
