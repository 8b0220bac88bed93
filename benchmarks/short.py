"""Every benchmark in a short form: does it run, and what does its table look like?

Together they take less than 25 minutes on two cores. Each run has a process and a limit of time,
and together they have a home of their own: what full runs have cached and recorded stays as it is.
Fashion-MNIST is the packaged subset.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time

from benchmarks.graphs import ROOT

FOLDER = ROOT / "out" / "bench"
SECONDS = 240
"""Limit of one."""
SHORT = (
    "overhead",
    "chips --seeds 1 --programmings 2 --epochs 1",
    "noise_aware --seeds 1 --programmings 2 --epochs 1",
    "showcase --only ResNet --images 100 --programmings 1",
    "influence",
    "crossbar --sizes 64 --resistances 1e-3",
    "analog_accuracy --only 'ADC bits' --images 20 --calibration 10 --programmings 2",
    "blocked --runs 5",
    "blocked_accuracy --only fashion --seeds 1 --held-out 500 --steps 1 --settling 256",
    "integer --runs 5 --models 'ResNet, width 16' 'MLP, width 256'",
    "rounding --seeds 1 --images 256 --tables inputs",
    "shrink --only timing",
    "pipeline --only time --microbatches 4",
    "efficientnet --programmings 2 --no-outputs",
    "quantization --only qwix --seeds 1",
    "qdcnn --only timing --runs 5",
    "qdcnn --only accuracy --seeds 2 --trained-seeds 2 --sets Fashion-MNIST",
    "coconet --runs 5 --seeds 2 --tuning 100 --tasks 'Fashion-MNIST, 4 kinds'",
    "sparsity --seeds 2 --sparsities 0.9 --methods RigL STR",
    "nac --only timing --runs 5",
    "nac --only skill --seeds 2 --games 4 --steps 3",
    "interpreters --only timing --runs 5",
    "interpreters --only reasoning --seeds 1 --epochs 1 --puzzles 320",
    "pyramid --only flops",
    "pyramid --only accuracy --data sst2 --seeds 1 --texts 128",
    "exits --seeds 1 --images 640 --epochs 1 --runs 5 --timed 500",
)
"""What is run, with its arguments."""


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
    for line in SHORT:
        began = time.perf_counter()
        ended = _ended(line, environment)
        failed += ended != "well"
        table.add_row(line, f"{time.perf_counter() - began:.0f}", ended)
        console.print(f"{line}: {ended}, {time.perf_counter() - began:.0f} s")
    console.print(table)
    subprocess.run([sys.executable, "-m", "benchmarks", "tables"], env=environment, check=True)
    return int(failed > 0)


def _ended(line: str, environment: dict[str, str]) -> str:
    command = [sys.executable, "-m", "benchmarks", *shlex.split(line)]
    output = FOLDER / f"{' '.join(command[3:])}.txt"
    with output.open("w") as file:
        process = subprocess.Popen(
            command, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            return "after its limit"
        finally:
            # with what it has started: nothing may run beside the next
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if code == 0:
        return "well"
    return f"with {code}, see {output.relative_to(ROOT)}"
