"""Requantization in Python's integers and fractions, which have no width to overflow."""

from fractions import Fraction

import numpy as np


def fraction(scale, offset):
    """(b, B, c) with q scale + offset near (q b + B) / 2^c, the half that rounds in B."""
    scale, offset = Fraction(float(scale)), Fraction(float(offset))
    for c in range(46, -1, -1):
        b = round(scale * 2**c)
        if abs(b) < 2**15 and (abs(offset) + 1) * 2**c <= 2**44:
            break
    b = min(b, 2**15 - 1)
    return b, round(offset * 2**c) + (2 ** (c - 1) if c else 0), c


def requantised(q, scale, offset, lo, hi):
    """Each integer rescaled by its fraction and clipped, elementwise over broadcast arrays."""
    q, *numbers = np.broadcast_arrays(q, *(np.asarray(a, float) for a in (scale, offset, lo, hi)))
    known = {}
    out = []
    for value, *case in zip(q.ravel(), *(n.ravel() for n in numbers), strict=True):
        s, o, low, high = case
        if (s, o) not in known:
            known[s, o] = fraction(s, o)
        b, added, c = known[s, o]
        out.append(min(max((int(value) * b + added) >> c, int(low)), int(high)))
    return np.array(out, np.int64).reshape(q.shape)


def in_float64(q, scale, offset, lo, hi):
    """The same in float64, where products of 46 bits are exact: the simulated twin."""
    scale, offset = np.broadcast_arrays(scale, offset)
    cases = [fraction(s, o) for s, o in zip(scale.ravel(), offset.ravel(), strict=True)]
    b, added, c = (np.array(a, np.float64).reshape(scale.shape) for a in zip(*cases, strict=True))
    found = np.floor((np.asarray(q, np.float64) * b + added) / 2**c)
    return np.clip(found, lo, hi).astype(np.int64)
