"""Depthwise convolutions at sites, against XLA's."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxsim as js
from jaxsim.cores.conv import Conv

GROUPS = 6
LAID_OUT = lax.conv_dimension_numbers((4, 9, 11, GROUPS), (3, 5, 1, 12), ("NHWC", "HWIO", "NHWC"))


def geometry(multiplier: int, stride: int, padding: tuple[int, int], dilation: int) -> Conv:
    """Kernels of 3 × 5 taps."""
    return Conv(
        (stride, 1),
        (padding, (1, 2)),
        (1, 1),
        (1, dilation),
        GROUPS,
        *LAID_OUT,
        (3, 5, 1, multiplier * GROUPS),
        tapped=True,
    )


def by_xla(geometry: Conv, x: jax.Array, w: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        w,
        geometry.strides,
        geometry.padding,
        rhs_dilation=geometry.rhs_dilation,
        dimension_numbers=LAID_OUT,
        feature_group_count=GROUPS,
        preferred_element_type=jnp.float32,
    )


def operands(w_shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> tuple[jax.Array, jax.Array]:
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (4, 9, 11, GROUPS))
    return x.astype(dtype), jax.random.normal(keys[1], w_shape).astype(dtype)


@pytest.mark.parametrize(
    ("multiplier", "stride", "padding", "dilation"),
    [*itertools.product((1, 2), (1, 2), [(1, 1)], (1, 2)), (1, 1, (-1, 2), 1)],
)
def test_float_taps_sum_to_the_convolution(multiplier, stride, padding, dilation):
    held = geometry(multiplier, stride, padding, dilation)
    x, w = operands(held.w_shape, jnp.float32)
    # XLA's CPU convolution is wrong where padding takes away and adds
    grown = jnp.pad(x[:, 1:], ((0, 0), (0, 2), (0, 0), (0, 0))) if padding[0] < 0 else x
    plain = geometry(multiplier, stride, (0, 0) if padding[0] < 0 else padding, dilation)
    expected, back = jax.vjp(lambda x, w: by_xla(plain, x, w), grown, w)
    y, ours = jax.vjp(lambda x, w: held.apply(x, w, None), x, w)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    along = jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
    np.testing.assert_allclose(ours(along)[1], back(along)[1], rtol=1e-4, atol=1e-4)
    if padding[0] >= 0:
        np.testing.assert_allclose(ours(along)[0], back(along)[0], rtol=1e-5, atol=1e-5)


def primitives(held: Conv, dtype: jax.typing.DTypeLike) -> set[str]:
    x, w = operands(held.w_shape, dtype)
    traced = jax.make_jaxpr(lambda x, w: held.apply(x, w, jnp.float32))(x, w)
    return {eqn.primitive.name for eqn in traced.eqns}


def test_floats_go_by_taps_and_halves_by_the_convolution():
    """Halves summed tap by tap would be rounded each time; XLA sums them wider."""
    held = geometry(1, 1, (1, 1), 1)
    assert "conv_general_dilated" not in primitives(held, jnp.float32)
    assert "conv_general_dilated" in primitives(held, jnp.bfloat16)
    x, w = operands(held.w_shape, jnp.bfloat16)
    exact = by_xla(held, x.astype(jnp.float32), w.astype(jnp.float32))
    np.testing.assert_allclose(held.apply(x, w, jnp.float32), exact, rtol=1e-5, atol=1e-5)


def test_the_type_asked_for_is_the_sums():
    held = geometry(1, 1, (1, 1), 1)
    x, w = operands(held.w_shape, jnp.float32)
    y = held.apply(x, w, jnp.bfloat16)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, held.apply(x, w, None).astype(jnp.bfloat16))


def test_a_stored_weight_is_summed_by_taps_and_the_models_own_is_not():
    """A core that changes nothing must be the model bit for bit; codes have no model's order."""

    def model(params, x):
        return lax.conv_general_dilated(
            x,
            params["w"],
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=GROUPS,
        )

    x, w = operands((3, 5, 1, GROUPS), jnp.float32)
    net = js.trace(model, {"w": w}, x)
    pairs = js.compose(js.quantize(8, 8), js.analog(cells=js.cells.proportional(0.01)))

    def convolves(net):
        key = jax.random.key(0)
        traced = str(jax.make_jaxpr(lambda net, x: net(x, key=key))(net, x))
        return "conv_general_dilated" in traced

    unchanged = js.wrap(lambda core: core._replace(write=core.write))
    assert convolves(unchanged(net))
    assert convolves(js.prune(0.5)(net))
    assert not convolves(js.quantize(8, None)(net))
    assert not convolves(js.quantize(js.nf4(), None)(net))
    assert not convolves(pairs(net))
    noisy = js.compose(js.quantize(8, 8), js.analog(cells=js.cells.sonos(days=1.0)))
    grounded = js.analog(cells=js.cells.proportional(0.01, on_off=10.0), mapping="offset")
    assert not convolves(js.compose(js.quantize(8, 8), grounded)(net))  # nor what it takes off
    assert not convolves(noisy(net))  # neither the product nor the variance of its noise
    rounded = js.quantize(8, None)(net)
    assert float(jnp.abs(rounded(x) - net(x)).max()) < 0.1
