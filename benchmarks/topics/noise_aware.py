"""How much of what inexact cells cost does training through them win back?"""

from __future__ import annotations

import dataclasses
from functools import partial

import numpy as np

import jaxsim as js
from benchmarks.common.chips import accuracy, programmed, retrained
from benchmarks.common.record import Table, record
from benchmarks.common.settings import Trained
from benchmarks.common.spread import mean_and_error
from jaxsim.cli.demo import Demo
from jaxsim.data import fashion_mnist
from jaxsim.train import clip_weights
from jaxsim.train.reference import trained

SHORT = ("--seeds 1 --programmings 2 --epochs 1",)

SEEN = 55_000
"""Training images used: those that `blocked_accuracy` trains its networks on, too."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoiseAwareSettings(Trained):
    """Settings of the run."""

    sigma: float = 0.05
    """Error of every cell, as a share of the largest conductance."""
    sigmas: tuple[float, ...] = (0.01, 0.02, 0.05)
    """Errors at which networks of 8 and of 4 bits, trained for neither, are compared."""
    programmings: int = 5
    """Times each chip is programmed."""
    norms: int = 2048
    """Training images, without labels, on which a programmed chip's batch norms are measured."""
    epochs: int = 3
    """Epochs of training through the cells, each step with cells of its own."""


def main(args: list[str]) -> None:
    """Measures accuracy over seeds."""
    settings = NoiseAwareSettings.read(args)
    train, test = fashion_mnist("train"), fashion_mnist("test")
    train = train._replace(images=train.images[:SEEN], labels=train.labels[:SEEN])
    cells = js.cells.independent(settings.sigma)
    array = js.compose(js.quantize(), js.analog(cells=cells))
    sliced = js.compose(js.quantize(), js.slice_bits(2), js.analog(cells=cells))
    found: dict[str, list[float]] = {"float32": []}
    swept: dict[str, list[float]] = {}
    for seed in range(settings.seeds):
        net, _ = trained(train, epochs=Demo.epochs, seed=seed, cache=settings.cache)
        plain = array(net)
        train_on = partial(retrained, train=train, epochs=settings.epochs, seed=seed)
        found["float32"].append(accuracy(net, test))
        chips = {
            "after training": plain,
            "aware": train_on(plain),
            "aware, weights clipped": train_on(plain, last=clip_weights(plain)),
            "after training, sliced": sliced(net),
        }
        clipped = chips["aware, weights clipped"]
        chips["aware, weights clipped, sliced"] = (
            sliced(net).with_params(clipped.params).with_state(clipped.buffers)
        )
        for name, chip in chips.items():
            for norms in (0, settings.norms):
                score = programmed(chip, train, test, settings.programmings, norms=norms)
                named = f"{name}, norms measured anew" if norms else name
                found.setdefault(named, []).append(score)
        codes = {"8 / 8, after training": js.quantize(8, 8)(net)}
        codes["4 / 4, aware"] = train_on(js.quantize(4, 4)(net))
        for name, chip in codes.items():
            for sigma in (0.0, *settings.sigmas):
                analog = js.analog(cells=js.cells.independent(sigma))(chip)
                score = programmed(analog, train, test, settings.programmings if sigma else 1)
                swept.setdefault(name, []).append(score)
    scores = {name: 100 * np.asarray(values) for name, values in found.items()}
    float_ = scores["float32"]
    rows = [[name, mean_and_error(s), mean_and_error(s - float_)] for name, s in scores.items()]
    lost = float_ - scores["after training"]
    for name in list(scores)[2:]:
        share = 100 * (1 - (float_ - scores[name]) / lost)
        rows.append([f"share of the loss won back, %: {name}", mean_and_error(share), ""])
    shown = ["no error", *(f"{sigma:.0%}" for sigma in settings.sigmas)]
    record(
        "noise_aware",
        Table(["cells", "accuracy, %", "difference to float, points"], rows),
        Table(["weights / inputs in bits", *shown], _compared(swept, len(shown)), "accuracy, %"),
        question="How much of what inexact cells cost does training through them win back?",
        baseline="the same network in float32, and with cells it was not trained for",
        notes=f"Fashion-MNIST test set ({len(test.labels)} images), {settings.seeds} networks "
        f"trained from scratch on {SEEN} images, mean ± standard error over them, each the mean of "
        f"{settings.programmings} programmings. Cells are off by {settings.sigma:.0%} of the "
        "largest conductance, whatever they hold; 8-bit codes, one scale a channel, as pairs, not "
        f"sliced, no ADC. Aware: {settings.epochs} epochs of training through it, in the second "
        "table through codes of 4 bits without cells. Clipped: `jaxsim.train.clip_weights`, "
        "whose default is 2.5 standard deviations. Sliced: four pairs of 2 bits. Ranges come from "
        f"256 training images, statistics of norms, where measured anew on each programmed chip, "
        f"from {settings.norms} without labels; nothing was chosen on the test set.",
        settings=settings.recorded(),
    )


def _compared(swept: dict[str, list[float]], errors: int) -> list[list[str]]:
    """A row for each network, and their difference by seed."""
    scores = {name: 100 * np.reshape(values, (-1, errors)) for name, values in swept.items()}
    eight, four = scores.values()
    scores["difference"] = four - eight
    return [[name, *map(mean_and_error, s.T)] for name, s in scores.items()]
