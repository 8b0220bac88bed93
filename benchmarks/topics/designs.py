"""Five analog designs on trained networks: accuracy under errors, and modeled energy."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro
from rich.progress import Progress

import jaxsim as js
from benchmarks.common.cifar import Pictures, pictures, resnet
from benchmarks.common.kept import kept
from benchmarks.common.record import Table, record
from benchmarks.common.settings import Settings
from benchmarks.common.spread import mean_and_error
from jaxsim.accelerators.presets import find_design
from jaxsim.console.table import si

SHORT = ("--depths 14 --images 20 --calibration 10 --programmings 2",)

BATCH = 10
"""Images at a time: digits, slices and tiles of design E make hundreds of each."""
DESIGNS = ("A", "B", "C", "D", "E")
REPORTED = {
    "A": ("74.0", 8.4),
    "B": ("75.4", 63.1),
    "C": ("73.6", 43.3),
    "D": ("74.1", 25.8),
    "E": ("50.2 ± 5.3", 902.0),
}
"""Accuracy of ResNet-50, 76 % in floats, and fJ an operation, as reported of the paper."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DesignsSettings(Settings):
    """Settings of the run."""

    depths: tuple[int, ...] = (14, 20)
    """Layers of the ResNets."""
    images: int = 500
    """Images that are classified."""
    calibration: int = 100
    """Others, which set the ranges."""
    programmings: int = 5
    """Times each chip is programmed."""
    cache: Annotated[Path, tyro.conf.arg(help="what an interrupted run has measured")] = Path(
        "~/.cache/jaxsim/designs"
    )


CELLS = {
    "SONOS, 1 day": js.cells.sonos(days=1.0),
    "proportional 5 %": js.cells.proportional(0.05),
}


def chip(name: str, cells: js.cells.Device | None, *, whole: bool) -> js.Transform:
    """8-bit weights, one scale a layer, and 8-bit inputs, without a sign behind each ReLU.

    Args:
      name: Of the design.
      cells: Device of its cells.
      whole: Whether all bits of an input are applied at once where their digits would be added
        before the converter: the same sum, in one product.
    """
    weights = js.Grid(8, per="tensor")
    first, others = js.quantize(weights, 8), js.quantize(weights, js.Grid(8, symmetric=False))
    bits = None if whole and name != "E" else 1
    array = js.designs.xiao(name, cells=cells, input_bits=bits)  # pyright: ignore[reportArgumentType]
    return js.compose(js.rules({"Conv_0/kernel": first, "*": others}), array)


def added(where: Literal["digital", "analog"], cells: js.cells.Device | None) -> js.Transform:
    """Design A with the digits of an input added behind the converter, or before it as it is."""
    held = find_design("A")
    weights = js.Grid(8, per="tensor")
    first, others = js.quantize(weights, 8), js.quantize(weights, js.Grid(8, symmetric=False))
    array = js.analog(8, cells, rows=held.rows, input_bits=1, accumulate=where)
    return js.compose(js.rules({"Conv_0/kernel": first, "*": others}), array)


def accuracies(made: js.Network, data: Pictures, settings: DesignsSettings) -> np.ndarray:
    """Percent right of each programming, unless an earlier run has measured it."""
    asked = (repr(made.cores), settings.images, settings.calibration)
    numbers = range(settings.programmings)
    return np.asarray(
        [
            kept(settings.cache, (*asked, number), partial(accuracy, made, data, settings, number))
            for number in numbers
        ]
    )


def accuracy(made: js.Network, data: Pictures, settings: DesignsSettings, number: int) -> float:
    """Percent right of one programming; ranges come from images behind those classified."""
    x, labels = data.images[: settings.images], data.labels[: settings.images]
    seen = data.images[settings.images : settings.images + settings.calibration]
    batches = [seen[i : i + BATCH] for i in range(0, len(seen), BATCH)]
    key = jax.random.key(number)
    written = js.deploy(made, key=key, calibrate=batches)
    found = js.classify(written, x, key=jax.random.fold_in(key, 1), batch_size=BATCH)
    return 100 * float(np.mean(found == labels))


def energy(net: js.Network, made: js.Network, name: str) -> dict[str, float]:
    """Energy of the arrays by component, in fJ an operation of the network in floats."""
    hardware = js.accelerators.paper_design(name)  # pyright: ignore[reportArgumentType]
    operations = 2 * net.cost().total("macs")
    components = js.estimate(made, hardware).components
    return {part: 1e3 * float(components[part]) / operations for part in ("adc", "dac", "cells")}


def deep_layers() -> dict[str, tuple[int, int, int, int]]:
    """Products of the layers of a ResNet-50 on a picture of 224 × 224.

    Returns:
      By name: inputs, products that an output sums, outputs, and layers of that shape.

    Source: He et al. (2016), arXiv 1512.03385, with strides in the 3 × 3 layers.
    """
    found = {"Conv_0/kernel": (112**2, 7 * 7 * 3, 64, 1), "head": (1, 2048, 1000, 1)}
    wide, side = 64, 56
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width, before = 64 * 2**stage, side * (2 if stage else 1)
        found |= {
            f"{stage} enter": (before**2, wide, width, 1),
            f"{stage} shortcut": (side**2, wide, 4 * width, 1),
            f"{stage} reduce": (side**2, 4 * width, width, blocks - 1),
            f"{stage} middle": (side**2, 9 * width, width, blocks),
            f"{stage} expand": (side**2, width, 4 * width, blocks),
        }
        wide, side = 4 * width, side // 2
    return found


