"""One head's product with an operand that was written into pairs of cells, in numpy and loops."""

import zlib

import jax
import numpy as np

from tests.oracles import hashing


def site_key(key, name, indices=()):
    """The key of a site's writes: that of the call with its name and its loops folded in."""
    key = jax.random.fold_in(key, zlib.crc32(name.encode()))
    for index in indices:
        key = jax.random.fold_in(key, index)
    return key


def draws(key, rows, columns, matrices):
    """Normal errors [2, matrices, rows, columns] of pairs, each by the key of its place."""
    found = np.zeros((2, matrices, rows, columns))
    for i in range(rows):
        for j in range(columns):
            of_place = jax.random.fold_in(jax.random.fold_in(key, i), j)
            found[:, :, i, j] = hashing.normal(of_place, 2 * matrices).reshape(2, matrices)
    return found


def codes(a, most_value, top):
    """Codes of a symmetric grid over ±most_value, and its step."""
    step = np.float32(most_value) / np.float32(top)
    return np.clip(np.round(np.asarray(a, np.float32) / step), -top, top), float(step)


def read(x, w, *, x_most, w_most, errors=None, rows, adc=None, adc_most=None, top=127):
    """[B, M, N] of inputs [B, M, K] and written operands [B, K, N], array by array.

    Args:
      x_most, w_most: largest magnitudes on the grids.
      errors: deviations of conductances [2, B, K, N], positive cells first; None for none.
      rows: of one array: products k belong to array k // rows.
      adc: bits of the converter, over ±adc_most in units of codes; None for none.
    """
    qx, x_step = codes(x, x_most, top)
    qw, w_step = codes(w, w_most, top)
    B, M, K = qx.shape
    y = np.zeros((B, M, qw.shape[2]))
    for b in range(B):
        for first in range(0, K, rows):
            part = slice(first, first + rows)
            cells = [np.maximum(sign * qw[b, part], 0) / top for sign in (1, -1)]
            if errors is not None:
                cells = [g + e[b, part] for g, e in zip(cells, errors, strict=True)]
            current = top * (qx[b, :, part] @ (cells[0] - cells[1]))
            if adc is not None:
                last = 2 ** (adc - 1) - 1
                step = adc_most / last
                current = np.clip(np.round(current / step), -last, last) * step
            y[b] += current
    return y * x_step * w_step
