"""Scores, rules and levels of tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxsim.adaptive import tokens

top = jax.jit(tokens.top)


def attention(B, H, n, counts, seed=0):
    rng = np.random.default_rng(seed)
    a = rng.gamma(0.5, size=(B, H, n, n)).astype(np.float32)
    valid = np.arange(n) < np.asarray(counts)[:, None]
    a = a * valid[:, None, None]
    return a / a.sum(-1, keepdims=True), valid


def test_importance_is_the_column_mean_over_the_tokens_that_are_there():
    a, valid = attention(3, 2, 6, [6, 4, 1])
    found = tokens.token_importance(a, valid)
    for b, n in enumerate([6, 4, 1]):
        expected = [
            sum(a[b, h, j, i] for h in range(2) for j in range(n)) / (2 * n) for i in range(6)
        ]
        np.testing.assert_allclose(found[b], expected, atol=1e-7)
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-6)
    padded = np.pad(a, ((0, 0), (0, 0), (0, 5), (0, 5)), constant_values=0)
    more = tokens.token_importance(padded, np.pad(valid, ((0, 0), (0, 5))))
    np.testing.assert_allclose(more[:, :6], found, atol=1e-7)
    assert not np.any(more[:, 6:])


def test_a_token_at_its_level_stays_and_the_first_stay_whatever_they_receive():
    received = jnp.array([[0.1, 0.3, 0.2, 0.4]])
    valid = jnp.array([[True, True, True, False]])
    kept = tokens.keep_tokens(tokens.above, jnp.float32(0.3), received, valid, 1)
    assert kept.tolist() == [[True, True, False, False]]
    assert tokens.keep_tokens(tokens.above, jnp.float32(2.0), received, valid, 2).tolist() == [
        [True, True, False, False]
    ]


@given(
    st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.3]), min_size=1, max_size=9),
    st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]),
)
def test_top_keeps_the_largest_and_the_earlier_of_equals(scores, level):
    received = jnp.array([scores + [9.0] * (9 - len(scores))])
    valid = jnp.arange(9) < len(scores)
    found = np.asarray(top(jnp.float32(level), received, valid[None]))[0]
    order = sorted(range(len(scores)), key=lambda i: (-np.float32(scores[i]), i))
    count = int(np.ceil((1 - level) * len(scores)))
    assert sorted(np.flatnonzero(found)) == sorted(order[:count])


def test_schedules_end_where_they_are_told_to():
    np.testing.assert_allclose(tokens.linear_thresholds(0.04, 4), [0.01, 0.02, 0.03, 0.04])
    left = np.cumprod(1 - np.asarray(tokens.pruning_ratios(0.2, 7)))
    np.testing.assert_allclose(left, [1, 1, 1, 0.8, 0.6, 0.4, 0.2], rtol=1e-6)
    assert len(tokens.pruning_ratios(0.5, 24)) == 24
    assert not np.any(tokens.pruning_ratios(0.5, 24)[:4])


def test_soft_masks_become_hard_as_they_cool():
    received = jnp.array([0.01, 0.02, 0.03])
    np.testing.assert_allclose(
        tokens.soft_mask(received, jnp.float32(0.02), 1e-4), [0, 0.5, 1], atol=1e-6
    )


@pytest.mark.parametrize(
    ("level", "named"),
    [(np.zeros(2), "level[2]"), (np.array([0, -0.1, 0]), "level=-0.1"), ([0, np.nan, 0], "nan")],
)
def test_levels_out_of_range_are_named(level, named):
    with pytest.raises(ValueError, match="level") as error:
        tokens.check_levels(level, 3)
    assert named in str(error.value)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: tokens.linear_thresholds(-1, 3),
        lambda: tokens.linear_thresholds(0.1, 0),
        lambda: tokens.pruning_ratios(0, 5),
        lambda: tokens.pruning_ratios(1.5, 5),
        lambda: tokens.pruning_ratios(0.5, 3),
    ],
)
def test_schedules_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=r"final|layers"):
        wrong()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("rising", "linear_thresholds"),
        ("falling", "pruning_ratios"),
        ("stays", "keep_tokens"),
        ("prefix", "prefix_mask"),
    ],
)
def test_old_names_warn_and_give_the_new_ones(old, new):
    with pytest.warns(DeprecationWarning, match=new):
        assert getattr(tokens, old) is getattr(tokens, new)


def test_soft_masks_are_a_sigmoid_of_the_distance_in_temperatures():
    found = tokens.soft_mask(jnp.array([0.1, 0.5]), jnp.float32(0.2), 0.05)
    np.testing.assert_allclose(found, [1 / (1 + np.exp(2)), 1 / (1 + np.exp(-6))], rtol=1e-6)


@pytest.mark.parametrize(("layers", "whole"), [(4, 3), (19, 3), (20, 3), (21, 4), (26, 4), (27, 5)])
def test_the_first_15_percent_of_the_layers_prune_nothing(layers, whole):
    """Three at least; after them the share left falls by equal steps."""
    ratios = np.asarray(tokens.pruning_ratios(0.3, layers))
    left = np.cumprod(1 - ratios)
    assert len(ratios) == layers
    np.testing.assert_array_equal(ratios[:whole], 0)
    expected = 1 - 0.7 * np.arange(1, layers - whole + 1) / (layers - whole)
    np.testing.assert_allclose(left[whole:], expected, rtol=1e-5)


def test_schedules_at_their_ends_are_taken():
    assert tokens.linear_thresholds(0.0, 1).tolist() == [0.0]
    assert tokens.pruning_ratios(1.0, 4).tolist() == [0, 0, 0, 0]
    tokens.check_levels(np.zeros(3), 3)


def test_the_first_tokens_stay_only_where_they_are():
    received, valid = jnp.zeros((1, 4)), jnp.array([[True, False, True, True]])
    for protect, expected in [(1, [True, False, False, False]), (3, [True, False, True, False])]:
        found = tokens.keep_tokens(tokens.above, jnp.float32(0.3), received, valid, protect)
        assert found.tolist() == [expected]
