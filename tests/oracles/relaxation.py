"""Parasitic resistance by fixed-point iteration with under-relaxation, in numpy.

The method of CrossSim's array solver, written from its equations: cell currents give voltage drops
along the wires, which give new cell currents; where that does not converge, the step is shortened
by 2 % and all begins again.
"""

from typing import NamedTuple

import numpy as np


class Relaxed(NamedTuple):
    """Column currents [b, n], whether they converged, with which step, in how many iterations."""

    current: np.ndarray
    converged: bool
    gamma: float
    iterations: int


def attempt(g, v, row, column, *, gamma=1.0, tolerance=1e-3, iterations=100):
    """One attempt with a fixed step; `row` [n] and `column` [m] are pieces of the wires."""
    applied = np.broadcast_to(v.T[:, None], (*g.shape, len(v)))
    e, cells = applied.copy(), g[:, :, None]
    row, column = row[None, :, None], column[:, None, None]
    for k in range(iterations + 1):
        i = cells * e
        along_row = np.cumsum(row * np.cumsum(i[:, ::-1], 1)[:, ::-1], 1)
        along_column = np.cumsum((column * np.cumsum(i, 0))[::-1], 0)[::-1]
        left = applied - along_row - along_column - e
        worst = np.abs(left).max()
        if worst < tolerance:
            return Relaxed(i.sum(0).T, True, gamma, k)
        if not worst < 1e6:
            break
        e += gamma * left
    return Relaxed(i.sum(0).T, False, gamma, k)


def solve(g, v, row, column, *, gamma=1.0, tolerance=1e-3, iterations=100):
    """Attempts with shorter and shorter steps."""
    while True:
        found = attempt(g, v, row, column, gamma=gamma, tolerance=tolerance, iterations=iterations)
        if found.converged or gamma < 1e-2:
            return found
        gamma *= 0.98
