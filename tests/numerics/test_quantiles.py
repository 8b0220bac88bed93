"""Quantiles by bisection against numpy's and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsim.numerics import quantiles

quantile = jax.jit(quantiles.quantile)
TABLE = np.array(
    [[5.0, -1.0, 0.0, 2.0, 2.0], [-0.0, 3.5, -7.25, 1e-40, 1e30], [4.0, 4.0, 4.0, 4.0, 4.0]],
    np.float32,
)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.5, 0.6, 0.75, 0.99, 1.0])
def test_quantiles_are_numpy_s(share):
    expected = np.quantile(TABLE.astype(np.float64), share, axis=-1)
    np.testing.assert_allclose(quantile(TABLE, share), expected, rtol=1e-6, atol=1e-6)


def test_shares_beyond_the_ends_are_the_ends():
    np.testing.assert_array_equal(quantile(TABLE, -0.5), TABLE.min(-1))
    np.testing.assert_array_equal(quantile(TABLE, 1.5), TABLE.max(-1))


def test_between_two_neighbors_it_is_their_weighted_mean():
    """Position 0.3 · 3 = 0.9 between 10 and 20; 0.7 · 3 = 2.1 between 40 and 80."""
    row = jnp.array([80.0, 10.0, 40.0, 20.0])
    assert float(quantile(row, 0.3)) == pytest.approx(19)
    assert float(quantile(row, 0.7)) == pytest.approx(44)


def test_values_left_out_count_neither_as_small_nor_as_large():
    x = jnp.array([[9.0, 1.0, -9.0, 5.0, 3.0], [9.0, -1.0, -9.0, -5.0, -3.0]])
    among = jnp.array([[False, True, False, True, True]] * 2)
    for share, expected in ((0.0, [1, -5]), (0.25, [2, -4]), (0.5, [3, -3]), (1.0, [5, -1])):
        np.testing.assert_array_equal(quantile(x, share, among), expected)


def test_a_row_without_values_has_quantile_zero():
    x, none = jnp.array([[2.0, 4.0]]), jnp.array([[False, False]])
    for share in (0.0, 0.5, 1.0):
        assert quantile(x, share, none) == 0


def test_neighbors_as_far_apart_as_floats_go_have_a_finite_middle():
    most = float(np.finfo(np.float32).max)
    assert quantile(jnp.array([-most, most]), 0.5) == 0
    assert float(quantile(jnp.array([-most, most]), 0.75)) == pytest.approx(most / 2, rel=1e-6)


def test_values_are_left_out_of_any_number_of_rows():
    x = np.random.default_rng(0).normal(size=(2, 3, 7)).astype(np.float32)
    among = np.arange(7) % np.array([[2], [3], [7]]) != 0
    wanted = [[np.quantile(m[i][among[i]], 0.3) for i in range(3)] for m in x]
    found = quantile(x, 0.3, np.broadcast_to(among, x.shape))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    np.testing.assert_allclose(quantile(x[0, 0], 0.3, among[0]), wanted[0][0], rtol=1e-5)
