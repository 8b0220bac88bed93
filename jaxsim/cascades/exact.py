"""Exact influence of a seed set on a tiny graph, by enumeration."""

import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import ArrayLike, Int

from jaxsim.cascades.graph import ICGraph, seed_mask

MAX_EDGES = 20


def exact_influence(g: ICGraph, seeds: Int[ArrayLike, " k"] | Sequence[int]) -> float:
    """Sums reach times probability over all 2^m ways in which the edges can be live.

    Args:
      g: A graph of which at most 20 edges have a probability other than 0 and 1.
      seeds: Node ids; -1 pads, repeated ids count once.

    Returns:
      Expected number of active nodes in the end.

    Raises:
      ValueError: Too many edges, or a seed outside the graph.

    Examples:
      >>> import jaxsim.cascades as jc
      >>> jc.exact_influence(jc.from_edges([0, 1], [1, 2], 0.5), [0])  # 1 + 1/2 + 1/4
      1.75
    """
    src, dst = np.asarray(g.src), np.asarray(g.dst)
    p = np.asarray(g.p, np.float64)
    free = (p > 0) & (p < 1)
    if free.sum() > MAX_EDGES:
        raise ValueError(f"g has {int(free.sum())} uncertain edges; allowed: at most {MAX_EDGES}")
    start = np.asarray(seed_mask(g, seeds))
    sure = p >= 1
    total = 0.0
    for choice in itertools.product((False, True), repeat=int(free.sum())):
        live = sure.copy()
        live[free] = choice
        weight = np.prod(np.where(choice, p[free], 1 - p[free]))
        active = start
        while True:
            grown = active.copy()
            grown[dst[live & active[src]]] = True
            if (grown == active).all():
                break
            active = grown
        total += float(weight) * int(active.sum())
    return total
