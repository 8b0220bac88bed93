"""Loops that numba compiles give, bit for bit, what JAX's engines give; and what both stand on."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim.cascades as jc
from jaxsim.cascades import bits, host, maximize, simulate, skips
from jaxsim.cascades.sets import MemberLists, cut, joined
from jaxsim.numerics import memory
from tests.oracles import cascades_enumeration
from tests.oracles.cascades_estimates import greedy_cover
from tests.support.graphs import as_sets, build, random_edges

KEY = jax.random.key(0)
pytest.importorskip("numba")


@pytest.fixture
def without_numba(monkeypatch):
    """A function that calls another as if numba were not installed."""

    def call(f):
        with monkeypatch.context() as patch:
            patch.setattr(host, "_installed", lambda: False)
            return f()

    return call


def hub():
    """Three hundred unlike edges into node 0, some impossible, and some out of it."""
    rng = np.random.default_rng(0)
    edges = [(i, 0, float(rng.choice([0, 0.001, 0.03]))) for i in range(1, 301)]
    return build(edges + [(0, i, 0.5) for i in range(1, 40)], 302)


def long_path():
    """A certain path: sets of up to 2500 nodes, of two turns each."""
    return build([(i, i + 1, 1.0) for i in range(2499)], 2500)


GRAPHS = {
    "random": lambda: build(random_edges(3), 6),
    "another": lambda: build(random_edges(4, 40, 300), 40),
    "hub": hub,
    "path": long_path,
    "impossible": lambda: build([(0, 1, 0.0), (1, 2, 0.0)], 3),
    "empty": lambda: jc.from_edges(np.zeros(0, int), np.zeros(0, int), n=5),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_both_engines_give_the_same_sets(name, without_numba):
    g = GRAPHS[name]()
    lists = jc.rr_sample(g, KEY, 1024)
    packed = without_numba(lambda: jc.rr_sample(g, KEY, 1024, lanes=512))
    assert isinstance(lists.held, MemberLists)
    assert not isinstance(packed.held, MemberLists)
    assert (lists.theta, lists.n) == (packed.theta, packed.n) == (1024, g.n)
    np.testing.assert_array_equal(lists.mem, packed.mem)
    # the first sets do not depend on the number of sets, nor of lanes
    few = without_numba(lambda: jc.rr_sample(g, KEY, 512, lanes=100))
    np.testing.assert_array_equal(few.mem, packed.mem[:1])
    k = min(3, g.n)
    for a, b in zip(jc.max_cover(lists, k), jc.max_cover(packed, k), strict=True):
        np.testing.assert_array_equal(a, b)
    assert int(jc.coverage(lists, [0, 1])) == int(jc.coverage(packed, [0, 1]))


def test_both_engines_certify_the_same_seeds(without_numba):
    g = build(random_edges(5, 60, 240), 60)
    one = jc.maximize_influence(g, 4, KEY, eps=0.05)
    other = without_numba(lambda: jc.maximize_influence(g, 4, KEY, eps=0.05))
    assert one.seeds.tolist() == other.seeds.tolist()
    assert one[1:] == other[1:]


def scores(g, edges):
    """How far coverages are from enumeration, in standard errors."""
    rr = jc.rr_sample(g, KEY, 65_536)
    out = []
    for seeds in ([0], [1], [2, 3], [3, 4, 5]):
        exact = cascades_enumeration.influence(6, edges, seeds) / 6
        got = int(jc.coverage(rr, seeds)) / rr.theta
        out.append((got - exact) / (exact * (1 - exact) / rr.theta) ** 0.5)
    return np.abs(out)


def test_unlike_edges_of_a_node_are_thinned():
    """Against enumeration, and a control that takes each edge for its node's most likely one."""
    edges = [(0, 5, 0.9), (1, 5, 0.1), (2, 5, 0.3), (3, 4, 0.5), (0, 4, 0.05), (4, 5, 0.2)]
    g = build(edges, 6)
    assert scores(g, edges).max() < 4
    wrong = build(edges, 6)
    alike = g.skips._replace(share=np.ones_like(g.skips.share))
    vars(wrong)["skips"] = alike._replace(even=np.ones(6, bool))
    assert scores(wrong, edges).max() > 20


