"""Greedy covers and their bounds, against the best of all choices where greedy misses it."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim.cascades as jc
from tests.oracles.cascades_estimates import greedy_cover
from tests.support.graphs import as_sets

THETA = 512


def sets_of(*nodes, theta=THETA):
    """Flags [n, theta] from the sets that each node is in, as ranges."""
    member = np.zeros((len(nodes), theta), bool)
    for row, ranges in zip(member, nodes, strict=True):
        for start, stop in ranges:
            row[start:stop] = True
    return member


def best(member, k):
    """The most sets that any k nodes cover, by trying all."""
    return max(
        int(member[list(chosen)].any(0).sum())
        for chosen in itertools.combinations(range(len(member)), k)
    )


def bound(member, k):
    """What greedy covers and the k largest gains left, but no more than all or the k largest."""
    _, gains = greedy_cover(member, k)
    seeds = greedy_cover(member, k)[0]
    left = member & ~member[seeds].any(0)
    most = np.sort(left.sum(1))[::-1][:k].sum()
    return min(sum(gains) + most, np.sort(member.sum(1))[::-1][:k].sum(), member.shape[1])


# node 0 takes 6 sets across two groups of 5, so that greedy ends at 8 where 10 can be had
MISSED = sets_of([(0, 3), (5, 8)], [(0, 5)], [(5, 10)])


def test_greedy_misses_the_best_pair_and_the_bound_does_not():
    """6 + 2 by greedy, 2 more are left to node 2: at most 10, as nodes 1 and 2 have."""
    cover = jc.max_cover(as_sets(MISSED), 2)
    assert cover.seeds.tolist() == [0, 1]
    assert cover.gains.tolist() == [6, 2]
    assert best(MISSED, 2) == 10
    assert int(cover.at_most) == 10
    assert int(jc.coverage(as_sets(MISSED), jnp.array([1, 2]))) == 10
    assert int(jc.coverage(as_sets(MISSED), cover.seeds)) == 8


def test_the_two_largest_bound_a_pair_where_gains_do_not():
    """Three nodes of 6, 5 and 5 sets apart: 11 by greedy, 5 are left, but no pair has above 11."""
    member = sets_of([(0, 6)], [(6, 11)], [(11, 16)])
    cover = jc.max_cover(as_sets(member), 2)
    assert cover.gains.tolist() == [6, 5]
    assert int(cover.at_most) == 11 == best(member, 2)


def test_no_pair_covers_more_than_there_are():
    """Two nodes of 300 of 512 sets: 600 by size, and 300 + 212 are all."""
    member = sets_of([(0, 300)], [(212, 512)], [(100, 400)])
    cover = jc.max_cover(as_sets(member), 2)
    assert cover.gains.tolist() == [300, 212]
    assert int(cover.at_most) == 512
    # one seed of 300: another 212 at most are left, and one node has at most 300
    assert int(jc.max_cover(as_sets(member), 1).at_most) == 300


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("n", "k"), [(9, 2), (12, 3), (3, 3), (40, 2)])
def test_bounds_are_no_less_than_the_best_of_all_choices(n, k, seed):
    rng = np.random.default_rng([n, seed])
    size = rng.integers(5, 60)
    member = np.zeros((n, THETA), bool)
    # few sets and nodes of unlike sizes: greedy is often wrong
    member[:, :size] = rng.random((n, size)) < rng.uniform(0.1, 0.6, (n, 1))
    cover = jc.max_cover(as_sets(member), k)
    seeds, gains = greedy_cover(member, k)
    assert (cover.seeds.tolist(), cover.gains.tolist()) == (seeds, gains)
    assert int(cover.at_most) >= best(member, k)
    assert int(cover.at_most) == bound(member, k)


def test_gains_that_were_evaluated_long_ago_still_bound():
    """One node of 40 sets and twenty of 30: no other single node has 40, evaluated or not."""
    nodes = [[(0, 40)]] + [[(i, i + 30)] for i in range(20)]
    member = sets_of(*nodes)
    cover = jc.max_cover(as_sets(member), 1)
    assert cover.seeds.tolist() == [0]
    assert int(cover.at_most) == 40 == best(member, 1)


def test_ties_go_to_the_lowest_number_and_nodes_without_sets_come_last():
    member = sets_of([], [(0, 2)], [(2, 4)], [(0, 2)])
    cover = jc.max_cover(as_sets(member), 4)
    assert cover.seeds.tolist() == [1, 2, 0, 3]
    assert cover.gains.tolist() == [2, 2, 0, 0]
    assert int(cover.at_most) == 4


def test_sets_of_several_chunks_are_counted_in_all():
    member = sets_of([(500, 530), (1020, 1030)], [(0, 39)], theta=1536)
    cover = jc.max_cover(as_sets(member), 1)
    assert cover.gains.tolist() == [40]
    assert int(jc.coverage(as_sets(member), jnp.array([0, 1]))) == 40 + 39
    np.testing.assert_array_equal(as_sets(member).member(), member)
    assert as_sets(member).theta == 1536


@pytest.mark.parametrize("k", [0, 4])
def test_as_many_seeds_as_nodes_and_no_more(k):
    with pytest.raises(ValueError, match=f"k = {k}; allowed: 1 to n = 3"):
        jc.max_cover(as_sets(MISSED), k)
