"""A small scanned network of gated perceptrons on a normalized residual stream, without Linen."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import jaxsim as js
from tests.support.models import normal

IDS = np.random.default_rng(0).integers(0, 20, (3, 8))
WIDTH, HIDDEN, LAYERS = 12, 16, 2
LAYER = ("gate", "up", "down")


def normalized(x):
    return x / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)


def call(params, ids):
    def layer(x, p):
        y = normalized(x) * p["scale"]
        return x + (jax.nn.silu(y @ p["gate"]) * (y @ p["up"])) @ p["down"], None

    x, _ = jax.lax.scan(layer, params["table"][ids], params["layers"])
    x = normalized(x) * params["last"]
    return x @ (params["table"].T if "head" not in params else params["head"])


def params(*, tied=True):
    """Parameters whose scales and whose table's channels differ by far."""
    spread = np.exp(np.asarray(normal(WIDTH, seed=7)))
    layers = {
        "scale": jnp.exp(normal(LAYERS, WIDTH, seed=1)),
        "gate": normal(LAYERS, WIDTH, HIDDEN, seed=2) / 3,
        "up": normal(LAYERS, WIDTH, HIDDEN, seed=3) / 3,
        "down": normal(LAYERS, HIDDEN, WIDTH, seed=4) / 3,
    }
    made = {"table": normal(20, WIDTH, seed=5) * spread, "last": jnp.exp(normal(WIDTH, seed=6))}
    made |= {} if tied else {"head": normal(WIDTH, 9, seed=8)}
    return {**made, "layers": layers}


@functools.cache
def residual(*, tied=True):
    return js.trace(call, params(tied=tied), IDS)
