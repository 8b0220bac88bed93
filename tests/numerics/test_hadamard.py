import jax
import numpy as np
import pytest

from jaxsim.numerics.hadamard import hadamard_matrix, orthogonal_factors, random_signs


@pytest.mark.parametrize("order", [1, 2, 4, 8, 12, 16, 20, 24, 28, 36, 40, 44, 48, 60, 72, 76, 576])
def test_rows_of_ones_and_minus_ones_are_orthogonal(order):
    matrix = hadamard_matrix(order)
    assert set(np.unique(matrix)) <= {-1, 1}
    np.testing.assert_array_equal(matrix @ matrix.T, order * np.eye(order))


@pytest.mark.parametrize("order", [3, 6, 9, 10, 15, 18, 50, 52])
def test_orders_of_which_no_way_is_known_have_none(order):
    assert hadamard_matrix(order) is None


@pytest.mark.parametrize(
    ("size", "orders"), [(576, (36, 16)), (1536, (24, 64)), (64, (1, 64)), (9, (9, 1)), (6, (3, 2))]
)
def test_every_size_is_mixed_by_two_orthogonal_matrices(size, orders):
    factors = orthogonal_factors(jax.random.key(0), size)
    assert tuple(map(len, factors)) == orders
    whole = np.kron(*map(np.float64, factors))
    np.testing.assert_allclose(whole @ whole.T, np.eye(size), atol=1e-6)
    if hadamard_matrix(size) is not None:
        np.testing.assert_allclose(np.abs(whole), size**-0.5, rtol=1e-5)


def test_signs_are_random_and_those_of_the_key():
    one, same, other = (random_signs(jax.random.key(i), 64) for i in (0, 0, 1))
    assert set(one) == {-1.0, 1.0}
    assert (one == same).all()
    assert (one != other).any()