@pytest.mark.parametrize("p", [1.0, 0.7, 1 / 3, 0.01, 1e-4])
def test_skips_are_geometric(p):
    """Of 2^18 words in equal steps a share (1 - p)^k fails k times, to within a step."""
    words = jnp.arange(2**18, dtype=jnp.uint32) * 2**14 + 2**13
    g = build([(0, 1, p)], 2)
    drawn = skips.skip(words, jnp.float32(g.skips.rate[1]), jnp.asarray(skips.logarithms()))
    drawn = np.sort(np.asarray(drawn))
    for k in (0, 1, 2, 5, 30, 1000):
        share = (drawn >= k).mean()
        assert share == pytest.approx((1 - float(np.float32(p))) ** k, abs=2.0**-18)


def test_nothing_comes_after_impossible_edges():
    g = build([(0, 1, 0.0)], 2)
    words = jnp.array([0, 1, 2**31, 2**32 - 1], jnp.uint32)
    drawn = skips.skip(words, jnp.float32(g.skips.rate[1]), jnp.asarray(skips.logarithms()))
    assert drawn.tolist() == [10**9] * 4


def test_numbers_below_are_the_upper_half_of_a_product():
    words = [0, 1, 0xFFFF, 0x10000, 0xDEADBEEF, 2**32 - 1]
    for n in (1, 7, 65_535, 65_537, 2**31 - 1):
        assert skips.below(n, jnp.array(words, jnp.uint32)).tolist() == [w * n >> 32 for w in words]


def test_skips_of_a_traced_graph_are_those_of_the_host_but_for_rounding():
    for g in (hub(), build(random_edges(3), 6), GRAPHS["empty"]()):
        traced = jax.jit(lambda p, g=g: g.with_p(p).skips)(g.p)
        np.testing.assert_allclose(traced.rate, g.skips.rate, rtol=1e-5)
        np.testing.assert_allclose(traced.share, g.skips.share, rtol=1e-6)
        np.testing.assert_array_equal(traced.even, g.skips.even)


def test_streams_of_sets_and_turns_are_independent():
    seed = jax.random.bits(KEY, (skips.SEEDS,), jnp.uint32)
    sets = skips.set_stream(jnp.arange(2000), seed)
    words = [skips.turn_words(jnp.uint32(t), seed[i]) for t in (0, 1) for i in (1, 2)]
    drawn = np.stack([skips.uniform(bits.mix(sets ^ w)) for w in words])
    assert np.abs(np.corrcoef(drawn)[np.triu_indices(4, 1)]).max() < 4.5 / np.sqrt(2000)
    later = np.abs(np.corrcoef(drawn[:, 1:], drawn[:, :-1])[:4, 4:]).max()
    assert later < 4.5 / np.sqrt(2000)
    assert 0 < drawn.min() < 0.002
    assert 0.998 < drawn.max() <= 1
    assert drawn.mean() == pytest.approx(0.5, abs=4 / np.sqrt(12 * 8000))


def as_lists(member):
    """Flags [n, theta] as lists of members, the highest first."""
    nodes = [np.flatnonzero(column)[::-1] for column in member.T]
    start = np.cumsum([0, *map(len, nodes)]).astype(np.int64)
    return jc.RRSets(MemberLists(np.concatenate(nodes).astype(np.int32), start, len(member)))


