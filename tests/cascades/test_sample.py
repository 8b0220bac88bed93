import jax
import networkx as nx
import numpy as np
import pytest

import jaxsim.cascades as jc
from benchmarks.common.graphs import DATA
from tests.oracles import cascades_networkx
from tests.support.graphs import build, random_edges


def test_seeds_and_first_steps_have_their_probabilities():
    g = build([(0, 2, 0.5), (1, 2, 0.25)], 3)
    q = np.array([0.2, 0.6, 0.1])
    t = 40_000
    c = jc.sample_cascades(g, q, jax.random.key(0), t)
    s0, s1 = np.asarray(c.S0), np.asarray(c.S1)
    assert (c.t, c.n) == s0.shape == (t, 3)
    assert (abs(s0.mean(0) - q) < 4 * (q * (1 - q) / t) ** 0.5).all()
    assert not (s0 & s1).any()
    assert not s1[:, :2].any()
    rows = ~s0[:, 2]
    ap = 1 - (1 - 0.2 * 0.5) * (1 - 0.6 * 0.25)
    assert abs(s1[rows, 2].mean() - ap) < 4 * (ap * (1 - ap) / rows.sum()) ** 0.5
    np.testing.assert_array_equal(c.final_size, (s0 | s1).sum(1))


def test_recorded_steps_are_those_of_a_simulator_on_networkx():
    graph = nx.gnp_random_graph(40, 0.08, seed=3, directed=True)
    nx.set_edge_attributes(graph, 0.4, "p")
    g = jc.from_networkx(graph, "p").graph
    c = jc.sample_cascades(g, np.eye(40)[0], jax.random.key(0), 8192, record="steps")
    step = np.asarray(c.step)
    np.testing.assert_array_equal(step == 0, c.S0)
    np.testing.assert_array_equal(step == 1, c.S1)
    np.testing.assert_array_equal((step >= 0).sum(1), c.final_size)
    rng = np.random.default_rng(0)
    theirs = [cascades_networkx.cascade(graph, [0], rng) for _ in range(4000)]
    for s in range(1, 5):
        ours = (step == s).sum(1)
        other = np.array([sum(x == s for x in run.values()) for run in theirs])
        se = np.hypot(ours.std() / 8192**0.5, other.std() / 4000**0.5)
        assert abs(ours.mean() - other.mean()) < 4 * se
    # One step at a time on certain edges.
    path = build([(i, i + 1, 1.0) for i in range(9)], 10)
    c = jc.sample_cascades(path, np.eye(10)[0], jax.random.key(0), 3, record="steps")
    assert (np.asarray(c.step) == np.arange(10)).all()


def test_readers_agree():
    steps = [[[0], [1, 2], [3]], [[3], []]]
    a = jc.from_steps(steps, 4)
    b = jc.from_steps([[[0], [0, 1, 2], [0, 1, 2, 3]], [[3], [3]]], 4, cumulative=True)
    events = [[(3, 9.5), (0, 5.0), (1, 7.1), (2, 8.9), (0, 9.9)], [(3, 1.0)]]
    d = jc.from_events(events, 4, width=2.0)
    e = jc.from_arrays(a.S0, a.S0 | a.S1, a.final_size, cumulative=True)
    for other in (b, d, e):
        np.testing.assert_array_equal(a.S0, other.S0)
        np.testing.assert_array_equal(a.S1, other.S1)
        np.testing.assert_array_equal(a.final_size, other.final_size)
    np.testing.assert_array_equal(a.step, [[0, 1, 1, 2], [-1, -1, -1, 0]])
    np.testing.assert_array_equal(a.step, d.step)


def test_cascade_files(tmp_path):
    path = tmp_path / "cascades.txt"
    path.write_text("c1 a,0.0 b,1.5 c,3.2\n\nb,10 a,10.5\n")
    c, labels = jc.load_cascades(path, width=1.0)
    assert labels.tolist() == ["a", "b", "c"]
    np.testing.assert_array_equal(c.step, [[0, 1, 3], [0, 0, -1]])
    path.write_text("a,0 b,soon\n")
    with pytest.raises(ValueError, match="line 1"):
        jc.load_cascades(path, width=1.0)
    path.write_text("\n")
    with pytest.raises(ValueError, match="holds no cascade"):
        jc.load_cascades(path, width=1.0)


def test_real_cascades_load_and_are_mostly_not_identifiable():
    path = DATA / "forest_memetracker_cascade.txt"
    if not path.exists():
        pytest.skip(f"{path} is absent; set JAXSIM_DATA")
    c, labels = jc.load_cascades(path, width=3600.0)
    assert c.n == len(labels)
    estimate = jc.infer_network(c)
    assert float(jc.diagnose(c, estimate).identifiable) < 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: jc.sample_cascades(g, 0.5, jax.random.key(0), 0), "t = 0"),
        (lambda g: jc.sample_cascades(g, 1.5, jax.random.key(0), 9), "q holds 1.5"),
        (lambda g: jc.sample_cascades(g, np.ones(2), jax.random.key(0), 9), "q has shape"),
        (lambda g: jc.sample_cascades(g, 0.5, jax.random.key(0), 9, record="x"), "record = 'x'"),
        (lambda g: jc.from_steps([], 3), "steps holds 0"),
        (lambda g: jc.from_steps([[[0], [3]]], 3), "node 3; allowed: 0 to 2"),
        (lambda g: jc.from_steps([[[0], [0, 1]]], 3), "active before"),
        (lambda g: jc.from_arrays(np.eye(3), np.eye(3)), r"S1\[0, 0\] is a seed"),
        (lambda g: jc.from_arrays(np.zeros((0, 3)), np.zeros((0, 3))), "t >= 1"),
        (lambda g: jc.from_arrays(np.eye(3), np.zeros((3, 2))), "shapes"),
        (lambda g: jc.from_events([], 3, width=1.0), "events holds 0"),
        (lambda g: jc.from_events([[(0, 1.0)]], 3, width=0.0), "width = 0.0"),
        (lambda g: jc.from_events([[(5, 1.0)]], 3, width=1.0), "node 5"),
        (lambda g: jc.from_events([[(0, np.inf)]], 3, width=1.0), "finite"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(build(random_edges(0), 6))
