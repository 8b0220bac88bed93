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


def learned(of, steps, rate, pull, *, ends=(-0.1, 1.1), still=0.2, betas=(20.0, 2.0)):
    """AdaRound by its equations 21 to 24, with the gradient and Adam written out.

    Args are a `Layer` and the numbers of the method; `ends` are those of the stretched sigmoid,
    `still` the share of the steps without the pull, `betas` its first and last exponent.
    """
    w, gram, scale, zero = (np.asarray(a, np.float64) for a in of[:4])
    lo, hi = ends
    down = np.floor(w / scale)

    def values(h):
        code = np.clip(down + h + zero, of.lo, of.hi)
        return np.where(of.free, (code - zero) * scale, w)

    error = w - values(np.rint(w / scale) - down)
    unit = (error * (gram @ error)).sum(-2, keepdims=True)
    unit = np.where(unit > 0, unit, 1)
    start = (w / scale - down - lo) / (hi - lo)
    v = np.log(start / (1 - start))
    mean, square = 0 * v, 0 * v
    for i in range(steps):
        sigmoid = 1 / (1 + np.exp(-v))
        raw = sigmoid * (hi - lo) + lo
        h = np.clip(raw, 0, 1)
        code = down + h + zero
        inside = np.asarray(of.free) & (code > of.lo) & (code < of.hi)
        slope = -2 * (gram @ (w - values(h))) / unit * scale * inside / (unit.size)
        if i / steps >= still:
            after = (i / steps - still) / (1 - still)
            beta = betas[1] + (betas[0] - betas[1]) * (1 + np.cos(np.pi * after)) / 2
            far = 2 * h - 1
            slope -= pull * 2 * beta * np.abs(far) ** (beta - 1) * np.sign(far) / h.size
        slope = slope * ((raw > 0) & (raw < 1)) * (hi - lo) * sigmoid * (1 - sigmoid)
        mean, square = 0.9 * mean + 0.1 * slope, 0.999 * square + 0.001 * slope**2
        first, second = mean / (1 - 0.9 ** (i + 1)), square / (1 - 0.999 ** (i + 1))
        v = v - rate * first / (np.sqrt(second) + 1e-8)
    return values(np.rint(np.clip((hi - lo) / (1 + np.exp(-v)) + lo, 0, 1)))