def deep_energies() -> dict[str, dict[str, float]]:
    """Energy of each design's arrays by component, in fJ an operation of a ResNet-50."""
    layers = deep_layers()
    params = {name: np.zeros((K, N), np.float32) for name, (_, K, N, _) in layers.items()}
    x = {name: np.zeros((M, K), np.float32) for name, (M, K, _, _) in layers.items()}
    net = js.trace(lambda params, x: {name: x[name] @ w for name, w in params.items()}, params, x)
    operations = 2 * sum(M * K * N * times for M, K, N, times in layers.values())
    found = {}
    for name in DESIGNS:
        hardware = js.accelerators.paper_design(name)  # pyright: ignore[reportArgumentType]
        sites = js.estimate(chip(name, None, whole=False)(net), hardware).sites
        found[name] = {
            part: 1e3
            * sum(layers[n][3] * float(s.components[part]) for n, s in sites.items())
            / operations
            for part in ("adc", "dac", "cells")
        }
    return found


def cost_rows(spent: dict[str, dict[str, float]]) -> list[list[str]]:
    """What designs spend, and how many times what the first does."""
    first, rows = sum(spent["A"].values()), []
    for name in DESIGNS:
        total = sum(spent[name].values())
        converted = spent[name]["adc"] / spent["A"]["adc"]
        parts = [f"{v:.1f}" for v in (*spent[name].values(), total, total / first, converted)]
        rows.append([name, *parts, f"{REPORTED[name][1] / REPORTED['A'][1]:.1f}"])
    return rows


def accumulation(net: js.Network, data: Pictures, settings: DesignsSettings) -> Iterator[list[Any]]:
    """What design A converts, spends and loses, by where the digits of an input are added."""
    for where in ("analog", "digital"):
        made = added(where, None)(net)
        spent = energy(net, made, "A")
        conversions = made.cost().total("conversions")
        total = sum(spent.values())
        values = [f"{spent['adc']:.2f}", f"{total:.1f}", f"{spent['adc'] / total:.1%}"]
        scores = [
            mean_and_error(accuracies(added(where, cells)(net), data, settings), 1)
            for cells in CELLS.values()
        ]
        told = "before the converter" if where == "analog" else "behind it"
        yield [told, si(conversions), *values, *scores]


def main(args: list[str]) -> None:
    """Programs and classifies, then counts."""
    settings, data = DesignsSettings.read(args), pictures()
    nets = {depth: resnet(depth) for depth in settings.depths}
    x, labels = data.images[: settings.images], data.labels[: settings.images]
    exact = {d: 100 * float(np.mean(js.classify(net, x) == labels)) for d, net in nets.items()}
    rows, todo = [], [(d, c, name) for d in nets for c in CELLS for name in DESIGNS]
    found: dict[tuple[int, str, str], np.ndarray] = {}
    with Progress() as progress:
        for depth, cells, name in progress.track(todo, description="designs"):
            made = chip(name, CELLS[cells], whole=True)(nets[depth])
            found[depth, cells, name] = accuracies(made, data, settings)
    for depth in nets:
        for cells in CELLS:
            shown = [mean_and_error(found[depth, cells, name], 1) for name in DESIGNS]
            rows.append([f"ResNet-{depth}, {exact[depth]:.1f}", cells, *shown])
    reported: list[Any] = [REPORTED[name][0] for name in DESIGNS]
    rows.append(["ResNet-50, 76", "SONOS, as reported", *reported])
    net = nets[settings.depths[0]]
    spent = {name: energy(net, chip(name, None, whole=False)(net), name) for name in DESIGNS}
    columns = ["design", "ADC", "rows", "cells", "all", "of A", "of A, ADC alone"]
    columns.append("of A, as reported")
    record(
        "designs",
        Table(["network, float %", "cells", *DESIGNS], rows, "right, %"),
        Table(columns, cost_rows(spent), f"ResNet-{settings.depths[0]}: fJ an operation, modeled"),
        Table(columns, cost_rows(deep_energies()), "Layers of a ResNet-50, by their shapes alone"),
        Table(
            ["digits are added", "conversions", "ADC, fJ", "arrays, fJ", "ADC's share", *CELLS],
            list(accumulation(net, data, settings)),
            f"Design A, ResNet-{settings.depths[0]}: where the digits of an input are added",
        ),
        question="What do five analog designs cost a trained network, and what would they spend?",
        baseline="the network in float32; design A for energies",
        notes=f"CIFAR-10, {settings.images} test images that have been through JPEG, ± standard "
        f"error over {settings.programmings} programmings; {settings.calibration} other test "
        "images set ranges. ADC of 8 bits. In A to D all bits of an input are applied at once for "
        "the accuracy, which is the same sum but for noise of single reads. Energies are of arrays "
        "alone, with the figures of `js.accelerators.isaac_like` and digits applied one by one, as "
        "they are throughout the last table, whose conversions are those of an image.",
        settings=settings.recorded(),
    )
