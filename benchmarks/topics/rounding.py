"""What do rounding, correction, equalization, smoothing and made-up inputs win, after training?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
import tyro

import jaxsim as js
from benchmarks.common.chips import accuracy
from benchmarks.common.record import Table, record
from benchmarks.common.settings import CACHE, Trained
from benchmarks.common.spread import mean_and_error
from jaxsim.checkpoint.log import ScoreCache
from jaxsim.cli.demo import Demo
from jaxsim.data import Images, fashion_mnist
from jaxsim.train.reference import trained

SHORT = ("--seeds 1 --images 256 --tables inputs",)

HELD_OUT = 5000
"""Training images that no network has seen; AdaRound's pull was chosen on them, with seed 0."""
SPREAD = 8.0
"""Channels of the badly scaled networks are up to this factor larger or smaller."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoundingSettings(Trained):
    """Settings of the run."""

    images: int = 512
    """Training images that statistics are of, a multiple of 128; 256 of them set ranges."""
    tables: tuple[str, ...] = ("weights", "one scale a kernel", "inputs", "data")
    """Which to measure."""
    cache: Annotated[
        Path,
        tyro.conf.arg(help="folder of trained weights and of what an interrupted run has measured"),
    ] = CACHE


class Case(NamedTuple):
    """One row.

    Attributes:
      table: it belongs to.
      name: what is done.
      chip: from a float network, its calibration images and its seed to what is measured.
      null: name of the case it is compared with.
    """

    table: str
    name: str
    chip: Callable[[js.Network, np.ndarray, int], js.Network]
    null: str | None = None


def cases() -> Iterator[Case]:
    """Every row but the float networks."""
    unsigned = js.Grid(8, symmetric=False)
    best = js.clipping.least_squares()

    def deployed(*transforms: Callable[[Any, js.Network], js.Transform]) -> Any:
        def chip(net: js.Network, x: np.ndarray, seed: int) -> js.Network:
            made = net
            for transform in transforms:
                made = transform(x, net)(made)
            return js.deploy(made, calibrate=x[:256])

        return chip

    def stored(weights: Any, inputs: Any = unsigned) -> Any:
        return lambda x, net: js.quantize(weights, inputs)

    def rounds(rule: js.rounding.Rounding) -> Any:
        return lambda x, net: js.round_weights(rule, np.split(x, len(x) // 128))

    def corrects(x: Any, net: js.Network) -> js.Transform:
        return js.correct_bias(x[:256], reference=net)

    gptq, adaround = rounds(js.rounding.gptq()), rounds(js.rounding.adaround())
    for bits in (4, 3, 2):
        name = f"{bits} bits"
        yield Case("weights", f"{name}, nearest", deployed(stored(bits)))
        ways = {"GPTQ": (gptq,), "AdaRound": (adaround,)}
        if bits > 2:
            ways |= {"bias corrected": (corrects,), "GPTQ, bias corrected": (gptq, corrects)}
        for more, steps in ways.items():
            made = deployed(stored(bits), *steps)
            yield Case("weights", f"{name}, {more}", made, f"{name}, nearest")

    def folds(x: Any, net: js.Network) -> js.Transform:
        return js.fold_norms(x[:8])

    def evens(x: Any, net: js.Network) -> js.Transform:
        return js.equalize(x[:8])

    def spoils(x: Any, net: js.Network) -> js.Transform:
        return spoiled

    for kind, first in {"as trained": (folds,), "badly scaled": (folds, spoils)}.items():
        name, grid = f"{kind}, 4 bits", js.Grid(4, per="tensor")
        yield Case("one scale a kernel", name, deployed(*first, stored(grid)))
        made = deployed(*first, evens, stored(grid))
        yield Case("one scale a kernel", f"{name}, equalized", made, name)
        name, four = f"{kind}, 4-bit inputs", js.Grid(4, symmetric=False)
        yield Case("inputs", name, deployed(*first, stored(8, four)))
        made = deployed(*first, stored(8, four), lambda x, net: js.smooth(x[:256]))
        yield Case("inputs", f"{name}, smoothed", made, name)

    def real(net: js.Network, x: np.ndarray, seed: int) -> Any:
        return x[:128]

    def noise(net: js.Network, x: np.ndarray, seed: int) -> Any:
        return jax.random.normal(jax.random.key(seed), x[:128].shape)

    found: dict[int, Any] = {}

    def made_up(net: js.Network, x: np.ndarray, seed: int) -> Any:
        if seed not in found:
            found[seed] = js.synthesize_inputs(net, 128, key=jax.random.key(seed))
        return found[seed]

    def calibrated(bits: int, inputs: Any) -> Any:
        def chip(net: js.Network, x: np.ndarray, seed: int) -> js.Network:
            seen, made = inputs(net, x, seed), js.quantize(bits, unsigned)(net)
            if bits == 4:
                made = js.round_weights(js.rounding.gptq(), seen)(made)
            return js.deploy(made, calibrate=seen)

        return chip

    for bits, what in {8: "8 bits, ranges", 4: "4 bits, GPTQ and ranges"}.items():
        for source, inputs in {"real": real, "made up": made_up, "noise": noise}.items():
            null = None if source == "real" else f"{what} of real inputs"
            yield Case("data", f"{what} of {source} inputs", calibrated(bits, inputs), null)
    name, grid = "2 bits, least squares", js.Grid(2, per="channel", clip=best)
    yield Case("weights", f"{name}, nearest", deployed(stored(grid)))
    for more, step in {"GPTQ": gptq, "AdaRound": adaround}.items():
        made = deployed(stored(grid), step)
        yield Case("weights", f"{name}, {more}", made, f"{name}, nearest")


def spoiled(net: js.Network) -> js.Network:
    """The same function with channels of very unequal size between each block's convolutions."""
    rng = np.random.default_rng(0)
    params, statistics = dict(net.params), dict(net.buffers["batch_stats"])
    for name in [name for name in params if name.startswith("Block")]:
        block, stats = dict(params[name]), dict(statistics[name])
        by = SPREAD ** rng.uniform(-1, 1, block["Conv_0"]["kernel"].shape[-1]).astype(np.float32)
        block["Conv_0"] = {"kernel": block["Conv_0"]["kernel"] * by}
        block["BatchNorm_0"] = block["BatchNorm_0"] | {"bias": block["BatchNorm_0"]["bias"] * by}
        stats["BatchNorm_0"] = stats["BatchNorm_0"] | {"mean": stats["BatchNorm_0"]["mean"] * by}
        block["Conv_1"] = {"kernel": block["Conv_1"]["kernel"] / by[:, None]}
        params[name], statistics[name] = block, stats
    return dataclasses.replace(
        net, params=params, buffers=net.buffers | {"batch_stats": statistics}
    )


