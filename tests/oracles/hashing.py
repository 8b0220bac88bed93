"""Normal numbers by a hash of their places, in NumPy integers of 64 bits and SciPy's quantiles."""

import jax
import numpy as np
from scipy.special import ndtri

WORD = 2**32


def mixed(h):
    """Appleby's 32-bit finalizer of MurmurHash3."""
    h = h ^ (h >> 16)
    h = h * 0x85EBCA6B % WORD
    h = h ^ (h >> 13)
    h = h * 0xC2B2AE35 % WORD
    return h ^ (h >> 16)


def normal(key, count):
    """What `count` cells draw from a key."""
    first, second = np.asarray(jax.random.bits(key, (2,), np.uint32)).astype(np.uint64)
    place = np.arange(count, dtype=np.uint64) * 0x9E3779B9 % WORD
    bits = mixed((mixed(place ^ first) + second) % WORD)
    return ndtri(((bits >> 9) + 0.5) / 2**23)
