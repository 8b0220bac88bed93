"""EfficientNet-lite0 on pictures of ImageNet: what hardware costs, and what wins it back."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import numpy as np
import tyro
from jaxtyping import Bool
from rich.progress import Progress

import jaxsim as js
from benchmarks.common.efficientnet import lite0
from benchmarks.common.imagenet import Pictures, pictures
from benchmarks.common.record import Table, record
from benchmarks.common.settings import Settings
from jaxsim.files import atomic

SHORT = (
    "--only digital --pictures 8 --adapting 8 --statistics 8 --calibration 4 --programmings 1",
)

GROUPS = ("digital", "rounded", "sparse", "analog", "designs")
INPUTS = js.Grid(8, symmetric=False)
BATCH = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImagenetSettings(Settings):
    """Settings of the run."""

    only: Literal["all", "digital", "rounded", "mixed", "sparse", "analog", "devices"] = "all"
    """Which rows; each group has a record of its own."""
    pictures: int = 500
    """Pictures that are classified, every second of the thousand."""
    calibration: int = 48
    """Others, which set ranges."""
    adapting: int = 400
    """Others again, without labels, for rounding and corrections."""
    statistics: int = 256
    """The first of those, on which statistics of norms are moved."""
    programmings: int = 5
    """Times each chip with errors is programmed."""
    cache: Annotated[Path, tyro.conf.arg(help="what an interrupted run has measured")] = Path(
        "~/.cache/jaxsim/imagenet"
    )


class Subject(NamedTuple):
    """The network and its pictures.

    Attributes:
      net: EfficientNet-lite0.
      tested: Pictures that are classified.
      calibrate: Images that set ranges.
      adapt: Images for what needs no labels.
      move: Moves the statistics of norms as they have moved from those of the network.
    """

    net: js.Network
    tested: Pictures
    calibrate: np.ndarray
    adapt: np.ndarray
    move: js.Transform

    @property
    def batches(self) -> list[np.ndarray]:
        """The images to adapt to, in batches."""
        return _batches(self.adapt)


class Row(NamedTuple):
    """One line of a table.

    Attributes:
      group: Table it belongs to.
      name: What becomes of the network.
      prepare: `subject -> network`, not deployed.
      moved: Whether statistics of batch norms are moved, on the deployed chip.
      drawn: Whether programming draws errors.
      finish: What becomes of the deployed chip.
    """

    group: str
    name: str
    prepare: Callable[[Subject], js.Network]
    moved: bool = False
    drawn: bool = False
    finish: Callable[[js.Network], Any] = lambda chip: chip


def rows() -> Iterator[Row]:
    """Every line, in the order of the tables."""
    yield from _digital()
    yield from _rounded()
    yield from _sparse()
    yield from _analog()
    yield from _devices()


def _digital() -> Iterator[Row]:
    yield Row("digital", "8 / 8, symmetric", _as(js.quantize(8, 8)))
    yield Row("digital", "8 / 8, affine inputs", _as(js.quantize(8, INPUTS)))
    yield Row("digital", "8 / 8, integers alone", _folded_integers, finish=js.integer_only)
    for bits in (6, 5, 4):
        for moved in (False, True):
            yield Row("digital", f"{bits} / 8", _as(js.quantize(bits, INPUTS)), moved)
    for bits in (6, 4):
        corrected = partial(_corrected, prepare=_as(js.quantize(bits, INPUTS)))
        yield Row("digital", f"{bits} / 8, bias corrected", corrected)
    yield Row("mixed", "mixed, 5 bits in the mean", _mixed, moved=True)


def _rounded() -> Iterator[Row]:
    squares = js.clipping.least_squares()
    plain = js.quantize(4, INPUTS)
    for name, method in (("GPTQ", js.rounding.gptq()), ("AdaRound", js.rounding.adaround())):
        rounded = _once(partial(_rounded_net, codes=plain, method=method))
        for moved in (False, True):
            yield Row("rounded", f"4 / 8, {name}", rounded, moved)
        corrected = partial(_corrected, prepare=rounded)
        yield Row("rounded", f"4 / 8, {name}, bias corrected", corrected)
    fitted = js.quantize(js.Grid(4, per="channel", clip=squares), INPUTS)
    yield Row("rounded", "4 / 8, fitted ranges", _as(fitted), moved=True)
    gptq = partial(_rounded_net, codes=fitted, method=js.rounding.gptq())
    yield Row("rounded", "4 / 8, fitted ranges, GPTQ", gptq, moved=True)


def _sparse() -> Iterator[Row]:
    eight = js.quantize(8, INPUTS)
    for share in (0.3, 0.5):
        for moved in (False, True):
            pruned = js.compose(js.prune(share), eight)
            yield Row("sparse", f"8 / 8, {share:.0%} of the weights pruned", _as(pruned), moved)


def _analog() -> Iterator[Row]:
    cells = js.cells.proportional(0.05)
    for moved in (False, True):
        yield Row("analog", "pairs, no error", _cells(None), moved)
        yield Row("analog", "pairs, proportional 5 %", _cells(cells), moved, True)


def _devices() -> Iterator[Row]:
    kinds = {
        "proportional 2 %": js.cells.proportional(0.02),
        "independent 1 %": js.cells.independent(0.01),
        "SONOS, 1 day": js.cells.sonos(days=1.0),
        "RRAM (Wan)": js.cells.rram_wan(),
        "PCM (Joshi)": js.cells.pcm_joshi(),
    }
    for name, cells in kinds.items():
        yield Row("devices", f"pairs, {name}", _cells(cells), True, True)
    five = js.cells.proportional(0.05)
    one = kinds["independent 1 %"]
    for name, cells in {"proportional 5 %": five, "independent 1 %": one}.items():
        full = _cells(cells, full=True)
        yield Row("devices", f"pairs, {name}, depthwise digital", full, True, True)
    sliced = _cells(one, slices=2)
    yield Row("devices", "pairs of 2-bit slices, independent 1 %", sliced, True, True)
    offset = _cells(five, mapping="offset")
    yield Row("devices", "offset, proportional 5 %", offset, True, True)


def _batches(images: np.ndarray) -> list[np.ndarray]:
    return [images[i : i + BATCH] for i in range(0, len(images), BATCH)]


def _as(made: js.Transform) -> Callable[[Subject], js.Network]:
    return lambda subject: made(subject.net)


def _folded_integers(subject: Subject) -> js.Network:
    folded = js.fold_norms(subject.calibrate[:2], epsilon=1e-3)(subject.net)
    return js.quantize(8, INPUTS)(folded)


def _once(prepare: Callable[[Subject], js.Network]) -> Callable[[Subject], js.Network]:
    """Prepares for the first of several rows; rounding takes minutes."""
    held: list[js.Network] = []

    def prepared(subject: Subject) -> js.Network:
        if not held:
            held.append(prepare(subject))
        return held[0]

    return prepared


def _rounded_net(
    subject: Subject, *, codes: js.Transform, method: js.rounding.Rounding
) -> js.Network:
    return js.round_weights(method, subject.batches)(codes(subject.net))


def _corrected(subject: Subject, *, prepare: Callable[[Subject], js.Network]) -> js.Network:
    return js.correct_bias(subject.batches, reference=subject.net)(prepare(subject))


def _mixed(subject: Subject) -> js.Network:
    """Bits by how far one site alone, rounded, moves the logits of eight pictures."""
    few = subject.adapt[:8]
    target = subject.net(few)

    def loss(net: js.Network) -> jax.Array:
        return jax.numpy.square(net(few) - target).mean()

    found = js.ablation_sensitivity(subject.net, loss, bits=(3, 4, 5, 6, 8))
    bits = js.assign_bits(found, mean_bits=5).bits
    return js.rules({name: js.quantize(b, INPUTS) for name, b in bits.items()})(subject.net)


def _cells(
    cells: js.cells.Device | None,
    *,
    mapping: Literal["differential", "offset"] = "differential",
    full: bool = False,
    slices: int | None = None,
) -> Callable[[Subject], js.Network]:
    def prepare(subject: Subject) -> js.Network:
        named = [s.name for s in subject.net.sites if "depthwise" not in s.name]
        held = named if full else "*"
        array = js.analog(adc=8, cells=cells, mapping=mapping, sites=held)
        sliced = [] if slices is None else [js.slice_bits(slices, sites=held)]
        return js.compose(js.quantize(8, INPUTS), *sliced, array)(subject.net)

    return prepare


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
    prepared: js.Network | None = None
    for number in range(settings.programmings if row.drawn else 1):
        counts = (len(subject.tested.labels), len(subject.calibrate), len(subject.adapt))
        counts += (settings.statistics,)
        told = repr((row.group, row.name, row.moved, number, *counts))
        path = settings.cache.expanduser() / hashlib.sha256(told.encode()).hexdigest()
        if not path.exists():
            began = time.perf_counter()
            prepared = row.prepare(subject) if prepared is None else prepared
            right = _right(_chip(row, prepared, subject, number), subject, number)
            took = time.perf_counter() - began
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic.write_json(path, [right.astype(int).tolist(), took])
        right, took = json.loads(path.read_text())
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
    return js.classify(chip, images, key=reads, batch_size=100) == labels


def _subject(settings: ImagenetSettings) -> Subject:
    held = pictures()
    others = np.random.default_rng(0).permutation(np.arange(1, 1000, 2))
    seen, adapt = np.split(
        others[: settings.calibration + settings.adapting], [settings.calibration]
    )
    tested = held.take(np.arange(0, 2 * settings.pictures, 2))
    net = lite0()
    few = _batches(held.images[adapt[: settings.statistics]])
    move = js.update_norms(few, reference=net, key=jax.random.key(0), train=True)
    return Subject(net, tested, held.images[seen], held.images[adapt], move)


def _line(row: Row, found: Measured, exact: np.ndarray) -> list[str]:
    by_picture = 100 * (np.mean(found.right, 0) - exact)
    lost, error = by_picture.mean(), by_picture.std(ddof=1) / np.sqrt(len(exact))
    levels = 100 * np.mean(found.right, 1)
    level = f"{levels.mean():.1f}"
    if len(levels) > 1:
        level += f" ± {levels.std(ddof=1) / np.sqrt(len(levels)):.1f}"
    norms = "moved" if row.moved else "as trained"
    return [row.name, norms, level, f"{lost:+.1f} ± {error:.1f}", f"{found.seconds:.0f}"]


def main(args: list[str]) -> None:
    """Measures every row that an earlier run has not."""
    settings = ImagenetSettings.read(args)
    subject = _subject(settings)
    exact = measured(Row("float", "float32", lambda s: s.net), subject, settings).right[0]
    todo = [row for row in rows() if settings.only in ("all", row.group)]
    lines: dict[str, list[list[str]]] = {}
    with Progress() as progress:
        bar = progress.add_task("imagenet", total=len(todo))
        for row in todo:
            progress.update(bar, description=f"{row.group}: {row.name}")
            found = measured(row, subject, settings)
            lines.setdefault(row.group, []).append(_line(row, found, exact))
            progress.advance(bar)
    for group, held in lines.items():
        _record(group, held, exact, settings)


def _record(
    group: str, held: list[list[str]], exact: np.ndarray, settings: ImagenetSettings
) -> None:
    record(
        f"imagenet_{group}",
        Table(["network", "statistics of norms", "right, %", "to float, points", "s"], held),
        question="What does hardware cost EfficientNet-lite0 on ImageNet, and what wins it back?",
        baseline=f"float32, right on {100 * exact.mean():.1f} % of the same pictures",
        notes=f"{settings.pictures} pictures of ImageNet, one a class, which may be training "
        "pictures: differences count, not levels. ± of the difference is the paired standard error "
        "over pictures, ± of the level that over "
        f"{settings.programmings} programmings. {settings.calibration} other pictures set ranges, "
        f"{settings.adapting} more, without labels, serve rounding and corrections, and the first "
        f"{settings.statistics} of them statistics; "
        "choices were made on those. Weights / inputs in bits, one scale a channel, inputs affine "
        "unless said. Analog: 8-bit codes, ADC of 8 bits, 1152 rows. Norms moved: "
        "`js.update_norms` with the float network as the reference. s: time of the row, with "
        "compilation.",
        settings=settings.recorded(),
    )
