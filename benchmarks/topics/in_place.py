"""How much of what inexact programming costs does training in the array win back?"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.progress import Progress

import jaxsim as js
from benchmarks.common.chips import accuracy
from benchmarks.common.kept import kept
from benchmarks.common.record import Table, record
from benchmarks.common.settings import Trained
from benchmarks.common.spread import mean_and_error
from jaxsim.cli.demo import Demo
from jaxsim.data import Images, fashion_mnist
from jaxsim.network.leaves import path_name
from jaxsim.train import fit, pulsed
from jaxsim.train.reference import CALL, trained

SHORT = ("--seeds 1 --epochs 1 --images 64 --held-out 64 --only asymmetric",)

SEEN = 55_000
"""Training images of the networks, which are those of `noise_aware`; others choose rates."""
CELLS = {"spread": 0.3, "bound_spread": 0.3, "noise": 0.5}
"""What all cells have in common: as in `on_chip`."""
ROOM = 2.0
"""What a cell can hold on the mean, in largest weights of its kernel."""
IMBALANCE = 0.1
"""Standard deviation, among asymmetric cells, of up to down."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class InPlaceSettings(Trained):
    """Settings of the run."""

    sigma: float = 0.05
    """Error of every cell of a pair, as a share of the largest weight of its kernel."""
    images: int = 8000
    """Training images that the chip trains on, of those the network has seen."""
    held_out: int = 2000
    """Others, which it has not seen, that rates are chosen on."""
    epochs: int = 1
    """Passes over the training images."""
    batch: int = 16
    """Images a step."""
    steps: int = 400
    """Mean pulses from one end of a cell to the other."""
    only: Literal["all", "alone", "float32", "symmetric", "asymmetric", "TTv2"] = "all"
    """What trains the kernels."""


class Rates(NamedTuple):
    """What is chosen for a method.

    Attributes:
      rate: Learning rate of gradients, in arrays.
      gain: Learning rate of the transfer from a fast array.
    """

    rate: float
    gain: float = 0.0


Make = Callable[[Any, Rates, optax.Schedule, Any], optax.GradientTransformation]
"""From the range of a kernel, rates, their decay and a key to what trains it."""

NOTHING, ONE = [Rates(0.0)], [Rates(rate) for rate in (0.01, 0.03, 0.1, 0.3)]
TWO = [Rates(rate, gain) for rate in (0.1, 0.3) for gain in (0.1, 0.3)]


def programmed(net: js.Network, sigma: float, seed: int) -> js.Network:
    """A network whose kernels are off as pairs of cells that are, each by an error of its own."""
    key = jax.random.key(seed)

    def written(path: Any, w: Any) -> Any:
        if jnp.ndim(w) < 2:
            return w
        drawn = jax.random.normal(jax.random.fold_in(key, hash_of(path)), jnp.shape(w))
        return w + math.sqrt(2) * sigma * range_of(w) * drawn

    return net.with_params(jax.tree_util.tree_map_with_path(written, net.params))


def hash_of(path: Any) -> int:
    """A number of a parameter's path, the same in every process."""
    return sum(ord(c) * 31**i for i, c in enumerate(path_name(path))) % 2**31


def range_of(w: Any) -> jax.Array:
    """The largest weight of a kernel."""
    return jnp.max(jnp.abs(w))


