"""Certificates of influence by hand: bounds, sizes of samples, and what is certified."""

import math

import jax
import numpy as np
import pytest

import jaxsim.cascades as jc
from jaxsim.cascades import maximize
from jaxsim.cascades.maximize import spread_at_least, spread_at_most
from tests.support.graphs import as_sets

# a = 9/2 makes all roots plain: 2a/9 = 1, a/2 = 9/4, a/18 = 1/4
A, N, THETA = 4.5, 1000, 500


@pytest.mark.parametrize(
    ("covered", "nodes"),
    [
        (0, 0.0),  # (1 - 3/2)² - 1/4
        (1, 0.0),  # (√2 - 3/2)² is less than 1/4
        (3, 0.0),  # (2 - 3/2)² - 1/4
        (8, 4.0),  # (3 - 3/2)² - 1/4 = 2, of 500 for 1000 nodes
        (24, 24.0),  # (5 - 3/2)² - 1/4 = 12
        (99, 144.0),  # (10 - 3/2)² - 1/4 = 72
    ],
)
def test_the_spread_is_at_least_that_of_the_binomial_bound(covered, nodes):
    assert spread_at_least(covered, THETA, N, A) == pytest.approx(nodes, abs=1e-12)


@pytest.mark.parametrize(
    ("at_most", "nodes"),
    [
        (0, 18.0),  # (3/2 + 3/2)² = 9
        (4, 32.0),  # (5/2 + 3/2)² = 16
        (10, 50.0),  # (7/2 + 3/2)² = 25
        (418, 968.0),  # (41/2 + 3/2)² = 484
        (460, 1000.0),  # (43/2 + 3/2)² = 529 is more than the graph has
    ],
)
def test_the_spread_is_at_most_that_of_the_binomial_bound(at_most, nodes):
    assert spread_at_most(at_most, THETA, N, A) == pytest.approx(nodes)


def test_sizes_by_hand_where_seeds_decide_the_first():
    """n = 100, k = 5: 128 · 5 / 3 = 213.3 sets; 9 rounds, since 2⁹ is above 100 / (5 · 0.2²) = 500.

    By 1, 3/2, 2, 3, … 512, in chunks of 512.
    """
    chunks = [1, 2, 3, 4, 5, 7, 10, 14, 20, 27, 40, 54, 80, 107, 160, 214]
    assert maximize._sizes(100, 5, 0.2, 0.06) == [512 * c for c in chunks]


@pytest.mark.parametrize(
    ("arguments", "theta", "rounds"),
    [
        # ((1 - 1/e) √log(6/δ) + √((1 - 1/e) (log C(n, k) + log(6/δ))))², and 128 k / 3 or 8192 / 3
        ((10**6, 1, 0.5, 1e-6), 46.37452044637039, 22),
        ((200, 2, 0.2, 1e-9), 256 / 3, 12),
        ((10**5, 100, 0.3, 0.01), 8192 / 3, 14),
        ((10, 1, 0.1, 0.05), 128 / 3, 10),
        ((4, 4, 0.6, 0.5), 512 / 3, 2),
    ],
)
def test_the_last_size_surely_suffices(arguments, theta, rounds):
    sizes = maximize._sizes(*arguments)
    assert sizes[-1] == 512 * math.ceil(math.ceil(theta * 2**rounds) / 512)
    assert sizes[0] == 512 * math.ceil(theta / 512)
    assert sizes == sorted(set(sizes))


def test_choices_are_counted_by_their_logarithm():
    for n, k in ((5, 2), (30, 11), (7, 7), (9, 1)):
        assert maximize._log_choose(n, k) == pytest.approx(math.log(math.comb(n, k)), abs=1e-9)


def test_sizes_too_small_to_certify_are_passed_over():
    """At 0.5 where 0.632 - 0.1 is asked: ((0.72 - 0.5) / (0.72 - 0.532))² = 1.371 times 100."""
    sizes = [100, 110, 120, 137, 138, 200, 300, 400]
    assert maximize._next_size(sizes, 0, 0.5, 0.1) == 4
    assert maximize._next_size([*sizes[:3], 136, *sizes[3:]], 0, 0.5, 0.1) == 5
    assert maximize._next_size(sizes, 0, 0.72, 0.1) == 1
    # 14.7 times: no further than six sizes on, and not beyond the last
    assert maximize._next_size(sizes, 0, 0.0, 0.1) == 6
    assert maximize._next_size(sizes, 5, 0.0, 0.1) == 7
    # a smaller slack needs a larger sample: (0.22 / 0.098)² = 5.06
    assert maximize._next_size([100, 505, 507, 600], 0, 0.5, 0.01) == 2


