"""Does training in the array survive asymmetric cells, and references that are off?"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.progress import Progress

from benchmarks.common.record import Table, record
from benchmarks.common.settings import Settings
from benchmarks.common.spread import mean_and_error
from jaxsim.data import Images, fashion_mnist
from jaxsim.train import cross_entropy, pulsed

SHORT = (
    "--seeds 1 --images 160 --held-out 100 --epochs 1 --only agad",
    "--seeds 1 --images 160 --held-out 100 --epochs 1 --only reads",
)

CELLS = {"low": -0.6, "high": 0.6, "spread": 0.3, "bound_spread": 0.3, "noise": 0.5}
"""What symmetric and asymmetric cells have in common, in units of the weights."""
SIZE = 0.01
"""Mean step of a pulse: 120 of them from one end of a cell to the other."""
IMBALANCE = 0.1
"""Standard deviation, among asymmetric cells, of up to down."""
OFF = (0.1, 0.3)
"""Standard deviations of references that are off, in units of weights."""
READS = 4
"""Reads of a row until its sign flips, on average or always."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnChipSettings(Settings):
    """Settings of the run."""

    seeds: int = 3
    """Networks trained from scratch, each on cells of its own."""
    images: int = 8000
    """Training images."""
    held_out: int = 2000
    """More of them, that learning rates are chosen on."""
    epochs: int = 8
    """Passes over the training images."""
    batch: int = 16
    """Images a step."""
    hidden: int = 64
    """Hidden units."""
    only: Literal["all", "agad", "reads"] = "all"
    """All methods, one of them, or what they reach by how often a row is read."""
    pool: int = 2
    """Pixels of a side whose mean is one input."""


def symmetric() -> pulsed.Cells:
    """Cells with one step for both directions, wherever they are."""
    return pulsed.constant_step(SIZE, **CELLS)


def asymmetric() -> pulsed.Cells:
    """Cells with soft bounds."""
    return pulsed.soft_bounds(SIZE, imbalance_spread=IMBALANCE, **CELLS)


Decay = Callable[[Any], optax.Schedule]
"""From a rate to its schedule, a cosine to zero."""


class Rates(NamedTuple):
    """Numbers that a program takes, so that it compiles once.

    Attributes:
      rate: Learning rate of gradients.
      gain: Learning rate of the transfer.
      flip: Chance that the sign of a row flips.
      off: Standard deviation of the references.
      period: Reads until a sign flips where it flips by count.
    """

    rate: Any
    gain: Any = 0.0
    flip: Any = 0.0
    off: Any = 0.0
    period: Any = READS


def chopped(at: Rates, decay: Decay, key: Any) -> optax.GradientTransformation:
    """TTv2, or c-TTv2 where signs flip."""
    cells = asymmetric()
    options = {"gain": decay(at.gain), "flip": at.flip, "reference_error": at.off}
    return pulsed.chopped_tiki_taka(cells, cells, at.rate, key, **options)


def plain(at: Rates, decay: Decay, key: Any) -> optax.GradientTransformation:
    """Tiki-Taka as it was first."""
    options = {"gain": decay(at.gain), "reference_error": at.off}
    return pulsed.tiki_taka(asymmetric(), asymmetric(), at.rate, key, **options)


def agad(at: Rates, decay: Decay, key: Any) -> optax.GradientTransformation:
    """AGAD, which has no reference."""
    options = {"gain": decay(at.gain), "period": at.period}
    return pulsed.agad(asymmetric(), asymmetric(), at.rate, key, **options)


Make = Callable[[Rates, Decay, Any], optax.GradientTransformation]

SGD = [Rates(rate) for rate in (0.05, 0.1, 0.2, 0.4)]
TWO = [Rates(0.5, gain) for gain in (0.1, 0.3, 1.0)]


def rows_of(name: str, **more: float) -> dict[str, list[Rates]]:
    """Rows of a method with an exact reference, and with those that are off."""
    grid = [rates._replace(**more) for rates in TWO]
    off = {f"{name}, off by {o}": [rates._replace(off=o) for rates in grid] for o in OFF}
    return {name: grid, **off}


METHODS: dict[str, tuple[Make, dict[str, list[Rates]]]] = {
    "float": (lambda at, decay, key: optax.sgd(decay(at.rate)), {"float32": SGD}),
    "symmetric": (
        lambda at, decay, key: pulsed.sgd(symmetric(), decay(at.rate), key),
        {"pulses, symmetric cells": SGD},
    ),
    "asymmetric": (
        lambda at, decay, key: pulsed.sgd(asymmetric(), decay(at.rate), key),
        {"pulses, asymmetric cells": SGD},
    ),
    "plain": (plain, rows_of("Tiki-Taka")),
    "chopped": (chopped, {**rows_of("TTv2"), **rows_of("c-TTv2", flip=1 / READS)}),
    "agad": (agad, {"AGAD, no reference": TWO}),
}
"""What trains, compiled once each, and rows of the table with the rates to choose from."""


