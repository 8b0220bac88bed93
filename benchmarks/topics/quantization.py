"""What does each way of storing numbers cost in accuracy, and what does training win back?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax.tree_util import Partial
from scipy import stats

import jaxsim as js
from benchmarks.common.chips import accuracy, retrained
from benchmarks.common.record import Table, record
from benchmarks.common.settings import CACHE, Timed, Trained
from benchmarks.common.spread import mean_and_error
from jaxsim.checkpoint.log import ScoreCache
from jaxsim.cli.demo import Demo
from jaxsim.console.timing import alternate
from jaxsim.data import Images, fashion_mnist
from jaxsim.evaluate.comparison import classify
from jaxsim.formats.grid import Clip, Range
from jaxsim.models.resnet import ResNet
from jaxsim.train.losses import distillation, distillation_targets
from jaxsim.train.reference import CALL, trained

SHORT = ("--only qwix --seeds 1",)

PARTS = ("formats", "clipping", "training", "mixed", "qwix", "timing")
CALIBRATION = 256  # training images that set the ranges


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizationSettings(Timed, Trained):
    """Settings of the run."""

    only: Literal["all", "formats", "clipping", "training", "mixed", "qwix", "timing"] = "all"
    """Which part to measure."""
    seeds: int = 3
    """Networks trained from scratch; eight for mixed precision."""
    epochs: int = 2
    """Epochs of quantization-aware training."""
    runs: int = 9
    """Alternated steps of each kind in the part of times."""
    cache: Annotated[Path, tyro.conf.arg(help="folder of trained weights and finished parts")] = (
        CACHE
    )


def main(args: list[str]) -> None:
    """Measures the parts asked for; what was finished before is not measured again."""
    settings = QuantizationSettings.read(args)
    for part in PARTS if settings.only == "all" else (settings.only,):
        MEASURES[part](settings)


FORMATS: dict[str, tuple[Any, Any]] = {
    "int8": (8, 8),
    "int8, inputs affine": (8, js.Grid(8, symmetric=False)),
    "int8, inputs affine, per image": (8, js.Grid(8, symmetric=False, per="token")),
    "fp8 e4m3": (js.Floating(), js.Floating()),
    "fp8 e5m2": (js.Floating("float8_e5m2"), js.Floating("float8_e5m2")),
    "4 bits a tensor": (js.Grid(4), 8),
    "4 bits a channel": (4, 8),
    "4 bits a channel, least squares": (
        js.Grid(4, per="channel", clip=js.clipping.least_squares()),
        8,
    ),
    "4 bits a group of 32": (js.Grid(4, per="group", rows=32), 8),
    "4 bits, stochastic": (js.Grid(4, per="channel", rounding="stochastic"), 8),
    "nf4 a channel": (js.nf4(), 8),
    "nf4 a group of 32": (js.nf4(per="group", rows=32), 8),
    "fp4 a channel": (js.fp4(), 8),
    "4 bits, k-means": (js.Codebook(size=16), 8),
    "4 bits, powers of two": (js.Grid(4, per="channel", spacing="powers"), 8),
    "3 bits a channel, least squares": (
        js.Grid(3, per="channel", clip=js.clipping.least_squares()),
        8,
    ),
    "3 bits, k-means": (js.Codebook(size=8), 8),
    "2 bits, product: 256 vectors of 4": (js.Codebook(size=256, length=4), 8),
    "ternary, least squares": (js.Grid(2, per="channel", clip=js.clipping.least_squares()), 8),
    "binary": (js.Grid(1, per="channel"), 8),
}


def formats(settings: QuantizationSettings) -> None:
    """Accuracy after training, by format."""
    scores: dict[str, list[float]] = {"float": []}
    bits: dict[str, float] = {}
    train, test = _data()
    for seed in range(settings.seeds):
        net = _net(train, seed, settings)
        scores["float"].append(accuracy(net, test))
        for name, (weights, inputs) in FORMATS.items():
            chip = js.quantize(weights, inputs)(net)
            deployed = js.deploy(
                chip, calibrate=train.images[:CALIBRATION], key=jax.random.key(seed)
            )
            scores.setdefault(name, []).append(accuracy(deployed, test))
            if seed == 0:
                sites = chip.cost(test.images[:1]).sites
                stored = sum(row.spent["weight_bits"] for row in sites)
                bits[name] = stored / sum(row.params for row in sites)
    rows = []
    for name, found in scores.items():
        lost = 100 * (np.asarray(found) - scores["float"])
        width = f"{bits[name]:.2f}" if name in bits else "32"
        rows.append([name, width, mean_and_error(100 * np.asarray(found)), mean_and_error(lost)])
    record(
        "quantization_formats",
        Table(["weights", "bits a weight", "accuracy, %", "difference to float, points"], rows),
        question="What does each format cost after training, with nothing trained on?",
        baseline="the same network in float32",
        notes=f"{_protocol(settings.seeds)} Inputs of each site are 8-bit codes unless the name "
        "says otherwise. Bits a weight count indices and tables, not scales.",
        settings={"seeds": settings.seeds},
    )


RULES: dict[str, Clip | None] = {
    "all": None,
    "99.9 %": js.clipping.percentile(99.9),
    "99 %": js.clipping.percentile(99.0),
    "4 root mean squares": js.clipping.rms(4.0),
    "least squares": js.clipping.least_squares(),
    "entropy": js.clipping.entropy(),
}


def clipping(settings: QuantizationSettings) -> None:
    """Accuracy by rule of the input ranges, at 8 and 4 bits."""
    train, test = _data()
    scores: dict[tuple[str, int], list[float]] = {}
    for seed in range(settings.seeds):
        net = _net(train, seed, settings)
        base = accuracy(net, test)
        for bits in (8, 4):
            for name, clip in RULES.items():
                chip = js.quantize(8, js.Grid(bits, symmetric=False, clip=clip))(net)
                chip = js.deploy(chip, calibrate=train.images[:CALIBRATION])
                scores.setdefault((name, bits), []).append(accuracy(chip, test) - base)
    rows = [
        [name, *(mean_and_error(100 * np.asarray(scores[name, bits])) for bits in (8, 4))]
        for name in RULES
    ]
    record(
        "quantization_clipping",
        Table(["range of the inputs", "8 bits, points", "4 bits, points"], rows),
        question="What does each rule of clipping cost?",
        baseline="the same network in float32",
        notes=f"{_protocol(settings.seeds)} 8-bit weights, one scale a channel; inputs on affine "
        "grids.",
        settings={"seeds": settings.seeds},
    )


def training(settings: QuantizationSettings) -> None:
    """Accuracy of 3-bit networks trained through their rounding."""
    train, test = _data()
    unsigned = js.Grid(3, symmetric=False)
    three = js.quantize(js.Grid(3, per="channel", clip=js.clipping.least_squares()), unsigned)
    batch = train.images[:CALIBRATION]
    pact = js.learn_ranges(batch, activations=lambda lo, hi: js.clipping.pact(hi))
    ways: dict[str, Callable[[js.Network], js.Network]] = {
        "straight through": three,
        "learned ranges (LSQ)": lambda net: js.learn_ranges(batch)(three(net)),
        "LSQ weights, PACT inputs": lambda net: pact(three(net)),
    }
    log = ScoreCache(settings.cache / "quantization.json")

    def kept(name: str, measure: Callable[[], float]) -> float:
        return log.get(f"{name}, {settings.epochs} epochs", measure)

    again = partial(retrained, epochs=settings.epochs, quiet=True)
    scores: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        scores.setdefault(name, []).append(100 * value)

    for seed in range(settings.seeds):
        net = _net(train, seed, settings)
        base = kept(f"float-{seed}", lambda net=net: accuracy(net, test))
        note("float", base)

        def longer(net: js.Network = net, seed: int = seed) -> float:
            return accuracy(again(net, train, seed=seed), test)

        note("float, trained on as long", kept(f"longer-{seed}", longer))

        def after(net: js.Network = net) -> float:
            return accuracy(js.deploy(three(net), calibrate=batch), test)

        note("3 bits, after training", kept(f"after-{seed}", after))
        for name, way in ways.items():

            def aware(
                net: js.Network = net, seed: int = seed, way: Callable[..., Any] = way
            ) -> float:
                tuned = again(way(net), train, seed=seed)
                return accuracy(js.deploy(tuned, calibrate=batch), test)

            note(f"3 bits, {name}", kept(f"{name}-{seed}", aware))

        def distilled(net: js.Network = net, seed: int = seed) -> float:
            logits = np.concatenate(
                [np.asarray(jax.jit(net)(part)) for part in np.split(train.images, 60)]
            )
            labels = distillation_targets(logits, train.labels)
            way = js.learn_ranges(batch)(three(net))
            tuned = again(way, train._replace(labels=labels), seed=seed, loss=distillation())
            return accuracy(js.deploy(tuned, calibrate=batch), test)

        note("3 bits, LSQ, distilled from float", kept(f"distilled-{seed}", distilled))
    base = np.asarray(scores["float"])
    rows = [
        [name, mean_and_error(np.asarray(v)), mean_and_error(np.asarray(v) - base)]
        for name, v in scores.items()
    ]
    record(
        "quantization_training",
        Table(["network", "accuracy, %", "difference to float, points"], rows),
        question="What does training through 3-bit weights and inputs win back?",
        baseline="the float network it begins from",
        notes=f"{_protocol(settings.seeds)} All sites have 3-bit weights and 3-bit affine inputs, "
        f"the first and last included. {settings.epochs} epochs of AdamW, cosine from 1e-3.",
        settings={"seeds": settings.seeds, "epochs": settings.epochs},
    )


def mixed(settings: QuantizationSettings) -> None:
    """Mixed precision beside uniform bits at the same size."""
    train, test = _data()
    batch = train.images[:CALIBRATION], train.labels[:CALIBRATION]
    scores: dict[tuple[float, str], list[float]] = {}
    chosen: dict[tuple[float, str], list[str]] = {}
    seeds = max(settings.seeds, 8)
    grid = partial(js.Grid, per="channel", clip=js.clipping.least_squares())

    def loss(net: js.Network) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(net(batch[0]), batch[1]).mean()

    for seed in range(seeds):
        net = _net(train, seed, settings)
        judged = {
            "Hessian": js.hessian_sensitivity(net, loss, key=jax.random.key(seed), samples=8),
            "ablation": js.ablation_sensitivity(net, loss),
        }
        for mean in (3, 4):
            transforms = {"uniform": js.quantize(grid(mean), 8)}
            for name, sensitivity in judged.items():
                found = js.assign_bits(sensitivity, mean_bits=mean)
                transforms[name] = js.rules(
                    {site: js.quantize(grid(bits), 8) for site, bits in found.bits.items()}
                )
                chosen.setdefault((mean, name), []).append(
                    "".join(str(b) for b in found.bits.values())
                )
            for name, transform in transforms.items():
                chip = js.deploy(transform(net), calibrate=batch[0])
                scores.setdefault((mean, name), []).append(100 * accuracy(chip, test))
    rows = []
    for mean in (3, 4):
        uniform = np.asarray(scores[mean, "uniform"])
        rows.append([mean, "uniform", "", mean_and_error(uniform), "", ""])
        for name in ("Hessian", "ablation"):
            values = np.asarray(scores[mean, name])
            p = min(1.0, 4 * float(stats.ttest_rel(values, uniform).pvalue))
            rows.append(
                [
                    mean,
                    name,
                    chosen[mean, name][0],
                    mean_and_error(values),
                    mean_and_error(values - uniform),
                    f"{p:.3f}",
                ]
            )
    record(
        "quantization_mixed",
        Table(["mean bits", "chosen by", "bits by site", "accuracy, %", "gain, points", "p"], rows),
        question="Does mixed precision beat uniform bits of the same size?",
        baseline="the same bits for every site",
        notes=f"{_protocol(seeds)} Weights alone are mixed, from 2, 3, 4, 6 and 8 bits; inputs "
        "have 8; every range of weights is the one of least squared error. Sensitivities come "
        "from the images that set the input ranges. p: paired t test over the networks, times four "
        "(Bonferroni). Bits by site are those of the first network.",
        settings={"seeds": seeds},
    )


def qwix(settings: QuantizationSettings) -> None:
    """Answers of ours and of qwix's int8 network."""
    import qwix

    train, test = _data()
    model = ResNet(stages=(1, 1, 1), features=16, stem_stride=2)
    rows = []
    for seed in range(settings.seeds):
        net = _net(train, seed, settings)
        rules = [qwix.QuantizationRule(module_path=".*", weight_qtype=jnp.int8, act_qtype=jnp.int8)]
        ptq = qwix.quantize_model(model, qwix.PtqProvider(rules))
        params = jax.tree.map(jnp.asarray, net.params)
        abstract = jax.eval_shape(ptq.init, jax.random.key(0), test.images[:1])["params"]
        variables = {**net.buffers, "params": qwix.quantize_params(params, abstract)}
        theirs = np.concatenate(
            [
                np.argmax(jax.jit(ptq.apply)(variables, part), -1)
                for part in np.split(test.images, 10)
            ]
        )
        chip = js.deploy(js.quantize()(net), calibrate=train.images[:CALIBRATION])
        ours = classify(chip, test.images)
        exact = classify(net, test.images)
        their_range = Partial(_to_the_middle_of_the_last_code)
        on_theirs = js.quantize(
            js.Grid(8, per="channel", clip=their_range), js.Grid(8, per="token", clip=their_range)
        )
        same = classify(on_theirs(net), test.images)
        pairs = ((ours, theirs), (same, theirs), (ours, exact), (theirs, exact))
        shares = [np.mean(a == b) for a, b in pairs]
        rows.append([seed, *(f"{100 * share:.2f}" for share in shares)])
    record(
        "quantization_qwix",
        Table(
            [
                *("network", "ours and qwix, %", "ours on its grids and qwix, %"),
                *("ours and float, %", "qwix and float, %"),
            ],
            rows,
        ),
        question="Does int8 answer as qwix's does?",
        baseline="qwix's PTQ of the same model, whose input ranges are each batch's",
        notes="Share of the 10000 test images of Fashion-MNIST classified alike. qwix takes a "
        "range for each image and divides the largest magnitude by 127.5 before it clips to 127; "
        "ours stores one range and divides by 127. *On its grids* does as qwix does.",
        settings={"seeds": settings.seeds},
    )


