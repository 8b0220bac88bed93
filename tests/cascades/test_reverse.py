import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxsim.cascades as jc
from jaxsim.cascades import maximize, sets
from tests.oracles import cascades_enumeration
from tests.oracles.cascades_estimates import greedy_cover
from tests.support.degrees import edges_of_degrees
from tests.support.graphs import as_sets, build, random_edges, real


def test_coverage_estimates_influence():
    scores = []
    for seed in range(12):
        edges = edges_of_degrees(seed, ((4, 3, 2, 1, 0, 0), (2, 2, 2, 2, 1, 1))[seed % 2])
        rr = jc.rr_sample(build(edges, 6), jax.random.key(seed), 65_536, lanes=64)
        assert rr.theta == 65_536
        for seeds in ([0], [1, 2], [3, 4, 5]):
            exact = cascades_enumeration.influence(6, edges, seeds) / 6
            got = int(jc.coverage(rr, np.array(seeds))) / rr.theta
            if 0 < exact < 1 - 1e-9:
                scores.append((got - exact) / (exact * (1 - exact) / rr.theta) ** 0.5)
            else:
                assert got == pytest.approx(exact)
    assert max(map(abs, scores)) < 4
    assert 0.7 < np.std(scores) < 1.3
    assert abs(np.mean(scores)) < 4 / len(scores) ** 0.5


def test_roots_are_uniform_and_sets_hold_exactly_their_ancestors():
    # On a certain path 0 -> 1 -> ... the set of root r is {0, ..., r}.
    n = 12
    g = build([(i, i + 1, 1.0) for i in range(n - 1)], n)
    member = np.asarray(jc.rr_sample(g, jax.random.key(0), 24_576, lanes=32).member())
    roots = member.sum(0) - 1
    assert (member == (np.arange(n)[:, None] <= roots)).all()
    counts = np.bincount(roots, minlength=n)
    chi = ((counts - len(roots) / n) ** 2 / (len(roots) / n)).sum()
    assert chi < 11 + 4 * 22**0.5


def test_lanes_do_not_bias_the_sets():
    g = jc.weighted_cascade(real("email"))
    forward = jc.simulate_ic(g, np.arange(10), jax.random.key(0), 16_384)
    for lanes in (16, 1024):
        rr = jc.rr_sample(g, jax.random.key(lanes), 32_768, lanes=lanes)
        share = int(jc.coverage(rr, np.arange(10))) / rr.theta
        se = np.hypot(g.n * (share * (1 - share) / rr.theta) ** 0.5, float(forward.sem))
        assert abs(share * g.n - float(forward.mean)) < 4 * se


def test_same_key_same_sets():
    g = build(random_edges(1), 6)
    a, b, c = (np.asarray(jc.rr_sample(g, jax.random.key(k), 512).mem) for k in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()


@given(st.sampled_from([(5, 5), (30, 1), (30, 8)]), st.floats(0.005, 0.4), st.integers(0, 2**20))
@settings(max_examples=25, deadline=None)
def test_lazy_cover_is_the_plain_greedy_cover(sizes, density, seed):
    n, k = sizes
    member = np.random.default_rng(seed).random((n, 1024)) < density
    cover = jc.max_cover(as_sets(member), k)
    seeds, gains = greedy_cover(member, k)
    assert cover.seeds.tolist() == seeds
    assert cover.gains.tolist() == gains
    assert (np.diff(gains) <= 0).all()
    assert int(jc.coverage(as_sets(member), cover.seeds)) == sum(gains) <= int(cover.at_most)


def test_the_upper_bound_holds_for_every_pair():
    member = np.random.default_rng(0).random((12, 512)) < 0.15
    best = max((member[list(s)].any(0)).sum() for s in itertools.combinations(range(12), 2))
    cover = jc.max_cover(as_sets(member), 2)
    assert int(cover.gains.sum()) >= (1 - 1 / np.e) * best
    assert best <= int(cover.at_most)


def test_bounds_hold_for_a_known_share():
    # Coverage is binomial: the bounds at a = ln 20 may fail one time in twenty each.
    rng = np.random.default_rng(0)
    share, theta, n = 0.03, 4096, 1000
    draws = rng.binomial(theta, share, 4000).tolist()
    lower = np.array([maximize.spread_at_least(c, theta, n, np.log(20)) for c in draws])
    upper = np.array([maximize.spread_at_most(c, theta, n, np.log(20)) for c in draws])
    assert np.mean(lower > share * n) <= 0.05
    assert np.mean(upper < share * n) <= 0.05
    assert lower.mean() > 0.75 * share * n
    assert upper.mean() < 1.3 * share * n


@pytest.mark.slow
def test_seeds_of_tiny_graphs_against_brute_force():
    ratios = []
    for seed in range(10):
        n = 10
        edges = edges_of_degrees(seed, (3, 2, 2, 1, 1, 1, 1, 1, 0, 0))
        best = cascades_enumeration.best_set(n, edges, 2)
        result = jc.maximize_influence(build(edges, n), 2, jax.random.key(seed))
        assert result.certified
        got = cascades_enumeration.influence(n, edges, result.seeds.tolist())
        assert result.lower <= got + 1e-9
        assert result.upper >= best - 1e-9
        ratios.append(got / best)
    assert min(ratios) >= 1 - 1 / np.e
    assert np.mean(ratios) >= 0.98


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "least"), [("facebook", 1160), ("wiki", 650), ("email", 465), ("NetHEPT", 1250)]
)
def test_fifty_certified_seeds_of_real_graphs(name, least):
    g = jc.weighted_cascade(real(name))
    result = jc.maximize_influence(g, 50, jax.random.key(0))
    assert result.certified
    assert result.ratio >= 1 - 1 / np.e - 0.1
    spread = jc.simulate_ic(g, result.seeds, jax.random.key(1), 8192)
    assert float(spread.mean) >= least
    assert result.lower <= float(spread.mean) <= result.upper
    n = g.n
    se = n * (result.spread / n * (1 - result.spread / n) / (result.n_rr / 4)) ** 0.5
    assert abs(result.spread - float(spread.mean)) < 4 * np.hypot(se, float(spread.sem))


def test_a_limit_on_sets_gives_an_uncertified_answer():
    g = jc.uniform(build([(i, i + 1, 0.1) for i in range(400)], 401), 0.1)
    states = []
    result = jc.maximize_influence(g, 3, jax.random.key(0), max_rr=2500, progress=states.append)
    assert not result.certified
    assert result.n_rr == 2048
    assert states == [result] or states[-1] is result


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g, k: jc.maximize_influence(g, 7, k), "k = 7; allowed: 1 to n = 6"),
        (lambda g, k: jc.maximize_influence(g, 0, k), "k = 0"),
        (lambda g, k: jc.maximize_influence(g, 1, k, eps=0.7), "eps = 0.7"),
        (lambda g, k: jc.maximize_influence(g, 1, k, delta=0.0), "delta = 0.0"),
        (lambda g, k: jc.maximize_influence(g, 1, k, max_rr=10), "max_rr = 10"),
        (lambda g, k: jc.rr_sample(g, k, 0), "theta = 0"),
        (lambda g, k: jc.rr_sample(g, k, 1, lanes=0), "lanes = 0"),
        (lambda g, k: jc.max_cover(jc.rr_sample(g, k, 1), 9), "k = 9"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(build(random_edges(0), 6), jax.random.key(0))


def test_numbers_of_sets_round_up_to_chunks():
    assert [sets.round_theta(t) for t in (1, 512, 513)] == [512, 512, 1024]