def pixels(images: np.ndarray, pool: int) -> jax.Array:
    """Images [N, 28, 28, 1] as rows of means of pool × pool pixels."""
    side = 28 // pool
    return jnp.asarray(images).reshape(-1, side, pool, side, pool).mean((2, 4)).reshape(-1, side**2)


def logits(params: Any, x: jax.Array) -> jax.Array:
    """A hidden layer and ten classes."""
    first, second = params
    return jnp.tanh(x @ first["kernel"] + first["bias"]) @ second["kernel"] + second["bias"]


def trainer(make: Make, data: Images, settings: OnChipSettings) -> Callable[..., Any]:
    """A compiled function from rates and a key to trained parameters."""
    x, y = pixels(data.images, settings.pool), jnp.asarray(data.labels)
    steps = len(y) // settings.batch
    sizes = [(x.shape[1], settings.hidden), (settings.hidden, 10)]

    @jax.jit
    def run(x: Any, y: Any, rates: Rates, key: Any) -> Any:
        first, second, third = jax.random.split(key, 3)
        glorot = jax.nn.initializers.glorot_uniform()
        keys = jax.random.split(first, 2)
        params = [
            {"kernel": glorot(k, size), "bias": jnp.zeros(size[1])}
            for k, size in zip(keys, sizes, strict=True)
        ]

        def decay(rate: Any) -> optax.Schedule:
            return optax.cosine_decay_schedule(rate, settings.epochs * steps)

        kinds = {"array": make(rates, decay, second), "digital": optax.sgd(decay(0.1))}
        optimizer = optax.multi_transform(
            kinds, lambda p: jax.tree.map(lambda a: "array" if a.ndim > 1 else "digital", p)
        )

        def loss(params: Any, rows: Any) -> jax.Array:
            return cross_entropy(logits(params, x[rows]), y[rows])

        def step(at: Any, rows: Any) -> tuple[Any, None]:
            params, state = at
            updates, state = optimizer.update(jax.grad(loss)(params, rows), state, params)
            return (optax.apply_updates(params, updates), state), None

        orders = jax.vmap(lambda k: jax.random.permutation(k, len(y)))(
            jax.random.split(third, settings.epochs)
        )
        batches = orders[:, : steps * settings.batch].reshape(-1, settings.batch)
        return jax.lax.scan(step, (params, optimizer.init(params)), batches)[0][0]

    return functools.partial(run, x, y)


