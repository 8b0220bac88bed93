"""Networks to explore, with rows that set ranges, rows that choose, and rows that report."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Key

import jaxsim as js
from benchmarks.common import imagenet
from benchmarks.common.cifar import pictures, resnet
from benchmarks.common.efficientnet import lite0
from benchmarks.topics.language.decoder import random_decoder, smollm2


class Subject(NamedTuple):
    """A network and what may become of it.

    Attributes:
      net: The network.
      options: What its sites may become.
      calibrate: Inputs that set ranges.
      choose: Fraction right of the rows that choose, of a deployed network.
      report: Which of the other rows are right.
    """

    net: js.Network
    options: dict[str, Any]
    calibrate: Any
    choose: Callable[[js.Network], float]
    report: Callable[[js.Network], Bool[np.ndarray, " N"]]


def cells(spread: float) -> Any:
    """8-bit codes in 2-bit cells of 128 rows, converted to 8 bits, with proportional errors."""
    return js.compose(
        js.quantize(8, 8),
        js.slice_bits(2),
        js.analog(rows=128, adc=8, cells=js.cells.proportional(spread)),
    )


def resnet14(seed: int, rows: int) -> Subject:
    """ResNet-14 on CIFAR-10: 64 images set ranges, 436 choose and 500 report."""
    held = pictures()
    options = {
        "int8": js.quantize(8, 8),
        "int4": js.quantize(4, 8),
        "MXFP4": js.quantize(js.mx("e2m1"), 8),
        "cells 10 %": cells(0.1),
    }
    return _classifier(resnet(14), options, held.images, held.labels, seed, (64, 436), rows)


def efficientnet(seed: int, rows: int) -> Subject:
    """EfficientNet-lite0 on pictures of ImageNet: 32 set ranges, 218 choose and 750 report.

    Depthwise kernels stay digital: an array of cells holds one column of each.
    """
    held, net = imagenet.pictures(), lite0()
    full = [s.name for s in net.sites if "depthwise" not in s.name]
    options = {
        "int8": js.quantize(8, js.Grid(8, symmetric=False)),
        "int6": js.quantize(6, js.Grid(8, symmetric=False)),
        "cells 1 %": js.Option(cells(0.01), sites=full, part="analog"),
    }
    return _classifier(net, options, held.images, held.labels, seed, (32, 218), rows)


def decoder(seed: int, rows: int) -> Subject:
    """SmolLM2, rotated, on WikiText-2: right is the token that the float decoder writes next.

    Windows of 128 tokens: 2 of the validation text set ranges, 8 choose, 16 of the test text
    report. The table, which is the head too, stays digital.
    """
    return _decoder(smollm2(), 128, seed, rows)


def tiny_decoder(seed: int, rows: int) -> Subject:
    """A random decoder of two layers and random text, to see that everything runs."""
    return _decoder(random_decoder(), 32, seed, rows)


def _decoder(held: Any, window: int, seed: int, rows: int) -> Subject:
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(js.language.windows(held.valid, window, 10))
    reported = js.language.windows(held.test, window, min(16, rows))
    net = js.trace(held.model, {"params": held.params}, chosen[:1])
    net = js.rotate(chosen[:2], jax.random.key(seed))(net)
    tokens, groups = js.Grid(8, per="token"), js.Grid(4, symmetric=False, per="group", rows=32)
    int8 = js.quantize(js.Grid(8, per="channel"), tokens)
    # Outliers of a residual stream are what it lives on: ranges leave none out.
    array = js.analog(rows=128, adc=8, percentile=100, cells=js.cells.proportional(0.02))
    options = {
        "float": None,
        "int8": int8,
        "int4, groups of 32": js.quantize(groups, tokens),
        "cells 2 %": js.Option(
            js.compose(int8, js.slice_bits(2), array), sites=["layers*"], part="analog"
        ),
    }
    said: dict[bytes, np.ndarray] = {}

    def right(chip: js.Network, windows: np.ndarray) -> np.ndarray:
        if windows.tobytes() not in said:
            said[windows.tobytes()] = js.classify(net, windows, batch_size=4)
        return (js.classify(chip, windows, batch_size=4) == said[windows.tobytes()]).ravel()

    few = chosen[2 : 2 + min(8, rows)]
    return Subject(
        net,
        options,
        (chosen[:2],),
        lambda chip: float(right(chip, few).mean()),
        lambda chip: right(chip, reported),
    )


def _classifier(
    net: js.Network,
    options: dict[str, Any],
    images: Float[np.ndarray, "N ..."],
    labels: np.ndarray,
    seed: int,
    sizes: tuple[int, int],
    rows: int,
) -> Subject:
    order = np.random.default_rng(seed).permutation(len(images))
    first, second, third = np.split(order, np.cumsum(sizes))
    reads: Key[Any, ""] = jax.random.fold_in(jax.random.key(seed), 1)

    def right(chip: js.Network, places: np.ndarray) -> np.ndarray:
        return js.classify(chip, images[places], key=reads, batch_size=109) == labels[places]

    return Subject(
        net,
        options,
        images[first],
        lambda chip: float(right(chip, second[:rows]).mean()),
        lambda chip: right(chip, third[:rows]),
    )
