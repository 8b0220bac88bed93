"""Blocked products by their definition: sums of shifted products of blocks, in int64."""

import numpy as np

from tests.oracles import contraction


def count(K, bits=8):
    """Blocks of a code."""
    return -(-(bits - 1) // K)


def split(q, K, bits=8):
    """Signed blocks, the least significant first: q = Σ_i blocks[i] 2^(iK)."""
    q = np.asarray(q).astype(np.int64)
    digits = [(abs(q) // 2 ** (i * K)) % 2**K for i in range(count(K, bits))]
    return np.stack([np.sign(q) * d for d in digits])


def product(geometry, x, w, K, pairs, bits=(8, 8)):
    """The contraction of each pair of blocks, shifted to its place and added."""
    xs, ws = (split(q, K, b) for q, b in zip((x, w), bits, strict=True))
    return sum(2 ** (K * (i + j)) * contraction.contract(geometry, xs[i], ws[j]) for i, j in pairs)


def leading(q, K):
    """The number of blocks down to the leading one of a single magnitude."""
    n = 0
    while q >= 2 ** (K * n):
        n += 1
    return n


def kept(value, K, n, *, dynamic=True, rounding="trunc", bits=8):
    """What remains of one code, by Python's integers."""
    sign, magnitude, top = (-1 if value < 0 else 1), abs(value), 2 ** (bits - 1) - 1
    if magnitude == 0:
        return 0
    low = K * max((leading(magnitude, K) if dynamic else count(K, bits)) - n, 0)
    step = 2**low
    if rounding == "rounded":
        magnitude = min(magnitude + step // 2, top)
    magnitude = magnitude // step * step
    if rounding == "unbiased":
        magnitude += step // 2
    return sign * magnitude
