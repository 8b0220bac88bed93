import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim.cascades as jc
from tests.oracles.cascades_estimates import two_conditionals, with_seeding_rate
from tests.support.graphs import build, random_edges


def instance(n=60):
    """The random network of the acceptance test: p in [.2, .8] on 7 % of pairs, q in [.05, .2]."""
    rng = np.random.default_rng(7)
    edge = (rng.random((n, n)) < 0.07) & ~np.eye(n, dtype=bool)
    p = np.where(edge, rng.uniform(0.2, 0.8, (n, n)), 0.0).astype(np.float32)
    src, dst = np.nonzero(p)
    return jc.from_edges(src, dst, p[src, dst], n), p, rng.uniform(0.05, 0.2, n)


def off_diagonal(x):
    return np.asarray(x)[~np.eye(len(x), dtype=bool)]


@pytest.mark.parametrize("t", [4_000, 16_000, 64_000, 256_000])
def test_error_falls_with_the_root_of_t_and_standard_errors_are_right(t):
    g, p, q = instance()
    estimate = jc.infer_network(jc.sample_cascades(g, q, jax.random.key(t), t))
    known = off_diagonal(estimate.identifiable)
    assert known.all()
    error = off_diagonal(estimate.p_raw) - off_diagonal(p)
    assert 1.7 <= np.sqrt((error**2).mean()) * t**0.5 <= 2.2
    if t >= 16_000:
        assert 0.93 <= (error / off_diagonal(estimate.se)).std() <= 1.07
        found = np.asarray(estimate.structure(0.2))
        np.testing.assert_array_equal(found, p > 0)  # F1 = 1


def test_both_forms_and_the_loops_agree():
    g, _, q = instance(25)
    c = jc.sample_cascades(g, q, jax.random.key(0), 3000)
    estimate = jc.infer_network(c)
    s0, s1 = np.asarray(c.S0), np.asarray(c.S1)
    for oracle in (two_conditionals, with_seeding_rate):
        np.testing.assert_allclose(
            off_diagonal(estimate.p_raw), off_diagonal(oracle(s0, s1)), atol=1e-6
        )


def test_counts_are_exact_over_many_chunks():
    rng = np.random.default_rng(0)
    s0 = rng.random((9001, 7)) < 0.4
    s1 = (rng.random((9001, 7)) < 0.5) & ~s0
    estimate = jc.infer_network(jc.from_arrays(s0, s1))
    np.testing.assert_array_equal(estimate.n1, s0.T.astype(int) @ ~s0)
    n0 = (~s0).T.astype(int) @ ~s0
    np.testing.assert_array_equal(off_diagonal(estimate.n0), off_diagonal(n0))
    np.testing.assert_allclose(
        off_diagonal(estimate.p_raw), off_diagonal(two_conditionals(s0, s1)), atol=1e-6
    )


def test_relabelling_nodes_relabels_the_estimate_exactly():
    g, _, q = instance(20)
    c = jc.sample_cascades(g, q, jax.random.key(0), 2000)
    order = np.random.default_rng(0).permutation(20)
    a = jc.infer_network(c)
    b = jc.infer_network(jc.from_arrays(c.S0[:, order], c.S1[:, order]))
    np.testing.assert_array_equal(np.asarray(a.p_raw)[np.ix_(order, order)], b.p_raw)
    np.testing.assert_array_equal(np.asarray(a.se)[np.ix_(order, order)], b.se)


def test_degenerate_seeding_is_masked_and_leaks_no_nan():
    n, t = 6, 500
    rng = np.random.default_rng(0)
    s0 = rng.random((t, n)) < 0.3
    s0[:, 0], s0[:, 1] = False, True  # never and always a seed
    s1 = (rng.random((t, n)) < 0.3) & ~s0
    s1[:, 2] = ~s0[:, 2]  # always active at step 1
    estimate = jc.infer_network(jc.from_arrays(s0, s1))
    known = np.asarray(estimate.identifiable)
    assert not known[0].any()
    assert not known[1].any()
    assert not known[:, 2].any()
    assert not known.diagonal().any()
    assert np.asarray(estimate.unlearnable).tolist() == [False, True, True, False, False, False]
    assert np.isnan(np.asarray(estimate.p_raw)[~known]).all()
    assert np.isfinite(np.asarray(estimate.p)).all()
    assert (np.asarray(estimate.se)[known] > 0).all()
    g = estimate.to_graph(z=0.0)
    assert np.isfinite(np.asarray(g.p)).all()
    assert not set(np.asarray(g.src).tolist()) & {0, 1}
    assert np.isfinite(float(jc.ims(jc.from_arrays(s0, s1), 2, jax.random.key(0)).c_hat))


