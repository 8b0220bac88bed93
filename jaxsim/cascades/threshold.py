"""Cascades of the linear threshold model, by its live-edge form."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Int, PRNGKeyArray, UInt32

from jaxsim.cascades import bits, packed
from jaxsim.cascades.graph import ICGraph, concrete, seed_mask
from jaxsim.cascades.simulate import Spread, batch_keys, summary, word_count
from jaxsim.numerics import memory
from jaxsim.numerics.arrays import own_promotion


def _draw_live(g: ICGraph, salt: UInt32[Array, "planes words"]) -> packed.Live:
    """Keeps at most one in-edge of each node: edge e with probability p[e]."""
    # Edge j is taken with probability w_j / (1 - w_1 - ... - w_{j-1}), if none before it was.
    total = jnp.cumsum(g.p) - g.p
    before = total - jnp.append(total, 0.0)[g.in_start[g.dst]]
    taken = jnp.where(g.p > 0, g.p / jnp.maximum(1 - before, 1e-7), 0.0)
    coins = bits.bernoulli(jnp.arange(g.m), bits.threshold(jnp.clip(taken, 0, 1)), salt)
    opens = jnp.arange(g.m) == g.in_start[g.dst]

    def join(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
        return a[0] | b[0], jnp.where(b[0][:, None], b[1], a[1] | b[1])

    upto = jax.lax.associative_scan(join, (opens, coins))[1]
    earlier = jnp.where(opens[:, None], jnp.uint32(0), jnp.roll(upto, 1, axis=0))
    first = jnp.concatenate([coins & ~earlier, jnp.zeros_like(coins[:1])])
    return tuple(first[rows] for rows in g.pull.levels[0])


@functools.partial(jax.jit, static_argnames=("words", "max_steps"))
@own_promotion()
def _sizes(
    g: ICGraph, seeds: Bool[Array, " n"], keys: PRNGKeyArray, words: int, max_steps: int | None
) -> Int[Array, "batches sims"]:
    def batch(key: PRNGKeyArray) -> Array:
        start = bits.spread(seeds, words)
        if not g.m:
            return bits.count_per_simulation(start)
        live = _draw_live(g, bits.salts(key, words))
        end = packed.settle(lambda a: packed.sweep(g, live, a), start, max_steps)
        return bits.count_per_simulation(end)

    return jax.lax.map(batch, keys)


@own_promotion()
def simulate_lt(
    g: ICGraph,
    seeds: Int[ArrayLike, " k"] | Sequence[int],
    key: PRNGKeyArray,
    n_sims: int,
    *,
    max_steps: int | None = None,
) -> Spread:
    """Simulates linear threshold cascades from a seed set.

    A node activates once the weights of its active in-neighbors pass a threshold that is drawn
    uniformly from 0 to 1.

    Args:
      g: The graph; `p` holds the weights, whose sum into each node is at most 1 (as after
        `weighted_cascade`).
      seeds: Node ids; -1 pads, repeated ids count once.
      key: Random key.
      n_sims: Number of simulations, at least 1.
      max_steps: Largest number of time steps, at least 0; None for no limit.

    Returns:
      Mean, standard error and each simulation's number of active nodes.

    Raises:
      ValueError: Weights into a node that sum to more than 1, or an option out of range.
      MemoryError: One word of simulations does not fit.

    Source: Kempe, Kleinberg, Tardos, "Maximizing the Spread of Influence", KDD 2003, theorem 4.6
    (each node keeps at most one in-edge, with the weights as probabilities).

    Examples:
      >>> import jax
      >>> import jaxsim.cascades as jc
      >>> g = jc.weighted_cascade(jc.from_edges([0, 1], [1, 2]))  # weights of 1
      >>> float(jc.simulate_lt(g, [0], jax.random.key(0), 32).mean)
      3.0
    """
    mask = seed_mask(g, seeds)
    if n_sims < 1 or (max_steps is not None and max_steps < 0):
        raise ValueError(f"n_sims = {n_sims}, max_steps = {max_steps}; allowed: >= 1, >= 0")
    p, dst = concrete(g.p), concrete(g.dst)
    if p is not None and dst is not None:
        into = np.bincount(dst, p.astype(np.float64), g.n)
        if (into > 1 + 1e-4).any():
            v = int(np.argmax(into))
            raise ValueError(f"p sums to {into[v]:.6g} into node {v}; allowed: at most 1")
    words = word_count(2 * packed.slots(g) + g.n, n_sims)
    memory.check(
        f"coins of m = {g.m} edges", 16 * words * (packed.slots(g) + g.n), "split the graph"
    )
    sizes = _sizes(g, mask, batch_keys(key, -(-n_sims // (32 * words))), words, max_steps)
    return summary(sizes.reshape(-1)[:n_sims])
