"""Lengths of runs of failures, by integers that every engine works out alike."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from jaxsim.cascades.bits import mix

UNIT = 25  # logarithms are in steps of 2^-25
STEPS = 11  # bits of a mantissa that the table of logarithms is read by
FAR = 1e9  # more than there are edges
MOST = 1e25  # failures a unit of the logarithm, where success is impossible or nearly
SEEDS = 4  # random words of a sample: of its sets, their turns twice, and their roots
GOLDEN, TURN = 0x9E3779B9, 0x85EBCA6B


class Skips(NamedTuple):
    """What geometric skips over in-edges ask of each node and edge."""

    rate: Float[Array | np.ndarray, " n"]
    """-log2(u) * rate * 2^UNIT failures come before a success at the node's largest probability."""
    share: Float[Array | np.ndarray, " m"]
    """An edge's probability over the largest of its head's."""
    even: Bool[Array | np.ndarray, " n"]
    """Nodes whose in-edges all have the same probability."""


@functools.cache
def logarithms() -> Int[np.ndarray, " steps"]:
    """log2 of 1 to 2 in equal steps, in units of 2^-25."""
    steps = 1 << STEPS
    return np.round(2.0**UNIT * np.log2(1 + np.arange(steps + 1) / steps)).astype(np.int32)


def skips_of(
    p: Float[np.ndarray, " m"], in_start: Int[np.ndarray, " n+1"], dst: Int[np.ndarray, " m"]
) -> Skips:
    """Prepares skips on the host, so that every engine reads the same numbers.

    Args:
      p: Probability of each edge in [0, 1], sorted by head.
      in_start: In-edges of node v are `in_start[v]:in_start[v + 1]`.
      dst: Head of each edge.
    """
    n = len(in_start) - 1
    top, even = np.zeros(n, np.float32), np.ones(n, bool)
    heads = np.flatnonzero(np.diff(in_start))
    if len(heads):
        top[heads] = np.maximum.reduceat(p, in_start[heads])
        even[heads] = np.minimum.reduceat(p, in_start[heads]) == top[heads]
    wide = np.minimum(top.astype(np.float64), 1 - 2.0**-30)
    with np.errstate(divide="ignore"):
        rate = np.where(top < 1, np.minimum(-np.log(2) / np.log1p(-wide), MOST), 0)
    share = p / np.where(top > 0, top, 1)[dst]
    return Skips((rate * 2.0**-UNIT).astype(np.float32), share, even)


def traced_skips_of(
    p: Float[Array, " m"], in_start: Int[Array, " n+1"], dst: Int[Array, " m"]
) -> Skips:
    """Prepares skips in a compiled program: as on the host, but for rounding.

    Args:
      p: Probability of each edge in [0, 1], sorted by head.
      in_start: In-edges of node v are `in_start[v]:in_start[v + 1]`.
      dst: Head of each edge.
    """
    n = in_start.shape[0] - 1
    top = jnp.maximum(jax.ops.segment_max(p, dst, n, indices_are_sorted=True), 0)
    low = jax.ops.segment_min(p, dst, n, indices_are_sorted=True)
    log = jnp.log1p(-jnp.minimum(top, 1 - 2.0**-24))
    rate = jnp.where(top < 1, jnp.minimum(-np.log(2) / jnp.minimum(log, -1e-30), MOST), 0)
    share = p / jnp.where(top > 0, top, 1)[dst]
    return Skips(rate * 2.0**-UNIT, share, low >= top)


def set_stream(
    set_id: Int[Array, "*sets"], seed: UInt32[Array, " seeds"]
) -> UInt32[Array, "*sets"]:
    """Words by which the sets differ.

    Args:
      set_id: Numbers of sets.
      seed: The sample's random words.
    """
    return mix(set_id.astype(jnp.uint32) * jnp.uint32(GOLDEN) ^ seed[0])


def turn_words(turn: UInt32[Array, "*t"], seed: UInt32[Array, ""]) -> UInt32[Array, "*t"]:
    """Words by which the turns of a set differ.

    Args:
      turn: Numbers of turns.
      seed: One of the sample's random words.
    """
    return mix(turn * jnp.uint32(TURN) + seed)


def skip(
    h: UInt32[Array, "*items"], rate: Float[Array, "*items"], table: Int[Array, " steps"]
) -> Int[Array, "*items"]:
    """Draws the number of failures before a success.

    The logarithm is a table's, interpolated: XLA's own differs between machines, and from that of
    a loop on the host.

    Args:
      h: Random words.
      rate: Rates, from `Skips`.
      table: `logarithms()`.

    Returns:
      Numbers of failures, at most a billion.
    """
    # u is one of 2^23 odd multiples of 2^-24, whose floats are exact
    x = (((h >> 9) << 1) | 1).astype(jnp.float32)
    word = jax.lax.bitcast_convert_type(x, jnp.int32)
    at, rest = (word >> (23 - STEPS)) & ((1 << STEPS) - 1), word & ((1 << (23 - STEPS)) - 1)
    low, high = table[at], table[at + 1]
    log = ((151 - (word >> 23)) << UNIT) - low - (((high - low) * rest) >> (23 - STEPS))
    return jnp.minimum(log.astype(jnp.float32) * rate, FAR).astype(jnp.int32)


def uniform(h: UInt32[Array, "*items"]) -> Float[Array, "*items"]:
    """A number in (0, 1] for each word.

    Args:
      h: Random words.
    """
    return (h >> 8).astype(jnp.float32) * 2.0**-24 + 2.0**-25


def below(n: int, h: UInt32[Array, "*items"]) -> Int[Array, "*items"]:
    """A whole number from 0 to n - 1 for each word: the upper half of the product.

    Args:
      n: At least 1, below 2^31.
      h: Random words.
    """
    # in halves of a word: there are no integers of 64 bits
    a, b = h & 0xFFFF, h >> 16
    c, d = jnp.uint32(n & 0xFFFF), jnp.uint32(n >> 16)
    first = b * c + ((a * c) >> 16)
    second = a * d + (first & 0xFFFF)
    return (b * d + (first >> 16) + (second >> 16)).astype(jnp.int32)
