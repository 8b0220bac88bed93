import functools
import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsim.sparsity.channels.axes import (
    Symbol,
    concatenate,
    kept_entries,
    product,
    reshape_groups,
    sum_by_symbol,
    symbols,
    unify,
)

CUTS = st.lists(st.booleans(), min_size=5, max_size=5)
FACTORS = st.lists(st.sampled_from([1, 2, 3, 4, 5]), min_size=1, max_size=5)


def drawn(labels, rng):
    """What remains of every atom, at random; one entry alone is never removed."""
    found = {}
    for label in labels:
        for atom in symbols(label):
            if not atom.reason and atom.size > 1:
                found[atom] = rng.random(atom.size) < 0.6
    return found


def whole(labels, keep):
    """Which entries of an array remain whose axes have these labels."""
    return functools.reduce(np.multiply.outer, [kept_entries(label, keep) for label in labels])


def joined(factors, cuts):
    """Neighboring factors multiplied into axes."""
    shape, size = [], 1
    for factor, cut in zip(factors, cuts, strict=False):
        size *= factor
        if cut:
            shape.append(size)
            size = 1
    return [*shape, size]


@settings(deadline=None, max_examples=200)
@given(FACTORS, CUTS, CUTS, st.integers(0, 99))
def test_a_reshape_and_what_it_came_from_lose_the_same_entries(factors, before, after, seed):
    """Of any two ways to join the same factors into axes: a removal of one is one of the other."""
    old, new = joined(factors, before), joined(factors, after)
    labels = [Symbol(n) for n in old]
    found = reshape_groups(labels, new, "mixed")
    assert [label.size for label in found] == new
    keep = drawn([*labels, *found], np.random.default_rng(seed))
    np.testing.assert_array_equal(whole(labels, keep).reshape(new), whole(found, keep))


@settings(deadline=None, max_examples=100)
@given(FACTORS, FACTORS, st.integers(0, 99))
def test_unified_labels_lose_the_same_entries(a, b, seed):
    size = math.prod(a) * math.prod(b)
    one = product([Symbol(n) for n in (*a, *b)])
    other = product([Symbol(n) for n in (math.prod(a), math.prod(b))])
    assert one.size == other.size == size
    unify(one, other)
    keep = drawn([one, other], np.random.default_rng(seed))
    np.testing.assert_array_equal(kept_entries(one, keep), kept_entries(other, keep))


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(0, 99))
def test_a_chain_keeps_its_entries_in_their_places(sizes, seed):
    parts = [Symbol(n) for n in sizes]
    label, single = concatenate(parts), Symbol(sum(sizes))
    unify(single, label)
    keep = drawn(parts, np.random.default_rng(seed))
    expected = np.concatenate([keep.get(part, [True]) for part in parts])
    np.testing.assert_array_equal(kept_entries(single, keep), expected)


def test_shares_are_sums_over_what_an_entry_takes_with_it():
    a, b, c = Symbol(2), Symbol(3), Symbol(4)
    label = concatenate([product([a, b]), c])
    numbers = np.arange(10.0)
    found = sum_by_symbol(label, numbers)
    np.testing.assert_array_equal(found[a], [0 + 1 + 2, 3 + 4 + 5])
    np.testing.assert_array_equal(found[b], [0 + 3, 1 + 4, 2 + 5])
    np.testing.assert_array_equal(found[c], [6, 7, 8, 9])


def test_what_cannot_be_one_is_frozen_and_frozen_stays():
    a, b, c, d = (Symbol(n) for n in (2, 3, 3, 2))
    unify(product([a, b]), product([c, d]))
    assert all(atom.reason for label in (a, b, c, d) for atom in symbols(label))
    e, f = Symbol(4, "an input"), Symbol(4)
    unify(f, e)
    assert [atom.reason for atom in symbols(f)] == ["an input"]
    halves = reshape_groups([Symbol(6, "fixed")], [2, 3], "")
    assert all(atom.reason == "fixed" for half in halves for atom in symbols(half))
    mixed = reshape_groups([Symbol(4), Symbol(9)], [6, 6], "mixes")
    assert [atom.reason for label in mixed for atom in symbols(label)] == ["mixes", "mixes"]
