"""What does drift do to a trained network, and what does compensation give back?"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.progress import Progress

import jaxsim as js
from benchmarks.common.cifar import Pictures, pictures, resnet
from benchmarks.common.kept import kept
from benchmarks.common.record import Table, record
from benchmarks.common.settings import Settings
from benchmarks.common.spread import mean_and_error

SHORT = ("--images 10 --calibration 10 --programmings 2 --only PCM",)

TIMES = {"first read": 0.0, "1 day": 86400.0, "1 year": 31557600.0, "10 years": 315576000.0}
CELLS = {"PCM": js.cells.pcm_nandakumar, "ReRAM": js.cells.rram_cmo}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DriftSettings(Settings):
    """Settings of the run."""

    only: Literal["all", "PCM", "ReRAM"] = "all"
    """Which cells."""
    programmings: int = 5
    """Times each chip is programmed."""
    images: int = 200
    """Images that are classified."""
    calibration: int = 100
    """Images that set the ranges, of those that are not classified."""
    cache: Annotated[Path, tyro.conf.arg(help="what an interrupted run has measured")] = Path(
        "~/.cache/jaxsim/drift"
    )


class Row(NamedTuple):
    """One row of the table.

    Attributes:
      cells: name of the device.
      compensation: what undoes drift, None for nothing.
      again: whether ranges of converters are set again at each time.
    """

    cells: str
    compensation: Literal["array", "column"] | None
    again: bool


ROWS = [
    Row(cells, compensation, again)
    for cells in CELLS
    for compensation, again in (
        (None, False),
        ("array", False),
        ("column", False),
        ("column", True),
    )
]


@jax.jit
def right(chip: js.Network, time: Any, x: Any, labels: Any) -> jax.Array:
    """The share of pictures that a chip classifies rightly at a time."""
    said = jnp.argmax(js.age(chip, time)(x), -1)
    return jnp.mean((said == labels).astype(jnp.float32))


def measured(row: Row, net: js.Network, data: Pictures, settings: DriftSettings) -> Any:
    """Accuracy by programming and time."""
    asked = (*row, settings.images, settings.calibration, settings.programmings)
    return kept(settings.cache, asked, lambda: programmed(row, net, data, settings))


def programmed(row: Row, net: js.Network, data: Pictures, settings: DriftSettings) -> Any:
    """Programs chips and classifies at each time."""
    weights, unsigned = js.Grid(8, per="tensor"), js.Grid(8, symmetric=False)
    coded = {"Conv_0/kernel": js.quantize(weights, 8), "*": js.quantize(weights, unsigned)}
    array = js.analog(adc=8, cells=CELLS[row.cells](), compensation=row.compensation)
    made = js.compose(js.rules(coded), array)(net)
    x, labels = data.images[: settings.images], data.labels[: settings.images]
    seen = data.images[500 : 500 + settings.calibration]
    found: list[list[float]] = []
    for programming in range(settings.programmings):
        chip = js.deploy(made, key=jax.random.key(programming), calibrate=seen)
        found.append([])
        for time in TIMES.values():
            then = js.recalibrate(js.age(chip, time), seen) if row.again else chip
            found[-1].append(float(right(then, time, x, labels)))
    return found


def main(args: list[str]) -> None:
    """Measures every row that an earlier run has not."""
    settings = DriftSettings.read(args)
    data, net = pictures(), resnet(14)
    rows, table = [row for row in ROWS if settings.only in ("all", row.cells)], []
    with Progress() as progress:
        bar = progress.add_task("drift", total=len(rows))
        for row in rows:
            scores = 100 * np.asarray(measured(row, net, data, settings))
            shown = [mean_and_error(at, 1) for at in scores.T]
            ranges = "set again" if row.again else "of the first read"
            table.append([row.cells, row.compensation or "none", ranges, *shown])
            progress.update(bar, advance=1)
    said = np.argmax(net(data.images[: settings.images]), -1)
    float_ = 100 * np.mean(said == data.labels[: settings.images])
    record(
        "drift",
        Table(["cells", "compensation", "ranges", *TIMES], table),
        question="What does drift do to a trained network, and what does compensation give back?",
        baseline=f"ResNet-14 in float32, {float_:.1f} % of these images",
        notes=f"CIFAR-10, {settings.images} test images that have been through JPEG; accuracy in "
        f"percent, ± the standard error over {settings.programmings} programmings of the same "
        "images. Pairs, not sliced; weights (one scale a layer), inputs and converters of 8 bits; "
        f"ranges from {settings.calibration} other images. Phase-change memory and CMO/HfOx "
        "resistive memory with programming errors, drift and 1/f noise as aihwkit documents them; "
        "nobody measured them for ten years.",
        settings=settings.recorded(),
    )
