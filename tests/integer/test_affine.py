"""What integers stand for, against the numbers themselves."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxsim.integer.affine import (
    affine,
    clip,
    common_step,
    compact,
    concatenate,
    rearrange,
    scale_and_shift,
)

SHAPE = (2, 3, 4)
seeds = st.integers(0, 2**32 - 1)


def value(seed):
    """Integers with a scale and a shift a channel, and what they are."""
    rng = np.random.default_rng(seed)
    q = rng.integers(-9, 10, SHAPE)
    found = affine(SHAPE, rng.choice([-2, 0, 0.5, 3], 4)[None, None], rng.normal(), -9, 9)
    return rng, q, found


def numbers(q, found):
    """What the integers stand for, by the definition."""
    return np.clip(q * found.scale + found.shift, found.lo, found.hi)


def within(q, found):
    real = numbers(q, found)
    lo, hi = found.bounds
    assert (real >= lo - 1e-9).all()
    assert (real <= hi + 1e-9).all()
    assert found.shape == q.shape
    assert all(a.ndim == q.ndim for a in found.arrays)


@given(seeds)
def test_affine_chains_and_clips_are_folded(seed):
    rng, q, found = value(seed)
    expected = numbers(q, found)
    for _ in range(4):
        factor = rng.choice([-1.5, 0, 2], 4)[None, None]
        term = rng.normal(size=(1, 1, 4))
        lo, hi = np.sort(rng.normal(scale=4, size=(2, 1, 1, 4)), 0)
        found = clip(scale_and_shift(found, factor, term, SHAPE), lo, hi, SHAPE)
        expected = np.clip(expected * factor + term, lo, hi)
        np.testing.assert_allclose(numbers(q, found), expected, atol=1e-9)
        within(q, found)


LAYOUTS = {
    "transposed": lambda a: a.transpose(0, 2, 1),
    "flat": lambda a: a.reshape(2, 12),
    "reversed": lambda a: a[..., ::-1],
    "cut": lambda a: a[:, 1:, ::2],
    "broadcast": lambda a: np.broadcast_to(a[:, None], (2, 5, 3, 4)),
}


@given(seeds, st.sampled_from(sorted(LAYOUTS)))
def test_numbers_move_with_their_integers(seed, name):
    _, q, found = value(seed)
    layout = LAYOUTS[name]
    there = rearrange(found, layout, layout(q).shape)
    np.testing.assert_array_equal(numbers(layout(q), there), layout(numbers(q, found)))
    within(layout(q), there)


@given(seeds, seeds, st.integers(0, 2))
def test_values_beside_one_another_keep_their_scales(one, other, axis):
    (_, p, a), (_, q, b) = value(one), value(other)
    both = concatenate([a, b], axis)
    beside = np.concatenate([p, q], axis)
    expected = np.concatenate([numbers(p, a), numbers(q, b)], axis)
    np.testing.assert_array_equal(numbers(beside, both), expected)
    within(beside, both)


@given(seeds)
def test_compact_keeps_one_entry_of_what_does_not_vary(seed):
    rng = np.random.default_rng(seed)
    a = rng.integers(0, 2, (rng.integers(1, 3), 1, 3)).astype(float)
    wide = np.broadcast_to(a, (a.shape[0], 4, 3))
    found = compact(wide, 3)
    assert found.shape[1] == 1
    np.testing.assert_array_equal(np.broadcast_to(found, wide.shape), wide)


@given(seeds, seeds)
def test_a_common_grid_holds_every_value(one, other):
    values = [value(seed)[2] for seed in (one, other)]
    step = common_step(values, 100.0)
    assert step > 0
    assert all(np.abs(end / step).max() <= 100 + 1e-9 for v in values for end in v.bounds)


def one(scale, shift=0.0, least=-9.0, most=9.0, lo=-np.inf, hi=np.inf):
    """A value that varies nowhere."""
    found = affine((2, 3), scale, shift, least, most)
    return found._replace(lo=np.full((1, 1), lo), hi=np.full((1, 1), hi))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (one(2, 5, -3, 7), (-1, 19)),
        (one(-2, 5, -3, 7), (-9, 11)),  # a negative scale turns the ends
        (one(2, 5, -3, 7, lo=0, hi=6), (0, 6)),
        (one(2, 5, -3, 7, lo=20, hi=30), (20, 20)),
        (one(0, 5, -3, 7), (5, 5)),
    ],
)
def test_numbers_lie_between_ends_by_hand(value, expected):
    assert tuple(float(end.item()) for end in value.bounds) == expected


@pytest.mark.parametrize(
    ("value", "clipped", "rising", "pure"),
    [
        (one(2), False, True, True),
        (one(0), False, True, True),
        (one(-2), False, False, False),
        (one(2, 0.5), False, True, False),
        (one(2, lo=0), True, True, False),
        (one(2, hi=6), True, True, False),
        (affine((2, 3), np.array([[1.0, 2, 2]]), 0, -1, 1), False, True, False),
        (affine((2, 3), np.array([[1.0, 2, -2]]), 0, -1, 1), False, False, False),
        (affine((2, 3), 1.0, np.array([[0.0, 0, 3]]), -1, 1), False, True, False),
        (one(2)._replace(lo=np.array([[-np.inf, 0, 0]])), True, True, False),
        (one(2)._replace(hi=np.array([[np.inf, 0, 0]])), True, True, False),
    ],
)
def test_what_a_value_is(value, clipped, rising, pure):
    assert (value.is_clipped, value.is_monotonic, value.is_pure_scale) == (clipped, rising, pure)


def test_a_value_is_constant_along_the_axes_it_does_not_vary_over():
    found = affine((2, 3), np.array([[1.0, 2, 2]]), 0.0, -1, np.array([[4.0], [5.0]]))
    assert [found.constant_along(axes) for axes in ([], [0], [1], [0, 1])] == [True, *[False] * 3]
    assert affine((2, 3), np.array([[1.0, 2, 2]]), 0.0, -1, 4).constant_along([0])


def test_a_chain_of_scales_and_clips_by_hand():
    """3 q + 1 clipped to [-2, 10], times -2 and plus 5: from -15 to 9, and -6 q + 3 between."""
    found = clip(one(3, 1), np.full((1, 1), -2.0), np.full((1, 1), 10.0), (2, 3))
    found = scale_and_shift(found, np.full((1, 1), -2.0), np.full((1, 1), 5.0), (2, 3))
    assert [float(a.item()) for a in found.arrays] == [-6, 3, -15, 9, -9, 9]
    nothing = scale_and_shift(found, np.zeros((1, 1)), np.full((1, 1), 7.0), (2, 3))
    assert [float(a.item()) for a in nothing.arrays[:4]] == [0, 7, 7, 7]
    open_end = scale_and_shift(one(3, lo=0), np.zeros((1, 1)), np.full((1, 1), 7.0), (2, 3))
    assert float(open_end.lo.item()) == float(open_end.hi.item()) == 7


@pytest.mark.parametrize(
    ("values", "largest", "expected"),
    [
        ([one(3, 0, -5, 4)], 60, 15 / 60),  # the amplitude decides
        ([one(3, 0, -4, 5), one(2, 1, -20, 3)], 60, 39 / 60),
        ([one(-(2.0**15), hi=1.0, lo=-1.0)], 60, 2.0),  # the multiplier: 2^15 over 2^14
        ([one(1.0, 3 * 2.0**26, hi=1.0, lo=-1.0)], 60, 3.0),  # the shift, over 2^26
        ([one(0.0)], 60, 1.0),
        # the largest of a channel, of a value and of either sign counts
        ([affine((2, 3), np.array([[1.0, -7, 2]]), 0, -1, 3)], 60, 21 / 60),
        ([one(1.0, 0, -1, 1), one(-(2.0**16), lo=-1.0, hi=1.0)], 60, 4.0),
        ([affine((2, 3), np.array([[2.0**15, 1]]), 0, 0, 0)], 60, 2.0),
        ([one(1.0, lo=-1.0, hi=1.0), one(1.0, -(2.0**27), lo=-1.0, hi=1.0)], 60, 2.0),
        (
            [
                affine((2, 3), 0.0, np.array([[2.0**28, 0]]), 0, 0)._replace(
                    lo=np.full((1, 1), -1.0), hi=np.full((1, 1), 1.0)
                )
            ],
            60,
            4.0,
        ),
    ],
)
def test_a_common_step_is_no_finer_than_amplitudes_scales_and_shifts_allow(
    values, largest, expected
):
    assert common_step(values, largest) == expected


def test_values_beside_one_another_vary_only_where_they_must():
    a, b = one(3.0), one(3.0)
    both = concatenate([a, b], 1)
    assert both.shape == (2, 6)
    assert all(part.shape == (1, 1) for part in both.arrays)
    assert concatenate([a], 1) == a
    both = concatenate([a, one(5.0), a], 0)
    np.testing.assert_array_equal(both.scale[:, 0], [3, 3, 5, 5, 3, 3])
    assert both.shift.shape == (1, 1)
