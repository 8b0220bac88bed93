"""Which channels stay, and how far two networks are apart, in small numbers."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsim.network.arguments import abstract_arguments, call_arguments
from jaxsim.transforms import shrink
from jaxsim.transforms.shrink import _checked, _difference, _drawn, _ranked, _together

T, F = True, False


def ranked(worth, sparsity, scope="group", least=1, multiple=1, tied=()):
    worth = {name: np.array(w, float) for name, w in worth.items()}
    masks = _ranked(worth, sparsity, scope, least, multiple, dict(tied))
    return {name: mask.tolist() for name, mask in masks.items()}


@pytest.mark.parametrize(
    ("worth", "sparsity", "stays"),
    [
        ([5, 1, 3, 2], 0.5, [T, F, T, F]),
        ([1, 1, 1, 1], 0.5, [F, F, T, T]),  # of equals the last
        ([1, 2, 3, 4, 5, 6], 0.25, [F, F, T, T, T, T]),  # 1.5 are rounded to the even 2
        ([3, 2, 1], 0.0, [T, T, T]),
        ([3, 2, 1], 0.99, [T, F, F]),
    ],
)
def test_the_worthiest_of_a_group_stay(worth, sparsity, stays):
    assert ranked({"a": worth}, sparsity) == {"a": stays}


@pytest.mark.parametrize(
    ("least", "multiple", "count"),
    [(1, 1, 1), (3, 1, 3), (1, 4, 4), (5, 4, 8), (8, 4, 8), (9, 4, 10), (11, 1, 10)],
)
def test_a_multiple_stays_that_is_no_less_than_the_fewest(least, multiple, count):
    """Of ten, of which nine are to go."""
    (mask,) = ranked({"a": range(10)}, 0.9, least=least, multiple=multiple).values()
    assert mask == [F] * (10 - count) + [T] * count


def test_groups_are_ranked_together_by_the_mean_of_each():
    """1/2 and 3/2; 1/2, 3/2, 1 and 1; nothing at all: six of eight go, nothing first."""
    worth = {"a": [1, 3], "b": [10, 30, 20, 20], "zero": [0, 0]}
    assert ranked(worth, 5 / 8, "global") == {
        "a": [F, T],
        "b": [F, T, F, T],
        "zero": [F, T],  # one stays at least
    }
    assert ranked(worth, 0.25, "global")["a"] == [T, T]


def test_groups_of_a_convolution_and_their_channels_lose_one_share_together():
    """Of 4 groups of 6 channels 6 stay: 3 groups of 2; of 12, all groups keep 3."""
    sizes = {"g": 4, "c": 6, "d": 2}
    assert _together("g", ["c"], sizes, 0.75) == {"g": 1, "c": 4}
    assert _together("g", ["c"], sizes, 0.5) == {"g": 0, "c": 3}
    assert _together("g", ["c"], sizes, 0.0) == {"g": 0, "c": 0}
    # 6 and 2 are left by two groups alone; of almost nothing one of each stays
    assert _together("g", ["c", "d"], sizes, 0.75) == {"g": 2, "c": 3, "d": 1}
    assert _together("g", ["c", "d"], sizes, 0.99) == {"g": 3, "c": 5, "d": 1}
    worth = {"g": range(4), "c": range(6)}
    stays = ranked(worth, 0.75, tied={"g": ["c", "gone"], "gone": ["g"]})
    assert stays == {"g": [F, T, T, T], "c": [F, F, F, F, T, T]}


def test_scores_have_the_shapes_of_their_parameters():
    net = types.SimpleNamespace(params={"a": jnp.ones((2, 3)), "b": jnp.ones(2)})
    scores = {"a": np.ones((2, 3)), "b": np.ones(2)}
    assert _checked(net, scores) is scores
    with pytest.raises(ValueError, match="importance: must have the structure of the network's"):
        _checked(net, {"a": scores["a"]})
    with pytest.raises(ValueError, match=r"importance: a has \[3, 2\], the parameter \[2, 3\]"):
        _checked(net, scores | {"a": np.ones((3, 2))})
    with pytest.raises(ValueError, match="importance: b holds NaN"):
        _checked(net, scores | {"b": np.array([1, np.nan])})


def test_inputs_are_drawn_by_their_types():
    given = (
        jnp.zeros((50, 4)),
        jnp.zeros(3, bool),
        jnp.zeros(40, jnp.int8),
        jax.random.split(jax.random.key(1), (2, 3)),
        jax.random.key(1),
    )
    example = abstract_arguments(call_arguments(given, {"flag": 7}))
    drawn = _drawn(types.SimpleNamespace(example=example))
    (x, truth, whole, keys, key), kwargs = drawn.combine()
    assert kwargs == {"flag": 7}
    assert abs(float(x.mean())) < 0.3
    assert 0.8 < float(x.std()) < 1.2
    assert bool(truth.all())
    assert (whole.dtype, set(np.asarray(whole).tolist())) == (jnp.int8, {0, 1})
    assert (keys.shape, key.shape) == ((2, 3), ())
    assert len(np.unique(jax.random.key_data(keys).reshape(6, -1), axis=0)) == 6
    again = _drawn(types.SimpleNamespace(example=example))
    np.testing.assert_array_equal(again.arrays[0], x)


@pytest.mark.parametrize(
    ("small", "off"),
    [
        ([[10.0, 5.0], [2.0]], 0),
        ([[10.0, 4.0], [2.0]], 0.1),
        ([[10.0, 4.0], [1.5]], 0.25),
        ([[np.inf, 5.0], [2.0]], 0),  # where one is not finite nothing is compared
        ([[-10.0, 5.0], [2.0]], 2),
    ],
)
def test_outputs_differ_by_a_share_of_the_largest_of_each(monkeypatch, small, off):
    """Of 10 and 5, and of 2; integers are not looked at."""
    whole = [[10.0, 5.0], [2.0]]
    monkeypatch.setattr(shrink, "_drawn", lambda net: None)
    monkeypatch.setattr(shrink, "_run", lambda net, _: [*map(np.float32, net), np.arange(len(net))])
    assert _difference(whole, small) == pytest.approx(off)
    assert _difference([[0.0]], [[0.0]]) == 0
