"""Filters trained with their classifier, quantum and classical."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.topics.qdcnn.fixed import in_batches
from benchmarks.topics.qdcnn.problems import TRAIN, Problem
from jaxsim.models.quanv import QDCNN, QuanvConv

RATES = (1e-3, 3e-3, 1e-2)
"""Learning rates of trained filters; validation images choose."""


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
            float(np.mean(in_batches(classify, split.images).argmax(1) == split.labels))
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
