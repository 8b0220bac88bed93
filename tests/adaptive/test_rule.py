"""When a row leaves: decisions by hand, at their edges."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from jaxsim.adaptive.rule import (
    Buckets,
    Rule,
    check_buckets,
    check_rule,
    initial_patience,
    normalized_entropy,
    pad_rows,
    round_up,
    should_exit,
)

SURE, HALF, EVEN = [50.0, 0.0, 0.0, 0.0], [0.0, 0.0, -90.0, -90.0], [2.0, 2.0, 2.0, 2.0]


def test_uncertainty_is_the_share_of_the_largest_entropy():
    """Of four classes: one is none, two alike are log 2 / log 4, all alike are 1."""
    found = normalized_entropy(jnp.array([SURE, HALF, EVEN]))
    np.testing.assert_allclose(found, [0, 0.5, 1], atol=1e-6)
    odd = jnp.log(jnp.array([0.5, 0.25, 0.25]))  # log 2 · (1/2 + 2 · 2/4) = 1.5 log 2
    assert float(normalized_entropy(odd)) == pytest.approx(1.5 * np.log(2) / np.log(3))


def test_a_class_of_no_share_adds_nothing():
    assert float(normalized_entropy(jnp.array([0.0, 0.0, -jnp.inf, -jnp.inf]))) == pytest.approx(
        0.5
    )


@pytest.mark.parametrize(
    ("threshold", "leaves"), [(0.0, 0), (0.5, 1), (0.75, 2), (1.0, 2), (1.1, 3)]
)
def test_a_row_leaves_below_the_threshold_and_not_at_it(threshold, leaves):
    """Uncertainties are 0, 1/2 and 1; at a threshold of 0 even a sure row stays."""
    logits = jnp.array([SURE, [0.0, 0.0, -jnp.inf, -jnp.inf], EVEN])
    leave, _, _ = should_exit(Rule(threshold), logits, initial_patience(3), 1)
    assert leave.tolist() == [True] * leaves + [False] * (3 - leaves)


@pytest.mark.parametrize(("layer", "leaves"), [(1, False), (2, False), (3, True), (4, True)])
@pytest.mark.parametrize("patience", [0, 1])
def test_no_row_leaves_before_the_first_exit(layer, leaves, patience):
    streak = initial_patience(1)._replace(label=jnp.array([0], jnp.int32))
    rule = Rule(2.0, patience=patience, first=3)
    leave, _, _ = should_exit(rule, jnp.array([SURE]), streak, layer)
    assert leave.tolist() == [leaves]


def labels_to_exits(patience, labels):
    """Which exits of a row of these classes say that it may leave, from 1."""
    streak, found = initial_patience(1), []
    for layer, label in enumerate(labels, 1):
        logits = jnp.zeros((1, 4)).at[0, label].set(1e-3)  # hardly sure: uncertainty says nothing
        leave, _, streak = should_exit(Rule(0.0, patience), logits, streak, layer)
        found += [layer] if leave[0] else []
    return found


@pytest.mark.parametrize(
    ("patience", "exits"), [(1, [2, 3, 5, 7, 8, 9]), (2, [3, 8, 9]), (3, [9]), (4, [])]
)
def test_patience_counts_agreements_in_a_row(patience, exits):
    """Classes 0 0 0 | 2 2 | 3 3 3 3: agreements 0 1 2, 0 1, 0 1 2 3."""
    assert labels_to_exits(patience, [0, 0, 0, 2, 2, 3, 3, 3, 3]) == exits


def test_patience_goes_by_agreement_whatever_the_uncertainty():
    streak = initial_patience(1)
    assert (streak.label.tolist(), streak.length.tolist()) == ([-1], [0])
    leave, doubt, streak = should_exit(Rule(2.0, patience=1), jnp.array([SURE]), streak, 5)
    assert not leave[0]
    assert float(doubt[0]) == pytest.approx(0, abs=1e-6)
    assert (streak.label.tolist(), streak.length.tolist()) == ([0], [0])


def test_a_rule_by_default_keeps_every_row():
    assert Rule() == Rule(threshold=0.0, patience=0, first=1)
    assert Buckets() == Buckets(batch=8, token=16, max_batch=64)


@pytest.mark.parametrize(
    "rule", [Rule(0.0, 0, 1), Rule(9.0, np.int32(3), 4), Rule(jnp.float32(0.5))]
)
def test_rules_at_their_ends_are_taken(rule):
    check_rule(rule, 4)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Rule(-1e-9), "threshold=-1e-09: must be a number of at least 0"),
        (Rule(float("nan")), "threshold=nan"),
        (Rule(patience=-1), "patience=-1: must be an int of at least 0"),
        (Rule(patience=1.5), "patience=1.5: must be an int of at least 0"),
        (Rule(first=0), "first=0: must be an int of at least 1 and at most 4"),
        (Rule(first=5), "first=5: must be an int of at least 1 and at most 4"),
        (Rule(first=1.5), "first=1.5: must be an int of at least 1 and at most 4"),
    ],
)
def test_rules_beyond_their_ends_are_refused_by_name(rule, message):
    with pytest.raises(ValueError, match=message):
        check_rule(rule, 4)


def test_a_fraction_of_patience_is_refused_wherever_a_rule_is_given():
    """It was cut to 1 by exits and taken as 2 by pyramids."""
    with pytest.raises(ValueError, match=r"patience=1\.5: must be an int"):
        js.exit_early(["b"], Rule(patience=1.5))


@pytest.mark.parametrize(
    ("buckets", "message"),
    [
        (Buckets(1, 1, 1), None),
        (Buckets(8, 16, 8), None),
        (Buckets(0, 16, 64), "batch=0: must be an int of at least 1"),
        (Buckets(8, 0, 64), "token=0: must be an int of at least 1"),
        (Buckets(8, 16, 7), "max_batch=7: must be an int of at least 8"),
        (Buckets(2.5, 16, 64), "batch=2.5: must be an int"),
        (Buckets(8, 2.5, 64), "token=2.5: must be an int"),
        (Buckets(8, 16, 8.5), "max_batch=8.5: must be an int"),
    ],
)
def test_buckets_are_whole_and_fit_a_batch(buckets, message):
    if message is None:
        check_buckets(buckets)
        return
    with pytest.raises(ValueError, match=message):
        check_buckets(buckets)


@pytest.mark.parametrize(("count", "rounded"), [(0, 8), (1, 8), (7, 8), (8, 8), (9, 16), (17, 24)])
def test_counts_round_up_to_whole_buckets_and_one_at_least(count, rounded):
    assert round_up(count, 8) == rounded


def test_rows_are_filled_up_with_copies_of_the_first():
    assert pad_rows(np.array([5, 3]), 5).tolist() == [5, 3, 5, 5, 5]
    assert pad_rows(np.array([5, 3]), 2).tolist() == [5, 3]
    assert pad_rows(np.array([5, 3]), 2).dtype == np.int32
