"""Random graphs whose layouts have the same shapes, so that one program serves them all."""

import numpy as np


def edges_of_degrees(seed, degrees):
    """A random digraph as (u, v, p) triples: the in-degrees are given, who has them is drawn.

    One edge is impossible and one certain.
    """
    rng = np.random.default_rng(seed)
    n, heads = len(degrees), rng.permutation(len(degrees))
    pairs = [
        (int(u), int(v))
        for v, degree in zip(heads, degrees, strict=True)
        for u in rng.choice(np.delete(np.arange(n), v), degree, replace=False)
    ]
    pairs = [pairs[i] for i in rng.permutation(len(pairs))]
    p = rng.uniform(0.05, 0.95, len(pairs))
    p[:2] = 0, 1
    return [(u, v, float(np.float32(x))) for (u, v), x in zip(pairs, p, strict=True)]
