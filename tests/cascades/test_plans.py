"""What runs together, what is read, and what is chosen: small functions of cascades by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim.cascades as jc
from jaxsim.cascades import bits, host, maximize, packed, reverse, sample, simulate, threshold
from jaxsim.cascades.ims import _cut_or_pad, _without
from jaxsim.cascades.simulate import expected_work, summary, touched_share, word_count
from jaxsim.numerics import memory
from tests.support.graphs import build

KEY = jax.random.key(0)


def test_a_summary_has_the_mean_and_its_standard_error():
    """2, 4, 4 and 6: deviations of 2, 0, 0 and 2, √(8/3) over the root of four."""
    found = summary(jnp.array([[2, 4, 4, 6], [1, 1, 1, 1]]))
    np.testing.assert_allclose(found.mean, [4, 1])
    np.testing.assert_allclose(found.sem, [np.sqrt(8 / 3) / 2, 0], rtol=1e-6)
    assert np.isnan(summary(jnp.array([3])).sem)


@pytest.mark.parametrize(
    ("rows", "sims", "words"),
    [
        # one word of 32 for up to 32 simulations, then the next power of two
        (1, 1, 1),
        (1, 32, 1),
        (1, 33, 2),
        (1, 96, 4),
        (1, 10**6, 16),
        # 8 MiB hold 2^21 words: 4 of 2^19 rows each, 3 of more are 2
        (2**19, 10**6, 4),
        (2**19 + 1, 10**6, 2),
        (2**22, 10**6, 1),
        (0, 10**6, 16),
    ],
)
def test_words_that_run_together(rows, sims, words):
    assert word_count(rows, sims) == words


def test_words_have_a_budget_and_a_most():
    assert word_count(5, 10**6, budget=400) == 16  # 20 fit
    assert word_count(5, 10**6, budget=319) == 8  # 15
    assert word_count(1, 10**6, most=128) == 128
    assert word_count(1, 10**6, most=100) == 64


PATH = build([(0, 1, 0.5), (1, 2, 0.5), (3, 0, 1.0)], 4)


def test_the_touched_share_counts_edges_out_of_nodes_that_may_be_active():
    assert touched_share(PATH, np.array([0])) == pytest.approx(2 / 3)
    assert touched_share(PATH, np.array([0, -1])) == pytest.approx(2 / 3)
    assert touched_share(PATH, np.array([2])) == 0
    assert touched_share(PATH, np.array([3])) == 1
    # one in a thousand is none
    for p, share in ((1.2e-3, 1.0), (0.9e-3, 0.5)):
        assert touched_share(build([(0, 1, p), (1, 2, 0.5)], 3), np.array([0])) == share
    # three quarters are known to be many after one round; two thirds become all
    many = build([(0, 1, 0.5), (1, 2, 0.5), (1, 3, 0.5), (2, 4, 0.5)], 5)
    assert touched_share(many, np.array([0])) == 0.75
    few = build([(0, 1, 0.5), (1, 2, 0.5), (2, 3, 0.5)], 4)
    assert touched_share(few, np.array([0])) == 1
    none = jc.from_edges(np.zeros(0, int), np.zeros(0, int), n=2)
    assert touched_share(none, np.array([0])) == 0


def test_work_is_rounds_and_visits_of_the_mean_field():
    """64 simulations of 0 → 1 → 2 at a half: 64 nodes, 32, then 16, until less than one is new.

    Node 2 has no edge; node 1 changes in one of 64 almost surely, so that both edges are visited.
    """
    rounds, visits = expected_work(PATH, np.array([0]), 64)
    assert rounds == 3
    assert visits == pytest.approx(2, abs=1e-6)
    # of one simulation half a node is less than one
    rounds, visits = expected_work(PATH, np.array([0]), 1)
    assert (rounds, visits) == (1, pytest.approx(1))
    rounds, visits = expected_work(PATH, np.array([0]), 2)
    assert rounds == 2
    assert visits == pytest.approx(1 + 1 - 0.5**2)
    assert expected_work(PATH, np.array([0]), 64, most=2)[0] == 2
    assert expected_work(PATH, np.array([-1]), 64) == (0, 0.0)


def test_an_engine_is_chosen_by_what_is_asked():
    star = build([(0, i, 0.9) for i in range(1, 40)], 40)
    plan = simulate._plan
    assert plan(star, [0], 10_000, "frontier", False).engine == "frontier"
    assert plan(star, [0], 10_000, "packed", False) == ("packed", 16)
    assert plan(star, [0], 10_000, "frontier", False).words == 128
    assert plan(star, [0], 10_000, "auto", True).engine == "packed"
    # nothing is ever touched from a leaf
    assert plan(star, [7], 10_000, "auto", False).engine == "frontier"


def test_sweeps_are_chosen_where_they_cost_less(monkeypatch):
    """Two rounds of 39 places against 39 visits of 3.3 places, 4.46 with what words share."""
    star = build([(0, i, 0.9) for i in range(1, 40)], 40)

    def chosen(**constants):
        with monkeypatch.context() as patch:
            for name, value in constants.items():
                patch.setattr(simulate, name, value)
            return simulate._plan(star, [0], 10_000, "auto", False).engine

    assert chosen() == "packed"
    assert [chosen(DENSE_SLOTS=n) for n in (38, 39)] == ["frontier", "packed"]
    # 78 < visit · (1 + 45 / 128) · 39
    assert [chosen(VISIT=v) for v in (1.47, 1.49)] == ["frontier", "packed"]
    assert [chosen(VISIT=1.0, OVERHEAD=o) for o in (127, 129)] == ["frontier", "packed"]
    # measured, see docs/cascades.md
    assert (simulate.VISIT, simulate.OVERHEAD, simulate.DENSE_SLOTS) == (3.3, 45, 400_000)
    assert (simulate.CACHE, simulate.ROWS) == (8 * 2**20, 64 * 2**20)


def test_one_is_enough_and_none_is_not():
    g, sets = build([(0, 1, 1.0)], 2), np.array([[0], [1]])
    assert jc.influence(g, sets, KEY, 1).samples.tolist() == [[2], [1]]
    assert jc.simulate_ic(g, [0], KEY, 1, max_steps=0).samples.tolist() == [1]
    assert jc.sample_cascades(g, 1.0, KEY, 1).t == 1
    with pytest.raises(ValueError, match="n_sims = 0"):
        jc.influence(g, sets, KEY, 0)


def test_keys_of_batches_do_not_depend_on_their_number_and_differ():
    two, three = (jax.random.key_data(simulate.batch_keys(KEY, n)) for n in (2, 3))
    np.testing.assert_array_equal(two, three[:2])
    assert len({tuple(k) for k in np.asarray(three).tolist()}) == 3


def test_batches_of_simulations_are_independent():
    """Two batches of 512 of one edge of a half: the same coins would be the same counts."""
    g = build([(0, 1, 0.5)], 2)
    ic = jc.simulate_ic(g, [0], KEY, 1024, engine="packed").samples
    assert abs(np.corrcoef(np.reshape(ic, (2, -1)))[0, 1]) < 4 / np.sqrt(512)
    lt = np.asarray(jc.simulate_lt(g, [0], KEY, 1024).samples, float).reshape(2, -1)
    assert abs(np.corrcoef(lt)[0, 1]) < 4 / np.sqrt(512)


def test_seeds_and_edges_of_a_sample_are_independent():
    """Node 0 is seed half the time, its edge is live half the time, and node 1's seed apart."""
    g = build([(0, 2, 0.5), (1, 3, 0.5)], 4)
    c = jc.sample_cascades(g, [0.5, 0.5, 0, 0], KEY, 4000)
    s0, s1 = np.asarray(c.S0), np.asarray(c.S1)
    for seed, head in ((0, 2), (1, 3)):
        rate = s1[s0[:, seed], head].mean()
        assert rate == pytest.approx(0.5, abs=4 * np.sqrt(0.25 / 2000))
    assert abs(np.corrcoef(s0[:, 0], s0[:, 1])[0, 1]) < 4 / np.sqrt(4000)
    per_batch = 32 * sample.WORDS
    first, second = s0[:per_batch, 0], s0[per_batch : 2 * per_batch, 0]
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / np.sqrt(per_batch)


