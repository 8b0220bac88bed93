import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jaxsim.numerics.digits import code_dtype
from jaxsim.numerics.gradients import round_ste, straight_through


def test_rounding_is_half_to_even_with_the_derivative_of_the_identity():
    x = jnp.array([0.5, 1.5, 2.5, -0.5, 2.4])
    np.testing.assert_array_equal(round_ste(x), [0, 2, 2, 0, 2])
    np.testing.assert_array_equal(jax.grad(lambda x: round_ste(x).sum())(x), 1)
    np.testing.assert_array_equal(jax.jvp(round_ste, (x,), (x,))[1], x)


def test_straight_through_has_one_value_and_the_other_derivative():
    f = straight_through(jnp.floor, lambda x: 3 * x)
    assert f(1.7) == 1
    assert jax.grad(f)(1.7) == 3


@given(st.integers(-(2**31), 2**31 - 1), st.integers(-(2**31), 2**31 - 1))
def test_code_dtype_is_the_narrowest_that_fits(a, b):
    lo, hi = sorted((a, b))
    dtype = code_dtype(lo, hi)
    assert np.iinfo(dtype).min <= lo <= hi <= np.iinfo(dtype).max
    if dtype != np.int8:
        narrower = np.dtype(f"int{dtype.itemsize * 4}")
        assert lo < np.iinfo(narrower).min or hi > np.iinfo(narrower).max
