"""Arrays as bytes and back, bit for bit."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from jaxsim.checkpoint.packing import Form, pack, unpack

some_array = st.sampled_from(["int8", "uint8", "int16", "int32", "bool", "float32"]).flatmap(
    lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=0, max_side=7))
)


def forms(given_arrays):
    return [Form(a.shape, a.dtype) for a in given_arrays]


@given(st.lists(some_array, max_size=5))
def test_arrays_come_back(given_arrays):
    found = unpack(pack(given_arrays), forms(given_arrays))
    for a, b in zip(given_arrays, found, strict=True):
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_take_as_many_bits_as_they_have(bits):
    rng = np.random.default_rng(bits)
    codes = rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), 4000).astype(np.int8)
    codes[:2] = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    content = pack([codes])
    assert len(content) == 9 + 4000 * bits // 8
    assert np.array_equal(unpack(content, forms([codes]))[0], codes)


@pytest.mark.parametrize("dtype", ["int32", "int16"])
def test_the_widest_numbers_come_back(dtype):
    ends = np.array([np.iinfo(dtype).min, np.iinfo(dtype).max, 0], dtype)
    assert np.array_equal(unpack(pack([ends]), forms([ends]))[0], ends)


def test_short_floats_and_keys_are_kept_as_they_are():
    given_arrays = [
        np.arange(5).astype(ml_dtypes.bfloat16),
        np.array([0, 2**32 - 1], np.uint32),
        np.array([np.nan, -0.0, np.inf], np.float32),
        np.zeros((0, 3), np.int8),
    ]
    for a, b in zip(given_arrays, unpack(pack(given_arrays), forms(given_arrays)), strict=True):
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


@given(st.binary(max_size=80))
def test_any_bytes_are_arrays_or_a_value_error(content):
    try:
        found = unpack(content, [Form((5,), np.dtype("int8")), Form((2,), np.dtype("float32"))])
    except ValueError:
        return
    assert [a.shape for a in found] == [(5,), (2,)]


def packed_by_hand(lo, bits, body):
    """A head of nine bytes (the least number, 8 bytes little-endian, and the bits), then a body."""
    return lo.to_bytes(8, "little", signed=True) + bytes([bits, *body])


@pytest.mark.parametrize(
    ("numbers", "dtype", "content"),
    [
        ([5, 5, 5], "int8", packed_by_hand(5, 0, [])),
        ([-3, -2, -3], "int16", packed_by_hand(-3, 1, [0b01000000])),
        ([7, 10, 9, 8, 7], "uint8", packed_by_hand(7, 2, [0b00111001, 0b00000000])),
        ([100, 105, 103], "int32", packed_by_hand(100, 3, [0b00010101, 0b10000000])),
        ([False, True, True], "bool", packed_by_hand(0, 1, [0b01100000])),
        ([0, 256], "int32", packed_by_hand(0, 9, [0, 0b01000000, 0])),
        ([2**40, 1], "int64", packed_by_hand(0, 255, [0] * 5 + [1] + [0] * 2 + [1] + [0] * 7)),
        ([1.0], "float32", packed_by_hand(0, 255, [0, 0, 128, 63])),
        ([], "int8", packed_by_hand(0, 255, [])),
    ],
)
def test_a_range_takes_its_bits_most_significant_first(numbers, dtype, content):
    array = np.array(numbers, dtype)
    assert pack([array]) == content
    (found,) = unpack(content, forms([array]))
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


def test_several_arrays_have_their_heads_first():
    first, second = np.array([[3, 4], [6, 3]], np.int8), np.array([True, False])
    heads = packed_by_hand(3, 2, []) + packed_by_hand(0, 1, [])
    assert pack([first, second]) == heads + bytes([0b00011100, 0b10000000])
    found = unpack(pack([first, second]), forms([first, second]))
    np.testing.assert_array_equal(found[0], first)
    np.testing.assert_array_equal(found[1], second)


@pytest.mark.parametrize(
    ("content", "form", "message"),
    [
        (packed_by_hand(0, 33, [0] * 99), Form((2,), "int32"), "33 bits an entry of int32"),
        (packed_by_hand(0, 8, [1, 2]), Form((2,), "float32"), "8 bits an entry of float32"),
        (packed_by_hand(0, 8, [1]), Form((2,), "int8"), "10 bytes are not those of 1 such"),
        (packed_by_hand(0, 8, [1, 2, 3]), Form((2,), "int8"), "12 bytes are not those of 1 such"),
        (packed_by_hand(0, 255, [1]), Form((1,), "int16"), "10 bytes are not those of 1 such"),
        (packed_by_hand(0, 8, [1, 2])[:8], Form((2,), "int8"), "8 bytes are not those"),
    ],
)
def test_bytes_of_other_arrays_are_refused(content, form, message):
    with pytest.raises(ValueError, match=message):
        unpack(content, [form])


def test_as_many_bits_as_a_number_has_are_taken():
    content = packed_by_hand(0, 32, [0xFF] * 4 + [0, 0, 0, 1])
    assert unpack(content, [Form((2,), "uint32")])[0].tolist() == [2**32 - 1, 1]
