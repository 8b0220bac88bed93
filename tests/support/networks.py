"""Networks that the transforms are tried on."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import jaxsim as js
from tests.support.models import normal

X = normal(8, 6, 6, 3, seed=3)


class Cnn(nn.Module):
    """A convolution and a dense layer: every site costs half a second of compiling in each test."""

    features: int = 4
    classes: int = 3

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.classes)(nn.relu(nn.Conv(self.features, (3, 3))(x)).mean((1, 2)))


SITES = ("Conv_0/kernel", "Dense_0/kernel")


@functools.cache
def cnn(**sizes):
    return _moved(Cnn(**sizes))


class DeepCnn(nn.Module):
    """Two convolutions and two dense layers, for what is said of layers between layers."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3))(x))
        x = nn.relu(nn.Conv(6, (3, 3), (2, 2))(x)).mean((1, 2))
        x = nn.relu(nn.Dense(8)(x))
        return nn.Dense(3)(x)


DEEP_SITES = ("Conv_0/kernel", "Conv_1/kernel", "Dense_0/kernel", "Dense_1/kernel")


@functools.cache
def deep_cnn():
    return _moved(DeepCnn())


def _moved(model):
    """A network of a model, with kernels and biases away from zero.

    A bias of zero and a sum of codes of zero would sit on the corner of a relu.
    """

    def filled(i, leaf):
        scale = np.prod(leaf.shape[1:-1]) ** -0.5 if leaf.ndim > 1 else 0.1
        return normal(*leaf.shape, seed=i) * np.float32(scale)

    leaves, treedef = jax.tree.flatten(jax.eval_shape(model.init, jax.random.key(0), X))
    variables = jax.tree.unflatten(treedef, [filled(*leaf) for leaf in enumerate(leaves)])
    return js.trace(model, variables, X)


@functools.cache
def attention():
    """Scores of two activations, and three projections."""

    def fn(params, x):
        q, k = x @ params["q"], x @ params["k"]
        return nn.softmax(q @ jnp.swapaxes(k, -1, -2)) @ (x @ params["v"])

    params = {name: normal(4, 4, seed=i) for i, name in enumerate("qkv")}
    return js.trace(fn, params, normal(2, 5, 4))


@functools.cache
def stack(outputs=2):
    """Three layers in a scan and a head."""

    def fn(params, x):
        x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params["w"])
        return x @ params["head"]

    return js.trace(fn, {"w": normal(3, 4, 4), "head": normal(4, outputs)}, normal(5, 4))


@jax.jit
def run(net, *args, **kwargs):
    """A call of a network."""
    return net(*args, **kwargs)


@jax.jit
def answer(net, x):
    """What a chip answers on what it is calibrated on: written, ranged and read by one program."""
    return js.deploy(net, calibrate=x)(x)
