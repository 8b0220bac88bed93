"""What do exits save, in operations and in time, at what loss of accuracy?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import optax

import jaxsim as js
from benchmarks.common.parts import run_parts
from benchmarks.common.record import Table, record
from benchmarks.common.settings import CACHE, Checkpointed, Timed
from benchmarks.common.spread import mean_and_error
from benchmarks.common.thresholds import at_thresholds
from jaxsim.checkpoint.log import ScoreCache
from jaxsim.console.timing import alternate
from jaxsim.data import fashion_mnist
from jaxsim.models.resnet import ResNet
from jaxsim.models.transformer import Transformer
from jaxsim.models.vision import Vision
from jaxsim.network.network import base_network
from jaxsim.staged.exit_step import count_programs
from jaxsim.staged.network import Staged
from jaxsim.train.loop import fit
from jaxsim.train.reference import CALL

SHORT = ("--seeds 1 --images 640 --epochs 1 --runs 5 --timed 500",)


@dataclasses.dataclass(frozen=True)
class Model:
    """What is trained and where it exits: module, exits, keyword arguments of training, rate."""

    module: Any
    exits: int
    call: dict[str, Any]
    rate: float


MODELS = {
    "ResNet of the demo, 4 exits": Model(ResNet((1, 1, 1), 16, stem_stride=2), 4, CALL, 4e-3),
    "ViT of 6 layers, 6 exits": Model(Vision(Transformer(6), (10,), 7, 64), 6, {}, 1e-3),
}
LOSSES = (0.0, 0.2, 0.5, 1.0)
THRESHOLDS = np.concatenate([[0.0], np.geomspace(1e-4, 1.0, 41)])
BUCKETS = js.Buckets(batch=32, max_batch=256)
VALIDATION = 5000


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExitsSettings(Timed, Checkpointed):
    """Settings of the run."""

    only: Literal["all", "accuracy", "timing"] = "all"
    """Which part."""
    images: int = 20000
    """Training images, which the classifiers of the exits see too, without labels."""
    epochs: int = 3
    """Passes over them."""
    runs: int = 7
    timed: int = 4000
    """Test images of each timing."""
    log: Path = CACHE / "exits.json"
    checkpoints: Path = CACHE / "exits"


def main(args: list[str]) -> None:
    """Measures the parts asked for."""
    settings = ExitsSettings.read(args)
    run_parts(settings, {"accuracy": accuracy, "timing": timing})


def accuracy(settings: ExitsSettings) -> None:
    """Accuracy and operations at thresholds chosen on images that are not reported."""
    tables = []
    for name, model in MODELS.items():
        found = [_scores(name, model, seed, settings) for seed in range(settings.seeds)]
        rows = []
        for label in found[0]:
            values = np.array([scores[label] for scores in found])
            rows.append(
                [
                    label,
                    ", ".join(f"{t:.2g}" for t in values[:, 3]),
                    mean_and_error(100 * values[:, 0]),
                    mean_and_error(100 * (values[:, 0] - [s["all stages"][0] for s in found])),
                    mean_and_error(values[:, 1]),
                    f"{values[:, 2].mean():.2f}x",
                ]
            )
        columns = ["leaves when", "threshold, by seed", "right, %", "to all stages, points"]
        tables.append(Table([*columns, "mean exit", "fewer FLOPs"], rows, title=name))
    record(
        "exits",
        *tables,
        question="What do exits save at what loss of accuracy?",
        baseline="the same network, every row through all stages",
        notes=f"Fashion-MNIST: {settings.images} images to train with and to teach the exits "
        f"(linear, 400 steps), {settings.epochs} epochs; thresholds are the highest of "
        f"{len(THRESHOLDS)} that lose no more than said on {VALIDATION} other training images; the "
        f"table is of the 10000 test images. {settings.seeds} seeds, mean ± standard error. FLOPs "
        "of sites and classifiers, as jaxsim counts them, a multiply-accumulate as 2.",
        settings={"seeds": settings.seeds, "images": settings.images, "epochs": settings.epochs},
    )


def timing(settings: ExitsSettings) -> None:
    """Time of a compacted run beside the network itself."""
    x = np.asarray(fashion_mnist("test").images[: settings.timed])
    rows = []
    for name, model in MODELS.items():
        net = _network(name, model, 0, settings)
        scores = _scores(name, model, 0, settings)
        call = jax.jit(lambda net, x: net(x))
        plain = base_network(net)

        def dense(plain: Any = plain, call: Any = call) -> Any:
            return [
                np.asarray(call(plain, x[i : i + BUCKETS.max_batch]))
                for i in range(0, len(x), BUCKETS.max_batch)
            ]

        ways: dict[str, Callable[[], Any]] = {"all stages": dense}
        speeds = {"exits, threshold 0": 0.0}
        speeds |= {label: scores[label][3] for label in scores if label.startswith("at most")}
        before = count_programs()
        net.warm_up(x[:1], buckets=BUCKETS)
        compiled = count_programs() - before
        for label, threshold in speeds.items():
            fast = dataclasses.replace(net, threshold=threshold)
            ways[label] = lambda fast=fast: fast.run(x, buckets=BUCKETS).logits
        times = alternate(ways, runs=settings.runs)
        base = times["all stages"].median
        for label, time in times.items():
            fast = dataclasses.replace(net, threshold=speeds.get(label, 0.0))
            flops = np.asarray(fast.simulate(x).flops)
            fewer = 1.0 if label == "all stages" else _dense_flops(net) / flops.mean()
            rows.append(
                [
                    name,
                    label,
                    f"{len(x) / time.median:,.0f}",
                    f"{base / time.median:.2f}x",
                    f"{fewer:.2f}x",
                    f"{base / time.median / fewer:.2f}",
                ]
            )
        print(f"{name}: {compiled} count_programs")
    record(
        "exits_timing",
        Table(["network", "loses", "images/s", "faster", "fewer FLOPs", "of these"], rows),
        question="How much of what exits save is saved in time?",
        baseline="the network itself, compiled, in batches of the same largest size",
        notes=f"The networks of the other table, seed 0, warm; {len(x)} test images; batches of at "
        f"most {BUCKETS.max_batch}, padded to multiples of {BUCKETS.batch}, results read to the "
        "host in all cases.",
        settings={"runs": settings.runs, "timed": settings.timed},
    )


def _dense_flops(net: Staged) -> float:
    """Of one image through the network without exits."""
    return 2 * net.cost(jax.ShapeDtypeStruct((1, 28, 28, 1), np.float32)).total("macs")


def _scores(name: str, model: Model, seed: int, settings: ExitsSettings) -> dict[str, list[float]]:
    """For each way to leave: accuracy, mean exit, FLOPs saved, threshold."""
    log = ScoreCache(settings.log)
    recipe = f"{name} {seed}, {settings.epochs} of {settings.images}"

    def measure() -> dict[str, list[float]]:
        net = _network(name, model, seed, settings)
        train, test = fashion_mnist("train"), fashion_mnist("test")
        held, dense = (train.images[-VALIDATION:], train.labels[-VALIDATION:]), _dense_flops(net)

        def score(
            images: Any, labels: Any, thresholds: Any, net: Staged = net
        ) -> list[list[float]]:
            out = at_thresholds(net, (images,), thresholds)
            right = np.mean(np.argmax(out.logits, -1) == labels, -1)
            columns = right, out.layer.mean(-1), dense / out.flops.mean(-1), np.asarray(thresholds)
            return np.stack(columns, -1).tolist()

        validation = score(*held, THRESHOLDS)
        allowed = {"all stages": 0.0}
        for loss in LOSSES:
            least = validation[0][0] - loss / 100
            chosen = max(v[3] for v in validation if v[0] >= least)
            allowed[f"at most {loss} points lost"] = chosen
        reported = test.images, test.labels
        scores = dict(zip(allowed, score(*reported, list(allowed.values())), strict=True))
        for patience in (1, 2):
            strict = dataclasses.replace(net, patience=patience)
            (scores[f"{patience + 1} exits agree"],) = score(*reported, [0.0], strict)
        return scores

    return log.get(recipe, measure)


def _network(name: str, model: Model, seed: int, settings: ExitsSettings) -> Staged:
    """A trained network whose exits are distilled; from checkpoints where they are there."""
    train = fashion_mnist("train")
    x, y = train.images[: settings.images], train.labels[: settings.images]
    variables = jax.jit(model.module.init)(jax.random.key(seed), x[:1])
    steps = settings.epochs * (len(x) // 128)
    schedule = optax.cosine_onecycle_schedule(steps, model.rate)
    folder = settings.checkpoints.expanduser()
    net = fit(
        js.trace(model.module, variables, x[:2]),
        x,
        y,
        epochs=settings.epochs,
        optimizer=optax.adamw(schedule, weight_decay=1e-3),
        key=jax.random.key(seed + 100),
        call=model.call,
        checkpoints=folder / f"{name.split()[0]}-{seed}-{settings.epochs}-{len(x)}",
        label=name,
        quiet=True,
    )
    made = js.exit_early(model.exits)(net)
    return js.distill_exits(made, x, key=jax.random.key(seed))
