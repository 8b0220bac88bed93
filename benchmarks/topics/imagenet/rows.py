"""What becomes of the network: every row of the tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

import jaxsim as js
from benchmarks.topics.imagenet.subject import Subject
from jaxsim.search.blocks import Search
from jaxsim.search.config import Choice

INPUTS = js.Grid(8, symmetric=False)


class Row(NamedTuple):
    """One line of a table.

    Attributes:
      group: Table it belongs to.
      name: What becomes of the network.
      prepare: `subject -> network`, not deployed.
      moved: Whether statistics of batch norms are moved, on the deployed chip.
      drawn: Whether programming draws errors.
      finish: What becomes of the deployed chip.
      gain: Modeled energy of plain products over its own, where blocks were searched.
      settled: Whether statistics have been measured anew: with fewer channels there is nothing to
        move them by.
    """

    group: str
    name: str
    prepare: Callable[[Subject], js.Network]
    moved: bool = False
    drawn: bool = False
    finish: Callable[[js.Network], Any] = lambda chip: chip
    gain: Callable[[Subject], float] | None = None
    settled: bool = False


def rows() -> Iterator[Row]:
    """Every line, in the order of the tables."""
    yield from _digital()
    yield from _places()
    yield from _rounded()
    yield from _sparse()
    yield from _blocked()
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


def _places() -> Iterator[Row]:
    """Codes of 4 bits in one kind of layer, of 8 in all others: what breaks first."""
    kinds = {
        "depthwise": ["*/depthwise/*"],
        "expanding": ["*/expand/*"],
        "projecting": ["*/project/*"],
        "first and last": ["stem/*", "head/*", "classifier/*"],
    }
    few, rest = js.quantize(4, INPUTS), js.quantize(8, INPUTS)
    for kind, places in kinds.items():
        chosen = js.rules({**dict.fromkeys(places, few), "*": rest})
        for moved in (False, True):
            yield Row("places", f"4 / 8 in {kind} layers alone", _as(chosen), moved)


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
    yield Row("sparse", "float32", lambda subject: subject.settle(subject.net), settled=True)
    for share in (0.1, 0.2):
        name = f"float32, {share:.0%} of the channels removed"
        shrunk = _as(js.shrink(share))
        yield Row("sparse", name, shrunk)
        settled = partial(_settled, prepare=shrunk)
        yield Row("sparse", name, settled, settled=True)


def _settled(subject: Subject, *, prepare: Callable[[Subject], js.Network]) -> js.Network:
    return subject.settle(prepare(subject))


def _blocked() -> Iterator[Row]:
    found = _once(_searched)
    for name in ("network", "layers"):

        def chosen(subject: Subject, name: str = name) -> Choice:
            if (choice := getattr(found(subject), name)) is None:
                raise ValueError("no blocks are accurate enough on the pictures searched")
            return choice

        yield Row(
            "blocked",
            f"blocks, chosen for {'the network' if name == 'network' else 'each layer'}",
            lambda subject, chosen=chosen: chosen(subject)(_symmetric(subject)),
            gain=lambda subject, chosen=chosen: chosen(subject).energy_gain,
        )


def _symmetric(subject: Subject) -> js.Network:
    return js.quantize(8, 8)(subject.net)


def _searched(subject: Subject) -> Search:
    """Blocks that lose a point on pictures that are not reported."""
    seen = subject.adapt.take(np.arange(subject.searched))

    def evaluate(chip: js.Network) -> float:
        return float(np.mean(js.classify(chip, seen.images, batch_size=100) == seen.labels))

    return js.search_blocked(
        _symmetric(subject),
        subject.calibrate[:16],
        evaluate,
        drop=0.01,
        steps=4,
        log=subject.cache / f"all blocks, {subject.searched} pictures",
    )


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


def _as(made: js.Transform) -> Callable[[Subject], js.Network]:
    return lambda subject: made(subject.net)


def _folded_integers(subject: Subject) -> js.Network:
    folded = js.fold_norms(subject.calibrate[:2], epsilon=1e-3)(subject.net)
    return js.quantize(8, INPUTS)(folded)


def _once(prepare: Callable[[Subject], Any]) -> Callable[[Subject], Any]:
    """Prepares for the first of several rows; rounding and searches take minutes."""
    held: list[Any] = []

    def prepared(subject: Subject) -> Any:
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
    few = subject.adapt.images[:8]
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