def main(args: list[str]) -> None:
    """Measures every row that an earlier run has not."""
    settings = RoundingSettings.read(args)
    jax.config.update("jax_compilation_cache_dir", str(settings.cache.expanduser() / "compiled"))
    train, test = fashion_mnist("train"), fashion_mnist("test")
    split = len(train.labels) - HELD_OUT
    seen = train._replace(images=train.images[:split], labels=train.labels[:split])
    nets = [
        trained(seen, epochs=Demo.epochs, seed=seed, cache=settings.cache)[0]
        for seed in range(settings.seeds)
    ]
    # one structure, and so one compiled program, for all seeds
    nets = [dataclasses.replace(nets[0], params=n.params, buffers=n.buffers) for n in nets]
    floats = np.array([accuracy(net, test) for net in nets])
    found: dict[str, np.ndarray] = {}
    tables: dict[str, list[list[Any]]] = {}
    for case in cases():
        if case.table not in settings.tables:
            continue
        scores = [measured(case, net, seen, test, seed, settings) for seed, net in enumerate(nets)]
        print(case.name, scores, flush=True)
        mine = found[case.name] = np.array(scores)
        rows = tables.setdefault(case.table, [])
        rows.append([case.name, *(mean_and_error(100 * a) for a in (mine, mine - floats))])
        rows[-1].append(
            "" if case.null is None else mean_and_error(100 * (mine - found[case.null]))
        )
    columns = ["network", "accuracy, %", "to float, points", "to its null, points"]
    record(
        "rounding",
        *(Table(columns, rows, title) for title, rows in tables.items()),
        question="What do algorithms after training win?",
        baseline=f"the same networks in float32, {mean_and_error(100 * floats)} %",
        notes=f"Fashion-MNIST test set ({len(test.labels)} images), the demo's ResNet, "
        f"{settings.seeds} networks trained from scratch on {split} images, mean ± standard error "
        f"over them, differences paired. Statistics are of {settings.images} training images, "
        "ranges of 256 of them (data: both of 128). The null of a row is the same without what it "
        "names: rounding to nearest, not corrected, not equalized, not smoothed, or real inputs. "
        "Weights: one scale a channel, 8-bit inputs without sign. One scale a kernel, and inputs: "
        "norms are folded; badly scaled is the same function, its channels multiplied by "
        f"{SPREAD:g}^u with u uniform in [-1, 1] between the convolutions of each block. Inputs: "
        "8-bit weights, one scale a channel. The pull of AdaRound was chosen among 1, 3 and 10 on "
        f"{HELD_OUT} held-out training images with seed 0, GPTQ's damping is the paper's; nothing "
        "was chosen on the test set.",
        settings=settings.recorded(),
    )


def measured(
    case: Case, net: js.Network, seen: Images, data: Images, seed: int, settings: RoundingSettings
) -> float:
    """Accuracy of a case, from the cache where an earlier run has measured it."""
    told = repr((case.name, seed, settings.images, len(data.labels), len(seen.labels)))
    return ScoreCache(settings.cache / "rounding.json").get(
        told, lambda: accuracy(case.chip(net, seen.images[: settings.images], seed), data)
    )
