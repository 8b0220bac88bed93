"""What do smaller tensors and sparse execution win, and what does it cost in accuracy?"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable
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
from benchmarks.common.chips import accuracy
from benchmarks.common.efficientnet import lite0
from benchmarks.common.files import unless_missing
from benchmarks.common.parts import run_parts
from benchmarks.common.record import Table, record
from benchmarks.common.settings import Trained
from benchmarks.common.spread import mean_and_error
from benchmarks.peers import torch_networks
from jaxsim.checkpoint.log import ScoreCache
from jaxsim.console.timing import alternate
from jaxsim.cores.compressed import Layout
from jaxsim.data import Images, fashion_mnist
from jaxsim.models.resnet import ResNet
from jaxsim.network.leaves import path_name
from jaxsim.sparsity.channels.groups import zero_entries
from jaxsim.train.loop import fit
from jaxsim.transforms.run_sparse import alternatives

SHORT = ("--only timing",)

CALL = {"train": True, "mutable": ["batch_stats"]}
RATE = 1e-3
SPARSITIES = (0.8, 0.9, 0.95)
WAYS: tuple[Layout, ...] = ("rows", "blocks")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShrinkSettings(Trained):
    """Settings of the run."""

    only: Literal["all", "timing", "execution", "accuracy"] = "all"
    """Part to run; each is recorded under a name of its own."""
    seeds: int = 5
    """Networks trained from scratch."""
    cache: Annotated[Path, tyro.conf.arg(help="folder of what an interrupted run has measured")] = (
        Path("~/.cache/jaxsim/shrink")
    )


class Small(nn.Module):
    """Two convolutions of stride 2, a residual block, a hidden dense layer: 124,474 parameters.

    Attributes:
      width: channels of the first convolution.
    """

    width: int = 16

    @nn.compact
    def __call__(self, x: Float[Array, "B 28 28 1"], train: bool = False) -> Float[Array, "B 10"]:
        """Logits."""

        def layer(x: Array, features: int, stride: int = 1) -> Array:
            x = nn.Conv(features, (3, 3), stride, use_bias=False)(x)
            return nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)

        x = nn.relu(layer(x, self.width, 2))
        x = nn.relu(layer(x, 2 * self.width, 2))
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
    settings = ShrinkSettings.read(args)
    parts = {
        "timing": timed,
        "execution": executed,
        "accuracy": learned,
    }
    run_parts(settings, parts)


def timed(settings: ShrinkSettings) -> None:
    """Whole networks: dense, with half of the channels masked, and without them."""
    del settings
    rows = [_speed("Small, 1000 images", small(), (1000, 28, 28, 1))]
    with unless_missing("row EfficientNet-lite0"):
        rows.append(_speed("EfficientNet-lite0, 4 images", lite0(), (4, 224, 224, 3)))
    columns = ["network", "dense, ms", "masked, ms", "shrunk, ms", "gain", "of masks", "parameters"]
    record(
        "shrink_timing",
        Table(columns, rows, "A call, half of all channels"),
        Table(["network", "ours, ms", "Torch-Pruning, ms"], _builds(), "Finding the groups"),
        question="How much faster is a network without half of its channels?",
        baseline="the dense network, and the same channels masked with zeros",
        notes="Float32, compiled, warm. Ours traces the model twice, the second time cut to half, "
        "to see that it runs and computes with the same numbers; Torch-Pruning 1.6.1 runs the "
        "model once and follows its autograd graph.",
    )


def _speed(name: str, net: js.Network, shape: tuple[int, ...]) -> list[str]:
    """A row of times."""
    found = js.dependencies(net)
    small = js.shrink(0.5)(net)
    keep = {g.name: np.arange(g.size) < g.size // 2 for g in found.groups if not g.reason}
    zeros = zero_entries(net, found, keep)
    masks = {
        path_name(path): leaf != 0
        for path, leaf in jax.tree_util.tree_leaves_with_path(zeros.params)
    }
    masked = dataclasses.replace(net, masks=masks)
    x = jax.random.normal(jax.random.key(0), shape)
    calls = {}
    for kind, made in {"dense": net, "masked": masked, "shrunk": small}.items():
        compiled = jax.jit(lambda made, x: made(x)).lower(made, x).compile()
        calls[kind] = lambda compiled=compiled, made=made: compiled(made, x)
    times = {kind: t.median for kind, t in alternate(calls, runs=15).items()}
    return [
        name,
        *(f"{1e3 * times[kind]:.2f}" for kind in calls),
        f"{times['dense'] / times['shrunk']:.2f}x",
        f"{times['dense'] / times['masked']:.2f}x",
        f"{size(net):,} → {size(small):,}",
    ]


def _builds() -> list[list[str]]:
    """Times to find the groups of two networks."""
    try:
        import torch
        import torch_pruning
    except ImportError:
        print("shrink: Torch-Pruning is not there, so its times are missing", file=sys.stderr)
        return []
    resnet, x = ResNet(), jnp.zeros((1, 16, 16, 3))
    nets = {
        "small": small(),
        "resnet": js.trace(resnet, resnet.init(jax.random.key(0), x), x),
    }
    rows = []
    for name, net in nets.items():
        model, shape = getattr(torch_networks, name)()
        image = torch.randn(shape)
        times = alternate(
            {
                "ours": lambda net=net: len(js.dependencies(net).groups),
                "theirs": lambda model=model, image=image: len(
                    torch_pruning.DependencyGraph().build_dependency(model, image).module2node
                ),
            },
            runs=9,
        )
        rows.append([name, *(f"{1e3 * times[k].median:.0f}" for k in ("ours", "theirs"))])
    return rows


def executed(settings: ShrinkSettings) -> None:
    """Products with a 1024 × 1024 weight, over sparsity and rows of inputs."""
    del settings
    tables = []
    for rows in (1, 128, 1024):
        lines = []
        for share in (0.5, 0.7, 0.8, 0.9, 0.95, 0.99):
            dense, by_rows = alternatives(1024, 1024, rows, share, "rows", (1, 1))
            calls = {"dense": dense, "bcoo": _bcoo(rows, share), "rows": by_rows}
            for side in (8, 32):
                calls[f"{side}"] = alternatives(1024, 1024, rows, share, "blocks", (side, side))[1]
            times = {k: t.median for k, t in alternate(calls, runs=7, inner=3).items()}
            ratios = [f"{times[k] / times['dense']:.2f}" for k in calls if k != "dense"]
            lines.append([f"{share:.2f}", f"{1e3 * times['dense']:.3f}", *ratios])
        columns = ["left out", "dense, ms", "BCOO", "rows (BCSR)", "blocks 8 × 8", "blocks 32 × 32"]
        tables.append(
            Table(columns, lines, f"{rows} rows of inputs; time over the dense product's")
        )
    found = [
        [f"{rows}", *(f"{js.measure_break_even(1024, 1024, rows, layout=way):.2f}" for way in WAYS)]
        for rows in (1, 128, 1024)
    ]
    tables.append(Table(["rows of inputs", "rows", "blocks 32 × 32"], found, "Break-even"))
    record(
        "shrink_execution",
        *tables,
        question="From which sparsity on is a product without the zeros faster?",
        baseline="the dense product of jax.numpy, compiled; below 1 the sparse one wins",
        notes="Random masks of a 1024 × 1024 float32 weight, of single entries or of blocks. "
        "BCOO is jax.experimental.sparse's; rows are its BCSR inside our core; blocks are ours: "
        "gathered strips of inputs and one batched product. Break-even 1.00: never among the "
        "shares tried.",
    )


def _bcoo(rows: int, share: float) -> Callable[[], Array]:
    """The product by coordinates."""
    from jax.experimental.sparse import BCOO

    rng = np.random.default_rng(0)
    w = rng.normal(size=(1024, 1024)) * (rng.random((1024, 1024)) >= share)
    held = BCOO.fromdense(jnp.asarray(w.T, jnp.float32))
    x = jnp.asarray(rng.normal(size=(rows, 1024)), jnp.float32)
    product = jax.jit(lambda held, x: (held @ x.T).T)
    return lambda: product(held, x)


def learned(settings: ShrinkSettings) -> None:
    """Half of the channels after one more epoch, and the small network from the beginning."""
    train, test = fashion_mnist("train"), fashion_mnist("test")
    log = ScoreCache(settings.cache / "accuracy.json")
    runs = [_runs(train, test, seed, log) for seed in range(settings.seeds)]
    names = list(runs[0])
    values = {name: np.array([100 * run[name] for run in runs]) for name in names}
    rows = [[name, mean_and_error(v), f"{v.min():.2f}"] for name, v in values.items()]
    pruned, chance = values["half the channels, 1 epoch"], values["random channels, 1 epoch"]
    rows.append(["largest norm over random channels, paired", mean_and_error(pruned - chance), ""])
    record(
        "shrink_accuracy",
        Table(["network", "test accuracy, %", "worst seed"], rows),
        question="What is left of a network of 124,474 parameters after half of its channels, "
        "which hold three quarters of its parameters, are removed, and after single weights are?",
        baseline="the same smaller network trained from new weights for as many epochs in all",
        notes=f"Fashion-MNIST, {settings.seeds} seeds, mean ± standard error. Adam, rate {RATE} "
        "that falls to zero along a cosine in each phase; batches of 128. Dense: 3 epochs. Half "
        f"of every group's channels by group norm leaves {size(js.shrink(0.5)(small())):,} "
        "parameters. Single weights go by magnitude over the whole network. "
        "Every network with '1 epoch' had 3 dense epochs before it.",
        settings=settings.recorded(),
    )


def _runs(train: Images, test: Images, seed: int, log: ScoreCache) -> dict[str, float]:
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
    }
    for share in SPARSITIES:
        makes |= {
            f"without {share:.0%} of its weights, no training": lambda share=share: js.prune(share)(
                dense()
            ),
            f"without {share:.0%} of its weights, 1 epoch": lambda share=share: through(
                js.prune(share)(dense()), 1, 2
            ),
        }
    found: dict[str, float] = {}
    for name, make in makes.items():
        began = time.perf_counter()
        found[name] = log.get(f"{seed}: {name}", lambda make=make: accuracy(make(), test))
        seconds = time.perf_counter() - began
        print(f"seed {seed}, {name}: {found[name]:.4f} {seconds:.0f} s", file=sys.stderr)
    return found
