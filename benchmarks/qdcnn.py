"""What does a quantum dilated convolution cost to simulate, and what does it classify?"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pennylane as qml
import tyro
from jax import lax

import jaxsim.quantum as jq
from benchmarks.graphs import ROOT
from benchmarks.record import IMAGES, Table, record
from jaxsim.checkpoint.log import Log
from jaxsim.cli.demo import Demo
from jaxsim.collaborative.statistics import holm, paired_test
from jaxsim.console.timing import alternate
from jaxsim.data import fashion_mnist
from jaxsim.models.quanv import QDCNN, QuanvConv

DATA = Path(os.environ.get("JAXSIM_DATA", ROOT.parent / "shared" / "data")) / "quantum_coconet"
TRAIN, VALID, TEST = 1000, 500, 2000
DECAY = np.geomspace(1e-4, 1, 5)
"""Weight decay of the linear classifier; validation images choose."""
RATES = (1e-3, 3e-3, 1e-2)
"""Learning rates of trained filters; validation images choose."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of the run."""

    only: Literal["all", "timing", "accuracy"] = "all"
    """Which part."""
    runs: int = 11
    """Rounds of each timing."""
    first: int = 100
    """The first seed; those below it served to try out the benchmark."""
    seeds: int = 20
    """How many, each with training images and circuits of its own."""
    trained_seeds: int = 20
    """For how many of them filters are trained too."""
    sets: tuple[str, ...] = ("MNIST-10k", "Fashion-MNIST")
    """Images to classify."""
    log: Path = Demo.cache / "qdcnn.json"
    """Accuracies found so far: a stopped run goes on."""


def main(args: list[str]) -> None:
    """Measures."""
    settings = tyro.cli(Settings, args=args)
    if settings.only != "accuracy":
        timing(settings)
    if settings.only != "timing":
        if not DATA.exists():
            print(f"no accuracy part: {DATA} is absent")
        else:
            accuracy(settings)


def timing(settings: Settings) -> None:
    """Speed beside PennyLane."""
    images = jnp.asarray(fashion_mnist("test").images[:256, :, :, 0])
    record(
        "qdcnn",
        *layer_times(settings, images),
        loop_times(images),
        training_times(settings, images),
        noise_times(images),
        question="What does a quantum dilated convolution cost to simulate?",
        baseline=f"default.qubit of PennyLane {qml.version()} under jax.jit(vmap) over the same "
        "windows, in turn in one process",
        notes="256 Fashion-MNIST images, 4 wires, stride 1, dilation 2: 676 circuits an image, "
        "windows cut in the call. Ratio of medians. Differences are the largest of any output.",
        settings={"runs": settings.runs},
    )


def pennylane_layer(qfunc: Callable[..., Any], spec: jq.QuanvSpec) -> Callable[..., Any]:
    """The peer: windows by slices, then one vmapped QNode; arguments of `qfunc` come last."""
    d, s = np.broadcast_to(spec.dilation, 2)[0], np.broadcast_to(spec.stride, 2)[0]

    @qml.qnode(qml.device("default.qubit", wires=4), interface="jax")
    def node(angles: Any, *params: Any) -> Any:
        for q in range(4):
            qml.RY(angles[q], wires=q)
        qfunc(*params)
        return [qml.expval(qml.PauliZ(q)) for q in range(4)]

    def layer(x: Any, *params: Any) -> Any:
        rows, columns = jq.out_shape(x.shape[1:], spec)
        taps = [
            x[:, i * d : i * d + (rows - 1) * s + 1 : s, j * d : j * d + (columns - 1) * s + 1 : s]
            for i in (0, 1)
            for j in (0, 1)
        ]
        angles = jnp.pi * jnp.stack(taps, -1).reshape(-1, 4)
        out = jax.vmap(lambda a: jnp.stack(node(a, *params)))(angles)
        return out.reshape(len(x), rows, columns, 4)

    return jax.jit(layer)


def random_circuit(depth: int, wires: int = 4, seed: int = 0) -> Callable[[], Any]:
    """PennyLane's random layers."""
    weights = np.random.default_rng([seed, depth, wires]).uniform(0, 2 * np.pi, (depth, wires))
    return lambda: qml.RandomLayers(weights, wires=range(wires), seed=42 + seed)


