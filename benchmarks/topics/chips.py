"""What do the demo's chips lose, and what does training through them win back?"""

from __future__ import annotations

import dataclasses

import numpy as np

import jaxsim as js
from benchmarks.common.chips import accuracy, programmed, retrained
from benchmarks.common.record import Table, record
from benchmarks.common.settings import Trained
from benchmarks.common.spread import mean_and_error
from jaxsim.cli.demo import Demo, recipes
from jaxsim.data import fashion_mnist
from jaxsim.train.reference import trained

SHORT = ("--seeds 1 --programmings 2 --epochs 1",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChipsSettings(Trained):
    """Settings of the run."""

    programmings: int = 3
    """Times each analog chip is programmed."""
    epochs: int = 2
    """Epochs of quantization-aware training."""


def main(args: list[str]) -> None:
    """Measures accuracy over seeds."""
    settings = ChipsSettings.read(args)
    train, test = fashion_mnist("train"), fashion_mnist("test")
    found: dict[str, list[float]] = {}
    for seed in range(settings.seeds):
        net, sparse = trained(train, epochs=Demo.epochs, seed=seed, cache=settings.cache)
        scores = {"float": accuracy(net, test)}
        for name, chip in recipes(net, sparse).items():
            trials = settings.programmings if "analog" in name else 1
            scores[name] = programmed(chip, train, test, trials)
        four = js.quantize(weights=4, inputs=4)(net)
        aware = retrained(four, train, epochs=settings.epochs, seed=seed)
        for name, chip in {"4-bit, after training": four, "4-bit, aware": aware}.items():
            deployed = js.deploy(chip, calibrate=train.images[:256])
            scores[name] = accuracy(deployed, test)
        for name, score in scores.items():
            found.setdefault(name, []).append(score)
    float_ = 100 * np.asarray(found["float"])
    rows = []
    for name, values in found.items():
        scores = 100 * np.asarray(values)
        rows.append([name, mean_and_error(scores), mean_and_error(scores - float_)])
    won = 100 * (np.asarray(found["4-bit, aware"]) - found["4-bit, after training"])
    rows.append(["4-bit: aware minus after training", "", mean_and_error(won)])
    record(
        "chips",
        Table(["network", "accuracy, %", "difference to float, points"], rows),
        question="What do the demo's chips lose, and what does training through them win back?",
        baseline="the same network in float32",
        notes=f"Fashion-MNIST test set ({len(test.labels)} images), {settings.seeds} networks "
        f"trained from scratch, mean ± standard error over them; analog chips are the mean of "
        f"{settings.programmings} programmings. Ranges come from 256 training images; nothing was "
        f"chosen on the test set. The 4-bit network has symmetric grids for weights (per channel) "
        f"and inputs; aware: {settings.epochs} epochs of training through it.",
        settings=settings.recorded(),
    )
