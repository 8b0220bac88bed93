"""Greedy maximum coverage of reverse-reachable sets, evaluated lazily."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Int, UInt32

from jaxsim.cascades.host import loops_for
from jaxsim.cascades.sets import MemberLists, RRSets
from jaxsim.numerics.arrays import own_promotion

BATCH = 8  # most promising nodes evaluated at a time
NEAR = 8  # nodes per seed evaluated for the upper bound


AnyArray = Array | np.ndarray
_Loop = tuple[Array, Array, Array, Array, Array]


class Cover(NamedTuple):
    """A greedy selection and what it covers.

    Examples:
      >>> import jax
      >>> import jaxsim.cascades as jc
      >>> g = jc.from_edges([0, 0], [1, 2])  # node 0 reaches both others
      >>> cover = jc.max_cover(jc.rr_sample(g, jax.random.key(0), 512), 1)
      >>> cover.seeds.tolist(), cover.gains.tolist()
      ([0], [512])
    """

    seeds: Int[Array, " k"]
    """Nodes in the order they were picked."""
    gains: Int[Array, " k"]
    """Sets newly covered by each; never increasing."""
    at_most: Int[Array, ""]
    """No k nodes cover more sets than this."""


def max_cover(rr: RRSets, k: int) -> Cover:
    """Picks k nodes greedily, each covering the most sets not covered yet.

    Gains only shrink as nodes are picked, so only the nodes with the largest known gains are
    evaluated again; one of them is picked once its gain is at least every other known one. Ties
    go to the lowest index, as in the plain greedy algorithm, whose picks these are.

    Args:
      rr: Sets to cover, from `rr_sample`.
      k: Number of nodes, 1 to n.

    Returns:
      Seeds, gains and an upper bound for any k nodes.

    Raises:
      ValueError: k outside 1 to n.

    Source: Leskovec et al., "Cost-effective outbreak detection in networks", KDD 2007 (lazy
    greedy); Tang et al., "Online processing algorithms for influence maximization", SIGMOD 2018
    (the bound: what is covered plus the k largest gains that are left).

    Examples:
      >>> import jax
      >>> import jaxsim.cascades as jc
      >>> g = jc.from_edges([0, 0], [1, 2])  # node 0 reaches both others
      >>> jc.max_cover(jc.rr_sample(g, jax.random.key(0), 512), 1).seeds.tolist()
      [0]
    """
    if not 1 <= k <= rr.n:
        raise ValueError(f"k = {k}; allowed: 1 to n = {rr.n}")
    return Cover(*(jnp.asarray(x, jnp.int32) for x in pick(rr, k)))


def pick(rr: RRSets, k: int) -> tuple[AnyArray, AnyArray, AnyArray | int]:
    """Picks as `max_cover` does, and leaves what the host has found there.

    Args:
      rr: Sets to cover.
      k: Number of nodes, 1 to n.

    Returns:
      Seeds, gains and an upper bound for any k nodes.
    """
    loops = loops_for(rr) if isinstance(rr.held, MemberLists) else None
    if loops is not None and isinstance(rr.held, MemberLists):
        return loops.cover(rr.held.nodes, rr.held.start, rr.n, k)
    return _cover(rr.mem, k)


def _gains(sets: Array, covered: Array) -> Int[Array, " nodes"]:
    new = jnp.bitwise_count(sets & ~covered[:, None])
    return new.astype(jnp.int32).sum((0, 2))


def _sizes(mem: Array) -> Int[Array, " n"]:
    # Chunk by chunk: XLA's CPU reduction over the outer and the inner axis at once does not
    # vectorize, and took nine tenths of the whole cover.
    def add(c: Array, total: Array) -> Array:
        return total + jnp.bitwise_count(mem[c]).astype(jnp.int32)

    none = jnp.zeros(mem.shape[1:], jnp.int32)
    return jax.lax.fori_loop(0, mem.shape[0], add, none).sum(1)


def _largest(counts: Int[Array, " n"], k: int) -> Int[Array, " k"]:
    # XLA's fast top-k takes floats only; counts below 2^24 stay exact.
    return jax.lax.top_k(counts.astype(jnp.float32), k)[1]


@functools.partial(jax.jit, static_argnames="k")
@own_promotion()
def _cover(mem: UInt32[Array, "chunks n words"], k: int) -> tuple[Array, Array, Array]:
    batch = min(BATCH, mem.shape[1])

    def evaluate(loop: _Loop) -> _Loop:
        bound, covered, seeds, gains, i = loop
        hopeful = _largest(bound, batch)
        sets = mem[:, hopeful]
        exact = _gains(sets, covered)
        # Picked nodes stay at -1; they come up here only when fewer than `batch` are left.
        exact = jnp.where(bound[hopeful] < 0, -1, exact)
        bound = bound.at[hopeful].set(exact)
        v = jnp.argmax(bound).astype(jnp.int32)
        at = jnp.argmax(hopeful == v)
        pick = hopeful[at] == v
        return (
            bound.at[v].set(jnp.where(pick, -1, bound[v])),
            jnp.where(pick, covered | sets[:, at], covered),
            seeds.at[i].set(v),
            gains.at[i].set(bound[v]),
            i + pick,
        )

    none = jnp.zeros(k, jnp.int32)
    covered = jnp.zeros_like(mem[:, 0])
    first = _sizes(mem)
    start = (first, covered, none, none, jnp.int32(0))
    bound, covered, seeds, gains, _ = jax.lax.while_loop(lambda s: s[-1] < k, evaluate, start)
    # Any k nodes add at most the k largest gains that are left.
    left = gains.sum() + _largest_left(mem, covered, bound, k)
    at_most = jnp.minimum(left, first[_largest(first, k)].sum())
    return seeds, gains, jnp.minimum(at_most, mem.shape[0] * mem.shape[2] * 32)


def _largest_left(mem: Array, covered: Array, bound: Array, k: int) -> Int[Array, ""]:
    """The sum of the k largest gains; `bound` is no less than each node's."""

    def unknown(loop: tuple[Array, Array]) -> Array:
        bound, known = loop
        return ~known[_largest(bound, k)].all()

    def evaluate(loop: tuple[Array, Array]) -> tuple[Array, Array]:
        bound, known = loop
        # Those that are known are out of the way, but for ones that nothing can exceed.
        near = _largest(jnp.where(known, -1, bound), min(NEAR * k, mem.shape[1]))
        return bound.at[near].set(_gains(mem[:, near], covered)), known.at[near].set(True)

    start = (jnp.maximum(bound, 0), bound < 0)
    bound, _ = jax.lax.while_loop(unknown, evaluate, start)
    return bound[_largest(bound, k)].sum()


