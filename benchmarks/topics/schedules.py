"""How long do the schedules of a pipeline take on two devices, and how long should they?"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from functools import partial
from typing import Any

import jax

import jaxsim as js
from benchmarks.common.record import Table, record
from benchmarks.common.settings import Settings
from benchmarks.topics.pipeline import ENVIRONMENT, FLAGS, MODELS
from jaxsim.console.timing import alternate

SHORT = ("--models dense --microbatches 2 --runs 5",)

SECONDS = 400
"""Limit of one process."""

KINDS: dict[str, dict[str, Any]] = {
    "gpipe": {"stages": 2, "schedule": "gpipe"},
    "1f1b": {"stages": 2, "schedule": "1f1b"},
    "zb-h1": {"stages": 2, "schedule": "zb-h1"},
    "interleaved": {"stages": 4, "schedule": "interleaved", "chunks": 2},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SchedulesSettings(Settings):
    """Settings of the run."""

    models: tuple[str, ...] = tuple(MODELS)
    """Which models."""
    microbatches: tuple[int, ...] = (2, 4, 8)
    """M, of each row of times."""
    runs: int = 7
    """Alternated steps of each schedule."""


def measure(name: str, microbatches: int, runs: int) -> dict[str, Any]:
    """Times and simulations of one training step, in this process."""
    make, micro = MODELS[name]
    net, batch, loss = make(micro * microbatches)
    steps, simulated, kept = {}, {}, {}
    for kind, settings in KINDS.items():
        shard = js.pipeline_shard(
            microbatches=microbatches, remat="none", devices=jax.devices(), **settings
        )
        pipe = shard(net).placed()
        timeline = js.simulate_schedule(pipe)
        simulated[kind], kept[kind] = timeline.bubble, sum(timeline.peak_bytes)
        steps[kind] = partial(js.pipeline_value_and_grad(pipe, loss), pipe.params, batch)
    times = alternate(steps, runs=runs)
    losses = {kind: float(step()[0]) for kind, step in steps.items()}
    return {
        "seconds": {kind: times[kind].median for kind in KINDS},
        "bubbles": simulated,
        "kept": kept,
        "losses": losses,
    }


def main(args: list[str]) -> None:
    """Measures each model and number of micro-batches in a process with two devices."""
    settings = SchedulesSettings.read(args)
    rows: list[list[Any]] = []
    for name in settings.models:
        for M in settings.microbatches:
            command = [sys.executable, "-m", "benchmarks.topics.schedules"]
            done = subprocess.run(
                [*command, name, str(M), str(settings.runs)],
                env=ENVIRONMENT,
                capture_output=True,
                text=True,
                check=True,
                timeout=SECONDS,
            )
            found = json.loads(done.stdout.splitlines()[-1])
            base = found["seconds"]["1f1b"]
            rows += [
                [
                    *(name, M, kind),
                    f"{1e3 * found['seconds'][kind]:.0f}",
                    f"{found['seconds'][kind] / base:.2f}",
                    f"{found['bubbles'][kind]:.1%}",
                    f"{found['kept'][kind] / 2**20:.0f}",
                    f"{found['losses'][kind]:.6f}",
                ]
                for kind in KINDS
            ]
    columns = (
        *("model", "M", "schedule", "ms a step", "of 1f1b"),
        *("simulated bubble", "simulated MiB kept", "loss"),
    )
    record(
        "schedules",
        Table(columns, rows),
        question="How long do the schedules of a pipeline take on two devices, beside what they "
        "are simulated at?",
        baseline="1F1B",
        notes="One process a row of M, its schedules in turns, warm; two devices of one thread (`"
        + FLAGS
        + "`), nothing re-materialized. Two cores that share their arithmetic units fill a bubble "
        "by themselves: what one device leaves idle the other is faster in.",
        settings=settings.recorded(),
    )


if __name__ == "__main__":
    name, *numbers = sys.argv[1:4]
    print(json.dumps(measure(name, *map(int, numbers))))
