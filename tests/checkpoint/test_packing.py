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
