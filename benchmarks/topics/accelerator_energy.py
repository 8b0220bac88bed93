"""Energy of a systolic array with SRAM and DRAM: ours and ZigZag's, for ten layers."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
from pathlib import Path

import jax.numpy as jnp

import jaxsim as js
from benchmarks.common.paths import ROOT
from benchmarks.common.record import Table, record
from benchmarks.common.settings import Settings
from benchmarks.topics.accelerator import LAYERS
from jaxsim.accelerators.result import SiteEstimate

SHORT = ("--layers 1",)

ZIGZAG = "ZIGZAG_PYTHON"
"""Environment variable that names the interpreter that has zigzag-dse 3.9."""
CHIP = js.accelerators.systolic_45nm()
LEVELS = ("multiply", "sram", "dram")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AcceleratorEnergySettings(Settings):
    """Settings of the run."""

    layers: int = 10
    """Layers to compare, of those that `accelerator` has, from the second on in steps of two."""


def peers(sizes: list[tuple[int, int, int]]) -> list[dict[str, float]] | str:
    """ZigZag's energies and cycles of each product, or why there are none."""
    python = os.environ.get(ZIGZAG)
    if not python:
        return f"not run: {ZIGZAG} names no interpreter"
    array, sram, dram = CHIP.parts["array"], CHIP.memory["sram"], CHIP.memory["dram"]
    assert isinstance(array, js.accelerators.DigitalArray)
    asked = {
        "rows": array.rows,
        "columns": array.columns,
        "mac": array.multiply * array.width**2 + array.add * array.accumulator,
        "sram": sram.read,
        "dram": dram.read,
        "size": sram.size,
        "sram_bits": (sram.bandwidth or 0) / array.clock,
        "dram_bits": (dram.bandwidth or 0) / array.clock,
    }
    done = subprocess.run(
        [python, str(Path(ROOT, "benchmarks", "peers", "zigzag_costs.py"))],
        input=json.dumps({"array": asked, "matmuls": sizes}),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return f"not run: {done.stderr.strip().splitlines()[-1]}"
    return json.loads(done.stdout.splitlines()[-1])


def estimated(M: int, K: int, N: int) -> SiteEstimate:
    """What a layer of 8-bit codes that stands alone spends, by our model."""
    params = {"w": jnp.zeros((K, N))}
    net = js.trace(lambda p, x: x @ p["w"], params, jnp.zeros((M, K)))
    return js.estimate(js.quantize(8, 8)(net), CHIP).sites["w"]


def main(args: list[str]) -> None:
    """Compares the energy of multiplying, SRAM and DRAM, and cycles, of layers that stand alone."""
    settings = AcceleratorEnergySettings.read(args)
    chosen = dict(list(LAYERS.items())[1 : 1 + 2 * settings.layers : 2])
    theirs, rows = peers(list(chosen.values())), list[list[str]]()
    for i, (name, (M, K, N)) in enumerate(chosen.items()):
        found = estimated(M, K, N)
        ours = {
            "multiply": found.components["multiply"] + found.components["add"],
            **found.memory,
        }
        row = [name, f"{M} × {K} × {N}"]
        for level in LEVELS:
            row.append(f"{ours[level] / 1e6:.3f}")
            row.append("–" if isinstance(theirs, str) else f"{theirs[i][level] / 1e6:.3f}")
        row.append(f"{found.latency * 500e6:,.0f}")
        if isinstance(theirs, str):
            rows.append([*row, "–", "–", "–"])
            continue
        total = sum(ours.values()) / sum(theirs[i][level] for level in LEVELS) - 1
        steps, cycles = (f"{theirs[i][what]:,.0f}" for what in ("steps", "cycles"))
        rows.append([*row, steps, cycles, f"{total:+.1%}"])
    both = [f"{what}, {whose}, µJ" for what in LEVELS for whose in ("jaxsim", "ZigZag")]
    cycles = ("cycles, jaxsim", "cycles, ZigZag, no stall", "cycles, ZigZag", "energy")
    notes = (
        "The same array (32 × 32, sums stay), energies and bandwidths on both sides; conversions "
        "to codes left out. Inputs and results that fit into SRAM stay there in ours, and lie in "
        "DRAM in ZigZag's: for attention and short layers that is most of the difference. Where "
        "neither operand fits, ours hold blocks of half the SRAM, and ZigZag, which searches the "
        "order of loops of least energy, fills all of it. Its cycles have no filling and draining, "
        "and loading, computing and storing share its one SRAM port; ours take the slowest of "
        "array, SRAM and DRAM, which then work at once."
    )
    if isinstance(theirs, str):
        notes = f"ZigZag: {theirs}."
    record(
        Path(__file__).stem,
        Table(("layer", "M × K × N", *both, *cycles), rows),
        question="What does a layer spend on an array with SRAM and DRAM?",
        baseline="ZigZag 3.9 (zigzag-dse) with the same array",
        notes=notes,
        settings=settings.recorded(),
    )
