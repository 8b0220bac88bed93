"""Bit-parallel sweeps: every edge of every simulation at once, one time step a sweep."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, UInt32

from jaxsim.cascades import bits
from jaxsim.cascades.graph import ICGraph

Live = tuple[UInt32[Array, "rows width words"], ...]
_Loop = tuple[Array, Array, Int[Array, ""]]


def slots(g: ICGraph) -> int:
    """Counts the live words that one word of simulations needs: edges, padded to row widths.

    Args:
      g: The graph.
    """
    return sum(tails.size for tails in g.pull.tails)


def draw_live(g: ICGraph, salt: UInt32[Array, "planes words"]) -> Live:
    """Flips every edge's coin in every simulation.

    Args:
      g: The graph.
      salt: Random words of the batch, from `bits.salts`.

    Returns:
      Live bits in the pull layout.
    """
    coins = bits.bernoulli(jnp.arange(g.m + 1), bits.threshold(jnp.append(g.p, 0.0)), salt)
    return tuple(_rows_at(coins, rows) for rows in g.pull.levels[0]) if g.pull.levels else ()


def _rows_at(x: Array, i: Array) -> Array:
    # Indices come from the layout; they need no check at every word.
    return x.at[i].get(mode="promise_in_bounds", wrap_negative_indices=False)


def _or_rows(parts: list[Array]) -> Array:
    return functools.reduce(jnp.bitwise_or, parts)


def sweep(g: ICGraph, live: Live, active: UInt32[Array, "n words"]) -> UInt32[Array, "n words"]:
    """Advances every simulation by one time step.

    Args:
      g: The graph.
      live: Live bits of the edges, from `draw_live`.
      active: Words of simulations in which each node is active.

    Returns:
      Words of simulations in which each node is active afterwards.
    """
    if not g.pull.levels:
        return active
    none = jnp.zeros_like(active[:1])
    state = jnp.concatenate([active, none])
    outs = [
        _or_rows([_rows_at(state, tails[:, j]) & bit[:, j] for j in range(tails.shape[1])])
        for tails, bit in zip(g.pull.tails, live, strict=True)
    ]
    level = jnp.concatenate([*outs, none])
    done = [level[:-1]]
    for tables in g.pull.levels[1:]:
        outs = [
            _or_rows([_rows_at(level, rows[:, j]) for j in range(rows.shape[1])]) for rows in tables
        ]
        level = jnp.concatenate([*outs, none])
        done.append(level[:-1])
    return active | _rows_at(jnp.concatenate([*done, none]), g.pull.node_row)


def settle(
    step: Callable[[Array], Array], active: UInt32[Array, "n words"], max_steps: int | None
) -> UInt32[Array, "n words"]:
    """Repeats `step` until nothing changes, or `max_steps` times.

    Args:
      step: One time step, such as `sweep` with its first arguments bound.
      active: Who is active at the start.
      max_steps: The most steps, or None.

    Returns:
      Words of simulations in which each node is active in the end.
    """

    def unfinished(loop: _Loop) -> Array:
        _, changed, t = loop
        return changed if max_steps is None else changed & (t < max_steps)

    def advance(loop: _Loop) -> _Loop:
        old, _, t = loop
        new = step(old)
        return new, jnp.any(new != old), t + 1

    start = (active, jnp.any(active != 0), jnp.int32(0))
    return jax.lax.while_loop(unfinished, advance, start)[0]


def spread_packed(
    g: ICGraph,
    active: UInt32[Array, "n words"],
    salt: UInt32[Array, "planes words"],
    max_steps: int | None,
) -> UInt32[Array, "n words"]:
    """Runs one batch of independent cascades.

    Args:
      g: The graph.
      active: Words of simulations in which each node is a seed.
      salt: Random words of the batch, from `bits.salts`.
      max_steps: Largest number of time steps, or None.

    Returns:
      Words of simulations in which each node is active in the end.
    """
    live = draw_live(g, salt)
    return settle(lambda a: sweep(g, live, a), active, max_steps)