@own_promotion()
def coverage(rr: RRSets, seeds: Int[ArrayLike, " k"] | Sequence[int]) -> Int[Array, ""]:
    """Counts the sets that hold at least one seed.

    Args:
      rr: Sets, from `rr_sample`.
      seeds: Node ids.

    Returns:
      Number of sets hit.

    Examples:
      >>> import jax
      >>> import jaxsim.cascades as jc
      >>> import jax.numpy as jnp
      >>> g = jc.from_edges([0, 0], [1, 2])  # every set holds node 0
      >>> int(jc.coverage(jc.rr_sample(g, jax.random.key(0), 512), jnp.array([0])))
      512
    """
    return jnp.asarray(count_hit(rr, seeds), jnp.int32)


def count_hit(rr: RRSets, seeds: Int[ArrayLike, " k"] | Sequence[int]) -> Int[Array, ""] | int:
    """Counts as `coverage` does, and leaves what the host has found there.

    Args:
      rr: Sets.
      seeds: Node ids.

    Returns:
      Number of sets hit.
    """
    loops = loops_for(rr, seeds) if isinstance(rr.held, MemberLists) else None
    if loops is not None and isinstance(rr.held, MemberLists):
        chosen = np.zeros(rr.n, bool)
        chosen[np.asarray(seeds)] = True
        return loops.count_hit(rr.held.nodes, rr.held.start, chosen)
    return _coverage(rr.mem, jnp.asarray(seeds))


@jax.jit
@own_promotion()
def _coverage(mem: UInt32[Array, "chunks n words"], seeds: Int[Array, " k"]) -> Int[Array, ""]:
    hit: UInt32[Array, "chunks words"] = jax.lax.reduce(
        mem[:, seeds], jnp.uint32(0), jax.lax.bitwise_or, (1,)
    )
    return jnp.bitwise_count(hit).astype(jnp.int32).sum()
