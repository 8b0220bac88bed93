"""Which mix of hardware is worth having, and does an integer program find it?"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

import jaxsim as js
from benchmarks.common.kept import kept
from benchmarks.common.record import Table, record
from benchmarks.common.settings import CACHE, Logged
from benchmarks.common.spread import mean_and_error
from benchmarks.topics.explore import subjects
from jaxsim.checkpoint.log import ScoreCache
from jaxsim.search.front import Point

SHORT = ("--only tiny --seeds 2 --rows 2 --points 2 --steps 1",)

SUBJECTS = {
    "resnet": (subjects.resnet14, "ResNet-14, CIFAR-10", 0.02),
    "imagenet": (subjects.efficientnet, "EfficientNet-lite0, 1000 pictures of ImageNet", 0.02),
    "decoder": (subjects.decoder, "SmolLM2-135M, WikiText-2", 0.1),
    "tiny": (subjects.tiny_decoder, "A random decoder of two layers", 0.3),
}
"""What makes each subject, its name, and the accuracy that may be lost."""

PROPOSERS = ("program", "greedy", "random", "uniform")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExploreSettings(Logged):
    """Settings of the run."""

    only: Literal["resnet", "imagenet", "decoder", "tiny"] = "resnet"
    """Which network."""
    rows: int = 1000
    """Rows that choose and that report, at most."""
    points: int = 6
    """Budgets."""
    steps: int = 4
    """Bisection steps."""
    log: Path = CACHE / "explore"


def main(args: list[str]) -> None:
    """Explores a network with several seeds, and scores its fronts on rows that chose nothing."""
    settings = ExploreSettings.read(args)
    make, title, drop = SUBJECTS[settings.only]
    accelerator = js.accelerators.mixed()
    points: list[list[Any]] = []
    volumes: list[list[float]] = []
    cheapest: list[list[Any]] = []
    seconds: list[str] = []
    for seed in range(settings.seeds):
        subject = make(seed, settings.rows)
        key, clock = jax.random.key(seed), time.perf_counter()
        log = settings.log / f"{settings.only}_{seed}.json"
        fresh = not log.expanduser().exists()
        front = js.explore(
            subject.net,
            accelerator,
            subject.options,
            subject.calibrate,
            subject.choose,
            drop=drop,
            points=settings.points,
            steps=settings.steps,
            baselines=("greedy", "random"),
            key=key,
            log=log,
        )
        took = f"{time.perf_counter() - clock:.0f}"
        seconds.append(took if fresh else "resumed")
        print(front, f"{took} s")
        volumes.append([front.hypervolume([by]) for by in PROPOSERS])
        run = settings.rows, ScoreCache(log).scores["run"]
        reports = _Reports(front, subject, key, settings.log / "reported", run)
        for point in front.points if seed == 0 else ():
            points.append(reports.row(point))
        for kind, found in _cheapest(front, drop).items():
            row = ["none"] if found is None else reports.row(found)
            cheapest.append([kind, seed, *row])
    columns = ["places", "chose, %", "reported, %", "to float, points", "µJ", "µs", "mm²"]
    record(
        f"explore_{settings.only}",
        Table(columns, points, f"{title}: the front of seed 0"),
        _volume_table(np.array(volumes)),
        Table(
            ["cheapest that may lose so much", "seed", *columns],
            [row + [""] * (2 + len(columns) - len(row)) for row in cheapest],
            f"Within {100 * drop:g} points, on the rows that choose",
        ),
        question=f"{title}: what should each layer become on digital and analog arrays?",
        baseline="the same options everywhere, chosen greedily, and drawn, within the same budgets",
        notes="Energy, time and area are of the analytic model of `js.accelerators.mixed()`, no "
        "measurement. Rows that set ranges, choose and report are apart, and drawn anew for each "
        "seed, as are the cells. Errors of accuracies to float are paired, over rows; of "
        f"hypervolumes over seeds. Seconds of each exploration: {', '.join(seconds)}.",
        settings=settings.recorded(),
    )


class _Reports(NamedTuple):
    """Points on the rows that report, each measured once.

    Attributes:
      front: The points.
      subject: Whose rows they are.
      key: Random key of the exploration.
      folder: Where it is kept which of them were right.
      run: What tells the exploration from another.
    """

    front: js.Front
    subject: subjects.Subject
    key: Any
    folder: Path
    run: Any

    def right(self, point: Point | None) -> np.ndarray:
        """Which rows are right, as numbers; None for the network as it was given."""

        def measure() -> list[int]:
            made = self.front.net if point is None else self.front.network(point)
            if made.cores:
                draw = jax.random.fold_in(self.key, 0)
                made = js.deploy(made, calibrate=self.subject.calibrate, key=draw)
            return self.subject.report(made).astype(int).tolist()

        name = "as given" if point is None else str(point.by_place)
        return np.array(kept(self.folder, (self.run, name), measure), float)

    def row(self, point: Point) -> list[Any]:
        """A point as a row of a table."""
        right, counts = self.right(point), dict.fromkeys(self.front.fit.options, 0)
        for name in point.by_place.values():
            counts[name] += 1
        return [
            ", ".join(f"{n} {name}" for name, n in counts.items() if n),
            f"{100 * point.accuracy:.1f}",
            f"{100 * right.mean():.1f}",
            mean_and_error(100 * (right - self.right(None)), 1, signed=True),
            f"{point.energy / 1e6:.3g}",
            f"{point.latency * 1e6:.3g}",
            f"{point.area:.3g}",
        ]


def _cheapest(front: js.Front, drop: float) -> dict[str, Any]:
    """The cheapest point within the drop of each kind: one option everywhere, and mixed."""
    good = [p for p in front.tried if p.accuracy >= front.exact - drop]
    found: dict[str, Any] = {}
    for name in front.fit.options:
        alone = [p for p in good if set(p.by_place.values()) == {name}]
        found[f"{name} everywhere"] = min(alone, key=lambda p: p.energy, default=None)
    mixed = [p for p in good if len(set(p.by_place.values())) > 1]
    found["mixed"] = min(mixed, key=lambda p: p.energy, default=None)
    return found


def _volume_table(volumes: np.ndarray) -> Table:
    """Hypervolumes of the proposers, and the program's paired differences to the others."""
    rows: list[list[Any]] = []
    for i, by in enumerate(PROPOSERS):
        ahead = volumes[:, 0] - volumes[:, i]
        rows.append([by, mean_and_error(volumes[:, i]), mean_and_error(ahead) if i else ""])
    columns = ["chosen by", "hypervolume", "the program is ahead by"]
    return Table(columns, rows, "Accuracy and energy that points dominate, of 1")
