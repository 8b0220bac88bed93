"""Steps and scales at the ends of what floats hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsim.numerics.scaling import (
    TINY,
    divide,
    power_below,
    scale_product,
    step_of,
    unit_of,
)

MOST = float(np.finfo(np.float32).max)


def test_the_smallest_normal_float_is_two_to_the_minus_126():
    assert TINY == 2.0**-126


def test_a_step_is_a_share_and_never_below_the_smallest_normal_float():
    widths = jnp.float32([12.0, 3 * TINY, 2 * TINY, TINY, 0.9 * TINY, 0.0])
    np.testing.assert_array_equal(
        step_of(widths, 3, empty=7.0), np.float32([4, TINY, TINY, TINY, 7, 7])
    )


def test_a_product_with_two_scales_survives_where_theirs_does_not():
    """2^-80 · 2^-80 vanishes and 2^80 · 2^80 is infinite: the value may bring either back."""
    y, a = jnp.float32([2.0**100, 2.0**-100, 3.0]), jnp.float32([2.0**-80, 2.0**80, 5.0])
    np.testing.assert_array_equal(scale_product(y, a, a), np.float32([2.0**-60, 2.0**60, 75]))


@pytest.mark.parametrize(
    ("x", "expected"),
    [(1.0, 1), (-1.99, 1), (2.0, 2), (-7.0, 4), (0.3, 0.25), (0.0, 0), (MOST, 2.0**126)],
)
def test_the_power_below_a_magnitude(x, expected):
    assert power_below(jnp.float32(x)) == expected


def test_a_unit_is_that_of_the_largest_magnitude_which_shares_it():
    x = jnp.array([[0.3, -5.0], [0.0, 0.0], [0.1, 0.7]])
    np.testing.assert_array_equal(unit_of(x, (1,)), [[4], [1], [0.5]])
    np.testing.assert_array_equal(unit_of(x, (0, 1)), [[4]])
    np.testing.assert_array_equal(unit_of(x, (0,)), [[0.25, 4]])
    assert unit_of(jnp.zeros((0, 2)), (0,)).tolist() == [[1, 1]]
    assert not jax.grad(lambda x: unit_of(x, (0, 1)).sum())(x).any()


@pytest.mark.parametrize("by", [0.75, -3.0, 2.0**127, 0.99 * MOST / 1.25, TINY])
def test_quotients_are_those_of_double_precision_for_every_normal_divisor(by):
    x = np.float32([0.0, 1.0, -1.25]) * np.float32(by)
    found = jax.jit(divide)(x, jnp.float32(by))
    np.testing.assert_allclose(found, [0, 1, -1.25], rtol=1e-6)


def test_derivatives_of_a_quotient_are_finite_where_it_is():
    """1 / by, and -x / by², where by² is no float."""
    by = jnp.float32(2.0**100)
    found = jax.grad(divide, (0, 1))(by / 2, by)
    np.testing.assert_allclose(found, (2.0**-100, -0.5 * 2.0**-100), rtol=1e-6)
    np.testing.assert_allclose(
        jax.grad(divide, (0, 1))(jnp.float32(6), jnp.float32(4)), (1 / 4, -6 / 16)
    )
