"""What integers stand for, against the numbers themselves."""

import numpy as np
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
