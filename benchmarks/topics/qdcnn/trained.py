"""Filters trained with their classifier, quantum and classical."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from benchmarks.topics.qdcnn.fixed import in_batches
from benchmarks.topics.qdcnn.problems import TRAIN, Problem
from jaxsim.models.quanv import QDCNN, QuanvConv

RATES = (1e-3, 3e-3, 1e-2)
"""Learning rates of trained filters; validation images choose."""


def _convolution(filters: int, *, stride: int = 1, dilation: int = 1) -> Any:
    """A trained 2×2 convolution with tanh, and a classifier."""
    shape = {"strides": stride, "padding": "VALID", "kernel_dilation": dilation}
    return nn.Sequential(
        [
            nn.Conv(filters, (2, 2), **shape),
            jnp.tanh,
            lambda x: x.reshape(len(x), -1),
            nn.Dense(10),
        ]
    )


TRAINED: dict[str, Callable[[], Any]] = {
    **{
        f"trained quantum d{d}": lambda d=d: QDCNN(10, QuanvConv(dilation=d, layers=2))
        for d in (1, 2)
    },
    "trained quantum d2, encoded twice": lambda: QDCNN(10, QuanvConv(dilation=2, uploads=2)),
    **{f"trained conv d{d}": lambda d=d: _convolution(4, dilation=d) for d in (1, 2)},
    "trained conv s2, 14 filters": lambda: _convolution(14, stride=2),
}
"""Trained filters with their classifiers. With 14 filters at stride 2 there are as many parameters
as of a circuit at stride 1, to 2 %; a circuit that encodes twice has a layer behind each encoding,
so as many angles as one of two layers."""


def trained_accuracy(name: str, seed: int, data: Problem) -> float:
    """Test accuracy of a trained filter and classifier, the rate chosen on validation images."""
    tried: list[tuple[float, float]] = []
    model, step, evaluate = _steps(name)
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


@cache
def _steps(name: str) -> tuple[Any, Any, Any]:
    """A model, its training step and its evaluation, compiled once for all seeds and rates."""
    model, optimizer = TRAINED[name](), optax.adam(1.0)

    def step(params: Any, state: Any, x: Any, y: Any, rate: Any) -> Any:
        def loss(params: Any) -> Any:
            logits = model.apply({"params": params}, x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        changes, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, jax.tree.map(lambda c: rate * c, changes)), state

    return model, jax.jit(step), jax.jit(lambda params, x: model.apply({"params": params}, x))
