"""A small random BERT whose attention is not flat, and sequences for it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import jaxsim as js
from jaxsim.models.bert import Bert

MODEL = Bert(vocabulary=50, positions=40, width=16, heads=2, layers=3, hidden=32, classes=3)


@functools.cache
def params(layers=3):
    @jax.jit
    def drawn(key):
        found = MODEL.clone(layers=layers).init(key, *sequences(1))["params"]
        return jax.tree.map(lambda w: 8 * w if w.ndim == 2 else w + 0.1, found)

    return drawn(jax.random.key(0))


@functools.cache
def network(layers=3):
    return js.trace(MODEL.clone(layers=layers), {"params": params(layers)}, *sequences(2))


def present(ids, lengths):
    """Which tokens there are."""
    return jnp.arange(ids.shape[1]) < lengths[:, None]


@functools.cache
def heads(layers=3):
    """Classifiers of all layers but the last."""

    @jax.jit
    def drawn(key):
        keys = jax.random.split(key, 2)
        return [0.4 * jax.random.normal(k, (16, 3)) for k in keys]

    kernels = drawn(jax.random.key(1))[: layers - 1]
    return tuple({"kernel": k, "bias": jnp.zeros(3)} for k in kernels)


def sequences(rows, seed=0, longest=24):
    rng = np.random.default_rng([seed, rows])
    ids = rng.integers(0, 50, (rows, longest)).astype(np.int32)
    return ids, rng.integers(1, longest + 1, rows).astype(np.int32)