def test_each_growth_of_the_samples_has_a_key_of_its_own(monkeypatch):
    keys, made = [], reverse.rr_sample

    def spy(g, key, missing, lanes):
        keys.append((tuple(jax.random.key_data(key).tolist()), missing))
        return made(g, key, missing, lanes)

    monkeypatch.setattr(maximize, "rr_sample", spy)
    path = jc.from_edges(range(39), range(1, 40), 0.05)
    jc.maximize_influence(path, 3, KEY, eps=0.01, max_rr=8192, lanes=64)
    assert len(keys) > 1
    assert len({k for k, _ in keys}) == len(keys)
    assert sum(missing for _, missing in keys) <= 8192


def test_live_edges_of_thresholds_are_at_most_one_and_have_their_weights():
    """Weights 0.2, 0.3 and 0.4 into node 3: one of them in 0.9 of the worlds."""
    g = build([(0, 3, 0.2), (1, 3, 0.3), (2, 3, 0.4), (3, 0, 0.7)], 4)
    live = jax.jit(threshold._draw_live)(g, bits.salts(KEY, 128))
    rows = {}
    for table, tails in zip(live, g.pull.tails, strict=True):
        for row, tail in zip(np.asarray(bits.unpack(table)), np.asarray(tails), strict=True):
            for flags, t in zip(row, tail, strict=True):
                rows[int(t)] = flags
    into = np.stack([rows[t] for t in (0, 1, 2)])
    assert into.sum(0).max() == 1
    n = into.shape[1]
    for flags, p in ((into[0], 0.2), (into[1], 0.3), (into[2], 0.4), (rows[3], 0.7)):
        assert flags.mean() == pytest.approx(p, abs=4 * np.sqrt(p * (1 - p) / n))


