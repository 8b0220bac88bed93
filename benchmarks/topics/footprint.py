"""How much smaller and faster is a network of 8, 4 or 2 bits, on disk, in memory, in time?"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxsim as js
from benchmarks.common.record import Table, record
from benchmarks.common.settings import Timed
from jaxsim.console.timing import alternate
from jaxsim.models.llama import Llama
from jaxsim.models.resnet import ResNet

SHORT = ("--runs 5 --layers 1 --rows 4 --width 192",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FootprintSettings(Timed):
    """Settings of the run."""

    runs: int = 11
    layers: int = 6
    """Layers of the decoder."""
    width: int = 576
    """Width of a token, a multiple of 192; perceptrons are 8/3 as wide."""
    rows: int = 128
    """Tokens, and images, where there are many at a time."""


class Subject(NamedTuple):
    """A network, and inputs of one row and of many.

    Attributes:
      name: What it is.
      net: The network in float32.
      one: A token, or an image.
      many: Tokens, or images.
      few: What stores weights of so many bits.
    """

    name: str
    net: js.Network
    one: jax.Array
    many: jax.Array
    few: Callable[[int], js.Grid]


def decoder(settings: FootprintSettings) -> Subject:
    """A decoder with random weights: neither size nor time depends on them."""
    width = settings.width
    sizes = {"width": width, "heads": width // 64, "groups": width // 192, "hidden": width * 8 // 3}
    model = Llama(vocabulary=4096, layers=settings.layers, **sizes)
    ids = jax.random.randint(jax.random.key(0), (1, settings.rows), 0, 4096)
    net = js.trace(model, jax.jit(model.init)(jax.random.key(1), ids), ids)
    grouped = partial(js.Grid, per="group", rows=32)
    return Subject(f"a decoder, {_millions(net)}", net, ids[:, :1], ids, grouped)


def residual(settings: FootprintSettings) -> Subject:
    """A residual network of 20 layers for images of 32 × 32 pixels, with random weights."""
    images = jax.random.normal(jax.random.key(0), (settings.rows, 32, 32, 3))
    model = ResNet(stages=(3, 3, 3))
    net = js.trace(model, jax.jit(model.init)(jax.random.key(1), images), images)
    return Subject(f"ResNet-20, {_millions(net)}", net, images[:1], images, js.Grid)


def _millions(net: js.Network) -> str:
    return f"{sum(p.size for p in jax.tree.leaves(net.params)) / 1e6:.2g} M parameters"


def forms(subject: Subject) -> dict[str, js.Network]:
    """The network in each format, deployed without its floats."""
    made = {}
    for bits in (8, 4, 2):
        few = subject.few(bits) if bits < 8 else js.Grid(8)
        for inputs, said in ((None, "float32"), (8, "8")):
            coded = js.quantize(few, inputs)(subject.net)
            calibrate = None if inputs is None else subject.many
            chip = js.deploy(coded, calibrate=calibrate, keep_floats=False)
            made[f"{bits} / {said}"] = chip
    return made


def stored(net: js.Network) -> int:
    """Bytes of a checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        js.save(Path(folder) / "net", net)
        return sum(p.stat().st_size for p in Path(folder).rglob("*") if p.is_file())


def _measured(subject: Subject, settings: FootprintSettings) -> Table:
    chips = {"float32": subject.net, **forms(subject)}
    call = jax.jit(lambda chip, x: chip(x))
    rows = {name: [stored(chip), chip.nbytes] for name, chip in chips.items()}
    for x in (subject.one, subject.many):
        inputs = jnp.asarray(x)
        alternatives = {name: partial(call, chip, inputs) for name, chip in chips.items()}
        times = alternate(alternatives, runs=settings.runs)
        for name, time in times.items():
            rows[name].append(time.median)
    whole = np.asarray(rows["float32"], float)
    lines = [["float32", *_shown(rows["float32"])]]
    for name, found in rows.items():
        if name != "float32":
            lines.append([name, *(f"{ratio:.2f}" for ratio in whole / np.asarray(found, float))])
    columns = ["weights / inputs, bits", "on disk", "in memory", "time, one", "time, many"]
    title = f"{subject.name}: times less than float32, whose first line is absolute"
    return Table(columns, lines, title)


def _shown(found: list[Any]) -> list[str]:
    return [f"{n / 2**20:.2f} MiB" for n in found[:2]] + [f"{1e3 * s:.1f} ms" for s in found[2:]]


def main(args: list[str]) -> None:
    """Saves, holds and times each network in each format."""
    settings = FootprintSettings.read(args)
    record(
        "footprint",
        *(_measured(made(settings), settings) for made in (decoder, residual)),
        question="How much smaller and faster is a network of 8, 4 or 2 bits?",
        baseline="the same network in float32",
        notes=f"Random weights. Many: {settings.rows} tokens of one sequence, or images. Of the "
        "decoder, codes of 4 and 2 bits have a scale for each 32 products, others one a channel; "
        "embedding and norms stay floats and are counted. In memory: arrays of the deployed "
        "network without its floats. Medians of calls that take turns, compiled before.",
        settings=settings.recorded(),
    )
