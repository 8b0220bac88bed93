"""The smallest network with a convolution and a dense layer."""

import functools

import jax
import jax.numpy as jnp

import jaxsim as js
from tests.support.models import normal

X = normal(8, 5, 5, 2, seed=3)
SITES = ("Conv_0/kernel", "Dense_0/kernel")


@functools.cache
def conv_and_dense():
    """Its sites have the names of Flax."""

    def fn(params, x):
        x = jax.lax.conv_general_dilated(
            *(x, params["Conv_0"]["kernel"], (2, 2), "SAME"),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        x = jnp.maximum(x + params["Conv_0"]["bias"], 0).mean((1, 2))
        return x @ params["Dense_0"]["kernel"]

    conv = {"kernel": normal(3, 3, 2, 4, seed=1), "bias": 0.05 * normal(4, seed=2)}
    return js.trace(fn, {"Conv_0": conv, "Dense_0": {"kernel": normal(4, 3, seed=4)}}, X)
