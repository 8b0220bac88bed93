import subprocess
import sys

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest
from jax.sharding import Mesh

import jaxsim.cascades as jc
from benchmarks.common.graphs import SEEDS
from benchmarks.common.paths import ROOT
from jaxsim.cascades import simulate
from jaxsim.numerics import memory
from tests.oracles import cascades_enumeration, cascades_networkx
from tests.support.degrees import edges_of_degrees
from tests.support.graphs import build, random_edges, real
from tests.support.processes import environment

ENGINES = ("packed", "frontier", "loop")
# Mean and standard error that CyNetDiff 0.1.18 gave, per weighting.
SIGMA = {
    "facebook": {"WC": (773.1, 0.6), 0.1: (2947.4, 0.9), 0.01: (308.6, 0.4)},
    "wiki": {"WC": (282.5, 0.3), 0.1: (1704.3, 0.2), 0.01: (103.7, 0.1)},
    "email": {"WC": (286.3, 0.4), 0.1: (660.8, 0.1), 0.01: (43.8, 0.1)},
    "NetHEPT": {"WC": (301.3, 0.3), 0.1: (85.2, 0.1), 0.01: (14.3, 0.05)},
}


DEGREES = ((4, 3, 2, 1, 0, 0), (2, 2, 2, 2, 1, 1))


def z_score(spread, exact):
    return (float(spread.mean) - exact) / max(float(spread.sem), 1e-9)


@pytest.mark.parametrize("engine", ENGINES)
def test_twenty_random_graphs_against_enumeration(engine):
    """Six keys a graph: of twenty scores alone, the deviation has a standard error of .16."""
    scores = []
    for seed in range(20):
        edges = edges_of_degrees(seed, DEGREES[seed % 2])
        exact = cascades_enumeration.influence(6, edges, [0, 1])
        g = build(edges, 6)
        assert abs(jc.exact_influence(g, [0, 1]) - exact) < 1e-6
        keys = jax.random.split(jax.random.key(seed), 6)
        got = [jc.simulate_ic(g, [0, 1], key, 32_768, engine=engine) for key in keys]
        if float(got[0].sem) == 0:
            assert all(float(one.mean) == pytest.approx(exact) for one in got)
            continue
        found = [z_score(one, exact) for one in got]
        assert abs(np.sum(found)) / np.sqrt(6) < 4  # all 196 608 simulations of a graph together
        scores += found
    assert len(scores) >= 90
    assert 0.8 < np.std(scores) < 1.2


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("edges", "n", "exact"),
    [
        ([(i, i + 1, 0.5) for i in range(8)], 9, sum(0.5**i for i in range(9))),
        ([(0, i, i / 10) for i in range(1, 9)], 9, 1 + sum(i / 10 for i in range(1, 9))),
        ([(0, 1, 0.3), (0, 2, 0.3), (1, 3, 0.3), (2, 3, 0.3)], 4, 1.6 + 1 - (1 - 0.09) ** 2),
        ([(0, 1, 0.5), (0, 2, 0.25), (1, 3, 0.5), (2, 4, 0.5)], 5, 1 + 0.75 + 0.25 + 0.125),
    ],
    ids=["path", "star", "diamond", "tree"],
)
def test_closed_forms(engine, edges, n, exact):
    got = jc.simulate_ic(build(edges, n), [0], jax.random.key(1), 65_536, engine=engine)
    assert abs(z_score(got, exact)) < 4


@pytest.mark.parametrize("engine", ENGINES)
def test_certain_and_impossible_edges_are_exact(engine):
    graph = nx.gnp_random_graph(60, 0.03, seed=1, directed=True)
    g = jc.from_networkx(graph, 1.0).graph
    reach = len(set.union(*({s} | nx.descendants(graph, s) for s in (3, 4))))
    for p, size in ((1.0, reach), (0.0, 2)):
        got = jc.simulate_ic(jc.uniform(g, p), [3, 4, 4, -1], jax.random.key(0), 64, engine=engine)
        assert (np.asarray(got.samples) == size).all()


@pytest.mark.parametrize("p", [0.01, 0.2])
def test_engines_agree_bit_for_bit(p):
    """Simulation i is the same whatever runs it, in whatever company."""
    g = jc.uniform(jc.from_networkx(nx.gnp_random_graph(300, 0.02, seed=2, directed=True)).graph, p)
    assert simulate._plan(g, [0], 5000, "packed", False).words == 16
    assert simulate._plan(g, [0], 5000, "frontier", False).words == 128
    packed, *others, few = (
        np.asarray(jc.simulate_ic(g, [0, 1], jax.random.key(3), sims, engine=engine).samples)
        for engine, sims in (*((e, 5000) for e in (*ENGINES, "auto")), ("packed", 100))
    )
    for samples in others:
        np.testing.assert_array_equal(samples, packed)
    np.testing.assert_array_equal(few, packed[:100])


