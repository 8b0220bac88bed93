"""Vectors in formats of their own scales, element by element in NumPy."""

import ml_dtypes
import numpy as np


def even(x, bits, rows, symmetric):
    """Steps of equal size, of each part of `rows` entries; what they stand for."""
    found = np.zeros(np.shape(x), np.float64)
    for at in np.ndindex(*x.shape[:-1]):
        for start in range(0, x.shape[-1], rows):
            part = np.float64(x[at][start : start + rows])
            if symmetric:
                most = 2 ** (bits - 1) - 1
                step = np.abs(part).max() / most or 1.0
                codes = np.clip(np.round(part / step), -most, most)
            else:
                lo, hi = min(part.min(), 0.0), max(part.max(), 0.0)
                step = (hi - lo) / (2**bits - 1) or 1.0
                zero = np.round(-(2 ** (bits - 1)) - lo / step)
                least, most = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
                codes = np.clip(np.round(part / step) + zero, least, most) - zero
            found[at][start : start + rows] = codes * step
    return found


def e2m1(x, rows, scale):
    """Floats of four bits in blocks: by ml_dtypes, scales a power of two or e4m3."""
    found = np.zeros(np.shape(x), np.float64)
    for at in np.ndindex(*x.shape[:-1]):
        whole = np.abs(x[at]).max() / (6 * 448) or 1.0
        for start in range(0, x.shape[-1], rows):
            part = np.float64(x[at][start : start + rows])
            most = np.abs(part).max()
            if scale == "e8m0":
                step = 2.0 ** (np.floor(np.log2(most)) - 2)
            else:
                step = whole * float(ml_dtypes.float8_e4m3fn(most / 6 / whole))
            short = np.clip(part / step, -6, 6).astype(ml_dtypes.float4_e2m1fn)
            found[at][start : start + rows] = np.float64(short) * step
    return found
