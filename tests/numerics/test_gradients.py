import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxsim.numerics.digits import code_dtype
from jaxsim.numerics.gradients import (
    clip_ste,
    round_ste,
    shard_like,
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


def cut_over(shape, *spec, a=2, b=3):
    """The shape of an array that is cut over a mesh of devices that need not be there."""
    mesh = jax.sharding.AbstractMesh((a, b), ("a", "b"))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)


def plain(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


@pytest.mark.parametrize(
    ("made", "parameter", "expected"),
    [
        # what ends in the parameter's shape is cut as that is
        ((4, 6), cut_over((4, 6), "a", "b"), ("a", "b")),
        ((5, 4, 6), cut_over((4, 6), "a"), (None, "a", None)),
        ((5, 4, 6), cut_over((4, 6), None, "b"), (None, None, "b")),
        # anything else along the largest axis that all the devices divide
        ((6, 12, 5), cut_over((4, 6), "a", "b"), (None, ("a", "b"), None)),
        ((6, 4), cut_over((4, 6), ("a", "b")), (("a", "b"), None)),
        ((9, 4), cut_over((4, 6), "b"), (("b",), None)),
        ((7, 5, 5), cut_over((4, 6), "a", "b"), None),
        # no larger than the part of 24 / 6 on one device, nor than 24 / 2
        ((4,), cut_over((4, 6), "a", "b"), None),
        ((6,), cut_over((4, 6), "a", "b"), (("a", "b"),)),
        ((12,), cut_over((4, 6), "a"), None),
        ((14,), cut_over((4, 6), "a"), (("a",),)),
        ((4, 6), cut_over((4, 6)), None),  # every device holds it whole
        ((4, 6), plain(4, 6), None),
    ],
)
def test_what_is_made_of_a_parameter_is_cut_like_it(made, parameter, expected):
    found = shard_like(plain(*made), parameter)
    if expected is None:
        assert found is None
    else:
        assert found.spec == jax.sharding.PartitionSpec(*expected)


def test_what_is_cut_already_stays_as_it_is():
    there = cut_over((4, 6), None, "b")
    assert shard_like(there, cut_over((4, 6), "a")) is None
    assert shard_like(cut_over((4, 6)), cut_over((4, 6), "a")) is not None


def test_an_axis_of_a_mesh_is_cut_by_its_whole_name():
    """Names of several letters, one by one or several for an axis."""
    mesh = jax.sharding.AbstractMesh((2, 3), ("data", "model"))
    for spec in (("data",), (("data", "model"),), (None, "model")):
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
        param = jax.ShapeDtypeStruct((6, 9), np.float32, sharding=sharding)
        found = shard_like(jax.ShapeDtypeStruct((4, 6, 9), np.float32), param)
        assert found.spec == jax.sharding.PartitionSpec(None, *spec, *[None] * (2 - len(spec)))
