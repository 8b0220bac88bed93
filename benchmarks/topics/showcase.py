"""One ResNet and one BERT, taken from floats to analog arrays, exits and a pipeline."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

import jaxsim as js
from benchmarks.common.record import IMAGES, Table, record
from benchmarks.common.settings import CACHE, Settings
from benchmarks.common.spread import mean_and_error
from benchmarks.common.texts import corpus_of, minilm
from benchmarks.common.thresholds import at_thresholds
from benchmarks.topics.pyramid.networks import network
from benchmarks.topics.pyramid.settings import PyramidSettings
from jaxsim.adaptive.features import first_token, pooled
from jaxsim.checkpoint.log import ScoreCache
from jaxsim.cli.demo import Demo
from jaxsim.cores.bit_sliced import bit_sliced
from jaxsim.cores.quantized import quantized
from jaxsim.cores.tiled import tiled
from jaxsim.data import fashion_mnist
from jaxsim.models.hugging_face import load_bert
from jaxsim.network.network import base_network
from jaxsim.staged.network import Staged
from jaxsim.train.reference import trained
from jaxsim.train.step import is_pipeline

SHORT = ("--only ResNet --images 100 --programmings 1",)

MULTIPLY, ADD = {"float": 3.7, "byte": 0.2}, {"float": 0.9, "byte": 0.1}
"""pJ in 45 nm, of 32-bit floats and of 8 bits with 32-bit sums (Horowitz, ISSCC 2014)."""
UNITS = 1024
"""Multipliers of the digital array, one product a ns each."""
READ = 100.0
"""ns of one read of an analog array; those of a site are read at once."""
ROWS = 100
"""Of a call."""
THRESHOLDS = np.array([0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9], np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShowcaseSettings(Settings):
    """Settings of the run."""

    only: Literal["both", "ResNet", "BERT"] = "both"
    """Which network."""
    epochs: int = Demo.epochs
    """Passes of the ResNet's training."""
    images: int = 2000
    """Test images."""
    texts: int = 500
    """Test texts."""
    programmings: int = 3
    """Times that cells are programmed."""
    log: Path = CACHE / "showcase.json"
    """What was measured so far."""


class Case(NamedTuple):
    """A trained network with what it is shown.

    Attributes:
      net: in floats.
      sparse: pruned.
      grid: of its inputs.
      feature: what exits read.
      exits: how many.
      train: inputs (a tuple of arrays) that the exits learn from.
      held: inputs and labels that the threshold is chosen with.
      test: inputs and labels that are reported.
      one: an input of a single row, for which energy and time are counted.
    """

    net: js.Network
    sparse: js.Network
    grid: Any
    feature: Any
    exits: int
    train: tuple[np.ndarray, ...]
    held: tuple[tuple[np.ndarray, ...], np.ndarray]
    test: tuple[tuple[np.ndarray, ...], np.ndarray]
    one: tuple[np.ndarray, ...]


class Spent(NamedTuple):
    """What one input spends by the model, and what the weights take."""

    energy: float
    time: float
    bits: float


class Point(NamedTuple):
    """A step: accuracy of each programming, and what is spent."""

    right: list[float]
    spent: Spent