def layer_times(settings: Settings, images: jax.Array) -> list[Table]:
    """One layer at three depths, every kernel beside the peer."""
    spec, rows = jq.QuanvSpec(dilation=2), []
    count = len(images) * jq.n_circuits((28, 28), spec)
    for depth in (1, 4, 16):
        qfunc = random_circuit(depth)
        auto = jq.compile_circuit(qfunc, 4)
        alternatives: dict[str, Callable[[], Any]] = {
            "PennyLane jit(vmap)": partial(pennylane_layer(qfunc, spec), images)
        }
        for method in ("gemm", "pauli", "sparse"):
            kernel = jq.compile_circuit(qfunc, 4, method=method)
            name = method + (", chosen" if method == auto.method else "")
            alternatives[name] = partial(
                jax.jit(partial(jq.quanv2d, kernel=kernel, spec=spec)), images
            )
        expected = alternatives["PennyLane jit(vmap)"]()
        times = alternate(alternatives, runs=settings.runs)
        base = times["PennyLane jit(vmap)"].median
        for name, t in times.items():
            off = float(jnp.abs(alternatives[name]() - expected).max())
            rows.append(
                [
                    depth,
                    auto.nnz,
                    name,
                    f"{1e3 * t.median:.1f}",
                    f"{count / t.median:.2g}",
                    f"{base / t.median:.1f}",
                    f"{t.first:.2f}",
                    f"{off:.1e}",
                ]
            )
    columns = [
        "depth L",
        "terms of 324",
        "kernel",
        "ms",
        "circuits/s",
        "ratio",
        "first s",
        "off by",
    ]
    return [Table(columns, rows, "One layer, RandomLayers")]


def loop_times(images: jax.Array) -> Table:
    """PennyLane a window at a time, as the demonstrations have it."""
    qfunc, spec = random_circuit(1), jq.QuanvSpec(stride=2)
    x = images[:1]
    reference = jq.qnode_reference(qfunc, spec)
    kernel = jq.compile_circuit(qfunc, 4)
    layer = jax.jit(partial(jq.quanv2d, kernel=kernel, spec=spec))
    times = alternate(
        {"default.qubit, a window a call": lambda: reference(x), "jaxsim": lambda: layer(images)},
        runs=5,
    )
    loop, ours = times.values()
    rates = [196 / loop.median, 196 * len(images) / ours.median]
    names = list(times)
    rows = [[n, f"{r:.3g}", f"{r / rates[0]:.3g}"] for n, r in zip(names, rates, strict=True)]
    return Table(["path", "circuits/s", "ratio"], rows, "Stride 2, depth 1, against the loop")


def training_times(settings: Settings, images: jax.Array) -> Table:
    """A gradient of 24 angles."""
    weights = jnp.asarray(np.random.default_rng(0).uniform(0, 2 * np.pi, (2, 4, 3)), jnp.float32)
    spec = jq.QuanvSpec(dilation=2)
    theirs = pennylane_layer(lambda w: qml.StronglyEntanglingLayers(w, wires=range(4)), spec)

    def ours(x: Any, weights: Any, method: Any) -> Any:
        kernel = jq.compile_circuit(jq.strongly_entangling(weights), method=method)
        return jq.quanv2d(x, kernel, spec)

    def gradient(layer: Callable[..., Any]) -> Callable[..., Any]:
        step = jax.jit(jax.grad(lambda w, x: jnp.mean(layer(x, w) ** 2)))
        return partial(step, weights, images)

    alternatives = {
        "PennyLane jit, backpropagation": gradient(theirs),
        "gemm, chosen": gradient(partial(ours, method="auto")),
        "pauli": gradient(partial(ours, method="pauli")),
    }
    expected = alternatives["PennyLane jit, backpropagation"]()
    times = alternate(alternatives, runs=settings.runs)
    base = times["PennyLane jit, backpropagation"].median
    rows = [
        [
            name,
            f"{1e3 * t.median:.1f}",
            f"{base / t.median:.1f}",
            f"{t.first:.2f}",
            f"{float(jnp.abs(alternatives[name]() - expected).max()):.1e}",
        ]
        for name, t in times.items()
    ]
    columns = ["path", "ms", "ratio", "first s", "off by"]
    return Table(columns, rows, "Gradient of 24 angles, StronglyEntanglingLayers L = 2")


