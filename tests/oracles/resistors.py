"""Networks of resistors by nodal analysis, in float64, and what is known of them in closed form."""

import numpy as np
import scipy.sparse as sp
from scipy.optimize import root
from scipy.sparse.linalg import splu


class Circuit:
    """Resistors between named nodes, some of which are held at a voltage."""

    def __init__(self):
        self.index, self.ends, self.conductances = {}, [], []

    def node(self, name):
        return self.index.setdefault(name, len(self.index))

    def resistor(self, a, b, conductance):
        self.ends.append((self.node(a), self.node(b)))
        self.conductances.append(conductance)

    def voltages(self, fixed):
        """Node voltages [nodes, b] by Kirchhoff's law, for fixed ones {name: [b]}."""
        (a, b), y, n = np.transpose(self.ends), np.asarray(self.conductances), len(self.index)
        laplacian = sp.coo_matrix(
            (np.r_[y, y, -y, -y], (np.r_[a, b, a, b], np.r_[a, b, b, a])), (n, n)
        ).tocsc()
        known = np.array([self.index[name] for name in fixed])
        free = np.setdiff1d(np.arange(n), known)
        u = np.zeros((n, len(next(iter(fixed.values())))))
        u[known] = list(fixed.values())
        u[free] = splu(laplacian[free][:, free]).solve(-(laplacian[free][:, known] @ u[known]))
        return u


def segments(n, r, terminal=0.0):
    """Resistances of a wire's pieces, the terminal's before the first."""
    pieces = np.full(n, float(r))
    pieces[0] += terminal
    return pieces


def input_source(g, v, row, column):
    """An array with its rows as sources: column currents [b, n] and cell voltages [b, m, n].

    `row` [n] and `column` [m] are resistances above zero, from the driver and to the foot.
    """
    g, v = np.asarray(g, float), np.asarray(v, float)
    (m, n), b = g.shape, len(v)
    V, U = np.arange(m * n).reshape(m, n), np.arange(m * n, 2 * m * n).reshape(m, n)
    source, foot = np.arange(2 * m * n, 2 * m * n + m), 2 * m * n + m
    left = np.concatenate([source[:, None], V[:, :-1]], 1)
    below = np.concatenate([U[1:], np.full((1, n), foot)])
    circuit = Circuit()
    circuit.index = {i: i for i in range(foot + 1)}
    pieces = (
        (V, U, g),
        (left, V, np.broadcast_to(1 / np.asarray(row), (m, n))),
        (U, below, np.broadcast_to(1 / np.asarray(column)[:, None], (m, n))),
    )
    ends = [np.stack([p.ravel(), q.ravel()], 1) for p, q, _ in pieces]
    circuit.ends = np.concatenate(ends)
    circuit.conductances = np.concatenate([y.ravel() for *_, y in pieces])
    u = circuit.voltages({**dict(zip(source.tolist(), v.T, strict=True)), foot: np.zeros(b)})
    return (u[U[-1]] / column[-1]).T, np.moveaxis(u[V] - u[U], -1, 0)


def interleaved(g, v, row, column):
    """Pairs on one column wire, their rows driven with v and -v: net currents [b, n]."""
    (positive, negative), (m, n), c = np.asarray(g, float), g[0].shape, Circuit()
    for i in range(m):
        for j in range(n):
            below = ("u", i + 1, j) if i + 1 < m else "foot"
            c.resistor(("u", i, j), below, 1 / column[i])
            for sign, cells in (("+", positive), ("-", negative)):
                left = (sign, i, j - 1) if j else (sign, "source", i)
                c.resistor(left, (sign, i, j), 1 / row[j])
                c.resistor((sign, i, j), ("u", i, j), cells[i, j])
    fixed = {(s, "source", i): k * v[:, i] for s, k in (("+", 1), ("-", -1)) for i in range(m)}
    u = c.voltages({**fixed, "foot": np.zeros(len(v))})
    return np.stack([u[c.index["u", m - 1, j]] for j in range(n)], 1) / column[-1]


def gated(positive, negative, on, column):
    """Column currents [n] of cells switched (on [m], 0 or 1) to supplies of +1 and -1."""
    (m, n), c = positive.shape, Circuit()
    for i in range(m):
        for j in range(n):
            below = ("u", i + 1, j) if i + 1 < m else "foot"
            c.resistor(("u", i, j), below, 1 / column[i])
            c.resistor("+", ("u", i, j), on[i] * positive[i, j])
            c.resistor("-", ("u", i, j), on[i] * negative[i, j])
    u = c.voltages({"+": np.ones(1), "-": -np.ones(1), "foot": np.zeros(1)})
    return np.array([u[c.index["u", m - 1, j], 0] for j in range(n)]) / column[-1]


def dense(g, row, column):
    """The matrix of an array, resistances of zero included: cells feel the paths they share."""
    m, n = g.shape
    cells = [(i, j) for i in range(m) for j in range(n)]
    Z = np.zeros((m * n, m * n))
    for a, (i, j) in enumerate(cells):
        for b, (k, o) in enumerate(cells):
            Z[a, b] += sum(row[: min(j, o) + 1]) if i == k else 0
            Z[a, b] += sum(column[max(i, k) :]) if j == o else 0
    applied = np.repeat(np.eye(m), n, 0)  # [cell, input]
    flowing = np.linalg.solve(
        np.eye(m * n) + np.ravel(g)[:, None] * Z, np.ravel(g)[:, None] * applied
    )
    return flowing.reshape(m, n, m).sum(0).T


def ladder(g, r, m):
    """The current at the foot of one column of m equal cells, all driven with one."""
    mu = np.arccosh(1 + r * g / 2)
    return (1 - np.cosh(mu * (m - 0.5)) / np.cosh(mu * (m + 0.5))) / r


def badcrossbar():
    """The peer's `compute`, or None; it plots with cairo, which a solver does not need."""
    import logging
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import badcrossbar
    except ImportError:
        return None
    logging.getLogger().setLevel(logging.WARNING)
    return getattr(badcrossbar, "compute", None)  # which needs pathvalidate


def nonlinear(g, v, row, column, law):
    """An array with its rows as sources and cells of current g · law(e): column currents [b, n].

    Kirchhoff's law at every node, solved by scipy's root finder for each vector.
    """
    g, v = np.asarray(g, float), np.asarray(v, float)
    m, n = g.shape

    def left(u, source):
        """What flows into each node but should not."""
        V, U = u.reshape(2, m, n)
        into_row = -np.diff(np.concatenate([source[:, None], V], 1), axis=1) / row
        out_of_row = np.concatenate([into_row[:, 1:], np.zeros((m, 1))], 1)
        down = -np.diff(np.concatenate([U, np.zeros((1, n))]), axis=0) / column[:, None]
        from_above = np.concatenate([np.zeros((1, n)), down[:-1]])
        cell = g * law(V - U)
        return np.concatenate([into_row - out_of_row - cell, cell + from_above - down]).ravel()

    found = []
    for source in v:
        start = np.concatenate([np.repeat(source[:, None], n, 1).ravel(), np.zeros(m * n)])
        solved = root(left, start, args=(source,), tol=1e-12)
        assert np.abs(left(solved.x, source)).max() < 1e-8
        found.append(solved.x.reshape(2, m, n)[1, -1] / column[-1])
    return np.array(found)
