import jax
import networkx as nx
import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxsim.cascades as jc
from jaxsim.cascades.graph import ROW_WIDTH


def triples(g):
    return {(int(u), int(v)): float(p) for u, v, p in zip(g.src, g.dst, g.p, strict=True)}


@given(st.integers(1, 40), st.integers(0, 120), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_every_edge_is_in_exactly_one_pull_row_of_its_head(n, m, seed):
    rng = np.random.default_rng(seed)
    pair = np.unique(rng.integers(0, n * n, m))
    pair = pair[pair // n != pair % n]
    g = jc.from_edges(pair // n, pair % n, 0.5, n)
    # Follow every row to the edges below it, and compare with the edges of its node.
    below, start = {}, 0
    inputs = [[e] for e in range(g.m)]
    for level in g.pull.levels:
        rows = [
            [i for x in row if x < len(inputs) for i in inputs[x]]
            for t in level
            for row in np.asarray(t)
        ]
        assert all(t.shape[1] <= ROW_WIDTH for t in level)
        for i, edges in enumerate(rows):
            below[start + i] = edges
        inputs, start = rows, start + len(rows)
    node_row, heads = np.asarray(g.pull.node_row), np.asarray(g.dst)
    for v in range(n):
        mine = np.flatnonzero(heads == v).tolist()
        assert sorted(below.get(int(node_row[v]), [])) == mine


def test_a_hub_of_a_thousand_in_edges_takes_three_levels():
    g = jc.from_edges(np.arange(1, 1001), np.zeros(1000, int), 1.0)
    assert len(g.pull.levels) == 3
    assert jc.simulate_ic(g, [777], jax.random.key(0), 32).mean == 2


def test_parallel_edges_combine_or_are_refused():
    with pytest.raises(ValueError, match=r"edge \(0, 1\) is repeated"):
        jc.from_edges([0, 0], [1, 1], [0.5, 0.25])
    g = jc.from_edges([0, 0, 1], [1, 1, 0], [0.5, 0.25, 1.0], parallel="combine")
    assert triples(g) == {(0, 1): 1 - 0.5 * 0.75, (1, 0): 1.0}


def test_self_loops_are_dropped_with_a_warning():
    with pytest.warns(UserWarning, match="1 self-loops"):
        g = jc.from_edges([0, 1], [1, 1])
    assert triples(g) == {(0, 1): 1.0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0], [1], [1.5]), r"p\[0\] = 1.5; allowed: 0 to 1"),
        (([0], [1], [np.nan]), r"p\[0\] = nan"),
        (([0], [-1], 0.5), "node -1"),
        (([0], [5], 0.5, 3), "node 5; allowed: 0 to 2"),
        (([0, 1], [1], 0.5), "shapes"),
        (([0.5], [1], 0.5), "integers"),
        (([0, 1], [1, 2], [0.5]), "p has shape"),
    ],
)
def test_bad_edges_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        jc.from_edges(*arguments)


def test_weightings():
    g = jc.from_edges([0, 1, 2, 0], [2, 2, 0, 1])
    assert triples(jc.weighted_cascade(g)) == {(2, 0): 1, (0, 1): 1, (0, 2): 0.5, (1, 2): 0.5}
    assert set(triples(jc.uniform(g, 0.25)).values()) == {0.25}
    three = jc.trivalency(jc.from_edges(np.arange(3000), np.full(3000, 3000)), jax.random.key(0))
    value, count = np.unique(np.asarray(three.p), return_counts=True)
    np.testing.assert_allclose(value, [0.001, 0.01, 0.1], rtol=1e-6)
    assert (abs(count - 1000) < 4 * (3000 * 2 / 9) ** 0.5).all()
    with pytest.raises(ValueError, match="p has shape"):
        g.with_p(np.ones(3) / 2)
    with pytest.raises(ValueError, match=r"p\[\] = -0.5"):
        g.with_p(-0.5)


def test_edge_list_files(tmp_path):
    path = tmp_path / "edges.txt"
    path.write_text("% sizes\n10 20 .5\n\n20,30,.25\n# end\n")
    graph, labels = jc.load_edgelist(path, probabilities=True)
    assert labels.tolist() == [10, 20, 30]
    assert triples(graph) == {(0, 1): 0.5, (1, 2): 0.25}
    assert triples(jc.load_edgelist(path, undirected=True).graph).keys() == {
        (0, 1), (1, 0), (1, 2), (2, 1),
    }  # fmt: skip
    path.write_text("7 7\n1 2\n1 2\n")
    assert jc.load_edgelist(path, skip_lines=1).graph.m == 1
    for text, message in (("# none\n", "holds no edge"), ("1 x\n", "numeric"), ("1 2.5\n", "frac")):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            jc.load_edgelist(path)
    with pytest.raises(FileNotFoundError):
        jc.load_edgelist(tmp_path / "absent")


def test_networkx_and_scipy_graphs():
    d = nx.DiGraph()
    d.add_edge("a", "b", w=0.5)
    d.add_edge("b", "c", w=0.25)
    graph, labels = jc.from_networkx(d, "w")
    assert labels.tolist() == ["a", "b", "c"]
    assert triples(graph) == {(0, 1): 0.5, (1, 2): 0.25}
    assert triples(jc.from_networkx(d.to_undirected(), 0.125).graph) == {
        (0, 1): 0.125, (1, 0): 0.125, (1, 2): 0.125, (2, 1): 0.125,
    }  # fmt: skip
    d.add_edge("c", "a")
    with pytest.raises(ValueError, match=r"edge \(c, a\) lacks"):
        jc.from_networkx(d, "w")
    matrix = scipy.sparse.csr_array(([0.5, 0.25], ([0, 2], [1, 0])), (3, 3))
    assert triples(jc.from_scipy(matrix)) == {(0, 1): 0.5, (2, 0): 0.25}
    with pytest.raises(ValueError, match="square"):
        jc.from_scipy(scipy.sparse.csr_array((2, 3)))


def test_a_graph_without_edges():
    g = jc.from_edges(np.zeros(0, int), np.zeros(0, int), n=5)
    for engine in ("packed", "frontier", "auto"):
        assert (jc.simulate_ic(g, [0], jax.random.key(0), 40, engine=engine).samples == 1).all()
    result = jc.maximize_influence(g, 5, jax.random.key(0))
    assert sorted(result.seeds.tolist()) == [0, 1, 2, 3, 4]
    assert result.certified
    assert result.spread == 5
    assert jc.simulate_lt(g, [0], jax.random.key(0), 40).mean == 1
