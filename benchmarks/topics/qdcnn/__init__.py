"""What does a quantum dilated convolution cost to simulate, and what does it classify?"""

from __future__ import annotations

from benchmarks.common.parts import run_parts
from benchmarks.topics.qdcnn import accuracy, timing
from benchmarks.topics.qdcnn.settings import QdcnnSettings

SHORT = (
    "--only timing --runs 5",
    "--only accuracy --seeds 2 --trained-seeds 2 --sets Fashion-MNIST",
)


def main(args: list[str]) -> None:
    """Measures the parts asked for."""
    settings = QdcnnSettings.read(args)
    parts = {"timing": timing.timing, "accuracy": accuracy.accuracy}
    run_parts(settings, parts)
