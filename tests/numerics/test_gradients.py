import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jaxsim.numerics.digits import code_dtype
from jaxsim.numerics.gradients import (
    clip_ste,
    round_ste,
    straight_through,
    zero_with_gradient_of,
)


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


def test_clipped_values_pass_their_derivative_up_to_both_ends():
    x = jnp.array([-2.001, -2.0, 0.25, 3.0, 3.001])
    np.testing.assert_array_equal(clip_ste(x, -2, 3), [-2, -2, 0.25, 3, 3])
    slope = jax.vmap(jax.grad(lambda v: clip_ste(v, -2.0, 3.0)))(x)
    np.testing.assert_array_equal(slope, [0, 1, 1, 1, 0])


def test_ends_that_are_trained_have_the_derivative_of_what_they_cut_off():
    slopes = jax.grad(
        lambda lo, hi: clip_ste(jnp.array([-5.0, 0.0, 4.0, 6.0]), lo, hi).sum(), (0, 1)
    )
    assert slopes(-2.0, 3.0) == (1, 2)


def test_zero_with_a_gradient_lends_it():
    value, slope = jax.value_and_grad(lambda x: 7.0 + zero_with_gradient_of(3 * x))(2.0)
    assert (value, slope) == (7, 3)
