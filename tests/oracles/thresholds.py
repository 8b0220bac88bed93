"""Ranges of grids by searches over all candidates, in numpy."""

import itertools

import numpy as np

from tests.oracles import quantiser


def squared_error(x, grid, lo, hi):
    """Mean squared error of values on a grid over [lo, hi]."""
    step, zero = quantiser.grid_of(grid, np.float32(lo), np.float32(hi))
    return np.mean(((quantiser.codes(grid, x, step, zero) - zero) * step - x) ** 2)


def least_error(x, grid, candidates=2000):
    """The smallest error over ranges that are shares of the whole one."""
    most = np.abs(x).max()
    lo, hi = (-most, most) if grid.symmetric else (x.min(), x.max())
    shares = np.linspace(1e-3, 1, candidates)
    return min(squared_error(x, grid, lo * s, hi * s) for s in shares)


def divergences(x, bits, symmetric, bins=2048):
    """Kullback-Leibler divergence of the coded histogram by threshold, as TensorRT counts it."""
    levels = 2 ** (bits - 1) if symmetric else 2**bits
    magnitude = np.abs(x[x != 0])
    width = np.float32(magnitude.max()) / np.float32(bins)
    place = np.minimum((magnitude / width).astype(np.int64), bins - 1)
    counts = np.bincount(place, minlength=bins).astype(np.float64)
    found = {}
    for size in [*range(levels, bins, max(levels // 8, 8)), bins]:
        p = counts[:size].copy()
        p[-1] += counts[size:].sum()
        q = np.zeros(size)
        edges = [-(-level * size // levels) for level in range(levels + 1)]
        for a, b in itertools.pairwise(edges):
            part = counts[a:b]
            if (part > 0).any():
                q[a:b] = np.where(part > 0, part.sum() / (part > 0).sum(), 0)
        p, q = p / p.sum(), np.maximum(q / max(q.sum(), 1), 1e-9)
        found[float(size * width)] = np.sum(p[p > 0] * np.log(p[p > 0] / q[p > 0]))
    return found
