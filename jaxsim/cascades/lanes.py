"""Reverse-reachable sets as bits, sampled by lanes that work on one set each."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt32

from jaxsim.cascades import skips
from jaxsim.cascades.bits import mix
from jaxsim.cascades.graph import ICGraph
from jaxsim.cascades.sets import CHUNK_WORDS, SETS_PER_CHUNK, place
from jaxsim.numerics.arrays import own_promotion


class _Lanes(NamedTuple):
    """The loop's state: a row for each lane, and what all lanes write to."""

    mem: Array
    queue: Array
    node: Array  # whose in-edges are being drawn; n = none
    edge: Array  # the next of them
    set_id: Array
    stream: Array  # by which the sets' random words differ
    turn: Array  # numbers drawn for the set
    head: Array  # the queue holds members whose in-edges are still to be drawn
    tail: Array
    candidate: Array
    accepted: Array  # the candidate's edge is live and the candidate is not a member yet
    started: Array


class _InEdges(NamedTuple):
    """In-edges as geometric skips read them; the row after the last stands for no node, no edge."""

    start: Array  # in-edges of node v are start[v]:end[v]
    end: Array
    rate: Array
    share: Array
    tails: Array
    table: Array  # logarithms


@functools.partial(jax.jit, static_argnames=("theta", "lanes"))
@own_promotion()
def sample(
    g: ICGraph, rates: skips.Skips, seed: UInt32[Array, " seeds"], theta: int, lanes: int
) -> UInt32[Array, "chunks n words"]:
    """Samples sets.

    Args:
      g: The graph.
      rates: Of its nodes and edges, from `ICGraph.skips`.
      seed: Random words.
      theta: Number of sets, whole chunks.
      lanes: Sets at work at once.

    Returns:
      Bits of membership, which do not depend on the number of lanes.
    """
    edges = _InEdges(
        start=jnp.append(g.in_start[:-1], 0),
        end=jnp.append(g.in_start[1:], 0),
        rate=jnp.append(rates.rate, 0.0),
        share=jnp.append(rates.share, 0.0),
        tails=jnp.append(g.src, g.n),
        table=jnp.asarray(skips.logarithms()),
    )

    def unfinished(s: _Lanes) -> Array:
        return jnp.any(s.set_id < theta)

    def advance(s: _Lanes) -> _Lanes:
        return _advance(s, edges, seed, theta)

    return jax.lax.while_loop(unfinished, advance, _first_lanes(g.n, theta, lanes)).mem


def _first_lanes(n: int, theta: int, lanes: int) -> _Lanes:
    """No lane has a node, so that each begins by starting a set."""
    none = jnp.zeros(lanes, jnp.int32)
    return _Lanes(
        mem=jnp.zeros((theta // SETS_PER_CHUNK, n, CHUNK_WORDS), jnp.uint32),
        queue=jnp.zeros(lanes * (n + 1), jnp.int32),
        node=none + n,
        edge=none,
        set_id=none,
        stream=none.astype(jnp.uint32),
        turn=none.astype(jnp.uint32),
        head=none,
        tail=none,
        candidate=none + n,
        accepted=none.astype(bool),
        started=jnp.int32(0),
    )


def _enroll(s: _Lanes) -> tuple[Array, Array, Array]:
    """Membership, queue and its end once the accepted candidates are written."""
    n, lane = s.mem.shape[1], jnp.arange(len(s.node), dtype=jnp.int32)
    bit = jnp.where(s.accepted, jnp.uint32(1) << (s.set_id & 31).astype(jnp.uint32), 0)
    mem = s.mem.at[place(s.set_id, s.candidate)].add(bit.astype(jnp.uint32), mode="clip")
    queue = s.queue.at[lane * (n + 1) + s.tail].set(s.candidate, unique_indices=True)
    return mem, queue, s.tail + s.accepted


def _advance(s: _Lanes, edges: _InEdges, seed: Array, theta: int) -> _Lanes:
    """Each lane takes its node's next live in-edge, else the queue's next node, else a new set."""
    n, m = s.mem.shape[1], len(edges.tails) - 1
    lane = jnp.arange(len(s.node), dtype=jnp.int32)
    # Writes come first and reads follow from what was written: with one owner of each buffer
    # at a time XLA updates it in place.
    mem, queue, tail = _enroll(s)

    u, v = (mix(s.stream ^ skips.turn_words(s.turn, seed[i])) for i in (1, 2))
    hit = s.edge + skips.skip(u, edges.rate[s.node], edges.table)
    inside = hit < edges.end[s.node]
    at = jnp.where(inside, hit, m)
    exhausted = ~inside
    ended = exhausted & (s.head >= tail)
    popped = queue[lane * (n + 1) + jnp.minimum(s.head, n)]
    order = jnp.cumsum(ended.astype(jnp.int32))
    fresh = jnp.minimum(s.started + order - 1, theta)
    alive = fresh < theta
    stream = jnp.where(ended, skips.set_stream(fresh, seed), s.stream)
    root = jnp.where(alive, skips.below(n, mix(stream ^ seed[3])), n)

    set_id = jnp.where(ended, fresh, s.set_id)
    node = jnp.where(ended, root, jnp.where(exhausted, popped, s.node))
    # A new set's root is a candidate that passes; it is already the node at work, so the
    # queue's head stands one past it.
    candidate = jnp.where(ended, root, edges.tails[at])
    word = mem.at[place(set_id, candidate)].get(mode="clip")
    seen = (word >> (set_id & 31).astype(jnp.uint32)) & 1
    live = jnp.where(ended, alive, inside & (skips.uniform(v) <= edges.share[at]))
    return _Lanes(
        mem=mem,
        queue=queue,
        node=node,
        edge=jnp.where(exhausted, edges.start[node], hit + 1),
        set_id=set_id,
        stream=stream,
        turn=jnp.where(ended, 0, s.turn + 1),
        head=jnp.where(ended, 1, s.head + exhausted),
        tail=jnp.where(ended, 0, tail),
        candidate=candidate,
        accepted=live & (seen == 0),
        started=jnp.minimum(s.started + order[-1], theta),
    )
