"""How do mapping, slicing, cells, converters and wires decide the accuracy of a trained network?"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import numpy as np
import tyro
from rich.progress import Progress

import jaxsim as js
from benchmarks.common.cifar import Pictures, pictures, resnet
from benchmarks.common.kept import kept
from benchmarks.common.record import IMAGES, Table, record
from benchmarks.common.settings import Settings
from benchmarks.common.spread import mean_and_error
from jaxsim.evaluate.plot import Curve, accuracy_bars, accuracy_curves

SHORT = ("--only 'ADC bits' --images 20 --calibration 10 --programmings 2",)

NO_RATIO = 1e9
"""An on/off ratio that stands for infinity, so that a sweep over ratios is one program."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnalogAccuracySettings(Settings):
    """Settings of the run."""

    only: Literal["all", "cells", "on/off ratio", "ADC bits", "wires"] = "all"
    """Which figure; a record of one has its table alone."""
    programmings: int = 5
    """Times each chip is programmed."""
    images: int = 1000
    """Images that are classified."""
    calibration: int = 100
    """Images that set the ranges; from the half that is not classified with them."""
    cache: Annotated[Path, tyro.conf.arg(help="what an interrupted run has measured")] = Path(
        "~/.cache/jaxsim/analog_accuracy"
    )


class Case(NamedTuple):
    """One point of a figure.

    Attributes:
      figure: it belongs to.
      depth: layers of the network.
      curve: name of its curve.
      x: where on the horizontal axis.
      chip: what becomes of the network.
      once: nothing random happens, so one programming is enough.
      images: how many are classified, where fewer than the run's must do.
    """

    figure: str
    depth: int
    curve: str
    x: Any
    chip: js.Transform
    once: bool = False
    images: int | None = None

    @property
    def name(self) -> str:
        """A name of its own."""
        return f"{self.figure}; ResNet-{self.depth}; {self.curve}; {self.x}"


LAYOUTS: dict[str, tuple[str, dict[str, Any]]] = {
    "differential": ("differential", {}),
    "differential, 4 slices": ("differential", {"bits": 2}),
    "differential, 4 slices, padded": ("differential", {"bits": 2, "top": "padded"}),
    "offset": ("offset", {}),
    "offset, 4 slices": ("offset", {"bits": 2}),
    "unit column": ("unit_column", {}),
}


def chip(layout: str, **array: Any) -> js.Transform:
    """8-bit weights, one scale a layer; 8-bit inputs, without a sign behind each ReLU."""
    mapping, slices = LAYOUTS[layout]
    weights = js.Grid(8, per="tensor")
    first, others = js.quantize(weights, 8), js.quantize(weights, js.Grid(8, symmetric=False))
    sliced = [js.slice_bits(**slices)] if slices else []
    return js.compose(
        js.rules({"Conv_0/kernel": first, "*": others}),
        *sliced,
        js.analog(mapping=mapping, **array),  # pyright: ignore[reportArgumentType]
    )


def cases() -> Iterator[Case]:
    """Every point of the four figures."""
    independent, proportional, inverse = (
        js.cells.independent,
        js.cells.proportional,
        js.cells.inverse,
    )
    kinds: dict[str, js.cells.Device] = {
        "none": independent(0.0, on_off=NO_RATIO),
        "independent 2 %": independent(0.02, on_off=NO_RATIO),
        "proportional 10 %": proportional(0.1, on_off=NO_RATIO),
    }
    devices = {
        "SONOS, 1 day": js.cells.sonos(days=1.0),
        "RRAM (Wan)": js.cells.rram_wan(),
        "PCM (Joshi)": js.cells.pcm_joshi(),
    }
    for depth, layouts in {14: tuple(LAYOUTS), 20: ("differential", "offset")}.items():
        for layout in layouts:
            for kind, cells in kinds.items():
                made = chip(layout, cells=cells)
                yield Case("cells", depth, layout, kind, made, once=kind == "none")
    for layout in ("differential", "offset"):
        cells = inverse(0.001, on_off=10.0)
        made = chip(layout, cells=cells)
        yield Case("cells", 14, layout, "inverse 0.1 %, on/off 10", made)
    for kind, cells in devices.items():
        yield Case("cells", 14, "differential", kind, chip("differential", cells=cells))
    for layout, ratios in {
        "differential": (10.0, 100.0),
        "differential, 4 slices": (10.0,),
    }.items():
        for ratio in (*ratios, NO_RATIO):
            made = chip(layout, cells=proportional(0.1, on_off=ratio))
            yield Case("on/off ratio", 14, layout, ratio, made)
    swept = {"differential": (4, 6, 8), "offset": (4, 6, 8)}
    swept |= {"differential, 4 slices": (6,), "offset, 4 slices": (6,)}
    for layout, bits in swept.items():
        for b in bits:
            yield Case(
                "ADC bits", 14, layout, b, chip(layout, adc=b, cells=kinds["none"]), once=True
            )
    for layout in ("differential", "offset"):
        made = chip(layout, adc=6, cells=proportional(0.05, on_off=NO_RATIO))
        yield Case("ADC bits", 14, f"{layout}, cells 5 %", 6, made)
    separate, shared = js.wires.input_source, partial(js.wires.input_source, interleaved=True)
    wirings = {
        ("differential", "separate columns"): (separate, (1e-6, 1e-5, 1e-4)),
        ("differential", "pairs on one column"): (shared, (1e-5, 1e-4)),
        ("offset", "separate columns"): (separate, (1e-8, 1e-7, 1e-6)),
    }
    for (layout, wiring), (make, resistances) in wirings.items():
        for r in resistances:
            made = chip(layout, cells=kinds["none"], wires=make(r))
            yield Case("wires", 14, f"{layout}, {wiring}", r, made, once=True)
    made = chip("differential", cells=proportional(0.05, on_off=NO_RATIO), wires=separate(1e-5))
    yield Case("wires", 14, "differential, separate columns, cells 5 %", 1e-5, made)
    for r in (1e-4, 1e-3):
        made = chip(
            "differential",
            cells=kinds["none"],
            wires=js.wires.gated(r, interleaved=True),
            input_bits=1,
        )
        yield Case("wires", 14, "differential, gated pairs", r, made, once=True, images=50)


