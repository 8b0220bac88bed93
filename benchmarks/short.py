"""Every benchmark in a short form: does it run, and what does its table look like?

Each has a process and a limit of time, and together they have a home of their own: what full runs
have cached and recorded stays as it is. Fashion-MNIST is the packaged subset.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.graphs import ROOT

FOLDER = ROOT / "out" / "bench"
SECONDS = 240
"""Limit of one."""
SHORT: dict[str, Sequence[str]] = {
    "overhead": (),
    "chips": ("--seeds", "2", "--programmings", "2", "--epochs", "1"),
    "noise_aware": ("--seeds", "2", "--programmings", "2", "--epochs", "1"),
    "influence": (),
    "crossbar": ("--sizes", "64", "--resistances", "1e-3"),
    "analog_accuracy": (
        *("--only", "ADC bits", "--images", "20", "--calibration", "10"),
        *("--programmings", "2"),
    ),
    "blocked": ("--runs", "5"),
    "blocked_accuracy": ("--seeds", "2", "--held-out", "1000"),
    "integer": ("--runs", "5"),
    "rounding": ("--seeds", "2", "--images", "64"),
    "shrink": ("--only", "timing"),
    "pipeline": ("--only", "time"),
    "efficientnet": (
        *("--images", "4", "--calibration", "2", "--batch", "4"),
        *("--programmings", "2"),
    ),
    "quantization": ("--only", "formats", "--seeds", "2"),
    "qdcnn": ("--runs", "5", "--seeds", "2", "--trained-seeds", "2"),
    "coconet": ("--runs", "5", "--seeds", "2"),
    "sparsity": ("--seeds", "2"),
    "nac": ("--runs", "5", "--seeds", "2", "--games", "4", "--steps", "3"),
    "interpreters": (
        *("--runs", "5", "--seeds", "2", "--images", "640", "--epochs", "1"),
        *("--puzzles", "320"),
    ),
    "pyramid": ("--data", "sst2", "--seeds", "2", "--runs", "5", "--rows", "64", "--texts", "128"),
    "exits": (
        *("--seeds", "2", "--images", "640", "--epochs", "1", "--runs", "5"),
        *("--timed", "500"),
    ),
}
"""Arguments of each."""


def main() -> int:
    """Runs them one after the other and says how each ended; 1 where one failed.

    What is there of each lies in `out/bench`: its table, its figures, and its output.
    """
    from rich.console import Console
    from rich.table import Table

    home = FOLDER / "home"
    for folder in (home, FOLDER / "images"):
        folder.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "HOME": str(home),
        "JAXSIM_BENCHMARKS": str(FOLDER),
        "JAXSIM_FASHION_MNIST": "subset",
    }
    table, failed = Table("benchmark", "seconds", "ended", title="short forms"), 0
    console = Console()
    for name, arguments in SHORT.items():
        began = time.perf_counter()
        ended = _ended(name, arguments, environment, FOLDER / f"{name}.txt")
        failed += ended not in ("well", "after its limit")
        table.add_row(name, f"{time.perf_counter() - began:.0f}", ended)
        console.print(f"{name}: {ended}, {time.perf_counter() - began:.0f} s")
    console.print(table)
    subprocess.run([sys.executable, "-m", "benchmarks", "tables"], env=environment, check=True)
    return int(failed > 0)


def _ended(name: str, arguments: Sequence[str], environment: dict[str, str], output: Path) -> str:
    command = [sys.executable, "-m", "benchmarks", name, *arguments]
    with output.open("w") as file:
        try:
            ran = subprocess.run(
                command, env=environment, stdout=file, stderr=subprocess.STDOUT, timeout=SECONDS
            )
        except subprocess.TimeoutExpired:
            return "after its limit"
    if ran.returncode == 0:
        return "well"
    return f"with {ran.returncode}, see {output.relative_to(ROOT)}"
