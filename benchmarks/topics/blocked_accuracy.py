"""What do blocked products buy, and at what accuracy?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np

import jaxsim as js
from benchmarks.common import cifar
from benchmarks.common.chips import accuracy, retrained
from benchmarks.common.files import unless_missing
from benchmarks.common.record import IMAGES, Table, record
from benchmarks.common.settings import Trained
from benchmarks.common.spread import mean_and_error
from jaxsim.cli.demo import Demo
from jaxsim.data import Images, fashion_mnist
from jaxsim.evaluate.comparison import classify
from jaxsim.evaluate.plot import Curve, accuracy_curves
from jaxsim.evaluate.systolic import Hardware
from jaxsim.search.blocks import Choice, Search, search_blocked
from jaxsim.train.reference import trained

SHORT = ("--only fashion --seeds 1 --held-out 500 --steps 1 --settling 256",)

FIXED = {
    "K=4, 1 × 1 dynamic, trunc": js.block(4, 1, 1),
    "K=4, 1 × 1 dynamic, unbiased": js.block(4, 1, 1, rounding="unbiased"),
    "K=4, 1 × 1 dynamic, rounded": js.block(4, 1, 1, rounding="rounded"),
    "K=3, 2 × 2 dynamic, trunc": js.block(3, 2, 2),
    "K=2, 2 × 2 dynamic, trunc": js.block(2, 2, 2),
    "K=2, 2 × 2 dynamic, rounded": js.block(2, 2, 2, rounding="rounded"),
    "K=3, 2 × 2 static, rounded": js.block(3, 2, 2, "static", rounding="rounded"),
}
"""Configurations whose accuracy is shown without a search."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockedAccuracySettings(Trained):
    """Settings of the run."""

    seeds: int = 3
    """Fashion-MNIST networks trained from scratch."""
    held_out: int = 5000
    """Training images of Fashion-MNIST that nothing is trained on: the search looks at them."""
    drop: float = 0.007
    """Accuracy a search may lose on the images it looks at; less than the point allowed, because
    what was chosen for its accuracy there is a little worse elsewhere."""
    steps: int = 6
    """Bisections of a search, for each block size."""
    settling: int = 2000
    """Training images of Fashion-MNIST that batch-norm statistics are settled on."""
    only: Literal["both", "fashion", "cifar"] = "both"
    """Which images."""


def main(args: list[str]) -> None:
    """Searches and fine-tunes."""
    settings = BlockedAccuracySettings.read(args)
    tables = fashion(settings) if settings.only != "cifar" else []
    if settings.only != "fashion":
        with unless_missing("table CIFAR-10"):
            tables.append(pictures(settings))
    record(
        "blocked_accuracy",
        *tables,
        question="What do blocked products buy, and at what accuracy?",
        baseline="the 8-bit network; energy and speed gains are of the analytic model, over an "
        "array of plain 8-bit multipliers",
        notes="Fashion-MNIST: networks are trained on all training images but the last "
        f"{settings.held_out}, on which the search evaluates; the test set is reported, mean ± "
        "standard error over networks. CIFAR-10: the search evaluates 400 of the 1000 images, "
        "mirrored too; the other 600 are reported, and the error is of the paired difference. "
        f"*Settled*: batch-norm statistics are those of {settings.settling} training images as the "
        "network sees them (Fashion-MNIST), or halfway from the trained ones to those of the 400 "
        "images (CIFAR-10, every network that is compared); labels play no part in it.",
        settings=settings.recorded(),
    )


def fashion(settings: BlockedAccuracySettings) -> list[Table]:
    """Accuracy, search and fine-tuning on Fashion-MNIST, over seeds."""
    train, test = fashion_mnist("train"), fashion_mnist("test")
    split = len(train.labels) - settings.held_out
    seen = train._replace(images=train.images[:split], labels=train.labels[:split])
    held = train._replace(images=train.images[split:], labels=train.labels[split:])
    inputs = seen.images[:256]
    found: dict[str, list[float]] = {}
    gains: dict[str, list[tuple[float, float]]] = {}

    def settled(chip: js.Network) -> js.Network:
        return _settled(chip, seen.images[: settings.settling], 1.0)

    def note(
        name: str, net: js.Network, then: Callable[[js.Network], js.Network] = lambda chip: chip
    ) -> float:
        score = accuracy(then(js.deploy(net, calibrate=inputs)), test)
        found.setdefault(name, []).append(score)
        gained = Hardware().estimate(net)
        gains.setdefault(name, []).append((gained.energy_gain, gained.speed_gain))
        return score

    for seed in range(settings.seeds):
        net, _ = trained(seen, epochs=Demo.epochs, seed=seed, cache=settings.cache)
        found.setdefault("float32", []).append(accuracy(net, test))
        gains.setdefault("float32", []).append((np.nan, np.nan))
        eight = js.quantize(8, 8)(net)
        note("int8", eight)
        note("int8, statistics settled", eight, settled)
        for name, transform in FIXED.items():
            note(name, transform(eight))
        for name in ("K=4, 1 × 1 dynamic, trunc", "K=3, 2 × 2 static, rounded"):
            aware = retrained(FIXED[name](eight), seen, epochs=1, seed=seed)
            note(f"{name}, one epoch aware of it", aware)
        result = search_blocked(
            eight,
            inputs,
            lambda chip: _accuracy(settled(chip), data=held),
            drop=settings.drop,
            steps=settings.steps,
            log=settings.cache.expanduser()
            / "blocked"
            / f"fashion-{settings.held_out}-{settings.settling}-{seed}.json",
        )
        for name, choice in {"network": result.network, "layers": result.layers}.items():
            if choice is not None:
                note(f"search, {name}, statistics settled", choice(eight), settled)
        if seed == 0:
            shown = [
                (c, accuracy(settled(js.deploy(c(eight), calibrate=inputs)), test))
                for c in _shown(result)
            ]
            _figure("blocked-fashion.png", shown, found["int8"][0], "Fashion-MNIST, test set")
    return [_accuracies("Fashion-MNIST", found, gains)]