def noise_times(images: jax.Array) -> Table:
    """Depolarising noise behind every gate, beside a density matrix."""
    qfunc, spec = random_circuit(1), jq.QuanvSpec(dilation=2)
    gates = jq.read_qfunc(qfunc, 4).gates

    @qml.qnode(qml.device("default.mixed", wires=4), interface=None)
    def node(angles: Any) -> Any:
        for q in range(4):
            qml.RY(angles[q], wires=q)
        for gate in gates:
            qml.QubitUnitary(gate.matrix, wires=gate.wires)
            for wire in gate.wires:
                qml.DepolarizingChannel(0.01, wires=wire)
        return [qml.expval(qml.PauliZ(q)) for q in range(4)]

    angles = np.random.default_rng(0).uniform(0, np.pi, (20, 4))
    layers = {
        name: jax.jit(
            partial(jq.quanv2d, kernel=jq.compile_circuit(qfunc, 4, noise=noise), spec=spec)
        )
        for name, noise in {"jaxsim, noise": jq.depolarizing(0.01), "jaxsim, none": None}.items()
    }
    times = alternate(
        {
            "default.mixed": lambda: [node(a) for a in angles],
            **{name: partial(layer, images) for name, layer in layers.items()},
        },
        runs=5,
    )
    count = len(images) * jq.n_circuits((28, 28), spec)
    rows = [
        [name, f"{(20 if name == 'default.mixed' else count) / t.median:.3g}"]
        for name, t in times.items()
    ]
    return Table(["path", "circuits/s"], rows, "Depolarising noise behind every gate, depth 1")


class Split(NamedTuple):
    """Images [N, 28, 28, 1] in [0, 1] and labels."""

    images: np.ndarray
    labels: np.ndarray


class Problem(NamedTuple):
    """Images to learn from, to choose by and to report."""

    train: Split
    valid: Split
    test: Split


def problem(name: str, seed: int) -> Problem:
    """Training images of a seed; the images that are reported are the same for every seed."""
    if name == "Fashion-MNIST":
        pool, test = fashion_mnist("train"), fashion_mnist("test")
        images, labels = pool.images, pool.labels
        held = Split(test.images[:TEST], test.labels[:TEST])
    else:
        with np.load(DATA / "mnist10k_npm.npz", allow_pickle=False) as file:
            images, labels = file["images"][..., None] / np.float32(255), file["labels"]
        order = np.random.default_rng(0).permutation(len(labels))
        images, labels = images[order], labels[order]
        held = Split(images[:TEST], labels[:TEST])
        images, labels = images[TEST:], labels[TEST:]
    rows = np.random.default_rng([seed, 1]).permutation(len(labels))[: TRAIN + VALID]
    train, valid = rows[:TRAIN], rows[TRAIN:]
    return Problem(Split(images[train], labels[train]), Split(images[valid], labels[valid]), held)


Features = Callable[[np.ndarray], np.ndarray]


def quantum_features(seed: int, spec: jq.QuanvSpec) -> Features:
    """A fixed circuit, drawn anew for each seed."""
    wires = int(np.prod(np.broadcast_to(spec.kernel_size, 2)))
    kernel = jq.compile_circuit(random_circuit(1, wires, seed), wires)
    layer = jax.jit(partial(jq.quanv2d, kernel=kernel, spec=spec))
    return lambda x: _batched(layer, x)


