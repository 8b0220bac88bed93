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

    def conv(x, layer, stride):
        kernel = faked(layer["kernel"], weights, (0, 1, 2))
        dims = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(
            faked(x, inputs), kernel, (stride, stride), "SAME", dimension_numbers=dims
        )
        return nn.relu(y + layer["bias"])

    def dense(x, layer):
        return faked(x, inputs) @ faked(layer["kernel"], weights, 0) + layer["bias"]

    x = conv(conv(x, params["Conv_0"], 1), params["Conv_1"], 2).mean((1, 2))
    return dense(nn.relu(dense(x, params["Dense_0"])), params["Dense_1"])
