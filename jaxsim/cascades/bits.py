"""Thirty-two simulations to a word: hashed Bernoulli bits and counts of them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt32

from jaxsim.numerics.hashing import mix

PLANES = 16  # random bits compared with a threshold; eight more of it are dithered per word
GROUP = 15  # rows added up before their counts are unpacked: what four bit planes can hold


class Threshold(NamedTuple):
    """A probability in steps of 2^-24, cut in two; p = (256 high + low) / 2^24."""

    high: UInt32[Array, "..."]
    """At most 65535."""
    low: UInt32[Array, "..."]
    """At most 256 (which only p = 1 needs)."""


def threshold(p: Float[Array, "..."]) -> Threshold:
    """Encodes probabilities for `bernoulli`.

    Args:
      p: Probabilities in [0, 1].

    Returns:
      The nearest multiples of 2^-24.
    """
    q = jnp.round(p * 2.0**24).astype(jnp.uint32)
    high = jnp.minimum(q >> 8, jnp.uint32(0xFFFF))
    return Threshold(high, q - (high << 8))


def salts(key: PRNGKeyArray, words: int) -> UInt32[Array, "planes words"]:
    """Draws random words that make one batch of `32 * words` simulations differ from the next.

    Args:
      key: Random key.
      words: Words of 32 simulations in the batch, at least 1.
    """
    return jax.random.bits(key, (PLANES + 1, words), jnp.uint32)


def salts_by_word(key: PRNGKeyArray, words: int) -> UInt32[Array, "words planes"]:
    """Draws the salts of each word from a key of its own: the first do not depend on the rest.

    Args:
      key: Random key.
      words: Words of 32 simulations, at least 1.
    """
    one = jax.vmap(lambda w: salts(jax.random.fold_in(key, w), 1)[:, 0])
    return one(jnp.arange(words))


def hashed(counter: Int[Array, "*items"]) -> UInt32[Array, "*items"]:
    """Spreads integers over all words.

    Args:
      counter: Integers, such as edge indices.
    """
    return mix(counter.astype(jnp.uint32) * jnp.uint32(0x9E3779B9) + jnp.uint32(1))


def bernoulli(
    counter: Int[Array, "*items"], t: Threshold, salt: UInt32[Array, "planes words"]
) -> UInt32[Array, "*items words"]:
    """Draws independent bits that are one with the given probability, 32 to a word.

    Bit i of the hashes and of the threshold are compared least significant first; starting from
    all ones instead of zeros raises the threshold by one, which is how its low part is dithered.

    Args:
      counter: Integers that the bits belong to, such as edge indices; equal counters get
        equal bits.
      t: Probability of each item, from `threshold`.
      salt: Random words of the batch, from `salts`.

    Returns:
      Words of bits.
    """
    base = hashed(counter)[..., None]
    dither = mix(base ^ salt[PLANES]) >> 24
    full, none = jnp.uint32(0xFFFFFFFF), jnp.uint32(0)
    out = jnp.where(dither < t.low[..., None], full, none)
    for i in range(PLANES):
        r = mix(base ^ salt[i])
        bit = none - ((t.high >> i) & 1)[..., None]
        out = (out & r) | (bit & (out | r))
    return out


def spread(mask: Bool[Array, "*items"], words: int) -> UInt32[Array, "*items words"]:
    """Repeats a flag over all bits of `words` words.

    Args:
      mask: A flag for each item.
      words: Words of 32 simulations, at least 1.
    """
    row = jnp.where(mask, jnp.uint32(0xFFFFFFFF), jnp.uint32(0))
    return jnp.broadcast_to(row[..., None], (*mask.shape, words))


def unpack(x: UInt32[Array, "*items words"]) -> Bool[Array, "*items sims"]:
    """Lays the bits out as flags; simulation 32 w + b is bit b of word w.

    Args:
      x: Words of 32 bits.
    """
    bits = (x[..., None] >> jnp.arange(32, dtype=jnp.uint32)) & 1
    return bits.reshape(*x.shape[:-1], -1).astype(bool)


def pack(x: Bool[Array, "*items sims"]) -> UInt32[Array, "*items words"]:
    """Packs flags into words, 32 to a word, as `unpack` reads them.

    Args:
      x: A flag for each simulation, a multiple of 32 of them.
    """
    bits = x.reshape(*x.shape[:-1], -1, 32).astype(jnp.uint32)
    return (bits << jnp.arange(32, dtype=jnp.uint32)).sum(-1, dtype=jnp.uint32)


def count_per_simulation(x: UInt32[Array, "rows words"]) -> Int[Array, " sims"]:
    """Counts the ones of each simulation over all rows.

    Rows are added 15 at a time into four bit planes, by whole words, and only these planes are
    unpacked: a quarter of the work of unpacking every row.

    Args:
      x: One row per node.

    Returns:
      Number of rows whose bit is one, per simulation.
    """
    rows, words = x.shape
    groups = -(-rows // GROUP)
    x = jnp.pad(x, ((0, groups * GROUP - rows), (0, 0))).reshape(groups, GROUP, words)

    def add(i: Array, planes: tuple[Array, ...]) -> tuple[Array, ...]:
        carry = jax.lax.dynamic_index_in_dim(x, i, 1, keepdims=False)
        added: list[Array] = []
        for plane in planes:
            added.append(plane ^ carry)
            carry = plane & carry
        return tuple(added)

    none = jnp.zeros((groups, words), jnp.uint32)
    total = jnp.zeros((words, 32), jnp.int32)
    for i, plane in enumerate(jax.lax.fori_loop(0, GROUP, add, (none,) * 4)):
        bits = (plane[:, :, None] >> jnp.arange(32, dtype=jnp.uint32)) & 1
        total = total + (bits.astype(jnp.int32).sum(0) << i)
    return total.reshape(-1)
