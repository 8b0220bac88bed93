"""Models that pipelines are tried on, with a batch and a loss each."""

import dataclasses
import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxsim as js
from tests.support.models import normal


class Case(NamedTuple):
    """A network, a batch for it, and its loss."""

    net: js.Network
    batch: tuple[Any, Any]
    loss: Any


class Residual(nn.Module):
    """A block of a residual CNN with BatchNorm."""

    features: int
    strides: int
    train: bool
    dtype: Any

    @nn.compact
    def __call__(self, x):
        def norm(y):
            return nn.BatchNorm(not self.train, momentum=0.9, dtype=self.dtype)(y)

        y = nn.relu(norm(nn.Conv(self.features, (3, 3), self.strides, dtype=self.dtype)(x)))
        y = norm(nn.Conv(self.features, (3, 3), dtype=self.dtype)(y))
        if x.shape != y.shape:
            x = nn.Conv(self.features, (1, 1), self.strides, dtype=self.dtype)(x)
        return nn.relu(x + y)


class Cnn(nn.Module):
    """A stem, residual blocks, a head."""

    blocks: int = 6
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.Conv(4, (3, 3), dtype=self.dtype)(x))
        for i in range(self.blocks):
            strides = 2 if i == self.blocks // 2 else 1
            x = Residual(4 if i < self.blocks // 2 else 8, strides, train, self.dtype)(x)
        return nn.Dense(3, dtype=self.dtype)(x.mean((1, 2)))


class Layer(nn.Module):
    """A layer of an encoder."""

    dtype: Any

    @nn.compact
    def __call__(self, x, mask):
        y = nn.LayerNorm(dtype=self.dtype)(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=2, dtype=self.dtype)(y, mask=mask)
        y = nn.Dense(16, dtype=self.dtype)(nn.LayerNorm(dtype=self.dtype)(x))
        return x + nn.Dense(8, dtype=self.dtype)(nn.gelu(y))


class Encoder(nn.Module):
    """An encoder with a padding mask and an embedding that the head shares."""

    layers: int = 3
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens, keep):
        embed = nn.Embed(11, 8, dtype=self.dtype)
        mask = nn.make_attention_mask(keep, keep, dtype=self.dtype)
        x = embed(tokens)
        for _ in range(self.layers):
            x = Layer(self.dtype)(x, mask)
        return embed.attend(nn.LayerNorm(dtype=self.dtype)(x))


class Mlp(nnx.Module):
    """Equal layers of an NNX model."""

    def __init__(self, layers=8, width=12, *, dtype=jnp.float32, rngs):
        self.layers = nnx.List(
            [nnx.Linear(width, width, param_dtype=dtype, rngs=rngs) for _ in range(layers)]
        )

    def __call__(self, x):
        for layer in self.layers:
            x = jnp.tanh(layer(x))
        return x


def entropy(logits, labels):
    """Mean cross-entropy."""
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], -1)
    return -picked.mean()


def squares(y, target):
    """Mean squared error."""
    return jnp.mean((y - target) ** 2)


@functools.cache
def cnn(batch=8, dtype=jnp.float32, blocks=6, **kwargs):
    model, x = Cnn(blocks, dtype), normal(batch, 8, 8, 3, dtype=dtype)
    variables = _variables(model, dtype, x)
    return Case(js.trace(model, variables, x, **kwargs), (x, jnp.arange(batch) % 3), entropy)


@functools.cache
def encoder(batch=8, dtype=jnp.float32, layers=3):
    model = Encoder(layers, dtype)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 11, (batch, 6)))
    keep = jnp.arange(6) < 3 + jnp.arange(batch)[:, None] % 4
    variables = _variables(model, dtype, tokens, keep)
    return Case(js.trace(model, variables, tokens, keep), ((tokens, keep), tokens), entropy)


@functools.cache
def mlp(batch=8, dtype=jnp.float32, **settings):
    model = Mlp(**settings, dtype=dtype, rngs=nnx.Rngs(0))
    x = normal(batch, settings.get("width", 12), dtype=dtype)
    return Case(js.trace(model, None, x), (x, jnp.cos(x)), squares)


def stack(batch=8, dtype=jnp.float32, layers=4):
    """Layers that a scan stacks, and a head."""

    def fn(params, x):
        x, _ = jax.lax.scan(lambda x, w: (x + jnp.tanh(x @ w), None), x, params["w"])
        return x @ params["head"]

    params = {"w": normal(layers, 6, 6, dtype=dtype), "head": normal(6, 3, dtype=dtype)}
    x = normal(batch, 6, dtype=dtype)
    return Case(js.trace(fn, params, x), (x, jnp.cos(x[:, :3])), squares)


CASES = {"cnn": cnn, "encoder": encoder, "mlp": mlp, "stack": stack}


def plain(case, params=None, key=None):
    """Loss and gradients of the network as it is."""
    inputs, targets = case.batch
    args = inputs if isinstance(inputs, tuple) else (inputs,)

    def loss(params):
        return case.loss(dataclasses.replace(case.net, params=params)(*args, key=key), targets)

    return jax.jit(jax.value_and_grad(loss))(case.net.params if params is None else params)


def furthest(found, expected):
    """The largest relative error of a leaf: the norm of the difference over the norm."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    scale = np.sqrt(sum(float(np.sum(np.square(b))) for b in jax.tree.leaves(expected)))
    errors = [
        np.linalg.norm(np.asarray(a) - np.asarray(b)) / max(np.linalg.norm(b), 1e-3 * scale)
        for a, b in pairs
    ]
    return max(errors)


def _variables(model, dtype, *inputs):
    """Variables of a Linen model by their shapes: its own initializers take long to compile."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    leaves, treedef = jax.tree_util.tree_flatten_with_path(shapes)

    def filled(i, path, a):
        if a.ndim > 1:
            return normal(*a.shape, seed=i, dtype=dtype) / np.sqrt(np.prod(a.shape[:-1]))
        return jnp.full(a.shape, path[-1].key in ("scale", "var"), dtype)

    return jax.tree.unflatten(treedef, [filled(i, *leaf) for i, leaf in enumerate(leaves)])
