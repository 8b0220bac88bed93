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


# scale, offset: multiplier b, exponent c, and the words of B with its half, worked by hand
BY_HAND = {
    # 0.3 · 2^16 = 19660.8; with another bit it is 39322. B = 2.75 · 2^16 + 2^15 = 3 · 2^16 + 2^14
    "a fraction": (0.3, 2.75, 19661, 16, 3, 16384),
    # -0.01 · 2^21 = -20971.52; B = -1.5 · 2^21 + 2^20 = -32 · 2^16
    "a negative one": (-0.01, -1.5, -20972, 21, -32, 0),
    # 5 · 2^12 = 20480; B = 7 · 2^12 + 2^11 = 30720
    "above one": (5.0, 7.0, 20480, 12, 0, 30720),
    # the largest scale: 2^15 - 0.4 rounds to 2^15, which no smaller exponent mends: c = 0, no half
    "the largest": (2.0**15 - 0.4, -3.0, 2**15 - 1, 0, -1, 2**16 - 3),
    # 2^-40 · 2^44 = 16, c at its largest; B = 2^43
    "the smallest": (2.0**-40, 0.0, 16, 44, 2**27, 0),
    # (2^20 + 1) 2^c ≤ 2^44 leaves c = 23, and b = 0.001 · 2^23 = 8388.6; B = 2^43 + 2^22
    "a far offset": (0.001, 2.0**20, 8389, 23, 2**27 + 2**6, 0),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_multipliers_and_words_are_those_by_hand(name):
    scale, offset, b, c, high, low = BY_HAND[name]
    r = dyadic(np.float64(scale), np.float64(offset), **CODES, min_code=-1.0, max_code=1.0)
    assert tuple(map(int, r[:4])) == (b, high, low, c)
    assert (int(r.lo), int(r.hi)) == (-128, 127)


@pytest.mark.parametrize(
    ("q", "expected"),
    [
        # 19661 q + 212992 over 2^16: 302.75 and -297.25 rounded, the half at 2.5 upward
        (1000, 303),
        (-1000, -297),
        (0, 3),
        (-1, 2),  # 2.45
        (-2, 2),  # 2.15
        (66_000, 19_803),  # the high word of q counts
        (-66_000, -19_797),
        (2**31 - 1, 2**29 - 1),
        (-(2**31), -(2**29)),
    ],
)
def test_integers_go_to_another_grid_as_by_hand(q, expected):
    ends = {"lo": np.float64(-(2**29)), "hi": np.float64(2**29 - 1)}
    r = dyadic(np.float64(0.3), np.float64(2.75), **ends, **FULL)
    assert int(run(jnp.int32(q), r)) == expected


# what is as large as 2^30 before its clip could leave int32 once halves and errors are added
NEAR = {
    "by its product": (2.0**14, 0.0, 2.0**16),
    "by its offset": (0.0, 2.0**28 - 1, 0.0),
    "by both": (2.0**14, 2.0**27, 2.0**16 - 2.0**13),
    "downward": (-(2.0**14), -(2.0**27), 2.0**16 - 2.0**13),
}


@pytest.mark.parametrize("name", ["by its product", "by both", "downward"])
@pytest.mark.parametrize("side", ["min_code", "max_code"])
def test_inputs_are_clipped_first_from_just_where_results_reach_thirty_bits(name, side):
    scale, offset, most = NEAR[name]
    for q, clipped in ((most - 1, False), (most, True), (16 * most, True)):
        span = {"min_code": -1.0, "max_code": 1.0, side: -q if side == "min_code" else q}
        r = dyadic(np.float64(scale), np.float64(offset), **WORDS, **span)
        assert (r.min_code is not None) is clipped
        assert (r.max_code is not None) is clipped
        found = run(jnp.int32(span[side]), r)
        exact = int(span[side]) * int(scale) + int(offset)
        assert int(found) == min(max(exact, -(2**30)), 2**30)


def test_inputs_are_clipped_no_nearer_than_their_results_are():
    """room = |lo or hi| + |offset| + 2 = 127 + 10 + 2, over a slope of 4: 34.75, so 35."""
    r = dyadic(np.float64(4.0), np.float64(-10.0), lo=-5.0, hi=127.0, **FULL)
    assert (int(r.min_code), int(r.max_code)) == (-35, 35)
    q = jnp.arange(-40, 41)
    np.testing.assert_array_equal(run(q, r), np.clip(4 * np.arange(-40, 41) - 10, -5, 127))
    # the farther end counts, whichever it is
    r = dyadic(np.float64(4.0), np.float64(10.0), lo=-127.0, hi=5.0, **FULL)
    assert (int(r.min_code), int(r.max_code)) == (-35, 35)
    # a channel of scale zero beside one that is large is not clipped to less than all words hold
    r = dyadic(np.float64([0.0, 2.0]), np.float64([3.0, 0.0]), **CODES, **FULL)
    assert int(r.max_code[0]) == 2**31 - 128
    np.testing.assert_array_equal(run(jnp.int32([[2**31 - 1] * 2]), r), [[3, 127]])


@pytest.mark.parametrize(
    ("scale", "b"),
    [
        (2.0**15 - 1.5, 32766),  # a half, to even
        (2.0**15 - 1, 32767),
        (2.0**15 - 1e-9, 32767),
        (-(2.0**15) + 1, -32767),
        (-(2.0**15) + 1e-9, -32768),
    ],
)
def test_a_multiplier_saturates_rather_than_leave_its_word(scale, b):
    r = dyadic(np.float64(scale), np.float64(0.0), **WORDS, min_code=-9.0, max_code=9.0)
    assert (int(r.multiplier), int(r.shift)) == (b, 0)
    assert int(run(jnp.int32(3), r)) == 3 * b


def test_an_offset_takes_its_bits_from_the_multiplier_only_where_it_must():
    """(|offset| + 1) 2^c ≤ 2^44: with 2^28 - 1 exactly c = 16 fits, and the scale has less bits."""
    for offset, c in ((2.0**28 - 1, 16), (2.0**28 - 2, 16), (2.0**27 - 1, 17), (2.0**27, 16)):
        r = dyadic(np.float64(1e-9), np.float64(offset), **CODES, min_code=-1.0, max_code=1.0)
        assert int(r.shift) == c


def test_scales_beside_one_another_keep_their_own_exponents():
    scale, offset = np.array([0.3, 5.0, 2.0**-40]), np.array([2.75, 7.0, 0.0])
    r = dyadic(scale, offset, **CODES, min_code=-1.0, max_code=1.0)
    np.testing.assert_array_equal(r.multiplier, [19661, 20480, 16])
    np.testing.assert_array_equal(r.shift, [16, 12, 44])


@pytest.mark.parametrize("sign", [1, -1])
def test_what_just_fits_is_taken(sign):
    for scale, offset in ((np.nextafter(2.0**15, 0), 0.0), (1.0, np.nextafter(2.0**28, 0))):
        r = dyadic(np.float64(sign * scale), np.float64(sign * offset), **CODES, **FULL)
        assert int(run(jnp.int32(0), r)) == (127 * sign if offset else 0) - (offset > 0 > sign)
    with pytest.raises(ValueError, match="scale="):
        dyadic(np.float64(sign * 2.0**15), np.float64(0.0), **CODES, **FULL)
    with pytest.raises(ValueError, match="offset="):
        dyadic(np.float64(1.0), np.float64(sign * 2.0**28), **CODES, **FULL)


def test_the_oracle_of_requantization_would_notice_another_half():
    """A known-wrong control: truncation in place of rounding differs at 2.75 and 302.75."""
    q, scale, offset = np.array([0, 1000]), 0.3, 2.75
    found = requantiser.requantised(q, scale, offset, -999, 999)
    np.testing.assert_array_equal(found, [3, 303])
    assert np.any(found != np.trunc(q * scale + offset))


def test_the_largest_multiplier_is_used_where_it_is_exact():
    for scale, b, c in ((32767 * 2.0**-20, 32767, 20), (32768 * 2.0**-20, 16384, 19)):
        r = dyadic(np.float64(scale), np.float64(0.0), **CODES, min_code=-1.0, max_code=1.0)
        assert (int(r.multiplier), int(r.shift)) == (b, c)


@pytest.mark.parametrize("bad", [np.nan, -np.inf, 2.0**28, -(2.0**28)])
def test_one_channel_that_does_not_fit_is_enough_to_refuse(bad):
    with pytest.raises(ValueError, match="offset="):
        dyadic(np.ones(2), np.array([0.0, bad]), **CODES, **FULL)
    with pytest.raises(ValueError, match="scale="):
        dyadic(np.array([0.0, bad]), np.ones(2), **CODES, **FULL)