def timing(settings: QuantizationSettings) -> None:
    """A training step through the rounding beside a float step."""
    train, _ = _data()
    model = ResNet(stages=(1, 1, 1), features=16, stem_stride=2)
    x, y = train.images[:128], train.labels[:128]
    net = js.trace(model, jax.jit(model.init)(jax.random.key(0), x[:1]), x[:1])
    optimizer = optax.adamw(1e-3)
    eight = js.quantize()(net)
    three = js.quantize(3, js.Grid(3, symmetric=False))(net)
    nets = {
        "float": net,
        "int8": eight,
        "3 bits, affine inputs": three,
        "3 bits, learned ranges": js.learn_ranges(x)(three),
        "4 bits, k-means table": js.quantize(js.Codebook(size=16), 8)(net),
    }

    def step(net: js.Network) -> Callable[[], Any]:
        state = optimizer.init(net.params)

        def loss(params: Any) -> Any:
            whole = dataclasses.replace(net, params=params)
            logits, updates = whole(x, **CALL)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), updates

        @jax.jit
        def once(params: Any, state: Any) -> Any:
            (_, updates), grads = jax.value_and_grad(loss, has_aux=True)(params)
            changes, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, changes), state, updates

        return partial(once, net.params, state)

    times = alternate({name: step(n) for name, n in nets.items()}, runs=settings.runs)
    base = times["float"].median
    record(
        "quantization_timing",
        Table(
            ["network", "ms a step", "against float", "first call, s"],
            [
                [name, f"{1e3 * t.median:.1f}", f"{t.median / base:.2f}", f"{t.first:.1f}"]
                for name, t in times.items()
            ],
        ),
        question="What does a training step through rounding take?",
        baseline="the same step in float32",
        notes="The demo's ResNet, a batch of 128, AdamW.",
        settings={"runs": settings.runs},
    )


def _to_the_middle_of_the_last_code(rows: jax.Array, *, bits: int, symmetric: bool) -> Range:
    """Qwix's symmetric range: the largest magnitude is half a step beyond the last code."""
    last = 2 ** (bits - 1) - 1
    hi = jnp.max(jnp.abs(rows), -1) * last / (last + 0.5)
    return Range(-hi, hi)


MEASURES: dict[str, Callable[[QuantizationSettings], None]] = {
    "formats": formats,
    "clipping": clipping,
    "training": training,
    "mixed": mixed,
    "qwix": qwix,
    "timing": timing,
}


def _data() -> tuple[Images, Images]:
    return fashion_mnist("train"), fashion_mnist("test")


def _net(train: Images, seed: int, settings: QuantizationSettings) -> js.Network:
    """A trained network of the demo."""
    return trained(train, epochs=Demo.epochs, seed=seed, cache=settings.cache)[0]


def _protocol(seeds: int) -> str:
    return (
        f"Fashion-MNIST test set (10000 images), {seeds} networks trained from scratch, mean ± "
        f"standard error over them. Ranges come from {CALIBRATION} training images; nothing was "
        "chosen on the test set."
    )
