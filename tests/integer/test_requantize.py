"""Rescaling in 32 bits against Python's integers and against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsim.integer.requantize import dyadic, rescale
from tests.oracles import requantiser

CODES = {"lo": -128.0, "hi": 127.0}
WORDS = {"lo": -(2.0**30), "hi": 2.0**30}
FULL = {"min_code": -(2.0**31), "max_code": 2.0**31 - 1}

run = jax.jit(rescale)


def accumulators(rng, count, most=2**31 - 1):
    """Whole numbers of every length, the extremes among them."""
    spread = np.ldexp(rng.uniform(-1, 1, count), rng.integers(0, 32, count))
    q = np.clip(np.round(spread), -most - 1, most)
    q[:4] = -most - 1, most, 0, -1
    return q.astype(np.int32)


@pytest.mark.parametrize("exponents", [(-30, -2), (-2, 14)])
def test_rescaling_is_exact_for_any_accumulator_and_shift(exponents):
    """Multipliers below a quarter shift by 17 or more, larger ones by less."""
    rng = np.random.default_rng(exponents[1] + 40)
    scale = np.ldexp(
        rng.uniform(0.5, 1, 64) * rng.choice([-1, 1], 64), rng.integers(*exponents, 64)
    )
    offset = rng.normal(0, 50, 64)
    r = dyadic(scale, offset, **CODES, **FULL)
    shifts = np.asarray(r.shift)
    assert ((shifts >= 17) if exponents[1] <= -2 else (shifts <= 17)).all()
    q = accumulators(rng, 20000 - 20000 % 64).reshape(-1, 64)
    expected = requantiser.requantised(q, scale, offset, -128, 127)
    np.testing.assert_array_equal(run(q, r), expected)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(-(2**31), 2**31 - 1),
    st.floats(-(2.0**14), 2.0**14, allow_subnormal=False),
    st.floats(-1e6, 1e6, allow_subnormal=False),
)
def test_one_number_is_rescaled_as_python_does(q, scale, offset):
    r = dyadic(np.float64(scale), np.float64(offset), **CODES, **FULL)
    expected = requantiser.requantised(np.int64(q), scale, offset, -128, 127)
    assert int(run(jnp.int32(q), r)) == expected


def test_results_of_30_bits_are_exact_where_they_are_not_clipped():
    rng = np.random.default_rng(0)
    scale = np.ldexp(rng.uniform(0.5, 1, 64), rng.integers(-8, 15, 64))
    most = np.floor(2.0**29 / scale)
    q = np.round(rng.uniform(-1, 1, (300, 64)) * np.minimum(most, 2.0**31 - 1)).astype(np.int64)
    r = dyadic(scale, 0.0 * scale, **WORDS, min_code=-most, max_code=most)
    assert r.min_code is None
    expected = requantiser.requantised(q, scale, 0 * scale, -(2**30), 2**30)
    np.testing.assert_array_equal(run(q.astype(np.int32), r), expected)


def test_float64_computes_the_same():
    """Products of 46 bits are exact in float64, and so is their floor."""
    rng = np.random.default_rng(1)
    scale, offset = np.exp(rng.uniform(-14, -2, 32)), rng.normal(0, 40, 32)
    r = dyadic(scale, offset, **CODES, **FULL)
    q = accumulators(rng, 32 * 500).reshape(-1, 32)
    b, high, low, c = (np.asarray(a, np.float64) for a in r[:4])
    found = np.clip(np.floor((q * b + (high * 2**16 + low)) / 2**c), -128, 127)
    np.testing.assert_array_equal(run(q, r), found)


@given(st.floats(2.0**-20, 2.0**14))
def test_the_multiplier_keeps_fifteen_bits_of_the_scale(scale):
    r = dyadic(np.float64(scale), np.float64(0.0), **CODES, **FULL)
    assert abs(int(r.multiplier) / 2.0 ** int(r.shift) / scale - 1) <= 2.0**-15


def test_a_scale_of_zero_gives_the_rounded_offset():
    offset = np.array([-3.5, 0.49, 0.5, 99.9, -200.0])
    r = dyadic(0 * offset, offset, **CODES, **FULL)
    q = np.array([[-(2**31)], [0], [2**31 - 1]], np.int32)
    np.testing.assert_array_equal(run(q, r), np.tile([-3, 0, 1, 100, -128], (3, 1)))


@pytest.mark.parametrize(
    ("scale", "offset"), [(2.0**15, 0.0), (np.nan, 0.0), (1.0, 2.0**28), (1.0, np.inf)]
)
def test_what_does_not_fit_is_refused(scale, offset):
    with pytest.raises(ValueError, match="must be finite and below"):
        dyadic(np.float64(scale), np.float64(offset), **CODES, **FULL)