def main(args: list[str]) -> None:
    """Takes both networks through all steps."""
    settings = ShowcaseSettings.read(args)
    cases = {
        "ResNet": (resnet, "Fashion-MNIST", f"that of the demo, {settings.images} test images"),
        "BERT": (
            bert,
            "SST-2",
            f"fine-tuned MiniLM, {settings.texts} test texts, spent for one of 24 word pieces",
        ),
    }
    facts = {k: v for k, v in dataclasses.asdict(settings).items() if k not in ("only", "log")}
    log, tables, shown = ScoreCache(settings.log), list[Table](), list[str]()
    found = dict[str, dict[str, Point]]()
    for name, (make, data, which) in cases.items():
        if settings.only not in ("both", name):
            continue
        case = make(settings)
        points = {
            step: Point(right, Spent(*spent))
            for step, measure in steps(case, settings).items()
            for right, spent in [log.get(f"{name} {step} {facts}", measure)]
        }
        found[f"{name}, {data}"] = points
        shown.append(f"{name}: {which}")
        rows = [
            [
                step,
                mean_and_error(100 * np.array(point.right))
                if len(point.right) > 1
                else f"{100 * point.right[0]:.2f}",
                f"{point.spent.energy / 1e6:.3f}",
                f"{point.spent.time / 1e3:.2f}",
                f"{point.spent.bits / 8 / 1024:.1f}",
            ]
            for step, point in points.items()
        ]
        columns = ["after", "right, %", "µJ an input", "µs an input", "weights, KiB"]
        tables.append(Table(columns, rows, f"{name}, {data}"))
    draw(found, IMAGES / "showcase.png")
    record(
        "showcase",
        *tables,
        question=f"What becomes of {' and of '.join(found)}, step by step?",
        baseline="the float network",
        notes=f"One trained network each ({'; '.join(shown)}). {settings.programmings} "
        "programmings where "
        "there are cells, mean ± standard error. The threshold of the exits is the highest of "
        f"{len(THRESHOLDS)} that costs at most half a point on rows that are not reported. Energy "
        "and time are of an analytic model and of the sites alone: digital products at Horowitz' "
        "45 nm figures on 1024 multipliers at 1 GHz, arrays by `js.Crossbar` at 100 ns a read, "
        "all arrays of a site at once, sites one after the other; attention scores stay digital "
        "floats. Gated products of pruned weights save energy and no time. In a pipeline results "
        "come as often as its slowest stage allows. `exit_early` and `pipeline_shard` both cut "
        "the network and refuse each other: each follows the analog chip.",
        settings=facts,
    )


def resnet(settings: ShowcaseSettings) -> Case:
    """The demo's network, and its pruned form, trained on."""
    train, test = fashion_mnist("train"), fashion_mnist("test")
    net, sparse = trained(train, epochs=settings.epochs, seed=0, cache=CACHE)
    held = (train.images[-1000:],), train.labels[-1000:]
    reported = (test.images[: settings.images],), test.labels[: settings.images]
    grid = js.Grid(8, symmetric=False)
    shown = (train.images[:4000],)
    return Case(net, sparse, grid, pooled, 3, shown, held, reported, (train.images[:1],))


def bert(settings: ShowcaseSettings) -> Case:
    """MiniLM fine-tuned on SST-2, three tenths of its weights pruned."""
    chosen = PyramidSettings()
    corpus = corpus_of("sst2", chosen.texts)
    tuned = network(chosen, "sst2", 0, "dense")
    model, _ = load_bert(minilm(), classes=2, key=jax.random.key(0))
    train, held, test = (
        ((part.ids[:n], part.lengths[:n]), part.labels[:n])
        for part, n in (
            (corpus.train, 1000),
            (corpus.validation, 300),
            (corpus.test, settings.texts),
        )
    )
    one = corpus.train.ids[:1, :24], np.full(1, 24, np.int32)
    net = js.trace(model, {"params": tuned.params}, *one)
    return Case(net, js.prune(0.3)(net), 8, first_token, 3, train[0], held, test, one)


def steps(case: Case, settings: ShowcaseSettings) -> dict[str, Callable[[], Point]]:
    """What is measured after each transform, in the order in which they are applied."""
    digital = js.quantize(8, case.grid)(case.sparse)
    slices = js.slice_bits(2)(digital)
    array = js.analog(adc=8, cells=js.cells.proportional(0.02))(slices)
    devices = jax.devices()[:1] * 2
    return {
        "float": lambda: measured(case, case.net, 1),
        "prune": lambda: measured(case, case.sparse, 1),
        "quantize": lambda: measured(case, digital, 1),
        "slice_bits": lambda: measured(case, slices, 1),
        "analog": lambda: measured(case, array, settings.programmings),
        "exit_early": lambda: measured(
            case, js.exit_early(case.exits, feature=case.feature)(array), settings.programmings
        ),
        "pipeline_shard": lambda: measured(
            case,
            js.pipeline_shard(2, microbatches=2, devices=devices)(array),
            settings.programmings,
        ),
    }


