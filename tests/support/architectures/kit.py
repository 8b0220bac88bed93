"""Layers of Flax Linen and of NNX by the same calls, so that an architecture is written once."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests.support.variables import filled

STANDARD = nn.initializers.normal(1.0)


class LinenKit:
    """Layers made where they are called, as in a compact module."""

    def __init__(self, module: nn.Module):
        self.module = module
        self.count = 0

    def dense(self, x, features, *, bias=True):
        return nn.Dense(features, use_bias=bias)(x)

    def conv(self, x, features, window, *, strides=1, groups=1, dilation=1, padding="SAME"):
        options = {"feature_group_count": groups, "kernel_dilation": dilation, "padding": padding}
        return nn.Conv(features, window, strides, **options)(x)

    def conv_transpose(self, x, features, window, *, strides):
        return nn.ConvTranspose(features, window, (strides,) * len(window))(x)

    def embed(self, entries, width):
        layer = nn.Embed(entries, width)
        return layer, layer.attend

    def layer_norm(self, x):
        return nn.LayerNorm()(x)

    def rms_norm(self, x):
        return nn.RMSNorm()(x)

    def batch_norm(self, x):
        return nn.BatchNorm(use_running_average=True)(x)

    def group_norm(self, x, groups):
        return nn.GroupNorm(groups)(x)

    def recurrent(self, x, cell, features):
        return nn.RNN({"lstm": nn.LSTMCell, "gru": nn.GRUCell}[cell](features))(x)

    def weight(self, *shape):
        self.count += 1
        return self.module.param(f"weight_{self.count}_kernel", STANDARD, shape)


class NnxKit:
    """Layers of a module in the order of their use, made where it has none yet."""

    def __init__(self, module: nnx.Module):
        self.module = module
        self.count = 0

    def _layer(self, make):
        self.count += 1
        name = f"layer_{self.count}"
        if not hasattr(self.module, name):
            setattr(self.module, name, make(nnx.Rngs(self.count)))
        return getattr(self.module, name)

    def dense(self, x, features, *, bias=True):
        n = x.shape[-1]
        return self._layer(lambda rngs: nnx.Linear(n, features, use_bias=bias, rngs=rngs))(x)

    def conv(self, x, features, window, *, strides=1, groups=1, dilation=1, padding="SAME"):
        options = {"feature_group_count": groups, "kernel_dilation": dilation, "padding": padding}
        n = x.shape[-1]
        return self._layer(
            lambda rngs: nnx.Conv(n, features, window, strides, **options, rngs=rngs)
        )(x)

    def conv_transpose(self, x, features, window, *, strides):
        n, by = x.shape[-1], (strides,) * len(window)
        return self._layer(lambda rngs: nnx.ConvTranspose(n, features, window, by, rngs=rngs))(x)

    def embed(self, entries, width):
        layer = self._layer(lambda rngs: nnx.Embed(entries, width, rngs=rngs))
        return layer, layer.attend

    def layer_norm(self, x):
        return self._layer(lambda rngs: nnx.LayerNorm(x.shape[-1], rngs=rngs))(x)

    def rms_norm(self, x):
        return self._layer(lambda rngs: nnx.RMSNorm(x.shape[-1], rngs=rngs))(x)

    def batch_norm(self, x):
        n = x.shape[-1]
        return self._layer(lambda rngs: nnx.BatchNorm(n, use_running_average=True, rngs=rngs))(x)

    def group_norm(self, x, groups):
        return self._layer(lambda rngs: nnx.GroupNorm(x.shape[-1], groups, rngs=rngs))(x)

    def recurrent(self, x, cell, features):
        of = {"lstm": nnx.LSTMCell, "gru": nnx.GRUCell}[cell]
        n = x.shape[-1]
        return self._layer(lambda rngs: nnx.RNN(of(n, features, rngs=rngs)))(x)

    def weight(self, *shape):
        return self._layer(lambda rngs: nnx.Param(STANDARD(rngs.params(), shape)))[...]


class Linen(nn.Module):
    """An architecture of Linen's layers."""

    build: Callable[..., Any]

    @nn.compact
    def __call__(self, *inputs):
        return self.build(LinenKit(self), *inputs)


class Nnx(nnx.Module):
    """An architecture of NNX's layers."""

    def __init__(self, build: Callable[..., Any], inputs: Sequence[Any]):
        self.build = build
        build(NnxKit(self), *inputs)

    def __call__(self, *inputs):
        return self.build(NnxKit(self), *inputs)


def linen(build, inputs):
    """A Linen model of an architecture, and its variables."""
    model = Linen(build)
    return model, filled(model, *inputs)


def nnx_model(build, inputs):
    """An NNX model of an architecture, without running its initializers."""
    abstract = nnx.eval_shape(lambda *inputs: Nnx(build, inputs), *inputs)
    graph, state = nnx.split(abstract)
    rng = np.random.default_rng(0)

    def fill(leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.key(0)
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.zeros(leaf.shape, leaf.dtype)
        values = rng.normal(size=leaf.shape) / np.sqrt(max(np.prod(leaf.shape[:-1]), 1))
        return jnp.asarray(values if leaf.ndim > 1 else 0.5 + np.abs(values), leaf.dtype)

    return nnx.merge(graph, jax.tree.map(fill, state))
