"""Quantization-aware training written out by hand: no cores, no walk."""

import flax.linen as nn
import jax
import jax.numpy as jnp


def faked(v, bits, axes=None):
    """Symmetric fake quantization over the range of `v`: the straight-through slope is one."""
    top = 2 ** (bits - 1) - 1
    scale = jax.lax.stop_gradient(jnp.abs(v).max(axes, keepdims=axes is not None)) / top
    return v + jax.lax.stop_gradient(jnp.round(v / scale) * scale - v)


def cnn(params, x, *, weights, inputs):
    """The CNN of tests/support/networks.py, each contraction on fake-quantized operands."""

    conv, dense = params["Conv_0"], params["Dense_0"]
    kernel, dims = faked(conv["kernel"], weights, (0, 1, 2)), ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(
        faked(x, inputs), kernel, (1, 1), "SAME", dimension_numbers=dims
    )
    x = nn.relu(y + conv["bias"]).mean((1, 2))
    return faked(x, inputs) @ faked(dense["kernel"], weights, 0) + dense["bias"]