def classical_features(seed: int, spec: jq.QuanvSpec) -> Features:
    """A random convolution of the same taps and as many filters, and tanh."""
    side = np.broadcast_to(spec.kernel_size, 2).tolist()
    taps = side[0] * side[1]
    rng = np.random.default_rng([seed, 2])
    kernel = jnp.asarray(rng.normal(size=(*side, 1, taps)) * np.sqrt(2 / taps), jnp.float32)
    bias = jnp.asarray(rng.normal(size=taps) * 0.1, jnp.float32)

    @jax.jit
    def layer(x: Any) -> Any:
        y = lax.conv_general_dilated(
            x,
            kernel,
            np.broadcast_to(spec.stride, 2).tolist(),
            "VALID",
            rhs_dilation=np.broadcast_to(spec.dilation, 2).tolist(),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return jnp.tanh(y + bias)

    return lambda x: _batched(layer, x)


def _batched(layer: Callable[..., Any], x: np.ndarray) -> np.ndarray:
    return np.concatenate(
        [
            np.asarray(layer(x[i : i + 500])).reshape(len(x[i : i + 500]), -1)
            for i in range(0, len(x), 500)
        ]
    )


def methods() -> dict[str, Callable[[int], Features]]:
    """Every fixed set of features, by name: a function of the seed."""
    out: dict[str, Callable[[int], Features]] = {
        "raw pixels": lambda seed: lambda x: x.reshape(len(x), -1),
        "cos(π pixel)": lambda seed: lambda x: np.cos(np.pi * x.reshape(len(x), -1)),
    }
    for s, d in ((1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2)):
        spec = jq.QuanvSpec(stride=s, dilation=d)
        out[f"quanvolution s{s} d{d}"] = partial(quantum_features, spec=spec)
    for s, d in ((1, 1), (1, 2), (2, 1), (2, 2)):
        spec = jq.QuanvSpec(stride=s, dilation=d)
        out[f"random conv s{s} d{d}"] = partial(classical_features, spec=spec)
    out["quanvolution 3×3, 9 wires"] = partial(quantum_features, spec=jq.QuanvSpec(3))
    out["random conv 3×3, 9 filters"] = partial(classical_features, spec=jq.QuanvSpec(3))
    return out


def linear_accuracy(features: Features, data: Problem) -> float:
    """Test accuracy of a softmax classifier, its decay chosen on validation images.

    In the eigenbasis of the training images' Gram matrix the curvature bound of Böhning (1992) is
    diagonal, so that every decay is solved to convergence at once.
    """
    train, valid, test = (features(split.images).astype(np.float32) for split in data)
    centre = train.mean(0)
    scale = np.sqrt(((train - centre) ** 2).sum(1).mean())
    train, valid, test = ((x - centre) / scale for x in (train, valid, test))
    values, vectors = np.linalg.eigh(train @ train.T)
    kept = values > 1e-6 * values[-1]
    values, vectors = values[kept], vectors[:, kept]
    # padded, so that every set of features shares one compilation
    inputs, curvature = np.zeros((TRAIN, TRAIN), np.float32), np.zeros(TRAIN, np.float32)
    inputs[:, : len(values)], curvature[: len(values)] = vectors * np.sqrt(values), values
    back = train.T @ (vectors / np.sqrt(values))
    weights, bias = map(np.asarray, _solved(inputs, data.train.labels, curvature))

    def scores(x: np.ndarray, labels: np.ndarray) -> np.ndarray:
        logits = np.einsum("nf,efc->enc", x @ back, weights[:, : len(values)], optimize=True)
        return ((logits + bias[:, None]).argmax(-1) == labels).mean(1)

    chosen = int(np.argmax(scores(valid, data.valid.labels)))
    return float(scores(test, data.test.labels)[chosen])


@jax.jit
def _solved(x: jax.Array, labels: jax.Array, values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Softmax regression for each decay: weights [E, F, 10] and bias [E, 10]."""
    N, decay = len(x), jnp.asarray(DECAY, jnp.float32)[:, None, None]
    target = jax.nn.one_hot(labels, 10)
    curvature = 0.5 * values[None, :, None] / N + decay / N

    def step(carry: Any, _: Any) -> Any:
        w, b, w_old, b_old, t = carry
        t_new = (1 + jnp.sqrt(1 + 4 * t**2)) / 2
        v, c = (a + (t - 1) / t_new * (a - old) for a, old in ((w, w_old), (b, b_old)))
        logits = jnp.einsum("nf,efc->enc", x, v) + c[:, None]
        error = (jax.nn.softmax(logits) - target) / N
        grad = jnp.einsum("nf,enc->efc", x, error) + decay / N * v
        return (v - grad / curvature, c - 2 * error.sum(1), w, b, t_new), None

    w, b = jnp.zeros((len(DECAY), x.shape[1], 10)), jnp.zeros((len(DECAY), 10))
    (w, b, *_), _ = lax.scan(step, (w, b, w, b, jnp.float32(1)), length=150)
    return w, b


def trained_accuracy(kind: str, dilation: int, seed: int, data: Problem) -> float:
    """Test accuracy of a trained filter and classifier, the rate chosen on validation images."""
    tried: list[tuple[float, float]] = []
    model = _model(kind, dilation)
    step, evaluate = _steps(kind, dilation)
    for rate in RATES:
        variables = model.init(jax.random.key(seed), jnp.asarray(data.train.images[:1]))
        params = variables["params"]
        state = optax.adam(1.0).init(params)
        rng = np.random.default_rng([seed, 3])
        for _ in range(12):
            order = rng.permutation(TRAIN)
            for rows in order.reshape(-1, 100):
                params, state = step(
                    params, state, data.train.images[rows], data.train.labels[rows], rate
                )
        classify = partial(evaluate, params)
        valid, test = (
            float(np.mean(_batched(classify, split.images).argmax(1) == split.labels))
            for split in (data.valid, data.test)
        )
        tried.append((valid, test))
    return max(tried, key=lambda pair: pair[0])[1]


def _model(kind: str, dilation: int) -> Any:
    from flax import linen as nn

    if kind == "quantum":
        return QDCNN(10, QuanvConv(dilation=dilation, layers=2))
    return nn.Sequential(
        [
            nn.Conv(4, (2, 2), padding="VALID", kernel_dilation=dilation),
            jnp.tanh,
            lambda x: x.reshape(len(x), -1),
            nn.Dense(10),
        ]
    )


_STEPS: dict[tuple[str, int], Any] = {}


def _steps(kind: str, dilation: int) -> Any:
    """A training step and an evaluation, compiled once for all seeds and rates."""
    if (kind, dilation) not in _STEPS:
        model, optimizer = _model(kind, dilation), optax.adam(1.0)

        def step(params: Any, state: Any, x: Any, y: Any, rate: Any) -> Any:
            def loss(params: Any) -> Any:
                logits = model.apply({"params": params}, x)
                return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

            changes, state = optimizer.update(jax.grad(loss)(params), state)
            return optax.apply_updates(params, jax.tree.map(lambda c: rate * c, changes)), state

        _STEPS[kind, dilation] = (
            jax.jit(step),
            jax.jit(lambda params, x: model.apply({"params": params}, x)),
        )
    return _STEPS[kind, dilation]


TRAINED = {f"trained {kind} d{d}": (kind, d) for kind in ("quantum", "conv") for d in (1, 2)}
COMPARISONS = (
    ("quanvolution s1 d2", "quanvolution s1 d1"),
    ("quanvolution s2 d2", "quanvolution s2 d1"),
    ("quanvolution s1 d1", "raw pixels"),
    ("quanvolution s1 d2", "raw pixels"),
    ("quanvolution s1 d2", "random conv s1 d2"),
    ("quanvolution s1 d2", "quanvolution 3×3, 9 wires"),
    ("quanvolution 3×3, 9 wires", "random conv 3×3, 9 filters"),
    ("trained quantum d2", "trained quantum d1"),
    ("trained quantum d2", "trained conv d2"),
    ("trained quantum d2", "quanvolution s1 d2"),
)
"""Fixed before anything was run; all of them, on both sets, are corrected together."""


def accuracy(settings: Settings) -> None:
    """Accuracy over seeds, and every comparison that was planned."""
    log, sets = Log(settings.log), settings.sets
    found: dict[tuple[str, str], list[float]] = {}
    for seed in range(settings.first, settings.first + settings.seeds):
        trained = TRAINED if seed - settings.first < settings.trained_seeds else {}
        for name in sets:
            data = problem(name, seed)
            for method, make in methods().items():
                score = log.get(
                    f"{name}, {method}, {seed}",
                    lambda make=make, data=data, seed=seed: linear_accuracy(make(seed), data),
                )
                found.setdefault((name, method), []).append(100 * score)
            for method, (kind, d) in trained.items():
                score = log.get(
                    f"{name}, {method}, {seed}",
                    lambda kind=kind, d=d, data=data, seed=seed: trained_accuracy(
                        kind, d, seed, data
                    ),
                )
                found.setdefault((name, method), []).append(100 * score)
    record(
        "qdcnn_accuracy",
        _scores(found, sets),
        comparisons(found, COMPARISONS, sets),
        question="What does a quantum dilated convolution classify, and what do classical features "
        "of the same number?",
        baseline="raw pixels, and random convolutions with tanh of the same taps and as many "
        "channels",
        notes=f"{TRAIN} training, {VALID} validation and {TEST} reported images; each of "
        f"{settings.seeds} seeds (trained filters: {settings.trained_seeds}), fixed before the "
        "run, has training images and circuits of its own. Reported images are the same for all "
        "seeds, so p values are about training images and circuits only. Fixed features: softmax "
        f"regression, weight decay one of {len(DECAY)}, chosen on validation images, the same "
        "for every row. Fixed circuits are RandomLayers of depth 1. Trained: StronglyEntangling, "
        "L = 2, or 2×2 filters, stride 1, 12 epochs of Adam, learning rate one of "
        f"{len(RATES)}, chosen alike. MNIST-10k is no official split. s: stride, d: dilation.",
        settings={name: getattr(settings, name) for name in ("first", "seeds", "trained_seeds")},
    )
    figure(found, sets)


def _scores(found: Mapping[tuple[str, str], list[float]], sets: tuple[str, ...]) -> Table:
    rows = []
    for method in dict.fromkeys(m for _, m in found):
        rows.append([method, *(mean_and_deviation(found[name, method]) for name in sets)])
    return Table(["features", *(f"{name}, %" for name in sets)], rows, "Accuracy, mean ± sd")


def mean_and_deviation(scores: list[float]) -> str:
    """Scores in percent as a cell."""
    return f"{np.mean(scores):.2f} ± {np.std(scores, ddof=1):.2f}"


def comparisons(
    found: Mapping[tuple[str, str], list[float]],
    pairs: tuple[tuple[str, str], ...],
    sets: tuple[str, ...],
) -> Table:
    """Paired differences, their p values corrected together."""
    tests = []
    for name in sets:
        for a, b in pairs:
            n = min(len(found[name, a]), len(found[name, b]))
            tests.append((name, a, b, paired_test(found[name, a][:n], found[name, b][:n])))
    corrected = holm([test.t_p for *_, test in tests])
    rows = [
        [
            name,
            f"{a} − {b}",
            f"{t.mean:+.2f} ± {t.half_width:.2f}",
            f"{t.t_p:.2g}",
            f"{p:.2g}",
            f"{t.wilcoxon_p:.2g}",
            f"{t.wins}/{t.n}",
            ("higher" if t.mean > 0 else "lower") if p < 0.05 else "not established",
        ]
        for (name, a, b, t), p in zip(tests, corrected, strict=True)
    ]
    columns = ["set", "difference", "points, 95 %", "t p", "Holm p", "Wilcoxon p", "wins", "at 5 %"]
    return Table(columns, rows, f"Paired over seeds; Holm over {len(tests)} comparisons")


def figure(found: Mapping[tuple[str, str], list[float]], sets: tuple[str, ...]) -> None:
    """Accuracy against dilation."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(10, 4), layout="constrained")
    for ax, name in zip(fig.subplots(1, len(sets), squeeze=False)[0], sets, strict=True):
        for label, prefix, ds in (
            ("quanvolution, fixed", "quanvolution s1 d", (1, 2, 3, 4)),
            ("random convolution, fixed", "random conv s1 d", (1, 2)),
            ("quanvolution, trained", "trained quantum d", (1, 2)),
            ("convolution, trained", "trained conv d", (1, 2)),
        ):
            scores = [np.array(found[name, f"{prefix}{d}"]) for d in ds]
            errors = [s.std(ddof=1) / np.sqrt(len(s)) for s in scores]
            ax.errorbar(ds, [s.mean() for s in scores], errors, marker="o", capsize=3, label=label)
        raw = np.mean(found[name, "raw pixels"])
        ax.axhline(raw, color="0.5", ls=":", label="raw pixels")
        ax.set(title=name, xlabel="dilation", ylabel="accuracy, %", xticks=(1, 2, 3, 4))
        ax.grid(alpha=0.3)
    ax.legend(frameon=False, fontsize=8)
    fig.savefig(IMAGES / "qdcnn.png", dpi=130)
