"""Steps at which a schedule prunes, and how much, by hand."""

import numpy as np
import pytest

import jaxsim as js

sp = js.sparsity


def due(schedule, until=40):
    return [t for t in range(until) if schedule.due(np.int32(t))]


def shares(schedule, steps):
    return [float(schedule.sparsity(np.int32(t))) for t in steps]


def test_one_shot_prunes_once():
    schedule = sp.one_shot(0.75, at=3)
    assert due(schedule) == [3]
    assert shares(schedule, (0, 3, 9)) == [0.75] * 3
    assert due(sp.one_shot(0.5)) == [0]
    open_ended = sp.one_shot(at=2)
    assert (due(open_ended), open_ended.sparsity) == ([2], None)


def test_rounds_leave_the_same_share_of_what_was_left():
    """1 - 7/8 = 1/8 after three: 1/2, 1/4, 1/8 are left after steps 4, 9 and 14."""
    schedule = sp.iterative(0.875, begin=4, every=5, rounds=3)
    assert due(schedule) == [4, 9, 14]
    expected = [0, 0, 0.5, 0.5, 0.75, 0.875, 0.875]
    np.testing.assert_allclose(shares(schedule, (0, 3, 4, 8, 9, 14, 30)), expected, atol=1e-6)
    assert due(sp.iterative(0.5, begin=0, every=1, rounds=1)) == [0]


def test_a_cubic_falls_from_its_start_to_its_end():
    """0.8 - 0.6 (1 - i/4)³: 0.2, then 0.8 - 0.6 · 27/64, - 0.6 / 8, - 0.6 / 64, 0.8."""
    schedule = sp.cubic(0.8, begin=3, every=5, updates=4, initial=0.2)
    assert due(schedule) == [3, 8, 13, 18, 23]
    expected = [0.2, 0.2, 0.8 - 0.6 * 27 / 64, 0.725, 0.790625, 0.8, 0.8]
    np.testing.assert_allclose(shares(schedule, (0, 3, 8, 13, 18, 23, 39)), expected, atol=1e-6)
    dense = sp.cubic(0.8, begin=0, every=2, updates=1)
    assert due(dense) == [0, 2]
    np.testing.assert_allclose(shares(dense, (0, 1, 2)), [0, 0.7, 0.8], atol=1e-6)


CUBIC = {"begin": 0, "every": 1, "updates": 1}
ROUNDS = {"begin": 0, "every": 1, "rounds": 1}


@pytest.mark.parametrize(
    ("message", "make"),
    {
        "at=-1": lambda: sp.one_shot(0.5, at=-1),
        "at=0.5": lambda: sp.one_shot(0.5, at=0.5),
        "sparsity=1:": lambda: sp.one_shot(1),
        "sparsity=-0.1": lambda: sp.one_shot(-0.1),
        "sparsity=1.0": lambda: sp.iterative(1.0, **ROUNDS),
        "begin=-1": lambda: sp.iterative(0.5, **(ROUNDS | {"begin": -1})),
        "every=0": lambda: sp.iterative(0.5, **(ROUNDS | {"every": 0})),
        "rounds=0": lambda: sp.iterative(0.5, **(ROUNDS | {"rounds": 0})),
        "rounds=1.5": lambda: sp.iterative(0.5, **(ROUNDS | {"rounds": 1.5})),
        "begin=0.5": lambda: sp.iterative(0.5, **(ROUNDS | {"begin": 0.5})),
        "every=1.5": lambda: sp.iterative(0.5, **(ROUNDS | {"every": 1.5})),
        "sparsity=1.5": lambda: sp.cubic(1.5, **CUBIC),
        "initial=1": lambda: sp.cubic(0.5, **CUBIC, initial=1),
        "initial=-0.1": lambda: sp.cubic(0.5, **CUBIC, initial=-0.1),
        "begin=-2": lambda: sp.cubic(0.5, **(CUBIC | {"begin": -2})),
        "every=-1": lambda: sp.cubic(0.5, **(CUBIC | {"every": -1})),
        "every=0.5": lambda: sp.cubic(0.5, **(CUBIC | {"every": 0.5})),
        "begin=1.5": lambda: sp.cubic(0.5, **(CUBIC | {"begin": 1.5})),
        "updates=0": lambda: sp.cubic(0.5, **(CUBIC | {"updates": 0})),
        "updates=2.5": lambda: sp.cubic(0.5, **(CUBIC | {"updates": 2.5})),
    }.items(),
)
def test_numbers_out_of_range_are_named(message, make):
    with pytest.raises(ValueError, match=message):
        make()


def test_nothing_may_be_left_out():
    for schedule in (sp.one_shot(0), sp.iterative(0, **ROUNDS), sp.cubic(0, **CUBIC, initial=0.0)):
        assert shares(schedule, (0, 1)) == [0, 0]
