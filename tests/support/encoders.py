"""A small random BERT whose attention is not flat, and sequences for it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxsim.models.bert import Bert, encoder

MODEL = Bert(vocabulary=50, positions=40, width=16, heads=2, layers=3, hidden=32, classes=3)


@functools.cache
def params():
    drawn = jax.jit(MODEL.init)(jax.random.key(0), *sequences(1))["params"]
    return jax.tree.map(lambda w: 8 * w if w.ndim == 2 else w + 0.1, drawn)


@functools.cache
def pieces():
    return encoder(MODEL, params())


@functools.cache
def heads():
    keys = jax.random.split(jax.random.key(1), 2)
    return tuple(
        {"kernel": 0.4 * jax.random.normal(k, (16, 3)), "bias": jnp.zeros(3)} for k in keys
    )


def sequences(rows, seed=0, longest=24):
    rng = np.random.default_rng([seed, rows])
    ids = rng.integers(0, 50, (rows, longest)).astype(np.int32)
    return ids, rng.integers(1, longest + 1, rows).astype(np.int32)
