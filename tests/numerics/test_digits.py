"""Digits of codes by hand, and the types that hold codes at the ends of their range."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsim.numerics.digits import broadcast_planes, code_dtype, digit, digit_count


@pytest.mark.parametrize(
    ("largest", "bits", "expected"),
    [(0, 2, 1), (1, 1, 1), (3, 2, 1), (4, 2, 2), (127, 7, 1), (127, 2, 4), (127, 3, 3), (255, 3, 3),
     (256, 3, 3), (512, 3, 4), (128, 7, 2)],
)  # fmt: skip
def test_magnitudes_take_so_many_digits(largest, bits, expected):
    assert digit_count(largest, bits) == expected


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.float32])
def test_digits_carry_the_sign_of_their_code(dtype):
    """107 = 1·64 + 5·8 + 3, in digits of 3 bits."""
    codes = jnp.asarray([107, -107, 8, 0, -1], dtype)
    found = [digit(codes, place, 3, 3) for place in (1, 8, 64)]
    np.testing.assert_array_equal(found, [[3, -3, 0, 0, -1], [5, -5, 1, 0, 0], [1, -1, 0, 0, 0]])


def test_the_smallest_int8_has_digits_too():
    found = [digit(jnp.asarray([-128], jnp.int8), place, 4, 2) for place in (1, 16)]
    assert [a.dtype for a in found] == [jnp.int8] * 2
    np.testing.assert_array_equal(found, [[0], [-8]])
    assert digit(jnp.asarray([-128], jnp.int8), 1, 8, 1).dtype == jnp.int16


def test_the_derivative_of_a_code_is_shared_equally_by_its_digits():
    """Three digits of 3 bits: a third each, in units of its place."""
    found = jax.jacobian(lambda code: jnp.stack([digit(code, p, 3, 3) for p in (1, 8, 64)]))(107.0)
    np.testing.assert_allclose(found, (1 / 3, 1 / 24, 1 / 192), rtol=1e-6)


@pytest.mark.parametrize(
    ("lo", "hi", "expected"),
    [(-128, 127, "int8"), (-129, 0, "int16"), (0, 128, "int16"), (-(2**15), 2**15 - 1, "int16"),
     (0, 2**15, "int32"), (-(2**15) - 1, 0, "int32"), (-(2**31), 2**31 - 1, "int32")],
)  # fmt: skip
def test_codes_take_the_narrowest_type_that_holds_both_ends(lo, hi, expected):
    assert code_dtype(lo, hi) == expected


def test_one_value_a_plane_broadcasts_from_the_front():
    found = broadcast_planes(jnp.arange(6).reshape(2, 3), 4)
    assert found.shape == (2, 3, 1, 1)


def test_one_value_a_plane_broadcasts_to_what_begins_with_planes():
    for values in ([1.0, 2.0, 4.0], [3.0, 3.0, 3.0]):
        found = broadcast_planes(np.array(values, np.float32), 3)
        assert found.shape == (3, 1, 1)
        np.testing.assert_array_equal(found[:, 0, 0], values)
        np.testing.assert_array_equal(broadcast_planes(jnp.array(values), 3), found)
