"""One cascade at a time, on networkx, with numpy's random numbers."""

import numpy as np


def cascade(graph, seeds, rng):
    """Activation step of every node reached; edges carry `p`."""
    step = dict.fromkeys(seeds, 0)
    frontier, now = list(step), 0
    while frontier:
        now += 1
        fresh = []
        for u in frontier:
            for v in graph.successors(u):
                if v not in step and rng.random() < graph[u][v]["p"]:
                    step[v] = now
                    fresh.append(v)
        frontier = fresh
    return step


def sizes(graph, seeds, count, seed=0):
    """Final sizes of independent cascades."""
    rng = np.random.default_rng(seed)
    return np.array([len(cascade(graph, seeds, rng)) for _ in range(count)])
