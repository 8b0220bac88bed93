"""The main job on real data: a trained CNN, taken to three kinds of hardware."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Literal

import jax
import numpy as np

import jaxsim as js
from jaxsim.checkpoint.log import ScoreCache, run_digest
from jaxsim.checkpoint.save_load import describe
from jaxsim.cli.options import Seeded
from jaxsim.data import Images, fashion_mnist
from jaxsim.evaluate.comparison import Comparison, classify, compare
from jaxsim.evaluate.plot import Curve, accuracy_curves
from jaxsim.files import atomic
from jaxsim.train.reference import trained


@dataclasses.dataclass(frozen=True)
class Demo(Seeded):
    """Train a small ResNet on Fashion-MNIST, compose three chips from it, compare and plot them.

    Attributes:
      out: Folder for the table and the figure.
      cache: Folder for trained weights and points of the sweep; another run takes from there
        what it finds, also after a kill, and several may run at once.
      epochs: Passes over the training set.
      images: How many test images the sweep of the figure uses.
      programmings: How often the sweep programs each chip anew.
    """

    out: Path = Path("out")
    cache: Path = Path("~/.cache/jaxsim/demo")
    epochs: int = 4
    images: int = 400
    programmings: int = 3


def main(demo: Demo) -> Comparison:
    """Runs the demo with compiled programs kept in its cache, and what was set before when it ends.

    Args:
      demo: Settings of the demo.

    Returns:
      The comparison that was printed.
    """
    before: str | None = jax.config.jax_compilation_cache_dir  # pyright: ignore
    jax.config.update("jax_compilation_cache_dir", str(demo.cache.expanduser() / "compiled"))
    try:
        return run(demo)
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def run(demo: Demo) -> Comparison:
    """Runs the demo, prints its table and writes `table.txt` and `sweep.png`.

    Args:
      demo: Settings of the demo.

    Returns:
      The comparison that was printed.

    Raises:
      ValueError: A setting out of range.
    """
    console, started = demo.open(), time.perf_counter()
    for name in ("epochs", "images", "programmings"):
        if getattr(demo, name) < 1:
            raise ValueError(f"{name}={getattr(demo, name)}: must be at least 1")
    train, test = fashion_mnist("train"), fashion_mnist("test")
    console.print(f"Fashion-MNIST from {train.source}")
    net, sparse = trained(
        train, epochs=demo.epochs, seed=demo.seed, cache=demo.cache, quiet=demo.quiet
    )
    console.print(net)

    chips = {
        name: js.deploy(chip, key=jax.random.key(demo.seed + 1), calibrate=train.images[:256])
        for name, chip in recipes(net, sparse).items()
    }
    table = compare(net, chips, (test.images, test.labels))
    console.print(table)
    demo.out.mkdir(parents=True, exist_ok=True)
    atomic.write_text(demo.out / "table.txt", str(table))
    demo.write([row._asdict() for row in table.rows])

    few = test._replace(images=test.images[: demo.images], labels=test.labels[: demo.images])
    log = ScoreCache(demo.cache / "sweep.json")
    panels = sweep(sparse, train, few, programmings=demo.programmings, log=log, quiet=demo.quiet)
    figure = demo.out / "sweep.png"
    accuracy_curves(
        figure,
        panels,
        reference=float(np.mean(classify(net, few.images) == few.labels)),
        title="Half the weights, 8-bit codes, 2-bit cells in analog arrays",
    )
    seconds = time.perf_counter() - started
    console.print(f"wrote {demo.out / 'table.txt'} and {figure} after {seconds:.0f} s")
    return table


def recipes(net: js.Network, sparse: js.Network) -> dict[str, js.Network]:
    """Makes the three chips of the demo, not yet deployed.

    Args:
      net: The trained network.
      sparse: The same, half of its weights pruned and the rest trained on.
    """
    unsigned = js.Grid(8, symmetric=False)  # what follows a ReLU has no sign
    digital = js.quantize(weights=8, inputs=unsigned)
    cells = js.cells.proportional(0.02)
    return {
        "int8": digital(net),
        "pruned, sliced": js.compose(digital, js.slice_bits(2))(sparse),
        "pruned, analog": js.compose(digital, js.slice_bits(2), js.analog(adc=8, cells=cells))(
            sparse
        ),
    }


def sweep(
    net: js.Network,
    train: Images,
    test: Images,
    *,
    programmings: int,
    log: ScoreCache,
    quiet: bool = False,
) -> dict[str, dict[str, Curve]]:
    """Measures accuracy of analog chips against ADC bits and against cell error.

    Only numbers that cores trace vary along a curve, so each curve compiles once.

    Args:
      net: Network to program into arrays.
      train: Images to calibrate on.
      test: Images to classify.
      programmings: Number of times a chip with cell errors is programmed, at least 1.
      log: Log of what was measured before, and will have been.
      quiet: Whether to hide the progress bar.
    """
    from rich.progress import track

    bits = [3.0, 4.0, 5.0, 6.0, 8.0]
    sigmas = [0.01, 0.02, 0.05, 0.1]
    digital = js.compose(js.quantize(8, js.Grid(8, symmetric=False)), js.slice_bits(2))
    mappings: tuple[Literal["differential", "offset"], ...] = ("differential", "offset")
    devices = {"proportional": js.cells.proportional, "independent": js.cells.independent}
    settings = {
        "ADC bits": {name: [js.analog(adc=b, mapping=name) for b in bits] for name in mappings},
        "cell error, share of conductance": {
            f"{name} error": [js.analog(adc=8, cells=device(s)) for s in sigmas]
            for name, device in devices.items()
        },
    }
    along = dict(zip(settings, (bits, sigmas), strict=True))
    trials = dict(zip(settings, (1, programmings), strict=True))
    points = [
        (label, name, i, trial)
        for label, curves in settings.items()
        for name, transforms in curves.items()
        for i in range(len(transforms))
        for trial in range(trials[label])
    ]
    found = {
        label: {name: np.zeros((len(along[label]), trials[label])) for name in curves}
        for label, curves in settings.items()
    }
    calibrate = train.images[:128]
    run = run_digest(
        (net.params, net.buffers, net.masks, calibrate, *test[:2]), describe(digital(net))
    )
    for label, name, i, trial in track(points, "sweeping", disable=quiet):

        def measure(label: str = label, name: str = name, i: int = i, trial: int = trial) -> float:
            chip = js.compose(digital, settings[label][name][i])(net)
            chip = js.deploy(chip, key=jax.random.key(trial), calibrate=calibrate)
            return float(np.mean(classify(chip, test.images) == test.labels))

        point = f"{run[:16]} {label} {name} {along[label][i]} {trial}"
        found[label][name][i, trial] = log.get(point, measure)
    return {
        label: {name: Curve(along[label], accuracy) for name, accuracy in curves.items()}
        for label, curves in found.items()
    }