def certify(first, second, eps=0.1):
    """A certificate of one seed of three nodes, at a = 9/2: node 0 is in so many sets of each."""
    members = []
    for covered, theta in ((first, 1536), (second, 512)):
        member = np.zeros((3, theta), bool)
        member[0, :covered], member[1, :9], member[2, 5:19] = True, True, True
        members.append(as_sets(member))
    return maximize._certify(*members, 3, 1, A, eps)


def test_a_certificate_is_read_off_both_samples():
    """Node 0 is in 108 of 1536 sets, and in 99 of 512; no other node adds to it."""
    found = certify(108, 99)
    assert found.seeds.tolist() == [0]
    assert found.spread == 99 * 3 / 512
    assert found.lower == pytest.approx(72 * 3 / 512)  # (10 - 3/2)² - 1/4
    assert found.upper == pytest.approx((110.25**0.5 + 1.5) ** 2 * 3 / 1536)  # 12² = 144
    assert found.upper == pytest.approx(144 * 3 / 1536)
    assert found.ratio == pytest.approx(72 * 3 / 144)
    assert (found.n_rr, found.certified) == (2048, True)


def test_certified_is_what_reaches_its_ratio():
    """24 of 512 and 108 of 1536: 12 / 512 over 144 / 1536 is 1/4; 1 - 1/e - 1/4 = 0.3821."""
    least = 1 - 1 / math.e - 0.25
    assert certify(108, 24).ratio == pytest.approx(0.25)
    assert certify(108, 24, least + 1e-6).certified
    assert not certify(108, 24, least - 1e-6).certified


STAR = jc.from_edges([0] * 9, range(1, 10))  # node 0 is in every set


def search(**options):
    return jc.maximize_influence(STAR, options.pop("k", 1), jax.random.key(0), **options)


@pytest.mark.parametrize("delta", [None, 0.02])
def test_the_bounds_share_the_probability_of_failing(delta):
    """Sizes of 10 nodes at 0.1: 1, 2, … chunks. All 512 sets are hit; a = log(3 sizes / δ)."""
    found = search(delta=delta)
    assert found.n_rr == 2048
    sizes = maximize._sizes(10, 1, 0.1, delta or 0.1)
    a = math.log(3 * len(sizes) / (delta or 0.1))
    assert found.lower == pytest.approx(spread_at_least(512, 512, 10, a))
    assert (found.upper, found.spread, found.seeds.tolist()) == (10, 10, [0])


def test_a_limit_between_two_sizes_is_the_smaller_one():
    """Twenty seeds begin with 853.3 sets, two chunks of four parts, 4096 in all."""
    path = jc.from_edges(range(39), range(1, 40), 0.05)
    found = [
        jc.maximize_influence(path, 20, jax.random.key(0), eps=0.01, delta=1e-9, max_rr=m)
        for m in (2048, 4095, 4096)
    ]
    assert [f.n_rr for f in found] == [2048, 2048, 4096]
    assert not any(f.certified for f in found)


@pytest.mark.parametrize(
    ("message", "options"),
    {
        "k = 11": {"k": 11},
        "eps = 0;": {"eps": 0},
        "eps = 0.6321205588285577; allowed: above 0, below 1 - 1/e": {"eps": maximize.GREEDY_RATIO},
        "delta = 1;": {"delta": 1},
        "delta = -0.1": {"delta": -0.1},
        "max_rr = 2047; allowed: at least 2048": {"max_rr": 2047},
    }.items(),
)
def test_what_lies_at_the_edges_is_refused(message, options):
    with pytest.raises(ValueError, match=message):
        search(**options)


def test_what_lies_within_the_edges_is_taken():
    assert search(k=10, eps=maximize.GREEDY_RATIO - 1e-9, delta=1 - 1e-9, max_rr=2048).certified
