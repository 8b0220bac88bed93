"""Out-edges as a loop on the host reads them, with what their coins are flipped by."""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int, UInt32

from jaxsim.cascades import bits


class Coins(NamedTuple):
    """Out-edges in order of tail."""

    start: Int[np.ndarray, " n+1"]
    """Out-edges of node v are `start[v]:start[v + 1]`."""
    head: Int[np.ndarray, " m"]
    base: UInt32[np.ndarray, " m"]
    """Hash of each edge."""
    high: UInt32[np.ndarray, " m"]
    """The upper bits of its `bits.Threshold`."""
    low: UInt32[np.ndarray, " m"]


@jax.jit
def _in_order(
    p: Float[Array, " m"], by_src: Int[Array, " m"]
) -> tuple[UInt32[Array, " m"], bits.Threshold]:
    return bits.hashed(by_src), bits.threshold(p[by_src])


def coins_of(
    src: Int[Array, " m"],
    dst: Int[Array, " m"],
    p: Float[Array, " m"],
    by_src: Int[Array, " m"],
    n: int,
) -> Coins:
    """Prepares the edges of a concrete graph.

    Args:
      src: Tail of each edge.
      dst: Head of each edge.
      p: Probability of each edge in [0, 1].
      by_src: The edges in order of tail.
      n: Number of nodes.
    """
    degrees = np.bincount(np.asarray(src), minlength=n)
    start = np.concatenate([[0], np.cumsum(degrees)]).astype(np.int32)
    base, threshold = jax.device_get(_in_order(p, by_src))
    return Coins(start, np.asarray(dst)[np.asarray(by_src)], base, *threshold)
