"""Arrays in the package's own arithmetic, byte order and places."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsim.numerics import arrays
from jaxsim.numerics.arrays import (
    native,
    own_promotion,
    parts_on_host,
    placed_like,
    whole_on_host,
)


def test_promotion_is_the_standard_one_inside_and_the_caller_s_outside():
    low, high = jnp.ones(3, jnp.bfloat16), jnp.ones((2, 3))
    added = own_promotion()(lambda: low + high)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        with own_promotion():
            assert (low + high).dtype == jnp.float32
        assert added().shape == (2, 3)
        with pytest.raises(Exception, match="promotion"):
            low + high


def test_bytes_come_into_this_machine_s_order():
    other = np.array([1.0, 2.5], np.dtype(np.float32).newbyteorder())
    found = native(other)
    assert found.dtype.isnative
    np.testing.assert_array_equal(found, [1, 2.5])
    assert native(other[0]).dtype.isnative
    for same in (found, 3, None, "text"):
        assert native(same) is same


def mesh_like(shape, *spec):
    mesh = jax.sharding.AbstractMesh((2, 3), ("a", "b"))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)


def test_what_is_made_beside_a_parameter_goes_to_its_devices(monkeypatch):
    placed = []
    monkeypatch.setattr(arrays.jax, "device_put", lambda a, where: placed.append((a, where)))
    a, there = jnp.ones((4, 6)), mesh_like((4, 6), "a", "b")
    placed_like(a, there)
    ((found, where),) = placed
    assert found is a
    assert where is there.sharding
    for made, other in (
        (jnp.ones(4), there),  # another rank
        (jnp.ones((4, 5)), there),  # three devices do not divide five
        (a, jnp.ones((4, 6))),
        (a, np.ones((4, 6))),
    ):
        assert placed_like(made, other) is made
    assert len(placed) == 1


def test_what_one_process_holds_is_read_as_it_is():
    for given in ([1, 2], np.arange(3), jnp.arange(3)):
        np.testing.assert_array_equal(whole_on_host(given), np.asarray(given))
        (part,) = parts_on_host(given)
        np.testing.assert_array_equal(part, np.asarray(given))