@jax.jit
def right(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """The percentage that is classified rightly."""
    return 100 * jnp.mean(jnp.argmax(logits(params, x), -1) == y)


class Data(NamedTuple):
    """What is trained on, chosen on and tested on.

    Attributes:
      train: Images that train.
      chosen_on: Inputs and labels of others.
      tested_on: Inputs and labels of the test set.
    """

    train: Images
    chosen_on: tuple[jax.Array, jax.Array]
    tested_on: tuple[jax.Array, jax.Array]


def read(settings: OnChipSettings) -> Data:
    """Splits Fashion-MNIST."""
    train, test = fashion_mnist("train"), fashion_mnist("test")
    first, last = settings.images, settings.images + settings.held_out
    parts = [(train.images[first:last], train.labels[first:last]), (test.images, test.labels)]
    chosen_on, tested_on = [(pixels(x, settings.pool), jnp.asarray(y)) for x, y in parts]
    kept = train._replace(images=train.images[:first], labels=train.labels[:first])
    return Data(kept, chosen_on, tested_on)


def best_of(
    grid: list[Rates], run: Callable[..., Any], data: Data, seeds: int
) -> tuple[Rates, np.ndarray]:
    """The rates that do best on held-out images, and what networks that train by them reach."""
    tried = [right(run(rates, jax.random.key(1000)), *data.chosen_on) for rates in grid]
    best = grid[int(np.argmax(tried))]
    found = [right(run(best, jax.random.key(seed)), *data.tested_on) for seed in range(seeds)]
    return best, np.asarray(found, float)


def notes(settings: OnChipSettings) -> str:
    """What a reader must know."""
    return f"""
    Fashion-MNIST test set (10000 images, means of four pixels), an MLP of {settings.hidden} hidden
    units trained from scratch on {settings.images} images, {settings.epochs} epochs of batches of
    {settings.batch}; {settings.seeds} networks on cells of their own, mean ± standard error;
    differences are of networks with the same first weights and order of images. Kernels are arrays,
    biases train digitally. Pulses are those of a batch's gradient. Rates of descent, and gains of
    two arrays, fall to zero by a cosine. Cells hold ±{CELLS["high"]} in steps of {SIZE}; steps
    differ by {CELLS["spread"]:.0%} from cell to cell and {CELLS["noise"]:.0%} from pulse to pulse,
    bounds by {CELLS["bound_spread"]:.0%}. Symmetric ones have constant steps, asymmetric ones soft
    bounds and {IMBALANCE:.0%} imbalance from cell to cell; of two arrays both are asymmetric.
    References that are off are so by a number drawn for each cell, of that deviation in units of
    weights. Signs of c-TTv2 flip with a chance of 1 / {READS} after a read, those of AGAD after
    {READS} reads. Rates or gains were chosen for each row, of four or three, by one more network
    and {settings.held_out} other training images; nothing was chosen on the test set. A run before,
    at constant rates, had descent in float32 two points behind Tiki-Taka: its last weights were as
    noisy as its gradients.
    """


def main(args: list[str]) -> None:
    """Chooses rates on images held out, then trains over seeds and tests."""
    settings = OnChipSettings.read(args)
    if settings.only == "reads":
        by_reads(settings)
        return
    data = read(settings)
    methods = [m for name, m in METHODS.items() if settings.only in ("all", name)]
    scores: dict[str, np.ndarray] = {}
    table: list[list[str]] = []
    with Progress() as progress:
        bar = progress.add_task("on_chip", total=sum(len(rows) for _, rows in methods))
        for make, rows in methods:
            run = trainer(make, data.train, settings)
            for name, grid in rows.items():
                best, scores[name] = best_of(grid, run, data, settings.seeds)
                between = scores[name] - scores.get("float32", np.nan)
                gain = str(best.gain) if best.gain else ""
                shown = [mean_and_error(scores[name]), mean_and_error(between)]
                table.append([name, str(best.rate), gain, *shown])
                progress.update(bar, advance=1)
    columns = ["training", "rate", "gain", "accuracy, %", "difference to float, points"]
    record(
        "on_chip",
        Table(columns, table),
        question="Does training in the array survive asymmetric cells, and references that are "
        "off?",
        baseline="the same network trained in float32 by gradient descent",
        notes=" ".join(notes(settings).split()),
        settings=settings.recorded(),
    )


SHARES = (1, 4, 16)
"""How much longer each training is than the shortest."""


def by_reads(settings: OnChipSettings) -> None:
    """Trains smaller arrays for longer and longer, so that each row is read more and more often."""
    settings = dataclasses.replace(settings, pool=4, batch=8)
    data = read(settings)
    methods: dict[str, tuple[Make, list[Rates]]] = {
        "float32": (METHODS["float"][0], SGD),
        "TTv2": (chopped, TWO),
        "TTv2, off by 0.1": (chopped, [rates._replace(off=0.1) for rates in TWO]),
        "AGAD, no reference": (
            agad,
            [rates._replace(period=p) for rates in TWO for p in (READS, 10)],
        ),
    }
    steps = settings.images // settings.batch
    rows = [[name] for name in methods]
    with Progress() as progress:
        bar = progress.add_task("on_chip", total=len(methods) * len(SHARES))
        for share in SHARES:
            longer = dataclasses.replace(settings, epochs=share)
            for row, (make, grid) in zip(rows, methods.values(), strict=True):
                run = trainer(make, data.train, longer)
                _, found = best_of(grid, run, data, settings.seeds)
                row.append(mean_and_error(found))
                progress.update(bar, advance=1)
    columns = [f"{round(share * steps / 49)} reads" for share in SHARES]
    record(
        "on_chip_reads",
        Table(["training, accuracy in %", *columns], rows),
        question="How often must a row be read until AGAD is as good as an exact reference?",
        baseline="TTv2 with a reference at the symmetry point, and in float32",
        notes=" ".join(
            f"""
            As in on_chip, with means of sixteen pixels (49 rows), batches of {settings.batch} and
            {", ".join(map(str, SHARES))} epochs; reads are those of a row of the first array. Signs
            of AGAD flip after {READS} or 10 reads, as is chosen with the gain.
            """.split()
        ),
        settings=settings.recorded(epochs=list(SHARES)),
    )