def test_against_a_simulator_on_networkx():
    graph = nx.gnp_random_graph(80, 0.06, seed=5, directed=True)
    nx.set_edge_attributes(graph, 0.25, "p")
    ours = jc.simulate_ic(jc.from_networkx(graph, "p").graph, [0, 1], jax.random.key(0), 16_384)
    theirs = cascades_networkx.sizes(graph, [0, 1], 2000)
    se = np.hypot(float(ours.sem), theirs.std() / 2000**0.5)
    assert abs(float(ours.mean) - theirs.mean()) < 4 * se
    assert abs(np.std(ours.samples) / theirs.std() - 1) < 0.08


@pytest.mark.slow
@pytest.mark.parametrize("name", SIGMA)
def test_table_a(name):
    g = real(name)
    for weights, (mean, se) in SIGMA[name].items():
        weighted = jc.weighted_cascade(g) if weights == "WC" else jc.uniform(g, weights)
        got = jc.simulate_ic(weighted, SEEDS[name], jax.random.key(0), 8192)
        # The published figures are rounded to .1 on top of their error.
        combined = np.hypot(np.hypot(float(got.sem), se), 0.03)
        assert abs(float(got.mean) - mean) < 3 * combined, (weights, got.mean, got.sem)


def test_time_steps():
    g = build([(i, i + 1, 1.0) for i in range(20)] + [(0, 20, 1.0)], 21)
    for steps, size in ((0, 1), (1, 3), (4, 6)):
        got = jc.simulate_ic(g, [0], jax.random.key(0), 32, max_steps=steps)
        assert (np.asarray(got.samples) == size).all()
        lt = jc.simulate_lt(build([(i, i + 1, 1.0) for i in range(20)], 21), [0],
                            jax.random.key(0), 32, max_steps=steps)  # fmt: skip
        assert (np.asarray(lt.samples) == 1 + steps).all()


