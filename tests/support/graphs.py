"""Graphs and reverse-reachable sets that several test files use."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim.cascades as jc
from benchmarks.common.graphs import DATA, FILES
from jaxsim.cascades.bits import pack


def real(name):
    """One of the four graphs of the data folder, every p = 1; skips where it is absent."""
    file, options = FILES[name]
    if not (DATA / file).exists():
        pytest.skip(f"{DATA / file} is absent; set JAXSIM_DATA")
    return jc.load_edgelist(DATA / file, **options).graph


def random_edges(seed, n=6, m=10):
    """A random digraph as (u, v, p) triples, one of them certain and one impossible."""
    rng = np.random.default_rng(seed)
    pairs = rng.permutation([(u, v) for u in range(n) for v in range(n) if u != v])[:m]
    p = rng.uniform(0.05, 0.95, m)
    p[0], p[1] = 0.0, 1.0
    return [(int(u), int(v), float(np.float32(x))) for (u, v), x in zip(pairs, p, strict=True)]


def build(edges, n):
    """An ICGraph from (u, v, p) triples."""
    u, v, p = (np.array(x) for x in zip(*edges, strict=True)) if edges else ([], [], [])
    return jc.from_edges(np.asarray(u, int), np.asarray(v, int), np.asarray(p, float), n)


def as_sets(member):
    """Flags [n, theta] as RRSets."""
    n, theta = member.shape
    words = np.asarray(pack(jnp.asarray(member))).reshape(n, theta // 512, 16)
    return jc.RRSets(jnp.asarray(words.transpose(1, 0, 2)))