def pictures(settings: BlockedAccuracySettings) -> Table:
    """The search on CIFAR-10's ResNet-14."""
    data = cifar.pictures()
    looked = cifar.Pictures(data.images[:400], data.labels[:400])
    mirrored = cifar.Pictures(
        np.concatenate([looked.images, looked.images[:, :, ::-1]]), np.tile(looked.labels, 2)
    )
    rest = cifar.Pictures(data.images[400:], data.labels[400:])
    inputs = looked.images[:128]
    net = cifar.resnet(14)
    eight = js.quantize(8, 8)(net)

    def settled(chip: js.Network) -> js.Network:
        return _settled(chip, looked.images, 0.5)

    result = search_blocked(
        eight,
        inputs,
        lambda chip: _accuracy(settled(chip), data=mirrored),
        drop=settings.drop,
        steps=settings.steps,
        log=settings.cache.expanduser() / "blocked" / "cifar-14.json",
    )

    def right(chip: js.Network) -> np.ndarray:
        return classify(chip, rest.images, batch_size=200) == rest.labels

    def chip_of(choice: Choice) -> js.Network:
        return js.deploy(choice(eight), calibrate=inputs)

    base = right(settled(js.deploy(eight, calibrate=inputs)))
    rows = [["float32, statistics as trained", f"{100 * right(net).mean():.2f}", "", "", "", ""]]
    rows.append(
        [
            "int8, statistics as trained",
            f"{100 * right(js.deploy(eight, calibrate=inputs)).mean():.2f}",
            "",
            "",
            "",
            "",
        ]
    )
    rows.append(
        ["int8", f"{100 * base.mean():.2f}", "0.00", f"{100 * result.exact:.2f}", "1.00", "1.00"]
    )
    for name, choice in {"network": result.network, "layers": result.layers}.items():
        if choice is None:
            rows.append([f"search, {name}: none", "", "", "", "", ""])
            continue
        lost = right(settled(chip_of(choice))) - base.astype(float)
        rows.append(
            [
                f"search, {name}",
                f"{100 * (base.mean() + lost.mean()):.2f}",
                mean_and_error(100 * lost),
                f"{100 * choice.accuracy:.2f}",
                f"{choice.energy_gain:.2f}",
                f"{choice.speed_gain:.2f}",
            ]
        )
    shown = [(c, float(right(settled(chip_of(c))).mean())) for c in _shown(result)]
    _figure("blocked-cifar.png", shown, float(base.mean()), "CIFAR-10, ResNet-14, 600 images")
    columns = [
        "network",
        "accuracy, %",
        "difference, points",
        "on the searched images, %",
        "energy gain",
        "speed gain",
    ]
    return Table(columns, rows, f"CIFAR-10, ResNet-14 ({result.evaluations} evaluations)")


@jax.jit
def _settled(chip: js.Network, images: jax.Array, share: float) -> js.Network:
    """The network with batch-norm statistics moved a share of the way to those of images."""
    new = js.update_norms(images, train=True)(chip)
    moved = jax.tree.map(
        lambda old, new: old + share * (new - old),
        chip.buffers["batch_stats"],
        new.buffers["batch_stats"],
    )
    return chip.with_state({"batch_stats": moved})


def _accuracy(chip: js.Network, *, data: Images | cifar.Pictures) -> float:
    return float(np.mean(classify(chip, data.images) == data.labels))


def _shown(result: Search) -> list[Choice]:
    """What a figure shows: choices that gain something and are not far off."""
    return [c for c in result.tried if c.energy_gain > 1 and c.accuracy > result.exact - 0.06]


def _figure(name: str, shown: list[tuple[Choice, float]], reference: float, title: str) -> None:
    panels: dict[str, dict[str, Curve]] = {}
    for label, gain in (("energy", "energy_gain"), ("speed", "speed_gain")):
        curves: dict[str, Curve] = {}
        for kind, single in (("one for the network", True), ("by layer and operand", False)):
            points = sorted(
                (getattr(c, gain), score)
                for c, score in shown
                if (len(set(c.by_site.values())) == 1) == single
            )
            if points:
                xs, ys = zip(*points, strict=True)
                curves[kind] = Curve(xs, np.array(ys)[:, None])
        panels[f"{label} gain over FxP8, analytic model"] = curves
    accuracy_curves(IMAGES / name, panels, reference=reference, title=title, baseline="int8")


def _accuracies(title: str, found: dict[str, list[float]], gains: dict[str, Any]) -> Table:
    eight = 100 * np.asarray(found["int8"])
    rows = []
    for name, values in found.items():
        scores, gained = 100 * np.asarray(values), np.asarray(gains[name])
        whole = len(scores) == len(eight)
        rows.append(
            [
                name if whole else f"{name} ({len(scores)} of {len(eight)})",
                mean_and_error(scores),
                mean_and_error(scores - eight) if whole else "",
                *("" if np.isnan(g).any() else f"{g.mean():.2f}" for g in gained.T),
            ]
        )
    columns = ["network", "accuracy, %", "difference to int8, points", "energy gain", "speed gain"]
    return Table(columns, rows, title)
