"""Numbers of two and of four bits come back as they were, from as many bits of a byte each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsim.numerics.packed import Packed, bits_to_pack, unpacked

ENDS = {
    (2, np.int8): (-2, 1),
    (2, np.uint8): (0, 3),
    (4, np.int8): (-8, 7),
    (4, np.uint8): (0, 15),
}


@pytest.mark.parametrize("shape", [(16, 3), (5, 2), (1, 4), (6, 7)])
@pytest.mark.parametrize(("bits", "dtype"), ENDS)
def test_numbers_come_back(shape, bits, dtype):
    lo, hi = ENDS[bits, dtype]
    numbers = np.random.default_rng(0).integers(lo, hi + 1, shape).astype(dtype)
    numbers.ravel()[:2] = lo, hi
    for axis in (-1, -2):
        held = Packed.of(jnp.asarray(numbers), axis, bits)
        back = held.numbers()
        assert back.dtype == dtype
        assert held.shape == shape
        np.testing.assert_array_equal(back, numbers)
        np.testing.assert_array_equal(np.asarray(held), numbers)
        assert held.packs.nbytes == -(-shape[axis] * bits // 8) * shape[-1 if axis == -2 else 0]


def test_later_parts_are_in_higher_bits():
    four = Packed.of(jnp.asarray([1, 2, -1, -8], jnp.int8), -1, 4)
    np.testing.assert_array_equal(four.packs, [0xF1, 0x82])
    two = Packed.of(jnp.asarray([1, 0, -1, -2, 1], jnp.int8), -1, 2)
    np.testing.assert_array_equal(two.packs, [0b00_01_11_01, 0b00_00_10_00])


@pytest.mark.parametrize("bits", [2, 4])
def test_axes_in_front_change_nothing(bits):
    lo, hi = ENDS[bits, np.int8]
    numbers = jnp.resize(jnp.arange(lo, hi + 1, dtype=jnp.int8), (2, 5, 3))
    held = jax.vmap(lambda a: Packed.of(a, -2, bits))(numbers)
    np.testing.assert_array_equal(held.numbers(), numbers)
    np.testing.assert_array_equal(jax.tree.map(lambda a: a[1], held).numbers(), numbers[1])


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("count", [1, 7, 8, 9, 12])
def test_numbers_of_some_places_are_those_of_all(bits, count):
    """Of one part and of several; those of a part are put together from nothing."""
    lo, hi = ENDS[bits, np.int8]
    numbers = np.random.default_rng(count).integers(lo, hi + 1, (3, count, 2)).astype(np.int8)
    held = Packed.of(jnp.asarray(numbers), -2, bits)
    for start in range(count):
        for stop in range(start + 1, count + 1):
            np.testing.assert_array_equal(held.between(start, stop), numbers[:, start:stop])
    parts = held.parts()
    assert [i for part in parts for i in range(count)[part]] == list(range(count))
    assert len(parts) == -(-count // -(-count // (8 // bits)))
    for part in parts:
        jaxpr = jax.make_jaxpr(lambda p, part=part: p.between(part.start, part.stop))(held)
        assert "concatenate" not in str(jaxpr)


def test_no_numbers_are_none():
    held = Packed.of(jnp.zeros((2, 0), jnp.int8), -1, 4)
    assert held.numbers().shape == (2, 0)
    assert held.parts() == []


def test_what_is_an_array_already_stays():
    numbers = jnp.arange(3)
    assert unpacked(numbers) is numbers
    np.testing.assert_array_equal(unpacked(Packed.of(numbers.astype(jnp.int8), -1, 4)), numbers)


@pytest.mark.parametrize(
    ("lo", "hi", "bits"),
    [
        (-2, 1, 2),
        (-1, 1, 2),
        (-3, 1, 4),
        (-1, 2, 4),
        (0, 3, 2),
        (0, 4, 4),
        (-8, 7, 4),
        (-9, 0, None),
        (-1, 8, None),
        (0, 15, 4),
        (0, 16, None),
    ],
)
def test_the_fewest_bits_that_hold_a_range(lo, hi, bits):
    assert bits_to_pack(lo, hi) == bits
    if bits is not None:
        ends = jnp.asarray([lo, hi], jnp.int8 if lo < 0 else jnp.uint8)
        assert Packed.of(ends, -1, bits).numbers().tolist() == [lo, hi]
