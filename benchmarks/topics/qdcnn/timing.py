"""Speed of one quanvolution layer: kernels, gradients and noise, beside PennyLane."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxsim.quantum as jq
from benchmarks.common.record import Table, record
from benchmarks.peers.pennylane_circuits import (
    entangling_layers,
    noisy_circuit,
    pennylane_layer,
    random_circuit,
)
from benchmarks.topics.qdcnn.settings import QdcnnSettings
from jaxsim.console.timing import alternate
from jaxsim.data import fashion_mnist


def timing(settings: QdcnnSettings) -> None:
    """Speed beside PennyLane."""
    images = jnp.asarray(fashion_mnist("test").images[:256, :, :, 0])
    record(
        "qdcnn",
        *layer_times(settings, images),
        loop_times(images),
        training_times(settings, images),
        noise_times(images),
        question="What does a quantum dilated convolution cost to simulate?",
        baseline=f"default.qubit of PennyLane {version('pennylane')} under jax.jit(vmap) over the "
        "same windows, in turn in one process",
        notes="256 Fashion-MNIST images, 4 wires, stride 1, dilation 2: 676 circuits an image, "
        "windows cut in the call. Ratio of medians. Differences are the largest of any output.",
        settings={"runs": settings.runs},
    )


def layer_times(settings: QdcnnSettings, images: jax.Array) -> list[Table]:
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


def training_times(settings: QdcnnSettings, images: jax.Array) -> Table:
    """A gradient of 24 angles."""
    weights = jnp.asarray(np.random.default_rng(0).uniform(0, 2 * np.pi, (2, 4, 3)), jnp.float32)
    spec = jq.QuanvSpec(dilation=2)
    theirs = pennylane_layer(entangling_layers, spec)

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

    node = noisy_circuit(gates, 0.01)
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