@pytest.mark.parametrize(("n", "k"), [(5, 5), (30, 1), (30, 30), (700, 9)])
def test_covers_of_lists_are_greedy(n, k):
    for seed in range(3):
        member = np.random.default_rng([n, seed]).random((n, 1024)) < (0.4, 0.05, 0.004)[seed]
        lists, packed = as_lists(member), as_sets(member)
        np.testing.assert_array_equal(lists.member(), member)
        cover = jc.max_cover(lists, k)
        assert (cover.seeds.tolist(), cover.gains.tolist()) == greedy_cover(member, k)
        for a, b in zip(cover, jc.max_cover(packed, k), strict=True):
            np.testing.assert_array_equal(a, b)
        left = member & ~member[np.asarray(cover.seeds)].any(0)
        most = np.sort(left.sum(1))[::-1][:k].sum() + int(cover.gains.sum())
        assert int(cover.at_most) == min(most, np.sort(member.sum(1))[::-1][:k].sum(), 1024)


def test_lists_enter_compiled_programs_as_bits():
    member = np.random.default_rng(0).random((9, 512)) < 0.2
    lists = as_lists(member)
    inside = jax.jit(lambda rr: (jc.max_cover(rr, 2), jc.coverage(rr, jnp.array([3])), rr.mem))
    cover, hit, mem = inside(lists)
    assert cover.seeds.tolist() == greedy_cover(member, 2)[0]
    assert int(hit) == member[3].sum()
    np.testing.assert_array_equal(mem, as_sets(member).mem)


def test_sets_are_cut_and_joined_alike(without_numba):
    g = build(random_edges(3), 6)
    for rr in (jc.rr_sample(g, KEY, 1536), without_numba(lambda: jc.rr_sample(g, KEY, 1536))):
        first, rest = cut(rr, 1024)
        assert (first.theta, rest.theta) == (1024, 512)
        np.testing.assert_array_equal(rest.mem, rr.mem[2:])
        np.testing.assert_array_equal(joined(rest, first).member()[:, :512], rest.member())
        np.testing.assert_array_equal(joined(first, rest).mem, rr.mem)


@pytest.mark.parametrize("p", [0.0, 2.0**-24, 1 / 1045, 0.3, 0.5, 1 - 2.0**-24, 1.0])
def test_coins_flipped_one_by_one_are_those_of_words(p):
    from jaxsim.cascades import loops

    salts = bits.salts_by_word(KEY, 8)
    edges = jnp.arange(200)
    t = bits.threshold(jnp.full(200, p))
    whole = np.asarray(bits.bernoulli(edges, t, salts.T))
    base = np.asarray(bits.hashed(edges))
    due = np.random.default_rng(0).integers(0, 2**32, (200, 8)).astype(np.uint32)
    due[:, ::2] = 2**32 - 1
    for e in range(0, 200, 7):
        for w in range(8):
            salt, high, low = np.asarray(salts)[w], np.asarray(t.high)[e], np.asarray(t.low)[e]
            assert loops._flip(due[e, w], base[e], high, low, salt) == whole[e, w] & due[e, w]


def test_words_of_a_loop_are_shared_by_threads(monkeypatch):
    g = build(random_edges(4, 40, 300), 40)
    salts = np.asarray(bits.salts_by_word(KEY, 23))
    seeds, found = np.array([2, 7], np.int32), []
    for cores in (1, 2, 3, 50):
        monkeypatch.setattr(simulate, "CORES", cores)
        found.append(simulate._run_loop(g, seeds, salts))
    for sizes, visits, rounds in found[1:]:
        np.testing.assert_array_equal(sizes, found[0][0])
        assert (visits, rounds) == found[0][1:]


def test_visits_and_rounds_by_hand():
    """A certain path of four edges: each is visited once, and the last node has no edge.

    Of a ring every edge is visited but the one that leads back to where all are active.
    """
    path = build([(i, i + 1, 1.0) for i in range(4)], 5)
    salts = np.asarray(bits.salts_by_word(KEY, 2))
    sizes, visits, rounds = simulate._run_loop(path, np.array([0], np.int32), salts)
    assert ((sizes == 5).all(), visits, rounds) == (True, 2 * 4, 5)
    ring = build([(i, (i + 1) % 5, 1.0) for i in range(5)], 5)
    sizes, visits, rounds = simulate._run_loop(ring, np.array([3, 1], np.int32), salts)
    assert ((sizes == 5).all(), visits, rounds) == (True, 2 * 3, 3)
    assert simulate._run_loop(ring, np.zeros(0, np.int32), salts)[0].max() == 0


