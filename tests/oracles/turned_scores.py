"""Attention whose queries and keys are turned and rounded, in NumPy, one head after the other."""

import numpy as np
from scipy.linalg import hadamard


def matrix(width):
    """Hadamard's matrix of a power of two, orthogonal."""
    return hadamard(width) / np.sqrt(width)


def rounded(vectors, bits):
    """Vectors [..., d] on symmetric levels of their own."""
    most = 2 ** (bits - 1) - 1
    step = np.abs(vectors).max(-1, keepdims=True) / most
    return np.clip(np.rint(vectors / step), -most - 1, most) * step


def rotary(vectors, base):
    """Pairs of the first and the second half of tokens [n, d] as complex numbers, turned."""
    n, d = vectors.shape
    pairs = vectors[:, : d // 2] + 1j * vectors[:, d // 2 :]
    pairs = pairs * np.exp(1j * np.arange(n)[:, None] / base ** (np.arange(0, d, 2) / d))
    return np.concatenate([pairs.real, pairs.imag], -1)


def attention(x, w, *, heads, groups, base, bits=None, turned=True):
    """What attention makes of the tokens [n, D] of one sequence.

    Args:
      x: Tokens.
      w: Matrices [D, heads * d] by name: query, key, value, and mix.
      heads: Number of heads.
      groups: Number of heads of keys and values.
      base: Of the rotary angles.
      bits: Of queries and keys; None for floats.
      turned: Whether these are turned before they are rounded.
    """
    n = len(x)
    counts = {"query": heads, "key": groups, "value": groups}
    query, key, value = (np.split(x @ w[name], count, -1) for name, count in counts.items())
    mixed = []
    for head in range(heads):
        pair = [rotary(query[head], base), rotary(key[head * groups // heads], base)]
        if turned:
            pair = [vectors @ matrix(vectors.shape[-1]) for vectors in pair]
        if bits is not None:
            pair = [rounded(vectors, bits) for vectors in pair]
        scores = pair[0] @ pair[1].T / np.sqrt(pair[0].shape[-1])
        scores = np.exp(np.where(np.tril(np.ones((n, n), bool)), scores, -np.inf))
        mixed.append(scores / scores.sum(-1, keepdims=True) @ value[head * groups // heads])
    return np.concatenate(mixed, -1) @ w["mix"]
