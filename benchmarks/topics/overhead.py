"""Does an untransformed Network cost anything, in time or in exactness?"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

import jaxsim as js
from benchmarks.common.record import Table, record
from benchmarks.common.settings import Settings
from jaxsim.console.timing import alternate
from jaxsim.models.resnet import ResNet

SHORT = ("",)

COLUMNS = (
    "model",
    "ms",
    "network / model",
    "walked / model",
    "network equal, bit for bit",
    "walked equal",
    "first call s: model",
    "network",
    "walked",
)


class Model(NamedTuple):
    """A model, the network traced from it, and its own jitted call."""

    net: js.Network
    call: Callable[[Any], Any]
    x: jax.Array


class Layer(nn.Module):
    """One layer of a transformer, the body of a scan."""

    @nn.compact
    def __call__(self, x, _):
        """Attention and an MLP."""
        x = x + nn.MultiHeadDotProductAttention(num_heads=8)(nn.LayerNorm()(x))
        return x + nn.Dense(256)(nn.gelu(nn.Dense(1024)(nn.LayerNorm()(x)))), None


class Transformer(nn.Module):
    """A scan over rematerialized layers."""

    @nn.compact
    def __call__(self, x):
        """The last layer's output."""
        layers = nn.scan(
            nn.remat(Layer), variable_axes={"params": 0}, split_rngs={"params": True}, length=4
        )
        return layers()(x, None)[0]


class Cnn(nnx.Module):
    """Two convolutions and a dense layer."""

    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Conv(3, 32, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(32, rngs=rngs)
        self.second = nnx.Conv(32, 64, (3, 3), strides=2, rngs=rngs)
        self.head = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x):
        """Logits."""
        x = nnx.relu(self.norm(self.first(x)))
        return self.head(nnx.relu(self.second(x)).mean((1, 2)))


def models() -> dict[str, Model]:
    """The four kinds of model that the foundation promises to leave as they are."""
    return {
        "Linen ResNet with BatchNorm": _linen(ResNet((2, 2, 2)), (64, 32, 32, 3)),
        "Linen transformer, scan and remat": _linen(Transformer(), (8, 128, 256)),
        "NNX CNN": _nnx(),
        "plain function": _plain(),
    }


def _linen(model: nn.Module, shape: tuple[int, ...]) -> Model:
    x = jax.random.normal(jax.random.key(1), shape)
    variables = model.init(jax.random.key(0), x)
    return Model(js.trace(model, variables, x), partial(jax.jit(model.apply), variables), x)


def _nnx() -> Model:
    x = jax.random.normal(jax.random.key(1), (64, 32, 32, 3))
    model = Cnn(nnx.Rngs(0))
    model.eval()
    graph, state = nnx.split(model)
    call = jax.jit(lambda state, x: nnx.merge(graph, state)(x))
    return Model(js.trace(model, None, x), partial(call, state), x)


def _plain() -> Model:
    def mlp(params, x):
        for w in params[:-1]:
            x = jnp.tanh(x @ w)
        return x @ params[-1]

    keys = jax.random.split(jax.random.key(0), 4)
    params = [jax.random.normal(k, (512, 512)) / 22.6 for k in keys]
    x = jax.random.normal(jax.random.key(1), (256, 512))
    return Model(js.trace(mlp, params, x), partial(jax.jit(mlp), params), x)


def same(core: js.Core) -> js.Core:
    """A core that changes nothing, so that the walk is taken at every site."""
    return js.Core(core.write, core.calibrate, core.read)


def main(args: list[str]) -> None:
    """Times each model, its network and its network walked."""
    Settings.read(args)
    rows = []
    for name, (net, call, x) in models().items():
        run = jax.jit(lambda net, x: net(x))
        walked = js.wrap(same)(net)
        alternatives = {
            "model": partial(call, x),
            "network": partial(run, net, x),
            "walked": partial(run, walked, x),
        }
        times = alternate(alternatives, runs=41)
        expected = np.asarray(call(x))
        equal = [np.array_equal(expected, run(n, x)) for n in (net, walked)]
        base = times["model"]
        rows.append(
            [
                name,
                f"{1e3 * base.median:.2f}",
                *(f"{times[k].median / base.median:.3f}" for k in ("network", "walked")),
                *("yes" if e else "NO" for e in equal),
                *(f"{times[k].first:.1f}" for k in ("model", "network", "walked")),
            ]
        )
    record(
        "overhead",
        Table(COLUMNS, rows),
        question="What does it cost to call a model through a Network?",
        baseline="the model's own jitted apply",
        notes="*network* is untransformed. *walked* has a core that changes nothing at every "
        "site, so that every equation goes through the interpreter. First calls include tracing "
        "and compilation.",
        settings={"runs": 41},
    )
