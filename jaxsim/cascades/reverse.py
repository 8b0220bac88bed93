"""Reverse-reachable sets: nodes that could have activated a random node, sampled by lanes."""

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
SETS_PER_CHUNK = 32 * CHUNK_WORDS


class RRSets(NamedTuple):
    """Reverse-reachable sets, one bit for each node and set.

    Examples:
        >>> import jax
        >>> import jaxsim.cascades as jc
        >>> sets = jc.rr_sample(jc.from_edges([0], [1]), jax.random.key(0), 100)
        >>> sets.theta, sets.member().shape, bool(sets.member()[0].all())
        (512, (2, 512), True)
    """

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
    """Rounds a number of sets up to whole chunks.

    Args:
        theta: Number of sets, at least 1.
    """
    return -(-theta // SETS_PER_CHUNK) * SETS_PER_CHUNK


class _Lanes(NamedTuple):
    """The loop's state: a row for each lane, and what all lanes write to."""

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


class _InEdges(NamedTuple):
    """In-edges as geometric skips read them; the row after the last stands for no node, no edge."""

    start: Array  # in-edges of node v are start[v]:end[v]
    end: Array
    rate: Array  # log(u) * rate failures come before a success at the node's largest probability
    share: Array  # an edge's probability over the largest of its head's
    tails: Array


class _Streams(NamedTuple):
    """Random numbers of each lane at each turn."""

    lane: Array  # hash of the lane's number
    seed: Array

    def uniform(self, turn: Array, which: int) -> Array:
        """A number in (0, 1) for each lane; `which` is 1 or 2."""
        h = mix(self.lane ^ mix(turn * jnp.uint32(0x85EBCA6B) + self.seed[which]))
        return (h >> 8).astype(jnp.float32) * 2.0**-24 + 2.0**-25


def empty_sets(g: ICGraph) -> RRSets:
    """Makes zero sets over the nodes of a graph.

    Args:
        g: The graph.
    """
    return RRSets(jnp.zeros((0, g.n, CHUNK_WORDS), jnp.uint32))


def rr_sample(g: ICGraph, key: PRNGKeyArray, theta: int, lanes: int = 256) -> RRSets:
    """Samples reverse-reachable sets of uniformly random roots.

    Each lane works on one set at a time and takes the next number when it is done; every set that
    is started is finished, since dropping long ones would bias the sample. In-edges are skipped
    geometrically at the largest probability of the node's in-edges, then thinned to their own.

    Args:
        g: A graph of at least one node.
        key: Random key.
        theta: Number of sets, at least 1; rounded up to a multiple of 512.
        lanes: Sets at work at once, at least 1; more suit wider machines.

    Returns:
        The sets.

    Raises:
        ValueError: An empty graph, or a count below one.
        MemoryError: The membership bits or the queues exceed `memory.LIMIT`.

    Source: Borgs et al., "Maximizing Social Influence in Nearly Optimal Time", SODA 2014 (reverse
    reachability); Guo et al., "Influence Maximization Revisited", SIGMOD 2020 (geometric skips).

    Examples:
        >>> import jax
        >>> import jaxsim.cascades as jc
        >>> jc.rr_sample(jc.from_edges([0], [1]), jax.random.key(0), 600).theta
        1024
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
    seed = jax.random.bits(key, (3,), jnp.uint32)
    numbers = jnp.arange(lanes, dtype=jnp.int32).astype(jnp.uint32)
    streams = _Streams(mix(numbers * jnp.uint32(0x9E3779B9) ^ seed[0]), seed)
    edges = _in_edges(g)

    def unfinished(s: _Lanes) -> Array:
        return jnp.any(s.set_id < theta)

    def advance(s: _Lanes) -> _Lanes:
        return _advance(s, edges, streams, theta)

    return jax.lax.while_loop(unfinished, advance, _first_lanes(g.n, theta, lanes)).mem


def _in_edges(g: ICGraph) -> _InEdges:
    top = jax.ops.segment_max(g.p, g.dst, g.n, indices_are_sorted=True)
    top = jnp.append(jnp.maximum(top, 0.0), 0.0)
    rate = jnp.where(
        top >= 1, 0.0, 1 / jnp.minimum(jnp.log1p(-jnp.minimum(top, 0.99999994)), -1e-9)
    )
    return _InEdges(
        start=jnp.append(g.in_start[:-1], 0),
        end=jnp.append(g.in_start[1:], 0),
        rate=rate,
        share=jnp.append(g.p / top[g.dst], 0.0) if g.m else jnp.zeros(1),
        tails=jnp.append(g.src, g.n),
    )


def _first_lanes(n: int, theta: int, lanes: int) -> _Lanes:
    """No lane has a node, so that each begins by starting a set."""
    none = jnp.zeros(lanes, jnp.int32)
    return _Lanes(
        mem=jnp.zeros((theta // SETS_PER_CHUNK, n, CHUNK_WORDS), jnp.uint32),
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


def _place(set_id: Array, node: Array) -> tuple[Array, Array, Array]:
    """Chunk, node and word of a membership bit."""
    return set_id // SETS_PER_CHUNK, node, set_id % SETS_PER_CHUNK // 32


def _enroll(s: _Lanes) -> tuple[Array, Array, Array]:
    """Membership, queue and its end once the accepted candidates are written."""
    n, lane = s.mem.shape[1], jnp.arange(len(s.node), dtype=jnp.int32)
    bit = jnp.where(s.accepted, jnp.uint32(1) << (s.set_id & 31).astype(jnp.uint32), 0)
    mem = s.mem.at[_place(s.set_id, s.candidate)].add(bit.astype(jnp.uint32), mode="clip")
    queue = s.queue.at[lane * (n + 1) + s.tail].set(s.candidate, unique_indices=True)
    return mem, queue, s.tail + s.accepted


def _advance(s: _Lanes, edges: _InEdges, streams: _Streams, theta: int) -> _Lanes:
    """Each lane takes its node's next live in-edge, else the queue's next node, else a new set."""
    n, m = s.mem.shape[1], len(edges.tails) - 1
    lane = jnp.arange(len(s.node), dtype=jnp.int32)
    # Writes come first and reads follow from what was written: with one owner of each buffer
    # at a time XLA updates it in place.
    mem, queue, tail = _enroll(s)

    u, v = streams.uniform(s.turn, 1), streams.uniform(s.turn, 2)
    skip = jnp.minimum(jnp.log(u) * edges.rate[s.node], 1e9).astype(jnp.int32)
    hit = s.edge + skip
    inside = hit < edges.end[s.node]
    at = jnp.where(inside, hit, m)
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
    # A new set's root is a candidate that passes; it is already the node at work, so the
    # queue's head stands one past it.
    candidate = jnp.where(ended, root, edges.tails[at])
    word = mem.at[_place(set_id, candidate)].get(mode="clip")
    seen = (word >> (set_id & 31).astype(jnp.uint32)) & 1
    live = jnp.where(ended, alive, inside & (v < edges.share[at]))
    return _Lanes(
        mem=mem,
        queue=queue,
        node=node,
        edge=jnp.where(exhausted, edges.start[node], hit + 1),
        set_id=set_id,
        head=jnp.where(ended, 1, s.head + exhausted),
        tail=jnp.where(ended, 0, tail),
        candidate=candidate,
        accepted=live & (seen == 0),
        started=jnp.minimum(s.started + order[-1], theta),
        turn=s.turn + 1,
    )