@pytest.mark.parametrize(("total", "taken"), [(1 + 0.9e-4, True), (1 + 1.2e-4, False)])
def test_weights_may_sum_to_rounding_above_one(total, taken):
    g = build([(0, 2, 0.5), (1, 2, total - 0.5)], 3)
    if taken:
        assert float(jc.simulate_lt(g, [0, 1], KEY, 32).mean) == pytest.approx(3, abs=0.1)
    else:
        with pytest.raises(ValueError, match="into node 2; allowed: at most 1"):
            jc.simulate_lt(g, [0], KEY, 32)


def test_observed_seeds_are_cut_at_random_or_padded_by_the_learned_ones():
    spare = jnp.array([5, 2, 7])
    assert sorted(_cut_or_pad(np.array([2, 9]), spare, 3, KEY).tolist()[:2]) == [2, 9]
    assert _cut_or_pad(np.array([2, 9]), spare, 3, KEY).tolist()[2] == 5
    assert _cut_or_pad(np.zeros(0, int), spare, 3, KEY).tolist() == [5, 2, 7]
    cuts = [_cut_or_pad(np.arange(4), spare, 2, jax.random.key(k)).tolist() for k in range(40)]
    assert all(len(set(cut)) == 2 for cut in cuts)
    assert {v for v, _ in cuts} == {v for _, v in cuts} == {0, 1, 2, 3}


def test_what_a_cascade_s_seeds_were_learned_without():
    c = jc.from_arrays(np.eye(4), np.zeros((4, 4)))
    rest = _without(c, 2)
    np.testing.assert_array_equal(rest.S0, np.eye(4)[[0, 1, 3]])
    assert (rest.t, rest.final_size.tolist()) == (3, [1, 1, 1])


def test_many_seeds_a_cascade_weaken_the_guarantee_and_are_told():
    """Two seeds in each of four cascades: for one seed twice as many, for two as many."""
    s0 = np.eye(4) + np.roll(np.eye(4), 1, 1)
    c = jc.from_arrays(s0, np.zeros((4, 4)))
    with pytest.warns(UserWarning, match="2.00 k seeds"):
        found = jc.ims(c, 1, KEY)
    assert found.c_hat == 2
    assert jc.ims(c, 2, KEY).c_hat == 1


def test_the_better_of_both_is_told_by_observed_spread():
    """Every node is a seed alone, and nothing spreads: learned seeds spread as far as observed."""
    alone = jc.from_arrays(np.eye(4), np.zeros((4, 4)))
    assert jc.ims(alone, 1, KEY, mode="best_of").branch == "learned"
    # the same cascades that end with three nodes each have spread further than what was learned
    far = jc.from_arrays(np.eye(4), np.zeros((4, 4)), np.full(4, 3))
    found = jc.ims(far, 1, KEY, mode="best_of")
    assert found.branch == "observed"
    np.testing.assert_array_equal(found.seeds, found.T2)
    # of two seeds a cascade only half counts for one
    s0 = np.eye(4) + np.roll(np.eye(4), 1, 1)
    with pytest.warns(UserWarning, match="guarantee"):
        both = jc.ims(jc.from_arrays(s0, np.zeros((4, 4))), 1, KEY, mode="best_of")
    assert both.branch == "learned"


