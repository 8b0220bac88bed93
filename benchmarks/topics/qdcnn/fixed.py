"""Fixed features, quantum and classical, and the linear classifier on top of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jaxsim.quantum as jq
from benchmarks.peers.pennylane_circuits import random_circuit
from benchmarks.topics.qdcnn.problems import TRAIN, Problem

DECAY = np.geomspace(1e-4, 1, 5)
"""Weight decay of the linear classifier; validation images choose."""
Features = Callable[[np.ndarray], np.ndarray]


def quantum_features(seed: int, spec: jq.QuanvSpec) -> Features:
    """A fixed circuit, drawn anew for each seed."""
    wires = int(np.prod(np.broadcast_to(spec.kernel_size, 2)))
    kernel = jq.compile_circuit(random_circuit(1, wires, seed), wires)
    layer = jax.jit(partial(jq.quanv2d, kernel=kernel, spec=spec))
    return lambda x: in_batches(layer, x)


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

    return lambda x: in_batches(layer, x)


def in_batches(layer: Callable[..., Any], x: np.ndarray) -> np.ndarray:
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