def measured(
    case: Case, net: js.Network, data: Pictures, settings: AnalogAccuracySettings
) -> list[float]:
    """Accuracy of each programming, unless an earlier run has measured it."""
    made = case.chip(net)
    images = min(case.images or settings.images, settings.images)
    asked = (settings.calibration, 1 if case.once else settings.programmings)
    told = (case.depth, repr(made.cores), images, *asked)
    return kept(settings.cache, told, lambda: programmed(made, data, images, *asked))


def programmed(
    made: js.Network, data: Pictures, images: int, calibration: int, programmings: int
) -> list[float]:
    """Accuracy of each programming: each half is classified with ranges from the other."""
    halves = (slice(0, 500), slice(500, 1000))
    scores: list[float] = []
    for programming in range(programmings):
        right = []
        for seen, tested in (halves, halves[::-1]):
            x, labels = data.images[tested][: images // 2], data.labels[tested][: images // 2]
            calibrate = data.images[seen][:calibration]
            key = jax.random.key(programming)
            reads = jax.random.fold_in(key, 1)
            written = js.deploy(made, key=key, calibrate=calibrate)
            right.append(np.mean(np.argmax(written(x, key=reads), -1) == labels))
        scores.append(float(np.mean(right)))
    return scores


def main(args: list[str]) -> None:
    """Measures every point that an earlier run has not, and writes four figures."""
    settings = AnalogAccuracySettings.read(args)
    data, todo = pictures(), [c for c in cases() if settings.only in ("all", c.figure)]
    nets = {depth: resnet(depth) for depth in (14, 20)}
    floats = {depth: _float(net, data, settings) for depth, net in nets.items()}
    found: dict[str, dict[tuple[int, str], dict[Any, list[float]]]] = {}
    with Progress() as progress:
        bar = progress.add_task("analog_accuracy", total=len(todo))
        for case in todo:
            progress.update(bar, description=case.name, advance=1)
            curve = found.setdefault(case.figure, {}).setdefault((case.depth, case.curve), {})
            curve[case.x] = measured(case, nets[case.depth], data, settings)
    for figure, curves in found.items():
        _draw(figure, {c: p for (depth, c), p in curves.items() if depth == 14}, floats[14])
    record(
        "analog_accuracy",
        *(_table(figure, curves) for figure, curves in found.items()),
        question="How do mapping, slicing, cells, converters and wires decide accuracy?",
        baseline=", ".join(f"ResNet-{d} in float32 {100 * a:.1f} %" for d, a in floats.items()),
        notes=f"CIFAR-10, {settings.images} test images that have been through JPEG; accuracy in "
        f"percent, ± the standard error over {settings.programmings} programmings (none where "
        f"nothing random happens). Ranges come from {settings.calibration} images of the half that "
        "is not classified with them. 8-bit weights, one scale a layer; no ADC unless its bits are "
        "given; cells do not clip. Gated wires: 50 images, inputs bit by bit. The horizontal "
        "axis of wires is r = R · Gmax.",
        settings=settings.recorded(),
    )


def _float(net: js.Network, data: Pictures, settings: AnalogAccuracySettings) -> float:
    y = jax.jit(net)(data.images[: settings.images])
    return float(np.mean(np.argmax(y, -1) == data.labels[: settings.images]))


def _table(figure: str, curves: dict[tuple[int, str], dict[Any, list[float]]]) -> Table:
    xs = list(dict.fromkeys(x for points in curves.values() for x in points))
    rows = [
        [f"ResNet-{depth}", curve, *(_cell(points.get(x)) for x in xs)]
        for (depth, curve), points in curves.items()
    ]
    shown = ["∞" if x == NO_RATIO else f"{x:g}" if isinstance(x, float) else str(x) for x in xs]
    return Table(["network", "array", *shown], rows, figure)


def _cell(scores: list[float] | None) -> str:
    return "" if scores is None else mean_and_error(100 * np.asarray(scores), 1)


def _draw(figure: str, curves: dict[str, dict[Any, list[float]]], float_: float) -> None:
    name = figure.replace("/", "_").replace(" ", "_").lower()
    path = IMAGES / f"analog_{name}.png"
    title = f"ResNet-14 on CIFAR-10: {figure}"
    if figure == "cells":
        accuracy_bars(path, curves, reference=float_, title=title)
        return
    log = figure != "ADC bits"
    quantity = "r" if figure == "wires" else figure
    label = f"log₁₀ of {quantity}" if log else figure
    lines = {
        curve: Curve(
            [float(np.log10(x)) if log else x for x in points],
            np.asarray([s if len(s) > 1 else s * 2 for s in points.values()]),
        )
        for curve, points in curves.items()
    }
    accuracy_curves(path, {label: lines}, reference=float_, title=title)