def test_same_key_same_result_and_other_key_another():
    g = build(random_edges(0), 6)
    a, b, c = (jc.simulate_ic(g, [0], jax.random.key(k), 500).samples for k in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert (np.asarray(a) != np.asarray(c)).any()


def test_sweeps_over_probabilities_compile_once():
    g = build(random_edges(0), 6)
    simulate._sizes.clear_cache()
    simulate._compare.clear_cache()
    for p in (0.1, 0.2, 0.3):
        jc.simulate_ic(jc.uniform(g, p), [0], jax.random.key(0), 64, engine="packed")
        jc.simulate_ic(jc.uniform(g, p), [1], jax.random.key(1), 64, engine="packed")
        jc.influence(jc.uniform(g, p), np.array([[0, 1]]), jax.random.key(0), 64)
    assert simulate._sizes._cache_size() == 1
    assert simulate._compare._cache_size() == 1


def test_influence_shares_live_edges_and_works_under_jit_and_vmap():
    edges = random_edges(3)
    g, sets = build(edges, 6), np.array([[0, -1], [0, 1], [1, -1]])
    key = jax.random.key(0)
    got = jc.influence(g, sets, key, 32_768)
    for i, s in enumerate(([0], [0, 1], [1])):
        exact = cascades_enumeration.influence(6, edges, s)
        assert abs(float(got.mean[i]) - exact) < 4 * float(got.sem[i]) + 1e-6
    samples = np.asarray(got.samples)
    assert (samples[1] >= samples[0]).all()  # a superset wins in every single world
    jitted = jax.jit(lambda g: jc.influence(g, sets, key, 32_768).samples)(g)
    np.testing.assert_array_equal(jitted, samples)
    many = jax.vmap(lambda p: jc.influence(g.with_p(p), sets, key, 1024).mean)(
        jnp.stack([g.p, jnp.zeros_like(g.p)])
    )
    np.testing.assert_array_equal(many[1], [1, 2, 1])
    np.testing.assert_array_equal(many[0], jc.influence(g, sets, key, 1024).mean)
    np.testing.assert_array_equal(
        jax.jit(lambda g: jc.simulate_ic(g, jnp.array([0]), key, 64).samples)(g),
        jc.simulate_ic(g, [0], key, 64).samples,
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g, k: jc.simulate_ic(g, [6], k, 10), "seeds holds 6; allowed: 0 to 5"),
        (lambda g, k: jc.simulate_ic(g, [-2], k, 10), "seeds holds -2"),
        (lambda g, k: jc.simulate_ic(g, [0.5], k, 10), "integers"),
        (lambda g, k: jc.simulate_ic(g, [0], k, 0), "n_sims = 0"),
        (lambda g, k: jc.simulate_ic(g, [0], k, 10, engine="fast"), "engine = 'fast'"),
        (lambda g, k: jc.simulate_ic(g, [0], k, 10, max_steps=-1), "max_steps = -1"),
        (lambda g, k: jc.simulate_ic(g, [0], k, 10, max_steps=1, engine="frontier"), "max_steps"),
        (lambda g, k: jc.simulate_ic(g, [0], k, 10, max_steps=1, engine="loop"), "max_steps"),
        (
            lambda g, k: jax.jit(lambda k: jc.simulate_ic(g, [0], k, 10, engine="loop"))(k),
            "engine = 'loop'; allowed: on a CPU, outside jit",
        ),
        (lambda g, k: jc.influence(g, np.array([0, 1]), k, 10), "seed_sets has shape"),
        (lambda g, k: jc.influence(g, np.array([[9]]), k, 10), "seeds holds 9"),
        (lambda g, k: jc.simulate_lt(g.with_p(1.0), [0], k, 10), "p sums to"),
        (lambda g, k: jc.simulate_lt(g.with_p(0.0), [0], k, 0), "n_sims = 0"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(build(random_edges(0), 6), jax.random.key(0))


def test_memory_is_guarded(monkeypatch):
    monkeypatch.setattr(memory, "LIMIT", 40)
    g = build(random_edges(0), 6)
    for call in (
        lambda: jc.simulate_ic(g, [0], jax.random.key(0), 10),
        lambda: jc.simulate_lt(jc.weighted_cascade(g), [0], jax.random.key(0), 10),
        lambda: jc.sample_cascades(g, 0.5, jax.random.key(0), 1000),
        lambda: jc.rr_sample(g, jax.random.key(0), 1000),
        lambda: jc.infer_network(jc.from_arrays(np.eye(6), np.zeros((6, 6)))),
    ):
        with pytest.raises(MemoryError, match=r"needs 0\.0 GiB"):
            call()


SHARDED = """
import jax, numpy as np
from jax.sharding import Mesh
import jaxsim.cascades as jc
assert len(jax.devices()) == 2
rng = np.random.default_rng(0)
pair = np.unique(rng.integers(0, 2500, 400)); pair = pair[pair // 50 != pair % 50]
g = jc.from_edges(pair // 50, pair % 50, 0.3, 50)
mesh = Mesh(np.array(jax.devices()), ("sims",))
for engine in ("packed", "frontier"):
    one = jc.simulate_ic(g, [0, 1], jax.random.key(0), 20_000, engine=engine)
    two = jc.simulate_ic(g, [0, 1], jax.random.key(0), 20_000, engine=engine, mesh=mesh)
    np.testing.assert_array_equal(one.samples, two.samples)
    assert two.samples.shape == (20_000,)
print("same")
"""


def test_simulations_divide_over_devices():
    code = [sys.executable, "-c", SHARDED]
    done = subprocess.run(code, env=environment(2), cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "same", done.stderr[-2000:]


def test_a_mesh_of_two_axes_is_refused():
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("a", "b"))
    with pytest.raises(ValueError, match="mesh has axes"):
        jc.simulate_ic(build(random_edges(0), 6), [0], jax.random.key(0), 10, mesh=mesh)
    mesh = Mesh(np.array(jax.devices()[:1]), ("a",))
    g = build(random_edges(0), 6)
    with pytest.raises(ValueError, match="not with 'loop'"):
        jc.simulate_ic(g, [0], jax.random.key(0), 10, mesh=mesh, engine="loop")


def test_exact_influence_refuses_many_edges_but_not_certain_ones():
    chain = [(i, i + 1) for i in range(30)]
    assert jc.exact_influence(build([(u, v, 1.0) for u, v in chain], 31), [0]) == 31
    with pytest.raises(ValueError, match="30 uncertain edges; allowed: at most 20"):
        jc.exact_influence(build([(u, v, 0.5) for u, v in chain], 31), [0])


def test_linear_threshold_against_enumeration():
    scores = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        edges = edges_of_degrees(seed, (3, 2, 2, 1, 1, 0))
        into = {v: 1e-9 + sum(1 for _, w, _ in edges if w == v) for _, v, _ in edges}
        edges = [(u, v, float(np.float32(rng.uniform(0.3, 1) / into[v]))) for u, v, _ in edges]
        exact = cascades_enumeration.threshold_influence(6, edges, [0, 1])
        scores.append(
            z_score(jc.simulate_lt(build(edges, 6), [0, 1], jax.random.key(seed), 65_536), exact)
        )
    assert max(map(abs, scores)) < 4
    assert np.std(scores) < 1.6


def test_linear_threshold_through_a_hub():
    # Forty in-edges of weight 1/40 span several rows: a fifth of them act a fifth of the time.
    g = jc.weighted_cascade(jc.from_edges(np.arange(1, 41), np.zeros(40, int)))
    got = jc.simulate_lt(g, np.arange(1, 9), jax.random.key(0), 65_536)
    assert abs(z_score(got, 8.2)) < 4


def test_a_list_of_traced_seeds_is_as_one_of_numbers():
    g = jc.from_edges([0, 1, 1], [1, 2, 3], [1.0, 0.0, 1.0])
    spread = jax.jit(lambda s: jc.simulate_ic(g, [s, 2], jax.random.key(0), 64).mean)
    assert float(spread(0)) == float(jc.simulate_ic(g, [0, 2], jax.random.key(0), 64).mean) == 4.0
    assert float(spread(3)) == 2.0