def methods(settings: InPlaceSettings) -> dict[str, tuple[Make, list[Rates]]]:
    """What trains the kernels, and the rates to choose from; norms and biases train in each."""

    def of(largest: Any, *, soft: bool) -> pulsed.Cells:
        bound = ROOM * largest
        size = 2 * bound / settings.steps
        if not soft:
            return pulsed.constant_step(size, low=-bound, high=bound, **CELLS)
        return pulsed.soft_bounds(size, low=-bound, high=bound, imbalance_spread=IMBALANCE, **CELLS)

    def held(largest: Any, at: Rates, decay: optax.Schedule, key: Any) -> Any:
        del largest, at, decay, key
        return optax.set_to_zero()

    def descent(largest: Any, at: Rates, decay: optax.Schedule, key: Any) -> Any:
        del largest, key
        return optax.sgd(lambda n: at.rate * decay(n))

    def one(largest: Any, at: Rates, decay: optax.Schedule, key: Any, *, soft: bool) -> Any:
        return pulsed.sgd(of(largest, soft=soft), lambda n: at.rate * decay(n), key)

    def two(largest: Any, at: Rates, decay: optax.Schedule, key: Any) -> Any:
        cells = of(largest, soft=True)
        method = partial(pulsed.buffered_tiki_taka, cells, cells, at.rate, key)
        return method(gain=lambda n: at.gain * decay(n))

    named: dict[str, tuple[str, tuple[Make, list[Rates]]]] = {
        "alone": ("norms and biases alone", (held, NOTHING)),
        "float32": ("and kernels in float32", (descent, ONE)),
        "symmetric": ("and kernels by pulses, symmetric cells", (partial(one, soft=False), ONE)),
        "asymmetric": ("and kernels by pulses, asymmetric cells", (partial(one, soft=True), ONE)),
        "TTv2": ("and kernels by TTv2, asymmetric cells", (two, TWO)),
    }
    return dict(row for name, row in named.items() if settings.only in ("all", name))