def test_certain_edges_are_found_with_a_positive_error():
    g = build([(0, 1, 1.0)], 3)
    estimate = jc.infer_network(jc.sample_cascades(g, 0.3, jax.random.key(0), 2000))
    assert float(estimate.p[0, 1]) == 1.0
    assert 0 < float(estimate.se[0, 1]) < 0.1
    kept = estimate.to_graph(min_p=0.5)
    assert (kept.src.tolist(), kept.dst.tolist()) == ([0], [1])


def test_maximum_likelihood_is_closer():
    g, p, q = instance(30)
    c = jc.sample_cascades(g, q, jax.random.key(0), 2000)
    first = jc.infer_network(c).p
    refined = np.asarray(jc.mle_refine(c, first, 400))
    rmse = [np.sqrt(((off_diagonal(x) - off_diagonal(p)) ** 2).mean()) for x in (first, refined)]
    assert rmse[1] < 0.7 * rmse[0]
    assert (refined.diagonal() == 0).all()
    assert refined.min() >= 0
    assert refined.max() <= 1


def test_diagnosis_sees_dependent_seeds():
    rng = np.random.default_rng(0)
    free = rng.random((4000, 8)) < 0.2
    single = np.eye(8, dtype=bool)[rng.integers(0, 8, 4000)]
    found = []
    for s0 in (free, single):
        c = jc.from_arrays(s0, np.zeros_like(s0))
        found.append(jc.diagnose(c, jc.infer_network(c)))
    assert 0.7 < float(found[0].seed_dependence) < 1.4
    assert float(found[1].seed_dependence) > 5
    assert float(found[0].identifiable) == 1.0
    np.testing.assert_allclose(
        [found[0].q_least, found[0].q_most], [free.mean(0).min(), free.mean(0).max()], rtol=1e-6
    )


def test_required_cascades():
    assert jc.required_cascades(60, 0.1, 0.05, 0.5, 0.05, "paper") > jc.required_cascades(
        60, 0.1, 0.05, 0.5, 0.05
    )
    t = jc.required_cascades(20, 0.3, 0.05, 0.5, 0.3)
    g = build(random_edges(0, n=20, m=10), 20)
    p = np.zeros((20, 20))
    p[np.asarray(g.src), np.asarray(g.dst)] = np.asarray(g.p)
    estimate = jc.infer_network(jc.sample_cascades(g, 0.3, jax.random.key(0), t))
    assert abs(off_diagonal(estimate.p) - off_diagonal(p)).max() < 0.3
    for bad in ({"eta": 0.0}, {"delta": 2.0}, {"gamma": 0.6}, {"n": 0}, {"form": "x"}):
        arguments = {"n": 5, "eta": 0.1, "delta": 0.1, "alpha": 0.5, "gamma": 0.1} | bad
        with pytest.raises(ValueError, match=f"{next(iter(bad))} ="):
            jc.required_cascades(**arguments)


def test_bad_input_is_named():
    c = jc.from_arrays(np.eye(3), np.zeros((3, 3)))
    estimate = jc.infer_network(c)
    for call, message in (
        (lambda: jc.infer_network(c, tau=2.0), "tau = 2.0"),
        (
            lambda: jc.infer_network(jc.Cascades(c.S0[:0], c.S1[:0], None, c.final_size[:0])),
            "t >= 1",
        ),
        (lambda: estimate.structure(0.0), "beta = 0.0"),
        (lambda: estimate.to_graph(z=-1.0), "z = -1.0"),
        (lambda: jc.mle_refine(c, jnp.zeros((2, 2))), "init has shape"),
        (lambda: jc.mle_refine(c, jnp.zeros((3, 3)), 0), "steps = 0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
