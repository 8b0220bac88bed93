"""Influence computed from the definition, in numpy alone."""

import itertools

import numpy as np


def reach(live, seeds):
    """Nodes reachable over a boolean adjacency matrix, by powers of it."""
    n = len(live)
    closure = live | np.eye(n, dtype=bool)
    for _ in range(n):
        closure = (closure.astype(int) @ closure.astype(int)) > 0
    return closure[list(set(seeds))].any(0) if len(seeds) else np.zeros(n, bool)


def influence(n, edges, seeds):
    """Expected spread by summing over every live-edge graph; edges are (u, v, p)."""
    total = 0.0
    for choice in itertools.product([0, 1], repeat=len(edges)):
        weight, live = 1.0, np.zeros((n, n), bool)
        for (u, v, p), on in zip(edges, choice, strict=True):
            weight *= p if on else 1 - p
            live[u, v] |= bool(on)
        if weight:
            total += weight * reach(live, seeds).sum()
    return total


def threshold_influence(n, edges, seeds):
    """Expected linear-threshold spread: every node keeps one in-edge or none."""
    into = [[(u, w) for u, v, w in edges if v == node] for node in range(n)]
    total = 0.0
    for choice in itertools.product(*(range(len(e) + 1) for e in into)):
        weight, live = 1.0, np.zeros((n, n), bool)
        for v, c in enumerate(choice):
            if c == len(into[v]):
                weight *= 1 - sum(w for _, w in into[v])
            else:
                weight *= into[v][c][1]
                live[into[v][c][0], v] = True
        total += weight * reach(live, seeds).sum()
    return total


def best_set(n, edges, k):
    """The largest influence of any k nodes, all sets judged in one pass over the worlds."""
    sets = list(itertools.combinations(range(n), k))
    total = np.zeros(len(sets))
    for choice in itertools.product([0, 1], repeat=len(edges)):
        weight, closure = 1.0, np.eye(n, dtype=int)
        for (u, v, p), on in zip(edges, choice, strict=True):
            weight *= p if on else 1 - p
            closure[u, v] |= on
        if weight:
            for _ in range(4):  # paths of up to sixteen edges
                closure = np.minimum(closure @ closure, 1)
            total += weight * (closure[np.array(sets)].max(1).sum(1))
    return total.max()
