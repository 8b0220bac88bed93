import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsim.formats import clipping
from jaxsim.formats.grid import (
    Grid,
    Range,
    encode,
    no_range,
    observe_range,
    scale_and_zero,
    update_range,
)
from tests.oracles import quantiser

grids = st.builds(Grid, bits=st.integers(2, 8), symmetric=st.booleans())
values = hnp.arrays(
    np.float32,
    st.sampled_from([(1,), (7,), (3, 4)]),  # few shapes: each compiles once
    elements=st.floats(-100, 100, width=32, allow_subnormal=False).map(lambda v: round(v, 3)),
)
some = settings(max_examples=30)


def _encoded(grid, x):
    scale, zero = scale_and_zero(grid, observe_range(x, symmetric=grid.symmetric))
    return encode(grid, x, scale, zero), scale, zero


@some
@given(grids, values)
def test_codes_equal_those_of_numpy(grid, x):
    codes, scale, zero = _encoded(grid, jnp.asarray(x))
    expected, step, z = quantiser.quantise(grid, x)
    np.testing.assert_array_equal(scale, step)
    np.testing.assert_array_equal(zero, z)
    np.testing.assert_array_equal(codes, expected)


@some
@given(grids, values)
def test_every_value_in_range_decodes_to_within_half_a_step(grid, x):
    codes, scale, zero = _encoded(grid, jnp.asarray(x))
    error = np.abs((codes - zero) * scale - x)
    slack = 1e-5 * np.abs(x).max()
    half = 0.5 if grid.symmetric else 1.0  # the zero point of an affine grid is itself rounded
    assert error.max() <= half * scale + slack


@some
@given(grids, values)
def test_zero_is_exact(grid, x):
    _, scale, zero = _encoded(grid, jnp.asarray(x))
    assert encode(grid, jnp.zeros(()), scale, zero) == zero
    assert grid.code_range[0] <= zero <= grid.code_range[1]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("axes", [None, (0,), (0, 2)])
@pytest.mark.parametrize("percentile", [None, 50.0, 90.0, 99.98, 100.0])
def test_ranges_equal_numpy_percentiles(symmetric, axes, percentile):
    x = np.random.default_rng(0).normal(1, 2, (40, 3, 50)).astype(np.float32)
    clip = None if percentile is None else clipping.percentile(percentile)
    found = observe_range(jnp.asarray(x), axes=axes, clip=clip, symmetric=symmetric)
    expected = quantiser.observed(x, axes=axes, percentile=percentile, symmetric=symmetric)
    for end, value in zip(found, expected, strict=True):
        assert end.shape == np.shape(value)
        np.testing.assert_allclose(end, value, rtol=2e-5, atol=1e-6)


def test_no_gradient_flows_to_a_range():
    gradient = jax.grad(
        lambda x: observe_range(x).hi + observe_range(x, clip=clipping.percentile(90.0)).lo
    )(jnp.arange(9.0))
    np.testing.assert_array_equal(gradient, 0)


def test_an_all_zero_tensor_and_a_single_element_have_a_grid():
    for symmetric in (True, False):
        grid = Grid(symmetric=symmetric)
        codes, scale, zero = _encoded(grid, jnp.zeros((3, 2)))
        assert scale == 1
        np.testing.assert_array_equal(codes, zero)
        codes, scale, zero = _encoded(grid, jnp.array([-0.3]))
        assert (codes - zero) * scale == pytest.approx(-0.3, rel=1e-6)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_gradient_is_one_on_every_code_inside_and_zero_outside(bits, symmetric):
    """Also on the largest code: a clip whose derivative is a half at its ends fails."""
    grid = Grid(bits=bits, symmetric=symmetric)
    qmin, qmax = grid.code_range
    scale, zero = scale_and_zero(grid, Range(jnp.float32(-1.0), jnp.float32(1.0)))
    codes = jnp.arange(qmin - 2, qmax + 3)
    x = (codes - zero) * scale
    gradient = jax.vmap(jax.grad(lambda v: encode(grid, v, scale, zero) * scale))(x)
    inside = (codes >= qmin) & (codes <= qmax)
    np.testing.assert_allclose(gradient, inside.astype(np.float32), rtol=1e-6)


def test_widen_holds_both_and_starts_from_nothing():
    a, b = Range(jnp.float32(-1), jnp.float32(2)), Range(jnp.float32(-3), jnp.float32(1))
    assert update_range(a, b) == (-3, 2)
    assert update_range(no_range(), a) == a
