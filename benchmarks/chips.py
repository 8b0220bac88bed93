"""What do the demo's chips lose, and what does training through them win back?"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import optax
import tyro

import jaxsim as js
from benchmarks.record import Table, record
from jaxsim.cli.demo import Demo, recipes
from jaxsim.data import Images, fashion_mnist
from jaxsim.evaluate.comparison import classify
from jaxsim.train.loop import fit
from jaxsim.train.reference import CALL, trained


@dataclasses.dataclass(frozen=True)
class Chips:
    """Settings of the run."""

    seeds: int = 3
    """Networks trained from scratch."""
    programmings: int = 3
    """Times each analog chip is programmed."""
    epochs: int = 2
    """Epochs of quantisation-aware training."""
    cache: Annotated[Path, tyro.conf.arg(help="folder of trained weights")] = Demo.cache


def main(args: list[str]) -> None:
    """Measures accuracy over seeds."""
    settings = tyro.cli(Chips, args=args)
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
        settings=dataclasses.asdict(settings) | {"cache": None},
    )


def retrained(net: js.Network, train: Images, *, epochs: int, seed: int, **more: Any) -> js.Network:
    """A composed network trained on by its own gradients; `more` goes to `fit`."""
    steps = epochs * (len(train.labels) // 128)
    return fit(
        net,
        train.images,
        train.labels,
        epochs=epochs,
        optimizer=optax.adamw(optax.cosine_decay_schedule(1e-3, steps)),
        key=jax.random.key(seed + 7),
        call=CALL,
        label=f"aware, seed {seed}",
        **more,
    )


def programmed(net: js.Network, train: Images, test: Images, trials: int) -> float:
    """Mean accuracy of a chip over several programmings."""
    chips = (
        js.deploy(net, key=jax.random.key(k), calibrate=train.images[:256]) for k in range(trials)
    )
    return float(np.mean([accuracy(chip, test) for chip in chips]))


def accuracy(net: js.Network, test: Images) -> float:
    """Share of test images classified right."""
    return float(np.mean(classify(net, test.images) == test.labels))


def mean_and_error(values: np.ndarray) -> str:
    """Mean and its standard error."""
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
    return f"{values.mean():.2f} ± {error:.2f}"
