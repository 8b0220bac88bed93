"""EfficientNet-lite0 on pictures of ImageNet: what hardware costs, and what wins it back."""

from __future__ import annotations

import time
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool
from rich.progress import Progress

import jaxsim as js
from benchmarks.common.kept import kept
from benchmarks.common.record import Table, record
from benchmarks.common.spread import mean_and_error
from benchmarks.topics.imagenet.rows import Row, rows
from benchmarks.topics.imagenet.settings import ImagenetSettings
from benchmarks.topics.imagenet.subject import BATCH, Subject, subject_of

SHORT = (
    "--only digital --pictures 8 --adapting 8 --statistics 8 --calibration 4 --programmings 1",
)


class Measured(NamedTuple):
    """What a row came to.

    Attributes:
      right: For each programming, which pictures are right.
      seconds: Time that it took, in whichever run.
    """

    right: list[Bool[np.ndarray, " N"]]
    seconds: float


def measured(row: Row, subject: Subject, settings: ImagenetSettings) -> Measured:
    """Measures what an earlier run has not."""
    found = Measured([], 0.0)
    prepared: list[js.Network] = []

    def measure(number: int) -> tuple[list[int], float]:
        began = time.perf_counter()
        if not prepared:
            prepared.append(row.prepare(subject))
        right = _right(_chip(row, prepared[0], subject, number), subject, number)
        return right.astype(int).tolist(), time.perf_counter() - began

    for number in range(settings.programmings if row.drawn else 1):
        counts = (len(subject.tested.labels), len(subject.calibrate), len(subject.adapt.labels))
        counts += (settings.statistics, *([] if row.gain is None else [settings.searched]))
        told = (row.group, row.name, row.settled or row.moved, number, *counts)
        right, took = kept(settings.cache, told, partial(measure, number))
        found = Measured([*found.right, np.array(right, bool)], found.seconds + took)
    return found


def _chip(row: Row, net: js.Network, subject: Subject, number: int) -> Any:
    key = jax.random.key(number)
    if not net.cores:
        return net
    if not row.moved:
        return row.finish(js.deploy(net, key=key, calibrate=subject.calibrate))
    # in training mode norms already see what update_norms makes of them
    chip = js.deploy(net, key=key, calibrate=subject.calibrate, train=True, mutable="batch_stats")
    return subject.move(chip)


def _right(chip: Any, subject: Subject, number: int) -> Bool[np.ndarray, " N"]:
    images, labels = subject.tested
    reads = jax.random.fold_in(jax.random.key(number), 1)
    if isinstance(chip, js.IntegerNetwork):
        run = jax.jit(lambda chip, x: chip(x))
        parts = [run(chip, images[i : i + 100]) for i in range(0, len(images), 100)]
        return np.argmax(np.concatenate(parts), -1) == labels
    return js.classify(chip, images, key=reads, batch_size=BATCH) == labels


def _line(row: Row, found: Measured, exact: np.ndarray, subject: Subject) -> list[str]:
    by_picture = 100 * (np.mean(found.right, 0) - exact)
    lost = mean_and_error(by_picture, 1, signed=True)
    level = mean_and_error(100 * np.mean(found.right, 1), 1)
    norms = "moved" if row.moved else "measured anew" if row.settled else "as trained"
    gain = [] if row.gain is None else [f"{row.gain(subject):.2f}"]
    return [row.name, norms, level, lost, *gain, f"{found.seconds:.0f}"]


def main(args: list[str]) -> None:
    """Measures every row that an earlier run has not."""
    settings = ImagenetSettings.read(args)
    subject = subject_of(settings)
    exact = measured(Row("float", "float32", lambda s: s.net), subject, settings).right[0]
    todo = [row for row in rows() if settings.only in ("all", row.group)]
    lines: dict[str, list[list[str]]] = {}
    with Progress() as progress:
        bar = progress.add_task("imagenet", total=len(todo))
        for row in todo:
            progress.update(bar, description=f"{row.group}: {row.name}")
            found = measured(row, subject, settings)
            lines.setdefault(row.group, []).append(_line(row, found, exact, subject))
            progress.advance(bar)
    for group, held in lines.items():
        _record(group, held, exact, settings)


def _record(
    group: str, held: list[list[str]], exact: np.ndarray, settings: ImagenetSettings
) -> None:
    gain = ["energy, times less"] if group == "blocked" else []
    columns = ["network", "statistics of norms", "right, %", "to float, points", *gain, "s"]
    record(
        f"imagenet_{group}",
        Table(columns, held),
        question="What does hardware cost EfficientNet-lite0 on ImageNet, and what wins it back?",
        baseline=f"float32, right on {100 * exact.mean():.1f} % of the same pictures",
        notes=f"{settings.pictures} pictures of ImageNet, one a class, which may be training "
        "pictures: differences count, not levels. ± of the difference is the paired standard error "
        "over pictures, ± of the level that over "
        f"{settings.programmings} programmings. {settings.calibration} other pictures set ranges, "
        f"{settings.adapting} more, without labels, serve rounding and corrections, and the first "
        f"{settings.statistics} of them statistics; "
        "choices were made on those; a search saw the labels of the first "
        f"{settings.searched}. Weights / inputs in bits, one scale a channel, inputs affine "
        "unless said. Analog: 8-bit codes, ADC of 8 bits, 1152 rows. Norms moved: "
        "`js.update_norms` with the float network as the reference; anew: without one, on all "
        "pictures to adapt to. s: time of the row, with compilation.",
        settings=settings.recorded(),
    )