def measured(case: Case, net: js.Network, programmings: int) -> Point:
    """Accuracy on the test rows, and what is spent."""
    right, shares = list[float](), list[float]()
    inputs, labels = case.test
    few = tuple(a[:64] for a in case.train)
    for trial in range(programmings):
        key = jax.random.key(trial)
        chip = js.deploy(net, key=key, calibrate=few) if net.cores else net
        share = 1.0
        if isinstance(chip, Staged) and chip.exits:
            chip = js.distill_exits(chip, case.train, key=key)
            chip = dataclasses.replace(chip, threshold=chosen(chip, *case.held))
            share = flops_share(chip, inputs)
        right.append(float(np.mean(labels_of(chip, inputs) == labels)))
        shares.append(share)
    spent = model_of(net, case.one)
    share = float(np.mean(shares))
    return Point(right, Spent(spent.energy * share, spent.time * share, spent.bits))


def labels_of(net: js.Network, inputs: tuple[np.ndarray, ...]) -> np.ndarray:
    """The class of each row."""
    run = net if is_pipeline(net) else jax.jit(lambda *x: net(*x))
    parts = (tuple(a[i : i + ROWS] for a in inputs) for i in range(0, len(inputs[0]), ROWS))
    return np.concatenate([np.argmax(run(*x), -1) for x in parts])


def chosen(net: Staged, inputs: tuple[np.ndarray, ...], labels: np.ndarray) -> np.float32:
    """The highest threshold that costs at most half a point."""
    logits = at_thresholds(net, inputs, THRESHOLDS, rows=ROWS).logits
    right = np.mean(np.argmax(logits, -1) == labels, -1)
    return THRESHOLDS[right >= right[0] - 0.005].max()


def flops_share(net: Staged, inputs: tuple[np.ndarray, ...]) -> float:
    """Share of the operations that rows still need."""
    spent, whole = at_thresholds(net, inputs, (net.threshold, 0), rows=ROWS).flops.mean(-1)
    return float(spent / whole)


def model_of(net: js.Network, one: tuple[np.ndarray, ...]) -> Spent:
    """What one input spends at the sites."""
    chip = base_network(net)
    made = {name: [w.factory for w in chain] for name, chain in chip.cores.items()}
    analog = any(tiled in makers for makers in made.values())
    arrays = js.Crossbar().estimate(chip, *one) if analog else None
    of_array = {} if arrays is None else dict(zip(arrays.names, arrays.spent, strict=True))
    energy, times, bits = 0.0, dict[str, float](), 0.0
    for site in chip.cost(*one).sites:
        makers, macs = made.get(site.name, []), site.spent["macs"]
        kept = site.nonzero / site.params if site.params else 1.0
        if site.name in of_array:
            energy += of_array[site.name].energy
            times[site.name] = site.runs * site.matmul[1] * READ
            bits += 2 * site.spent["cells"]
            continue
        kind = "byte" if quantized in makers else "float"
        # A slice of 2 bits is a quarter of the multiplier; sums stay as wide.
        multiply = MULTIPLY[kind] / (4 if bit_sliced in makers else 1)
        energy += kept * macs * (multiply + ADD[kind])
        times[site.name] = macs / UNITS
        masked = site.params if site.nonzero < site.params else 0
        bits += kept * site.spent["weight_bits"] + masked if site.params else 0.0
    return Spent(energy, slowest(net, times), bits)


def slowest(net: js.Network, times: dict[str, float]) -> float:
    """Time from one result to the next, in ns: of all sites, or of the slowest stage."""
    if not is_pipeline(net):
        return sum(times.values())
    names, begins = list(times), [row.name for row in net.stages.rows[1:]]
    edges = [0, *(names.index(name) for name in begins), len(names)]
    stages = [names[a:b] for a, b in itertools.pairwise(edges)]
    return max(sum(times[name] for name in stage) for stage in stages)


def draw(found: dict[str, dict[str, Point]], path: Path) -> None:
    """Accuracy, energy, time and memory after each step."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2).ravel()
    for name, points in found.items():
        places = range(len(points))
        right = [100 * np.mean(p.right) for p in points.values()]
        series = [right, *zip(*(p.spent for p in points.values()), strict=True)]
        for ax, values in zip(axes, series, strict=True):
            ax.plot(
                places, np.asarray(values) / (1 if ax is axes[0] else values[0]), "o-", label=name
            )
    titles = ("right, %", "energy, of the float one", "time, of the float one", "weights, of float")
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title, fontsize=9)
        ax.set_xticks(range(len(points)), list(points), rotation=20, fontsize=8)
        ax.grid(alpha=0.3)
        if ax is not axes[0]:
            ax.set_yscale("log")
    axes[0].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
