"""Cycles of a systolic array: ours and SCALE-Sim's, for three dataflows and twenty layers."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
from pathlib import Path

from benchmarks.common.paths import ROOT
from benchmarks.common.record import Table, record
from benchmarks.common.settings import Settings
from jaxsim.accelerators import DigitalArray, Work

SHORT = ("--rows 8 --columns 16 --layers 2 --smaller 16",)

SCALESIM = "SCALESIM_PYTHON"
"""Environment variable that names the interpreter that has scalesim 3.0."""
FLOWS = ("output", "weight", "input")
LAYERS: dict[str, tuple[int, int, int]] = {
    "ResNet-50 conv1": (12544, 147, 64),
    "ResNet-50 conv2 1×1": (3136, 64, 64),
    "ResNet-50 conv2 3×3": (3136, 576, 64),
    "ResNet-50 conv2 expand": (3136, 64, 256),
    "ResNet-50 conv3 3×3": (784, 1152, 128),
    "ResNet-50 conv4 3×3": (196, 2304, 256),
    "ResNet-50 conv4 expand": (196, 256, 1024),
    "ResNet-50 conv5 3×3": (49, 4608, 512),
    "ResNet-50 fc": (1, 2048, 1000),
    "BERT query, 128 tokens": (128, 768, 768),
    "BERT scores of a head": (128, 64, 128),
    "BERT values of a head": (128, 128, 64),
    "BERT up": (128, 768, 3072),
    "BERT down": (128, 3072, 768),
    "decoder query, prefill": (64, 576, 576),
    "decoder key, prefill": (64, 576, 192),
    "decoder up, prefill": (64, 576, 1536),
    "decoder query, one token": (1, 576, 576),
    "decoder up, one token": (1, 576, 1536),
    "decoder down, one token": (1, 1536, 576),
}
"""Sizes (M, K, N): ResNet-50 for one picture, BERT-base, and a decoder as SmolLM2-135M is."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AcceleratorSettings(Settings):
    """Settings of the run."""

    rows: int = 32
    """Elements of the array along one side."""
    columns: int = 32
    """Elements along the other."""
    layers: int = len(LAYERS)
    """Layers to compare, from the first on."""
    smaller: int = 1
    """Number by which every size is divided."""


def peers(settings: AcceleratorSettings, dataflow: str, sizes: list[list[int]]) -> list[int] | str:
    """SCALE-Sim's cycles of each product, or why there are none."""
    python = os.environ.get(SCALESIM)
    if not python:
        return f"not run: {SCALESIM} names no interpreter"
    asked = {
        "rows": settings.rows,
        "columns": settings.columns,
        "dataflow": dataflow,
        "matmuls": sizes,
    }
    program = Path(ROOT, "benchmarks", "peers", "scalesim_cycles.py")
    done = subprocess.run(
        [python, str(program)], input=json.dumps(asked), capture_output=True, text=True, check=False
    )
    if done.returncode:
        return f"not run: {done.stderr.strip().splitlines()[-1]}"
    return json.loads(done.stdout.splitlines()[-1])


def main(args: list[str]) -> None:
    """Compares the cycles of layers that stand alone, memory never waited for."""
    settings = AcceleratorSettings.read(args)
    chosen = dict(list(LAYERS.items())[: settings.layers])
    sizes = [[-(-n // settings.smaller) for n in shape] for shape in chosen.values()]
    rows: list[list[str]] = []
    worst = 0.0
    notes = "Operands never wait for memory on either side."
    for dataflow in FLOWS:
        array = DigitalArray(settings.rows, settings.columns, dataflow=dataflow)
        theirs = peers(settings, dataflow, sizes)
        if isinstance(theirs, str):
            notes = f"SCALE-Sim: {theirs}."
        for i, (name, (M, K, N)) in enumerate(zip(chosen, sizes, strict=True)):
            work = Work(name, "codes", (1, M, K, N), bits=(8, 8, 8))
            ours = round(array.spend(work).cycles)
            found = [name, f"{M} × {K} × {N}", dataflow, f"{ours:,}"]
            if isinstance(theirs, str):
                rows.append([*found, "–", "–"])
                continue
            off = ours / theirs[i] - 1
            worst = max(worst, abs(off))
            rows.append([*found, f"{theirs[i]:,}", f"{off:+.3%}"])
    if worst:
        notes += (
            f" The largest difference is {worst:.3%}: SCALE-Sim gives the number of the last cycle,"
            " counted from zero."
        )
    record(
        "accelerator",
        Table(("layer", "M × K × N", "stays", "jaxsim", "SCALE-Sim 3.0", "difference"), rows),
        question="How many cycles does a systolic array take, filling and draining included?",
        baseline="SCALE-Sim 3.0, which steps through every cycle",
        notes=notes,
        settings=settings.recorded(),
    )
