"""Networks whose channels are removed."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxsim as js
from jaxsim.models.resnet import ResNet
from tests.support.models import normal
from tests.support.variables import initial

IMAGES = normal(2, 8, 8, 3, seed=1)


class Mlp(nn.Module):
    @nn.compact
    def __call__(self, x):
        for features in (16, 12):
            x = nn.relu(nn.Dense(features)(x))
        return nn.Dense(3)(x)


class Depthwise(nn.Module):
    """A depthwise separable block, and a convolution in four groups."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(_norm(nn.Conv(24, (3, 3))(x)))
        x = nn.relu(_norm(nn.Conv(24, (3, 3), feature_group_count=24)(x)))
        x = nn.relu(nn.Conv(8, (1, 1))(x))
        x = nn.relu(nn.Conv(12, (3, 3), feature_group_count=4)(x))
        return nn.Dense(3)(x.mean((1, 2)))


class Joined(nn.Module):
    """Each layer reads all the features before it; the end is flattened."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (3, 3))(x)
        for _ in range(3):
            x = jnp.concatenate([x, nn.Conv(4, (3, 3))(nn.relu(_norm(x)))], -1)
        x = nn.max_pool(nn.relu(_norm(x)), (2, 2), (2, 2))
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


class Block(nn.Module):
    """Attention and an MLP on a residual stream."""

    @nn.compact
    def __call__(self, x):
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=4, qkv_features=32)(y, y)
        return x + nn.Dense(16)(nn.gelu(nn.Dense(64)(nn.LayerNorm()(x))))


class Transformer(nn.Module):
    """An embedding, a block, attention written by hand with one weight for q, k and v."""

    @nn.compact
    def __call__(self, tokens):
        x = Block()(nn.Embed(11, 16)(tokens))
        q, k, v = jnp.split(nn.Dense(48)(nn.LayerNorm()(x)), 3, -1)

        def heads(z):
            return z.reshape(*z.shape[:-1], -1, 4)

        scores = nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", heads(q), heads(k)))
        y = jnp.einsum("bhqk,bkhd->bqhd", scores, heads(v))
        x = x + nn.Dense(16)(y.reshape(*y.shape[:2], -1))
        return nn.Dense(5)(x)


class NnxDepthwise(nnx.Module):
    def __init__(self, rngs):
        self.wide = nnx.Conv(3, 12, (1, 1), rngs=rngs)
        self.norm = nnx.BatchNorm(12, use_running_average=True, rngs=rngs)
        self.deep = nnx.Conv(12, 12, (3, 3), feature_group_count=12, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(4, 12, decode=False, rngs=rngs)
        self.head = nnx.Linear(12, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.deep(nnx.relu(self.norm(self.wide(x)))))
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        return self.head(nnx.relu(self.attention(x)).mean(1))


def _norm(x):
    return nn.BatchNorm(use_running_average=True)(x)


def _moved(variables):
    """Variables as after training: no bias or mean zero, no variance one."""

    def moved(path, p):
        noise = np.asarray(normal(*p.shape, seed=p.size))
        added = np.abs(noise) if str(path[-1].key) == "var" else 0.1 * noise
        return jnp.asarray(np.asarray(p) + added)

    return jax.tree_util.tree_map_with_path(moved, variables)


MODELS = {
    "mlp": (Mlp(), normal(3, 5)),
    "resnet": (ResNet(stages=(1, 1), features=8), IMAGES),
    "depthwise": (Depthwise(), IMAGES),
    "joined": (Joined(), IMAGES),
    "attention": (Block(), normal(2, 5, 16)),
    "transformer": (Transformer(), jnp.arange(10).reshape(2, 5)),
}


@functools.cache
def network(name):
    """A network by name."""
    if name == "nnx":
        return js.trace(NnxDepthwise(nnx.Rngs(0)), None, IMAGES)
    model, x = MODELS[name]
    return js.trace(model, _moved(initial(model, x)), x)


def inputs(name):
    """Inputs for it, not those it was traced with."""
    if name == "transformer":
        return jnp.arange(15).reshape(3, 5) % 11
    x = IMAGES if name == "nnx" else MODELS[name][1]
    return normal(3, *x.shape[1:], seed=7)