def test_sweeps_go_on_where_a_trial_says_that_they_cost_less(monkeypatch):
    """Two rounds of 39 places against 39 visits a word, of nine places each."""
    star = build([(0, i, 0.9) for i in range(1, 40)], 40)

    def found(n_sims=10_000, **constants):
        with monkeypatch.context() as patch:
            for name, value in constants.items():
                patch.setattr(simulate, name, value)
            return simulate._loop_sizes(star, [0], KEY, n_sims, "auto")

    assert found().shape == (313, 32)  # too few visits for programs to be compiled
    assert found(MANY_VISITS=313 * 39 - 1) is None
    assert found(MANY_VISITS=313 * 39) is not None
    assert found(MANY_VISITS=0, LOOP_VISIT=1.99) is not None
    assert found(MANY_VISITS=0, LOOP_VISIT=2.01) is None
    assert found(MANY_VISITS=0, DENSE_SLOTS=38) is not None
    assert found(n_sims=32, MANY_VISITS=0, LOOP_VISIT=0).shape == (1, 32)
    assert (simulate.LOOP_VISIT, simulate.MANY_VISITS, simulate.TRIAL) == (9, 2**24, 4)
    with monkeypatch.context() as patch:
        patch.setattr(simulate, "MANY_VISITS", 0)
        swept = jc.simulate_ic(star, [0], KEY, 500).samples
    np.testing.assert_array_equal(swept, jc.simulate_ic(star, [0], KEY, 500, engine="loop").samples)


def test_a_loop_is_refused_and_sweeps_give_the_same_where_numba_is_not(without_numba):
    g = build(random_edges(3), 6)
    with pytest.raises(ValueError, match="where numba is installed"):
        without_numba(lambda: jc.simulate_ic(g, [0], KEY, 10, engine="loop"))
    other = without_numba(lambda: jc.simulate_ic(g, [0], KEY, 500).samples)
    np.testing.assert_array_equal(jc.simulate_ic(g, [0], KEY, 500).samples, other)


def test_members_that_do_not_fit_are_told(monkeypatch):
    """Every set of a certain ring holds all of its 600 nodes."""
    g = build([(i, (i + 1) % 600, 1.0) for i in range(600)], 600)
    monkeypatch.setattr(memory, "LIMIT", 4 * 600 * 512)
    assert jc.rr_sample(g, KEY, 512).held.start[-1] == 600 * 512
    monkeypatch.setattr(memory, "LIMIT", 4 * 600 * 100)
    with pytest.raises(MemoryError, match="members of theta = 512 sets over n = 600 nodes"):
        jc.rr_sample(g, KEY, 512)
    with pytest.raises(MemoryError, match="members of theta = 25600 sets"):
        jc.rr_sample(g, KEY, 50 * 512)


def test_loops_compile_where_they_cannot_be_kept(monkeypatch):
    import numba

    from jaxsim.cascades import loops

    made = []

    def njit(*args, **options):
        if "cache" in options:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: made.append(function.__name__) or function

    with monkeypatch.context() as patch:
        patch.setattr(numba, "njit", njit)
        importlib.reload(loops)
        assert "sample" in made
        assert loops.count_hit(np.array([0, 2, 1]), np.array([0, 1, 3]), np.eye(3)[1]) == 1
    importlib.reload(loops)


def test_each_size_of_a_search_is_cut_three_to_one(monkeypatch):
    seen, made = [], maximize.pick

    def spy(rr, k):
        seen.append(rr.theta)
        return made(rr, k)

    monkeypatch.setattr(maximize, "pick", spy)
    found = jc.maximize_influence(build(random_edges(5, 60, 240), 60), 4, KEY, eps=0.05)
    assert seen[-1] * 4 == found.n_rr * 3
