"""What do weights in groups cost, in time and in memory, and a global pruning?"""

from __future__ import annotations

import dataclasses
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxsim as js
from benchmarks.common.record import Table, record
from benchmarks.common.settings import Timed
from jaxsim.console.timing import alternate

SHORT = ("--runs 5 --size 128 --layers 2",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupedSettings(Timed):
    """Settings of the run."""

    runs: int = 21
    size: int = 2048
    """Rows and columns of a weight."""
    layers: int = 25
    """Layers of such weights that are pruned together."""


FORMS: dict[str, dict[str, Any]] = {
    "4 bits": {"weights": js.Grid(4, per="group", rows=32), "inputs": None},
    "2 bits": {"weights": js.Grid(2, per="group", rows=32), "inputs": None},
    "4 bits, affine": {
        "weights": js.Grid(4, symmetric=False, per="group", rows=32),
        "inputs": None,
    },
    "NF4": {"weights": js.nf4(per="group", rows=32), "inputs": None},
    "4 bits, inputs 8": {"weights": js.Grid(4, per="group", rows=32), "inputs": 8},
    "4 bits, inputs 8 per token": {
        "weights": js.Grid(4, per="group", rows=32),
        "inputs": js.Grid(8, per="token"),
    },
    "Q4_1": {"weights": js.BlockGrid("Q4_1"), "inputs": None},
    "MX e2m1": {"weights": js.mx("e2m1"), "inputs": None},
    "NVFP4, inputs too": {"weights": js.nvfp4(), "inputs": js.nvfp4()},
    "4 bits per channel": {"weights": 4, "inputs": None},
}
"""Settings of `quantize`: groups of 32 products, but for the last."""

ROWS = (1, 8, 128, 256)
"""Rows of the inputs."""


def main(args: list[str]) -> None:
    """Times products and pruning."""
    settings = GroupedSettings.read(args)
    record(
        "grouped",
        _products(settings),
        _pruning(settings),
        question="What do weights in groups cost, and a pruning of all layers together?",
        baseline="the float product of the same model, compiled; a sort of all scores",
        notes="Ratios of times to the float product with as many rows of inputs; bits a weight are "
        "of all arrays of the deployed network without its floats.",
        settings=settings.recorded(),
    )


def _product(w: Any, x: Any) -> Any:
    return x @ w


def _products(settings: GroupedSettings) -> Table:
    size = settings.size
    w = jax.random.normal(jax.random.key(0), (size, size)) / size**0.5
    x = {rows: jax.random.normal(jax.random.key(rows), (rows, size)) for rows in ROWS}
    net, call = js.trace(_product, w, x[8]), jax.jit(lambda chip, x: chip(x))
    chips = {}
    for name, form in FORMS.items():
        calibrate = x[8] if form["inputs"] == 8 else None
        coded = js.quantize(**form)(net)
        chips[name] = js.deploy(coded, calibrate=calibrate, keep_floats=False)
    ratios: dict[str, list[str]] = {name: [] for name in chips}
    for rows in ROWS:
        alternatives = {"float": partial(jax.jit(_product), w, x[rows])}
        alternatives |= {name: partial(call, chip, x[rows]) for name, chip in chips.items()}
        times = alternate(alternatives, runs=settings.runs)
        for name, found in ratios.items():
            found.append(f"{times[name].median / times['float'].median:.2f}")
    bits = {name: 8 * chip.nbytes / w.size for name, chip in chips.items()}
    lines = [[name, f"{bits[name]:.2f}", *found] for name, found in ratios.items()]
    columns = ("weights", "bits a weight", *(f"{rows} rows" for rows in ROWS))
    return Table(columns, lines, f"{size} × {size}, times of the float product")


def _pruning(settings: GroupedSettings) -> Table:
    size, rng = settings.size, np.random.default_rng(0)
    params = [
        jnp.asarray(rng.standard_normal((size, size), np.float32)) for _ in range(settings.layers)
    ]

    def model(params: Any, x: Any) -> Any:
        for w in params:
            x = jnp.tanh(x @ w)
        return x

    net = js.trace(model, params, jnp.ones((2, size)))
    seconds, kept = [], 0
    for _ in range(2):
        start = time.perf_counter()
        masks = js.prune(0.3)(net).masks
        jax.block_until_ready(masks)
        seconds.append(f"{time.perf_counter() - start:.1f}")
        kept = sum(int(mask.sum()) for mask in masks.values())
    columns = ("weights, million", "first s", "second s", "kept")
    line = [f"{size * size * settings.layers / 1e6:.1f}", *seconds, kept]
    return Table(columns, [line], "prune(0.3), all layers together")
