"""Numbers of four bits come back as they were, from half a byte each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsim.numerics.nibbles import SIGNED, UNSIGNED, Nibbles, unpacked


@pytest.mark.parametrize("shape", [(16, 3), (5, 2), (1, 4)])
@pytest.mark.parametrize(("dtype", "ends"), [(np.int8, SIGNED), (np.uint8, UNSIGNED)])
def test_numbers_come_back(shape, dtype, ends):
    numbers = np.random.default_rng(0).integers(ends[0], ends[1] + 1, shape).astype(dtype)
    numbers.ravel()[:2] = ends
    for axis in (-1, -2):
        held = Nibbles.of(jnp.asarray(numbers), axis)
        back = held.numbers()
        assert back.dtype == dtype
        assert held.shape == shape
        np.testing.assert_array_equal(back, numbers)
        np.testing.assert_array_equal(np.asarray(held), numbers)
        assert held.pairs.nbytes == -(-shape[axis] // 2) * shape[-1 if axis == -2 else 0]


def test_the_second_half_is_in_the_high_bits():
    held = Nibbles.of(jnp.asarray([1, 2, -1, -8], jnp.int8), -1)
    np.testing.assert_array_equal(held.pairs, [0xF1, 0x82])


def test_axes_in_front_change_nothing():
    numbers = jnp.arange(-8, 7, dtype=jnp.int8).reshape(1, 5, 3) * jnp.ones((2, 1, 1), jnp.int8)
    held = jax.vmap(lambda a: Nibbles.of(a, -2))(numbers)
    np.testing.assert_array_equal(held.numbers(), numbers)
    np.testing.assert_array_equal(jax.tree.map(lambda a: a[1], held).numbers(), numbers[1])


def test_what_is_an_array_already_stays():
    numbers = jnp.arange(3)
    assert unpacked(numbers) is numbers
    np.testing.assert_array_equal(unpacked(Nibbles.of(numbers.astype(jnp.int8), -1)), numbers)