def trained_on(
    net: js.Network, make: Make, at: Rates, data: Images, settings: InPlaceSettings, seed: int
) -> js.Network:
    """A programmed network after training; each kernel has cells of its own."""
    steps = settings.epochs * (len(data.labels) // settings.batch)
    decay = optax.cosine_decay_schedule(1.0, steps)
    key = jax.random.key(seed + 1)
    kinds: dict[str, Any] = {"digital": optax.adam(lambda n: 1e-3 * decay(n))}
    labels = jax.tree_util.tree_map_with_path(
        lambda path, w: path_name(path) if jnp.ndim(w) > 1 else "digital", net.params
    )
    for path, w in jax.tree_util.tree_leaves_with_path(net.params):
        if jnp.ndim(w) > 1:
            drawn = jax.random.fold_in(key, hash_of(path))
            kinds[path_name(path)] = make(range_of(w), at, decay, drawn)
    return fit(
        net,
        data.images,
        data.labels,
        epochs=settings.epochs,
        batch_size=settings.batch,
        optimizer=optax.multi_transform(kinds, labels),
        key=jax.random.key(seed),
        call=CALL,
        quiet=True,
    )


class Data(NamedTuple):
    """Images by what they are for.

    Attributes:
      seen: What the network was trained on.
      trained_on: Those of them that a chip trains on.
      chosen_on: Training images that the network has not seen, which choose rates.
      tested_on: The test set.
    """

    seen: Images
    trained_on: Images
    chosen_on: Images
    tested_on: Images


def read(settings: InPlaceSettings) -> Data:
    """Splits Fashion-MNIST."""
    train, test = fashion_mnist("train"), fashion_mnist("test")

    def part(first: int, last: int) -> Images:
        return train._replace(images=train.images[first:last], labels=train.labels[first:last])

    seen = min(SEEN, len(train.labels) - settings.held_out)  # of a subset there are fewer
    held_out = part(seen, seen + settings.held_out)
    return Data(part(0, seen), part(0, settings.images), held_out, test)


def untrained(net: js.Network, chip: js.Network, seen: Images) -> dict[str, Callable[[], Any]]:
    """What there is before a pulse, made when it is asked for."""
    batches = [seen.images[i : i + 256] for i in range(0, 2048, 256)]
    return {
        "float32, as trained": lambda: net,
        "programmed": lambda: chip,
        "programmed, norms measured anew": lambda: js.update_norms(batches, train=True)(chip),
    }


def main(args: list[str]) -> None:
    """Chooses rates on images held out, then trains each seed's chip; what is known is kept."""
    settings = InPlaceSettings.read(args)
    data, todo = read(settings), methods(settings)
    asked = tuple(settings.recorded(seeds=None, cache=None, only=None).items())
    keep = partial(kept, settings.cache / "in_place")
    found: dict[str, list[float]] = {}
    rates: dict[str, Rates] = {}
    with Progress() as progress:
        bar = progress.add_task("in place", total=settings.seeds * len(todo))
        for seed in range(settings.seeds):
            net, _ = trained(
                data.seen, epochs=Demo.epochs, seed=seed, cache=settings.cache, quiet=True
            )

            def chip(at: int, net: js.Network = net) -> js.Network:
                return js.quantize(None, 8)(programmed(net, settings.sigma, at))

            def score(make: Make, at: Rates, seed: int, on: Images, chip: Any = chip) -> float:
                made = trained_on(chip(seed), make, at, data.trained_on, settings, seed)
                return accuracy(made, on)

            for name, made in untrained(net, chip(seed), data.seen).items():
                of = keep((*asked, name, seed), lambda made=made: accuracy(made(), data.tested_on))
                found.setdefault(name, []).append(of)
            for name, (make, grid) in todo.items():
                if name not in rates:
                    tried = [
                        keep(
                            (*asked, name, at, "held out"),
                            partial(score, make, at, 1000, data.chosen_on),
                        )
                        for at in grid
                    ]
                    rates[name] = grid[int(np.argmax(tried))]
                at = rates[name]
                of = keep((*asked, name, at, seed), partial(score, make, at, seed, data.tested_on))
                found.setdefault(name, []).append(of)
                progress.advance(bar)
    _record(found, rates, settings, len(data.tested_on.labels))


def _record(
    found: dict[str, list[float]], rates: dict[str, Rates], settings: InPlaceSettings, tested: int
) -> None:
    scores = {name: 100 * np.asarray(values) for name, values in found.items()}
    exact, lost = scores["float32, as trained"], scores["programmed"]
    rows = []
    for name, right in scores.items():
        chosen = [str(number or "") for number in rates.get(name, Rates(0.0))]
        share = 100 * (right - lost) / (exact - lost)
        back = "" if name in ("float32, as trained", "programmed") else mean_and_error(share)
        rows.append([name, *chosen, mean_and_error(right), mean_and_error(right - exact), back])
    columns = ["what trains", "rate", "gain", "accuracy, %", "to float, points", "won back, %"]
    record(
        "in_place",
        Table(columns, rows),
        question="How much of what inexact programming costs does training in the array win back?",
        baseline="the demo's network in float32, and programmed without training",
        notes=" ".join(
            f"""
            Fashion-MNIST test set ({tested} images), {settings.seeds} networks of `make demo`
            trained on {SEEN} images, mean ± standard error over them, each programmed once: a
            weight is a pair of cells, both off by {settings.sigma:.0%} of the largest weight of
            their kernel, and stays where it was written until a pulse comes. Inputs have 8 bits.
            Then {settings.epochs} epochs of {settings.images} of the same images, in batches of
            {settings.batch}; every kernel is an array, norms and biases train digitally by Adam.
            A cell holds {ROOM:g} times the largest weight of its kernel to either side, in
            {settings.steps} steps; steps differ by {CELLS["spread"]:.0%} from cell to cell and by
            {CELLS["noise"]:.0%} from pulse to pulse, bounds by {CELLS["bound_spread"]:.0%};
            asymmetric cells have soft bounds and {IMBALANCE:.0%} imbalance from cell to cell.
            References of TTv2 are exact. Rates fall to zero by a cosine and were chosen, of four,
            on another programming of the first network and {settings.held_out} training images that
            it has not seen; nothing was chosen on the test set.
            """.split()
        ),
        settings=settings.recorded(),
    )
