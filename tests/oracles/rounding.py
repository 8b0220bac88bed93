"""Rounding a layer by the formulas of the papers, in float64, one output at a time."""

import itertools

import numpy as np


def codes_near(w, scale, zero, lo, hi):
    """The nearest code of each weight."""
    return np.clip(np.rint(w / scale) + zero, lo, hi)


def surgeon(w, gram, scale, zero, lo, hi, damping, order):
    """GPTQ as optimal brain surgeon: after each row the inverse Hessian loses a row and a column.

    Args are of one matrix: w [K, N], gram [K, K]; order lists the rows.
    """
    w = np.array(w, np.float64)
    h = np.array(gram, np.float64)
    h += damping * np.trace(h) / len(h) * np.eye(len(h))
    inverse = np.linalg.inv(h[np.ix_(order, order)])
    left, rounded = list(order), np.zeros_like(w)
    while left:
        i = left[0]
        rounded[i] = (codes_near(w[i], scale[i], zero[i], lo, hi) - zero[i]) * scale[i]
        step = (w[i] - rounded[i]) / inverse[0, 0]
        w[left] -= inverse[:, :1] * step
        inverse = inverse - np.outer(inverse[:, 0], inverse[0]) / inverse[0, 0]
        inverse, left = inverse[1:, 1:], left[1:]
    return rounded


def cost(w, q, gram):
    """(w - q)ᵀ H (w - q) of each output."""
    error = np.asarray(w, np.float64) - q
    return np.einsum("kn,kl,ln->n", error, np.asarray(gram, np.float64), error)


def best(w, gram, values):
    """The least cost of each output, `values[i]` being what weight i may become; [K] of [N, n]."""
    found = []
    for n in range(w.shape[1]):
        choices = np.array(list(itertools.product(*(v[n] for v in values)))).T
        found.append(cost(np.repeat(w[:, n : n + 1], choices.shape[1], 1), choices, gram).min())
    return np.array(found)
