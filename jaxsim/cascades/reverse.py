"""Reverse-reachable sets: who could have activated a random node, sampled lane by lane."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PRNGKeyArray, UInt32

from jaxsim.cascades.bits import mix
from jaxsim.cascades.graph import ICGraph
from jaxsim.numerics import memory
from jaxsim.numerics.arrays import own_promotion

CHUNK_WORDS = 16  # sets are stored 512 to a chunk, so that the lanes at work share a few chunks


class RRSets(NamedTuple):
    """Reverse-reachable sets as one bit per (node, set)."""

    mem: UInt32[Array, "chunks n words"]
    """Bit b of `mem[c, v, w]`: node v is in set `(c * words + w) * 32 + b`."""

    @property
    def theta(self) -> int:
        """Number of sets."""
        return self.mem.shape[0] * self.mem.shape[2] * 32

    @own_promotion()
    def member(self) -> Bool[Array, "n theta"]:
        """Membership as flags."""
        words = self.mem.transpose(1, 0, 2).reshape(self.mem.shape[1], -1)
        shown = (words[..., None] >> jnp.arange(32, dtype=jnp.uint32)) & 1
        return shown.reshape(self.mem.shape[1], -1).astype(bool)


def round_theta(theta: int) -> int:
    """Round a number of sets up to whole chunks."""
    unit = 32 * CHUNK_WORDS
    return -(-theta // unit) * unit


class _Lanes(NamedTuple):
    mem: Array
    queue: Array
    node: Array  # whose in-edges are being drawn; n = none
    edge: Array  # the next of them
    set_id: Array
    head: Array  # the queue holds members whose in-edges are still to be drawn
    tail: Array
    candidate: Array
    accepted: Array  # the candidate's edge is live and the candidate is not a member yet
    started: Array
    turn: Array


def empty_sets(g: ICGraph) -> RRSets:
    """No sets yet."""
    return RRSets(jnp.zeros((0, g.n, CHUNK_WORDS), jnp.uint32))


def rr_sample(g: ICGraph, key: PRNGKeyArray, theta: int, lanes: int = 256) -> RRSets:
    """Sample reverse-reachable sets of uniformly random roots.

    Each lane works on one set at a time and takes the next number when it is done; every set that
    is started is finished, since dropping long ones would bias the sample. In-edges are skipped
    geometrically at the largest probability of the node's in-edges, then thinned to their own.

    Args:
        g: the graph.
        key: random key.
        theta: number of sets, rounded up to a multiple of 512.
        lanes: sets at work at once; more suit wider machines.

    Returns:
        The sets.

    Raises:
        ValueError: an empty graph, or a count below one.
        MemoryError: the membership bits or the queues exceed `memory.LIMIT`.

    Source: Borgs et al., "Maximizing Social Influence in Nearly Optimal Time", SODA 2014 (reverse
    reachability); Guo et al., "Influence Maximization Revisited", SIGMOD 2020 (geometric skips).
    """
    if g.n < 1:
        raise ValueError(f"g has {g.n} nodes; allowed: at least 1")
    if theta < 1 or lanes < 1:
        raise ValueError(f"theta = {theta}, lanes = {lanes}; allowed: at least 1")
    theta = round_theta(theta)
    hint = "sample fewer sets at a time, or raise the limit"
    memory.check(f"membership of n = {g.n} nodes in theta = {theta} sets", g.n * theta // 8, hint)
    memory.check(f"queues of lanes = {lanes} over n = {g.n} nodes", 4 * lanes * g.n, "use fewer")
    return RRSets(_sample(g, key, theta, lanes))


@functools.partial(jax.jit, static_argnames=("theta", "lanes"))
@own_promotion()
def _sample(g: ICGraph, key: PRNGKeyArray, theta: int, lanes: int) -> Array:
    n, unit = g.n, 32 * CHUNK_WORDS
    seed = jax.random.bits(key, (3,), jnp.uint32)
    lane = jnp.arange(lanes, dtype=jnp.int32)
    stream = mix(lane.astype(jnp.uint32) * jnp.uint32(0x9E3779B9) ^ seed[0])
    first = jnp.append(g.in_start[:-1], 0)
    last = jnp.append(g.in_start[1:], 0)
    top = jax.ops.segment_max(g.p, g.dst, n, indices_are_sorted=True)
    top = jnp.append(jnp.maximum(top, 0.0), 0.0)
    # log(u) * rate is the number of failures before a success at probability `top`.
    rate = jnp.where(
        top >= 1, 0.0, 1 / jnp.minimum(jnp.log1p(-jnp.minimum(top, 0.99999994)), -1e-9)
    )
    share = jnp.append(g.p / top[g.dst], 0.0) if g.m else jnp.zeros(1)
    tails = jnp.append(g.src, n)

    def place(set_id: Array, node: Array) -> tuple[Array, Array, Array]:
        return set_id // unit, node, set_id % unit // 32

    def uniform(turn: Array, which: int) -> Array:
        h = mix(stream ^ mix(turn * jnp.uint32(0x85EBCA6B) + seed[which]))
        return (h >> 8).astype(jnp.float32) * 2.0**-24 + 2.0**-25

    def advance(s: _Lanes) -> _Lanes:
        # Writes come first and reads follow from what was written: with one owner of each buffer
        # at a time XLA updates it in place.
        bit = jnp.where(s.accepted, jnp.uint32(1) << (s.set_id & 31).astype(jnp.uint32), 0)
        mem = s.mem.at[place(s.set_id, s.candidate)].add(bit.astype(jnp.uint32), mode="clip")
        queue = s.queue.at[lane * (n + 1) + s.tail].set(s.candidate, unique_indices=True)
        tail = s.tail + s.accepted

        u, v = uniform(s.turn, 1), uniform(s.turn, 2)
        skip = jnp.minimum(jnp.log(u) * rate[s.node], 1e9).astype(jnp.int32)
        hit = s.edge + skip
        inside = hit < last[s.node]
        at = jnp.where(inside, hit, g.m)
        exhausted = ~inside
        ended = exhausted & (s.head >= tail)
        popped = queue[lane * (n + 1) + jnp.minimum(s.head, n)]
        order = jnp.cumsum(ended.astype(jnp.int32))
        fresh = jnp.minimum(s.started + order - 1, theta)
        alive = fresh < theta
        # Not from `u`: it is small just because the set ended.
        root = jnp.minimum((v * n).astype(jnp.int32), n - 1)
        root = jnp.where(alive, root, n)

        set_id = jnp.where(ended, fresh, s.set_id)
        node = jnp.where(ended, root, jnp.where(exhausted, popped, s.node))
        edge = jnp.where(exhausted, first[node], hit + 1)
        # A new set's root is a candidate that passes; it is already the node at work, so the
        # queue's head stands one past it.
        candidate = jnp.where(ended, root, tails[at])
        word = mem.at[place(set_id, candidate)].get(mode="clip")
        seen = (word >> (set_id & 31).astype(jnp.uint32)) & 1
        live = jnp.where(ended, alive, inside & (v < share[at]))
        return _Lanes(
            mem=mem,
            queue=queue,
            node=node,
            edge=edge,
            set_id=set_id,
            head=jnp.where(ended, 1, s.head + exhausted),
            tail=jnp.where(ended, 0, tail),
            candidate=candidate,
            accepted=live & (seen == 0),
            started=jnp.minimum(s.started + order[-1], theta),
            turn=s.turn + 1,
        )

    def unfinished(s: _Lanes) -> Array:
        return jnp.any(s.set_id < theta)

    none = jnp.zeros(lanes, jnp.int32)
    start = _Lanes(
        mem=jnp.zeros((theta // unit, n, CHUNK_WORDS), jnp.uint32),
        queue=jnp.zeros(lanes * (n + 1), jnp.int32),
        node=none + n,
        edge=none,
        set_id=none,
        head=none,
        tail=none,
        candidate=none + n,
        accepted=none.astype(bool),
        started=jnp.int32(0),
        turn=jnp.uint32(0),
    )
    return jax.lax.while_loop(unfinished, advance, start).mem
