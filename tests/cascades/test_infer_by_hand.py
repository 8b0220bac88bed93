"""Estimates from a handful of cascades, counted and worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim.cascades as jc
from jaxsim.cascades import infer
from jaxsim.numerics import memory


def seen(n1, c1, n0, c0, *, both=3, other=2, idle=0):
    """Cascades of nodes u, v and further idle ones.

    In n1 u is a seed and v is not, and v is active at step 1 in c1 of them; in n0 neither is a
    seed, and v is active in c0. In `both` both are seeds, in `other` v alone.
    """
    rows = [((1, 0), (0, i < c1)) for i in range(n1)]
    rows += [((0, 0), (0, i < c0)) for i in range(n0)]
    rows += [((1, 1), (0, 0))] * both + [((0, 1), (0, 0))] * other
    s0, s1 = (np.pad(np.array(part, bool), ((0, 0), (0, idle))) for part in zip(*rows, strict=True))
    return jc.from_arrays(s0, s1)


@pytest.mark.parametrize(
    ("counts", "p", "se"),
    [
        # 1 - 4/10 · 20/15; 4/3 √(0.4 · 0.6 / 10 + (8/15)² · 0.25 · 0.75 / 20)
        ((10, 6, 20, 5), 7 / 15, 4 / 3 * np.sqrt(0.024 + (8 / 15) ** 2 * 0.1875 / 20)),
        # v is never active without u: the rule of three takes 3/20 for the error of that 0
        ((10, 6, 20, 0), 0.6, np.sqrt(0.024 + 0.16 * 0.0225)),
        # never with u: 3/10
        ((10, 0, 20, 5), -1 / 3, 4 / 3 * np.sqrt(0.09 + (4 / 3) ** 2 * 0.1875 / 20)),
        # always with u
        ((10, 10, 20, 5), 1.0, 4 / 3 * np.sqrt(0.09)),
        # never at all
        ((10, 0, 20, 0), 0.0, np.sqrt(0.09 + 0.0225)),
    ],
)
def test_an_edge_and_its_error_are_those_of_the_counts(counts, p, se):
    found = jc.infer_network(seen(*counts))
    assert float(found.p_raw[0, 1]) == pytest.approx(p, abs=1e-6)
    assert float(found.p[0, 1]) == pytest.approx(min(max(p, 0), 1), abs=1e-6)
    assert float(found.se[0, 1]) == pytest.approx(se, rel=1e-5)
    assert int(found.n1[0, 1]) == 10
    assert int(found.n0[0, 1]) == 20
    assert bool(found.identifiable[0, 1])


def test_shares_are_counted_over_the_cascades_that_tell():
    """35 cascades; u is a seed in 13, v in 5, and of the 30 others v is active in 11."""
    found = jc.infer_network(seen(10, 6, 20, 5))
    np.testing.assert_allclose(found.q, [13 / 35, 5 / 35], rtol=1e-6)
    np.testing.assert_allclose(found.ap, [0, 11 / 30], rtol=1e-6)
    assert found.n1.tolist() == [[0, 10], [2, 0]]
    assert int(found.n0[1, 0]) == 20
    # v is a seed without u twice, and u never active: the edge back is one that never was
    assert float(found.p_raw[1, 0]) == 0
    assert float(found.se[1, 0]) == pytest.approx(np.hypot(3 / 2, 3 / 20))


@pytest.mark.parametrize(
    ("counts", "known"),
    [
        ((0, 0, 20, 5), False),  # u is never a seed
        ((1, 0, 20, 5), True),
        ((10, 6, 0, 0), False),  # one of both is always a seed
        ((10, 6, 1, 0), True),
        ((10, 6, 1, 1), False),  # v is always active without u
        ((10, 6, 20, 20), False),
        ((10, 6, 20, 19), True),
    ],
)
def test_a_pair_is_known_where_each_count_tells_something(counts, known):
    found = jc.infer_network(seen(*counts))
    assert bool(found.identifiable[0, 1]) == known
    assert np.isfinite(float(found.p_raw[0, 1])) == known
    assert np.isfinite(float(found.se[0, 1])) == known
    assert float(found.p[0, 1]) == (0 if not known else max(float(found.p_raw[0, 1]), 0))


@pytest.mark.parametrize(
    ("active", "tau", "hidden"),
    [(26, None, False), (27, None, True), (20, 0.33, False), (20, 0.34, True), (30, 0, False)],
)
def test_a_node_hides_its_edges_where_it_is_hardly_ever_inactive(active, tau, hidden):
    """Of 30: 1 - 26/30 = 0.133 and 0.1 about 1 / (4 · 2); 1/3 about 0.33 and 0.34."""
    found = jc.infer_network(seen(10, 10, 20, active - 10), tau=tau)
    assert found.unlearnable.tolist() == [False, hidden]


def test_the_limit_is_a_quarter_of_a_node_s_share():
    """With two idle nodes more it is 1/16: 0.067 of 30 is above, 0.033 below."""
    for active, hidden in ((28, False), (29, True)):
        found = jc.infer_network(seen(10, 10, 20, active - 10, idle=2))
        assert bool(found.unlearnable[1]) == hidden


def test_a_node_that_is_always_a_seed_hides_its_edges():
    found = jc.infer_network(seen(0, 0, 0, 0, both=3, other=2))
    assert found.unlearnable.tolist() == [False, True]


def test_edges_are_kept_above_half_of_the_weakest_and_above_the_noise():
    """p = 0.4667 and its error 0.2177: 2.143 of them."""
    found = jc.infer_network(seen(10, 6, 20, 5))
    assert bool(found.structure(0.93)[0, 1])
    assert not bool(found.structure(0.94)[0, 1])
    for z, least, kept in ((2.14, 0, 1), (2.15, 0, 0), (0, 0.466, 1), (0, 0.467, 0)):
        graph = found.to_graph(least, z)
        assert (graph.m, graph.n) == (kept, 2)
    graph = found.to_graph(z=2)
    assert (graph.src.tolist(), graph.dst.tolist()) == ([0], [1])
    assert float(graph.p[0]) == pytest.approx(7 / 15)
    # the usual three errors
    assert found.to_graph().m == 0
    assert jc.infer_network(seen(100, 60, 200, 50)).to_graph().m == 1
    for told, call in {
        "beta = 1.01": lambda: found.structure(1.01),
        "beta = 0;": lambda: found.structure(0),
        "min_p = -0.1": lambda: found.to_graph(-0.1),
        "z = -0.1": lambda: found.to_graph(0, -0.1),
        "tau = -0.1": lambda: jc.infer_network(seen(2, 1, 2, 1), tau=-0.1),
        "tau = 1.01": lambda: jc.infer_network(seen(2, 1, 2, 1), tau=1.01),
    }.items():
        with pytest.raises(ValueError, match=told):
            call()
    found.structure(1)
    jc.infer_network(seen(2, 1, 2, 1), tau=1)


def test_the_dependence_of_seeds_is_the_root_of_t_times_their_correlation():
    """Of 8 cascades 4 start at u, 2 at v, those at both: (1/4 - 1/8) / √(1/4 · 3/16) = 1/√3."""
    c = seen(2, 1, 4, 0, both=2, other=0)
    found = jc.diagnose(c, jc.infer_network(c))
    assert float(found.seed_dependence) == pytest.approx(np.sqrt(8 / 3), rel=1e-6)
    assert (float(found.q_least), float(found.q_most)) == (0.25, 0.5)
    # v is never a seed without u, so that the edge back is not known
    assert float(found.identifiable) == 0.5
    # a node that is never a seed is left out, and no pair is left to tell anything
    c = seen(2, 1, 6, 0, both=0, other=0)
    found = jc.diagnose(c, jc.infer_network(c))
    assert (float(found.seed_dependence), float(found.q_least)) == (0, 0)


def test_the_numbers_of_cascades_are_those_of_both_bounds():
    """n = 3, eta = 1/2, delta = 0.6, alpha = 0.8, gamma = 0.4: both have the logarithm of 60.

    256 log(12 · 3 / 0.6) / (0.25 · 0.64 · 0.064) = 102358.6; the errors of the other may be
    0.5 · 0.8 / 2.5 = 0.16 each: log(4 · 9 / 0.6) / (2 · 0.16² · 0.4²) = 499.8.
    """
    arguments = {"n": 3, "eta": 0.5, "delta": 0.6, "alpha": 0.8, "gamma": 0.4}
    assert jc.required_cascades(**arguments, form="paper") == 102359
    assert jc.required_cascades(**arguments, form="direct") == 500
    assert jc.required_cascades(**arguments) == 500
    # of five nodes log(100) and log(500 / 3)
    assert jc.required_cascades(**(arguments | {"n": 5}), form="paper") == 115130
    assert jc.required_cascades(**(arguments | {"n": 5})) == 625


@pytest.mark.parametrize("name", ["eta", "delta", "alpha", "gamma", "n"])
def test_the_numbers_they_take_have_edges(name):
    arguments = {"n": 1, "eta": 1, "delta": 1, "alpha": 1, "gamma": 0.5}
    for form in ("paper", "direct"):
        assert jc.required_cascades(**arguments, form=form) > 0
    most = arguments[name]
    for bad in (0, -0.1) if name == "n" else (0, most + 1e-6):
        with pytest.raises(ValueError, match=f"{name} = {bad}"):
            jc.required_cascades(**(arguments | {name: bad}))


@pytest.mark.parametrize("start", [0.3, 0.9])
def test_the_likelihood_is_largest_at_the_share_that_was_activated(start):
    """Where v is never active without u, the edge is 6 of 10; cascades that start at v say none."""
    init = jnp.array([[0.0, start], [0.2, 0.0]])
    p = np.asarray(jc.mle_refine(seen(10, 6, 20, 0, both=30), init, 300))
    assert p[0, 1] == pytest.approx(0.6, abs=2e-3)
    assert p[1, 0] < 1e-3
    np.testing.assert_array_equal(np.diag(p), 0)


@pytest.mark.parametrize(("start", "held"), [(0.3, 0.3), (0.0, 1e-3), (0.9, 0.9)])
def test_a_step_of_the_likelihood_is_that_of_adam(start, held):
    """A first step is of 0.05 towards -log 0.4, whatever the slope; p is not below 0.001 then."""
    p = jc.mle_refine(seen(10, 6, 20, 0), jnp.array([[0.0, start], [0, 0]]), 1)
    theta = -np.log1p(-held) + (0.05 if start < 0.6 else -0.05)
    assert float(p[0, 1]) == pytest.approx(1 - np.exp(-theta), abs=1e-5)


def test_two_parents_miss_independently():
    """u₁ and u₂ together leave v inactive in 0.5 · 0.4; alone in 0.5 and in 0.4."""
    rows = [((1, 1, 0), i < 8) for i in range(10)]
    rows += [((1, 0, 0), i < 5) for i in range(10)] + [((0, 1, 0), i < 6) for i in range(10)]
    rows += [((0, 0, 0), False)] * 10
    s0 = np.array([a for a, _ in rows], bool)
    s1 = np.zeros_like(s0)
    s1[:, 2] = [b for _, b in rows]
    c = jc.from_arrays(s0, s1)
    p = np.asarray(jc.mle_refine(c, jnp.full((3, 3), 0.3), 300))
    np.testing.assert_allclose(p[:2, 2], [0.5, 0.6], atol=3e-3)


def test_counts_fill_a_chunk_to_the_last_bit():
    """4095 cascades of u that all activate v, a whole chunk, and five of nothing."""
    for t in (infer.CHUNK, infer.CHUNK + 1, 2 * infer.CHUNK):
        found = jc.infer_network(seen(t, t, 5, 0, both=0, other=0))
        assert int(found.n1[0, 1]) == t
        assert float(found.p_raw[0, 1]) == 1
        assert float(found.se[0, 1]) == pytest.approx(3 / t)


@pytest.mark.parametrize(
    ("need", "call"),
    [
        (160, lambda c: jc.infer_network(c)),
        (16 * 35 * 2, lambda c: jc.mle_refine(c, jnp.zeros((2, 2)), 1)),
    ],
    ids=["pairs", "cascades"],
)
def test_memory_is_counted_exactly(monkeypatch, need, call):
    c = seen(10, 6, 20, 5)
    monkeypatch.setattr(memory, "LIMIT", need)
    call(c)
    monkeypatch.setattr(memory, "LIMIT", need - 1)
    with pytest.raises(MemoryError):
        call(c)


@pytest.mark.parametrize("shape", [(3,), (0, 3), (3, 0)])
def test_what_holds_no_cascade_is_refused(shape):
    none = jnp.zeros(shape, bool)
    with pytest.raises(ValueError, match="allowed: equal"):
        infer.check_cascades(jc.Cascades(none, none, None, jnp.zeros(0, int)))
    with pytest.raises(ValueError, match="allowed: equal"):
        infer.check_cascades(
            jc.Cascades(jnp.ones((2, 3), bool), jnp.ones((2, 4), bool), None, jnp.zeros(2, int))
        )
    assert jax.tree.leaves(seen(1, 1, 1, 0))[0].shape == (7, 2)
