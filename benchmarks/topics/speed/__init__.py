"""Rows of what jaxsim was slow at, each beside a float product, a bound or a peer."""

from __future__ import annotations

import dataclasses
import fnmatch
import time
from collections.abc import Iterator

from benchmarks.common.files import unless_missing
from benchmarks.common.record import Table, record
from benchmarks.common.settings import Timed
from benchmarks.topics.speed import arrays, cascades, formats, models
from benchmarks.topics.speed.row import OURS, Row
from jaxsim.console.timing import Timing, alternate

SHORT = (
    "--runs 5 --size 64 --array 16 --tokens 4 --only training deployed products groups wires",
    "--runs 5 --size 64 --tokens 4 --only writing cascades",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeedSettings(Timed):
    """Settings of the run."""

    runs: int = 9
    size: int = 1024
    """Rows and columns of a layer in arrays; products in formats have twice as many."""
    array: int = 256
    """Rows and columns of an array whose wires have resistance."""
    tokens: int = 32
    """Tokens that a decoder writes."""
    only: tuple[str, ...] = ("*",)
    """Patterns of the kinds of rows to measure."""
    seconds: float = float("inf")
    """No row begins after so many."""


def main(args: list[str]) -> None:
    """Times all rows, one after the other, the alternatives of each in turn."""
    settings, began = SpeedSettings.read(args), time.perf_counter()
    lines = []
    for row in _rows(settings):
        if time.perf_counter() - began > settings.seconds:
            print(f"no time is left for {row.work} and what follows", flush=True)
            break
        runs = 5 if row.first else settings.runs
        line = _line(row, alternate(row.calls, runs=runs))
        print(*line, flush=True)
        lines.append(line)
    columns = ["work", "jaxsim, ms", "beside", "ms", "ratio", "wanted", "first call, s"]
    record(
        "speed",
        Table(columns, lines),
        question="How long does jaxsim take where it was slow?",
        baseline="what stands in the row: the float model, a bound, or a peer where it is there",
        notes="Medians of warm calls, alternatives taken in turn. The ratio is jaxsim's time over "
        "the other's; `wanted` was aimed at. In the row of first calls everything is compiled anew "
        "in each.",
        settings=settings.recorded(seconds=None),
    )


def _rows(settings: SpeedSettings) -> Iterator[Row]:
    kinds = {
        "training": lambda: arrays.training(settings.size),
        "deployed": lambda: arrays.deployed(settings.size),
        "products": lambda: formats.products(2 * settings.size),
        "pruning": lambda: formats.pruning(2 * settings.size),
        "writing": lambda: formats.writing(settings.tokens),
        "first calls": arrays.first_calls,
        "integers": models.integers,
        "interpreters": models.interpreters,
        "groups": models.groups,
        "wires": lambda: arrays.parasitic(settings.array),
        "cascades": cascades.seeds,
    }
    for name, rows in kinds.items():
        if any(fnmatch.fnmatch(name, pattern) for pattern in settings.only):
            with unless_missing(name):
                yield from rows()


def _line(row: Row, times: dict[str, Timing]) -> list[str | float]:
    ours, base = times[OURS], times[row.base]
    return [
        row.work,
        f"{1e3 * ours.median:.3g}",
        row.base,
        f"{1e3 * base.median:.3g}",
        f"{ours.median / base.median:.2f}",
        "" if row.wanted is None else f"{row.wanted:.2g}",
        f"{ours.first:.1f}",
    ]