def test_times_are_cut_into_steps_from_the_first_one():
    """Times 4, 5.9, 6 and 8.1 in steps of 2: 0, 0, 1 and 2; the first time of a node counts."""
    c = jc.from_events([[(2, 6.0), (0, 4.0), (1, 5.9), (3, 8.1), (0, 9.0)], []], 5, width=2)
    assert c.step.tolist() == [[0, 0, 1, 2, -1], [-1] * 5]
    assert c.S0.tolist()[0] == [True, True, False, False, False]
    assert c.S1.tolist()[0] == [False, False, True, False, False]
    assert c.final_size.tolist() == [4, 0]
    # steps have sixteen bits
    late = jc.from_events([[(0, 0.0), (1, 1e9)]], 2, width=1)
    assert late.step.tolist() == [[0, 32767]]
    for told, events in {"node -1": [(-1, 0.0)], "node 2": [(2, 0.0)]}.items():
        with pytest.raises(ValueError, match=f"holds {told}; allowed: 0 to 1"):
            jc.from_events([[(0, 0.0)], events], 2, width=1)
    with pytest.raises(ValueError, match="width = nan"):
        jc.from_events([[(0, 0.0)]], 2, width=float("nan"))
    for listed, bad in (([-1], -1), ([0, 2], 2), ([1, -3, -1], -3), ([0, 1, 4, 3], 4)):
        with pytest.raises(ValueError, match=rf"steps\[1\]\[0\] holds node {bad}; allowed: 0 to 1"):
            jc.from_steps([[[0]], [listed]], 2)
        with pytest.raises(ValueError, match=rf"events\[1\] holds node {bad}; allowed: 0 to 1"):
            jc.from_events([[(0, 0.0)], [(v, 0.0) for v in listed]], 2, width=1)


def test_records_are_counted_before_they_are_made(monkeypatch):
    g = build([(0, 1, 0.5)], 2)
    for record, cells in (("one_step", 2), ("steps", 4)):
        monkeypatch.setattr(memory, "LIMIT", 100 * 2 * cells)
        assert jc.sample_cascades(g, 0.5, KEY, 100, record=record).t == 100
        monkeypatch.setattr(memory, "LIMIT", 100 * 2 * cells - 1)
        with pytest.raises(MemoryError, match="record of t = 100 cascades over n = 2"):
            jc.sample_cascades(g, 0.5, KEY, 100, record=record)
    # 512 sets of two nodes are 128 bytes, and twenty lanes queue two nodes of four bytes
    monkeypatch.setattr(host, "_installed", lambda: False)
    monkeypatch.setattr(reverse, "sample_bits", lambda *_: jnp.zeros((1, 2, 16)))
    for limit, lanes, told in ((127, 1, "membership"), (128 + 31, 20, "queues of lanes = 20")):
        monkeypatch.setattr(memory, "LIMIT", limit)
        with pytest.raises(MemoryError, match=told):
            jc.rr_sample(g, KEY, 1, lanes)
    monkeypatch.setattr(memory, "LIMIT", 160)
    assert jc.rr_sample(g, KEY, 1, 20).theta == 512


def test_probabilities_are_cut_to_twenty_four_bits():
    t = bits.threshold(jnp.array([0.0, 2.0**-24, 0.5, 1 - 2.0**-24, 1.0]))
    assert t.high.tolist() == [0, 0, 0x8000, 0xFFFF, 0xFFFF]
    assert t.low.tolist() == [0, 1, 0, 255, 256]


def test_words_are_mixed_as_published():
    """MurmurHash3's finalizer by its definition in Python's integers."""

    def murmur(h):
        h = (h ^ h >> 16) * 0x85EBCA6B % 2**32
        h = (h ^ h >> 13) * 0xC2B2AE35 % 2**32
        return h ^ h >> 16

    words = [0, 1, 0xDEADBEEF, 2**32 - 1]
    found = bits.mix(jnp.array(words, jnp.uint32))
    assert found.tolist() == [murmur(w) for w in words]


def test_sweeps_stop_at_their_number_and_where_nothing_changes():
    chain = build([(i, i + 1, 1.0) for i in range(5)], 6)
    salt, sweeps = bits.salts(KEY, 1), jax.jit(packed.spread_packed, static_argnums=3)
    start = bits.spread(jnp.arange(6) == 0, 1)
    for steps, active in ((0, 1), (1, 2), (4, 5), (None, 6)):
        end = sweeps(chain, start, salt, steps)
        assert (np.asarray(end)[:, 0] != 0).tolist() == [i < active for i in range(6)]
    assert packed.slots(chain) == 5
    # a head of three edges has a row of four places
    assert packed.slots(build([(i, 3, 1.0) for i in range(3)], 4)) == 4
