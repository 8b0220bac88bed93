"""What do smaller tensors and sparse execution win, and what does it cost in accuracy?"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import linen as nn
from jaxtyping import Array, Float

import jaxsim as js
from benchmarks.chips import accuracy, mean_and_error
from benchmarks.log import Log
from benchmarks.record import Table, record
from jaxsim.data import Images, fashion_mnist
from jaxsim.train import fit

CALL = {"train": True, "mutable": ["batch_stats"]}
RATE = 1e-3


@dataclasses.dataclass(frozen=True)
class Shrink:
    """Settings of the run."""

    only: Literal["all", "timing", "execution", "accuracy"] = "all"
    """Part to run; each is recorded under a name of its own."""
    seeds: int = 5
    """Networks trained from scratch."""
    cache: Annotated[Path, tyro.conf.arg(help="folder of what an interrupted run has measured")] = (
        Path("~/.cache/jaxsim/shrink")
    )


class Small(nn.Module):
    """Two convolutions with pooling, a residual block, a hidden dense layer: 124,474 parameters.

    Attributes:
      width: channels of the first convolution.
    """

    width: int = 16

    @nn.compact
    def __call__(self, x: Float[Array, "B 28 28 1"], train: bool = False) -> Float[Array, "B 10"]:
        """Logits."""

        def layer(x: Array, features: int) -> Array:
            x = nn.Conv(features, (3, 3), use_bias=False)(x)
            return nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)

        x = nn.max_pool(nn.relu(layer(x, self.width)), (2, 2), (2, 2))
        x = nn.max_pool(nn.relu(layer(x, 2 * self.width)), (2, 2), (2, 2))
        y = layer(nn.relu(layer(x, 2 * self.width)), 2 * self.width)
        x = nn.relu(x + y).reshape(x.shape[0], -1)
        return nn.Dense(10)(nn.relu(nn.Dense(4 * self.width)(x)))


def small(width: int = 16, seed: int = 0) -> js.Network:
    """The network with new weights."""
    x = jnp.zeros((2, 28, 28, 1))
    model = Small(width)
    return js.trace(model, jax.jit(model.init)(jax.random.key(seed), x), x)


def size(net: js.Network) -> int:
    """Number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(net.params))


def main(args: list[str]) -> None:
    """Runs the parts."""
    settings = tyro.cli(Shrink, args=args)
    parts: Mapping[str, Callable[[Shrink], None]] = {
        "accuracy": learned,
    }
    for name, part in parts.items():
        if settings.only in ("all", name):
            part(settings)


def learned(settings: Shrink) -> None:
    """Half of the channels after one more epoch, and the small network from the beginning."""
    train, test = fashion_mnist("train"), fashion_mnist("test")
    log = Log(settings.cache / "accuracy.json")
    runs = [_runs(train, test, seed, log) for seed in range(settings.seeds)]
    names = list(runs[0])
    values = {name: np.array([100 * run[name] for run in runs]) for name in names}
    rows = [[name, mean_and_error(v), f"{v.min():.2f}"] for name, v in values.items()]
    pruned, chance = values["half the channels, 1 epoch"], values["random channels, 1 epoch"]
    rows.append(["largest norm over random channels, paired", mean_and_error(pruned - chance), ""])
    record(
        "shrink_accuracy",
        Table(["network", "test accuracy, %", "worst seed"], rows),
        question="What is left of a network of 124,474 parameters after half of its channels, and "
        "three quarters of its parameters, are removed?",
        baseline="the same smaller network trained from new weights for as many epochs in all",
        notes=f"Fashion-MNIST, {settings.seeds} seeds, mean ± standard error. Adam, rate {RATE} "
        "that falls to zero along a cosine in each phase; batches of 128. Dense: 3 epochs. Half "
        f"of every group's channels by group norm leaves {size(js.shrink(0.5)(small())):,} "
        "parameters. Every network with '1 epoch' had 3 dense epochs before it.",
        settings=dataclasses.asdict(settings) | {"cache": None},
    )


def _runs(train: Images, test: Images, seed: int, log: Log) -> dict[str, float]:
    """Accuracies of one seed."""
    net = small(seed=seed)

    def through(net: js.Network, epochs: int, key: int) -> js.Network:
        steps = epochs * (len(train.labels) // 128)
        return fit(
            net,
            train.images,
            train.labels,
            epochs=epochs,
            optimizer=optax.adam(optax.cosine_decay_schedule(RATE, steps)),
            key=jax.random.key(1000 * key + seed),
            call=CALL,
            quiet=True,
        )

    held: dict[str, js.Network] = {}

    def dense() -> js.Network:
        if not held:
            held["dense"] = through(net, 3, 1)
        return held["dense"]

    def chance() -> Any:
        rng = np.random.default_rng(seed)
        return jax.tree.map(lambda p: rng.random(p.shape), net.params)

    makes: dict[str, Callable[[], js.Network]] = {
        "dense, 3 epochs": dense,
        "half the channels, no training": lambda: js.shrink(0.5)(dense()),
        "half the channels, 1 epoch": lambda: through(js.shrink(0.5)(dense()), 1, 2),
        "random channels, 1 epoch": lambda: through(
            js.shrink(0.5, importance=chance())(dense()), 1, 2
        ),
        "dense, 1 epoch more": lambda: through(dense(), 1, 2),
        "small from new weights, 4 epochs": lambda: through(small(8, seed), 4, 3),
        "small from new weights, 1 epoch": lambda: through(small(8, seed), 1, 3),
    }
    found: dict[str, float] = {}
    for name, make in makes.items():
        began = time.perf_counter()
        found[name] = log.get(f"{seed}: {name}", lambda make=make: accuracy(make(), test))
        seconds = time.perf_counter() - began
        print(f"seed {seed}, {name}: {found[name]:.4f} {seconds:.0f} s", file=sys.stderr)
    return found
