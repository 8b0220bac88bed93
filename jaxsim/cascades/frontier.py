"""Bit-parallel cascades that visit only edges out of nodes that changed: for small cascades."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, UInt32

from jaxsim.cascades import bits
from jaxsim.cascades.graph import ICGraph

CHUNK = 256  # edges drawn at a time
ROWS = 240  # rows counted at a time


def spread_frontier(
    g: ICGraph, seeds: Bool[Array, " n"], salt: UInt32[Array, "planes words"]
) -> tuple[UInt32[Array, "n+1 words"], Int[Array, " n+1"]]:
    """Runs one batch of cascades to their end, flipping an edge's coins only once its tail changes.

    Coins are hashes of the edge, so that an edge visited again shows the same side. Which
    simulations are active in the end does not depend on the order of visits; time steps are not
    kept.

    Args:
      g: The graph.
      seeds: Nodes that start active in every simulation.
      salt: Random words of the batch, from `bits.salts`.

    Returns:
      Simulations in which each node is active in the end, as words, and their number. Row n is
      padding.
    """
    words = salt.shape[1]
    tail = jnp.append(g.src[g.by_src], g.n)
    edge = jnp.append(g.by_src, 0)
    head = jnp.append(g.dst[g.by_src], g.n)
    t = bits.threshold(jnp.append(g.p[g.by_src], 0.0))
    start = jnp.append(seeds, False)
    opens = jnp.concatenate([jnp.array([True]), tail[1:] != tail[:-1]])
    sends = jnp.zeros(g.n + 1, bool).at[tail[: g.m]].set(True)

    def visit(i: Array, loop: tuple[Array, Array, Array], due: Array) -> tuple[Array, Array, Array]:
        active, changed, count = loop
        at = jax.lax.dynamic_slice_in_dim(due, i * CHUNK, CHUNK)
        to = head[at]
        # A tail is settled as its first edge is visited: what it gains later counts as a change.
        changed = changed.at[jnp.where(opens[at], tail[at], g.n)].set(False)
        live = bits.bernoulli(edge[at], bits.Threshold(t.high[at], t.low[at]), salt)
        message = active[tail[at]] & live

        def deliver(j: Array, active: Array) -> Array:
            row = jax.lax.dynamic_slice_in_dim(active, to[j], 1)
            return jax.lax.dynamic_update_slice_in_dim(active, row | message[j], to[j], 0)

        active = jax.lax.fori_loop(0, CHUNK, deliver, active)
        # Counting anew, rather than comparing with the old row, leaves `active` with one reader
        # and one writer at a time: XLA copies the whole buffer at every turn otherwise.
        total = jnp.bitwise_count(active[to]).sum(1, dtype=jnp.int32)
        changed = changed.at[to].max((total != count[to]) & sends[to])
        return active, changed, count.at[to].set(total)

    def level(loop: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        changed = loop[1]
        is_due = changed[tail[: g.m]]
        place = jnp.cumsum(is_due.astype(jnp.int32)) - 1
        due = jnp.full(g.m + CHUNK, g.m, jnp.int32)
        due = due.at[jnp.where(is_due, place, g.m + CHUNK)].set(
            jnp.arange(g.m, dtype=jnp.int32), mode="drop", unique_indices=True
        )
        chunks = -(-is_due.sum(dtype=jnp.int32) // CHUNK)
        return jax.lax.fori_loop(0, chunks, lambda i, c: visit(i, c, due), loop)

    count = jnp.where(start, 32 * words, 0)
    active, _, count = jax.lax.while_loop(
        lambda loop: loop[1].any(), level, (bits.spread(start, words), start & sends, count)
    )
    return active, count


def count_touched(
    active: UInt32[Array, "n+1 words"], count: Int[Array, " n+1"]
) -> Int[Array, " sims"]:
    """Counts active nodes per simulation, reading only rows of nodes that are ever active.

    Args:
      active: Words of active simulations, from `spread_frontier`.
      count: Active simulations of each node, from `spread_frontier`.

    Returns:
      Final size of each cascade.
    """
    rows = active.shape[0] - 1
    touched = jnp.nonzero(count[:-1], size=rows, fill_value=rows)[0]
    touched = jnp.pad(touched, (0, ROWS), constant_values=rows)
    chunks = -(-jnp.sum(count[:-1] > 0, dtype=jnp.int32) // ROWS)

    def add(i: Array, total: Array) -> Array:
        at = jax.lax.dynamic_slice_in_dim(touched, i * ROWS, ROWS)
        return total + bits.count_per_simulation(active[at])

    return jax.lax.fori_loop(0, chunks, add, jnp.zeros(32 * active.shape[1], jnp.int32))
