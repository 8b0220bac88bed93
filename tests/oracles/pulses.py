"""Pulsed cells and the optimizers that use them, cell by cell in double precision.

Written from the equations, with no array operations: a pulse of soft bounds leaves a fixed share of
the distance to the bound, so that n pulses have a closed form.
"""

import math

import numpy as np


def soft(w, n, up, down, low, high):
    """What a cell with soft bounds holds after n pulses: up if positive, else down."""
    if n >= 0:
        return high - (high - w) * (1 - up / high) ** n
    return low + (w - low) * (1 - down / -low) ** -n


def constant(w, n, up, down, low, high):
    return min(max(w + (up * n if n > 0 else down * n), low), high)


def coincidences(x, d, length, amplitude, rng):
    """Pulses of each cell of an array: how often random trains of a row and a column coincide."""
    found = np.zeros((len(x), len(d)), int)
    for _ in range(length):
        rows = rng.random(len(x)) < amplitude * np.abs(x)
        columns = rng.random(len(d)) < amplitude * np.abs(d)
        found += np.outer(rows, columns)
    return found * np.sign(np.outer(x, d)).astype(int)


def bounded(n, most):
    return int(min(max(n, -most), most))


def sgd(w, gradients, rate, cell, size, most):
    """Weights after gradients whose pulses are whole numbers."""
    w = np.array(w, float)
    for g in gradients:
        for at in np.ndindex(w.shape):
            w[at] = cell(w[at], bounded(round(-rate * g[at] / size), most))
    return w


def two_arrays(
    w,
    gradients,
    *,
    rate,
    gain,
    every,
    fast,
    fast_size,
    slow,
    slow_size,
    symmetry,
    way,
    threshold=1.0,
    forget=None,
    period=1,
    tail=5.0,
    most=31,
    most_sent=31,
    reference_off=0.0,
    wrong=None,
):
    """Fast array, weights and hidden matrix after gradients whose pulses are whole numbers.

    `way` is "v1", "v2", "chopped" (a row flips after each read) or "agad"; `wrong` breaks a part.
    """
    w = np.array(w, float)
    rows, columns = w.shape
    start = 0.0 if way == "agad" else symmetry
    a, hidden = np.full(w.shape, start), np.zeros(w.shape)
    mean, past = np.zeros(w.shape), np.zeros(w.shape)
    signs, reads, turn = [1] * rows, [0] * rows, 0
    for step, g in enumerate(gradients, 1):
        for i, j in np.ndindex(w.shape):
            sign = 1 if wrong == "unsigned writes" else signs[i]
            a[i, j] = fast(a[i, j], bounded(round(-rate * sign * g[i, j] / fast_size), most))
        if step % every:
            continue
        i, turn = turn % rows, turn + 1
        for j in range(columns):
            value = a[i, j]
            if way == "agad":
                if reads[i] % period == 0:
                    past[i, j] = mean[i, j]
                reference = past[i, j]
                counts = reads[i] >= period
                mean[i, j] += min(tail / period, 1) * (value - mean[i, j])
            else:
                reference, counts = symmetry + reference_off, True
            if wrong == "no reference":
                reference = 0.0
            read = gain * (value - reference) * (signs[i] if counts else 0)
            if way == "v1":
                w[i, j] = slow(w[i, j], bounded(round(read / slow_size), most_sent))
                continue
            hidden[i, j] += read
            unit = threshold * slow_size
            n = bounded(math.trunc(hidden[i, j] / unit), most_sent)
            w[i, j] = slow(w[i, j], n)
            if n and wrong != "never taken off":
                kept = forget * hidden[i, j] if forget is not None else hidden[i, j] - n * unit
                hidden[i, j] = kept
        reads[i] += 1
        if way == "chopped" or (way == "agad" and reads[i] % period == 0):
            signs[i] = -signs[i]
    return a, w, hidden
