"""How much of what inexact cells cost does training through them win back?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import numpy as np
import optax

import jaxsim as js
from benchmarks.common.chips import accuracy, programmed, retrained
from benchmarks.common.kept import kept
from benchmarks.common.record import Table, record
from benchmarks.common.settings import Trained
from benchmarks.common.spread import mean_and_error
from jaxsim.cli.demo import Demo
from jaxsim.data import Images, fashion_mnist
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


class Chips(NamedTuple):
    """What is programmed, of one seed; trained when it is first asked for.

    Attributes:
      exact: The network in floats.
      noisy: What has cells with errors.
      coded: What has codes alone, and gets cells.
    """

    exact: js.Network
    noisy: dict[str, Callable[[], js.Network]]
    coded: dict[str, Callable[[], js.Network]]


def chips(train: Images, seed: int, settings: NoiseAwareSettings) -> Chips:
    """The networks of one seed."""
    cells = js.analog(cells=js.cells.independent(settings.sigma))
    net, _ = trained(train, epochs=Demo.epochs, seed=seed, cache=settings.cache)
    plain = js.compose(js.quantize(), cells)(net)
    sliced = js.compose(js.quantize(), js.slice_bits(2), cells)(net)
    train_on = partial(retrained, train=train, epochs=settings.epochs, seed=seed)
    ramp = optax.linear_schedule(0.0, 1.0, settings.epochs * (SEEN // 128) // 3)
    clipped = cache(lambda: train_on(plain, last=clip_weights(plain)))
    noisy = {
        "after training": lambda: plain,
        "aware": cache(lambda: train_on(plain)),
        "aware, errors ramped": cache(lambda: train_on(plain, errors=ramp)),
        "aware, weights clipped": clipped,
        "after training, sliced": lambda: sliced,
        "aware, weights clipped, sliced": lambda: sliced.with_params(clipped().params).with_state(
            clipped().buffers
        ),
    }
    coded = {
        "8 / 8, after training": lambda: js.quantize(8, 8)(net),
        "4 / 4, aware": cache(lambda: train_on(js.quantize(4, 4)(net))),
    }
    return Chips(net, noisy, coded)


def main(args: list[str]) -> None:
    """Measures accuracy over seeds; what an earlier run has measured is kept."""
    settings = NoiseAwareSettings.read(args)
    train, test = fashion_mnist("train"), fashion_mnist("test")
    train = train._replace(images=train.images[:SEEN], labels=train.labels[:SEEN])
    found: dict[str, list[float]] = {}
    swept: dict[str, list[float]] = {}
    keep = partial(kept, settings.cache / "noise_aware")
    score, trials = partial(programmed, train=train, test=test), settings.programmings
    for seed in range(settings.seeds):
        made = chips(train, seed, settings)
        asked = (seed, settings.epochs, settings.sigma, trials)
        exact = keep((seed, "float32"), lambda made=made: accuracy(made.exact, test))
        found.setdefault("float32", []).append(exact)
        for name, chip in made.noisy.items():
            for norms in (0, settings.norms):
                named = f"{name}, norms measured anew" if norms else name
                of = keep(
                    (*asked, named, norms),
                    lambda c=chip, n=norms: score(c(), trials=trials, norms=n),
                )
                found.setdefault(named, []).append(of)
        for name, chip in made.coded.items():
            for sigma in (0.0, *settings.sigmas):
                cells = js.analog(cells=js.cells.independent(sigma))
                n = trials if sigma else 1
                of = keep(
                    (*asked, name, sigma), lambda c=chip, a=cells, n=n: score(a(c()), trials=n)
                )
                swept.setdefault(name, []).append(of)
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
        "whose default is 2.5 standard deviations. Ramped: errors grow from none to all of them in "
        "the first third of the steps. Sliced: four pairs of 2 bits. Ranges come from "
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
