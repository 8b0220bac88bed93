"""Spread of given seeds: independent cascades counted in batches of words."""

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PRNGKeyArray, UInt32

from jaxsim.cascades import bits, frontier, packed
from jaxsim.cascades.graph import ICGraph, check_seeds, seed_mask
from jaxsim.cascades.host import CORES, loops_for
from jaxsim.numerics import memory
from jaxsim.numerics.arrays import own_promotion
from jaxsim.numerics.checks import is_traced

Engine = Literal["auto", "packed", "frontier", "loop"]

CACHE = 8 << 20  # bytes of live bits that packed sweeps keep close to the cores
ROWS = 64 << 20  # bytes of active rows a frontier batch may take
# What a frontier's visit of an edge costs for each word, in places of a sweep, and how many words
# cost as much as the visit itself; measured, see docs/cascades.md.
VISIT, OVERHEAD = 3.3, 45
# What a loop's visit of an edge by 32 simulations costs, in places of a sweep, and how many visits
# are worth the second or two in which sweeps compile; measured likewise.
LOOP_VISIT, MANY_VISITS = 9, 1 << 24
TRIAL = 4  # words after which the rest is planned
DENSE_SLOTS = 400_000  # beyond this the live bits of a few words outgrow the cache


class Spread(NamedTuple):
    """Number of active nodes in the end, over simulations.

    Examples:
      >>> import jax
      >>> import jaxsim.cascades as jc
      >>> spread = jc.simulate_ic(jc.from_edges([0], [1]), [0], jax.random.key(0), 64)
      >>> float(spread.mean), float(spread.sem), spread.samples.shape
      (2.0, 0.0, (64,))
    """

    mean: Float[Array, "*sets"]
    """Average over simulations."""
    sem: Float[Array, "*sets"]
    """Standard error of that average; NaN for one simulation."""
    samples: Int[Array, "*sets sims"]
    """Each simulation's count."""


class _Plan(NamedTuple):
    engine: Literal["packed", "frontier"]
    words: int


def summary(samples: Int[Array, "*sets sims"]) -> Spread:
    """Averages final sizes over the last axis.

    Args:
      samples: Number of active nodes of each simulation.
    """
    x = samples.astype(jnp.float32)
    sem = jnp.std(x, axis=-1, ddof=1) / samples.shape[-1] ** 0.5
    return Spread(x.mean(-1), sem, samples)


def word_count(rows: int, n_sims: int, *, budget: int = CACHE, most: int = 16) -> int:
    """Chooses how many words of simulations run together.

    Args:
      rows: Words that one word of simulations takes, over all arrays.
      n_sims: Number of simulations, at least 1.
      budget: Bytes for all of them.
      most: Largest answer.

    Returns:
      A power of two that fits the budget and is not mostly unused.
    """
    fit = max(1, budget // (4 * max(rows, 1)))
    need = -(-n_sims // 32)
    return 1 << min(fit.bit_length() - 1, most.bit_length() - 1, (need - 1).bit_length())


def touched_share(g: ICGraph, seeds: Int[np.ndarray, " k"]) -> float:
    """Estimates the share of edges that at least one in a few thousand cascades visits.

    A few rounds of the mean-field recursion x_v = 1 - prod(1 - p x_u), which is never below the
    true activation probability, tell which nodes are ever active.

    Args:
      g: A concrete graph.
      seeds: Node ids; -1 pads.

    Returns:
      A number from 0 to 1.
    """
    src, dst = np.asarray(g.src), np.asarray(g.dst)
    p = np.minimum(np.asarray(g.p, np.float64), 1 - 2.0**-24)
    start = np.zeros(g.n)
    start[seeds[seeds >= 0]] = 1
    x, share = start, 0.0
    for _ in range(12):
        miss = np.bincount(dst, np.log1p(-p * x[src]), g.n)
        x = np.maximum(start, -np.expm1(miss))
        share, before = float((x > 1e-3)[src].mean()) if len(src) else 0.0, share
        if share > 0.7 or share == before:
            break
    return share


def expected_work(
    g: ICGraph, seeds: Int[np.ndarray, " k"], n_sims: int, *, most: int = 400
) -> tuple[int, float]:
    """Estimates how long cascades go on, and how many edges have a tail that has just changed.

    Each round of the mean-field recursion gives the probability that a node becomes active then.
    Sweeps go on while any of all simulations changes, however few do; a frontier visits an edge
    again whenever its tail changes in one of them.

    Args:
      g: A concrete graph.
      seeds: Node ids; -1 pads.
      n_sims: Simulations that run together.
      most: Largest number of rounds.

    Returns:
      Rounds until less than one node of all simulations is expected to change, and visits of
      edges until then.
    """
    src, dst = np.asarray(g.src), np.asarray(g.dst)
    p = np.minimum(np.asarray(g.p, np.float64), 1 - 2.0**-24)
    new = np.zeros(g.n)
    new[seeds[seeds >= 0]] = 1
    left, visits = 1 - new, 0.0
    for rounds in range(most):
        if new.sum() * n_sims < 1:
            return rounds, visits
        seen = -np.expm1(n_sims * np.log1p(-np.minimum(new, 1 - 1e-12)))
        visits += float(seen[src].sum())
        new = left * -np.expm1(np.bincount(dst, np.log1p(-p * new[src]), g.n))
        left = left - new
    return most, visits


def _plan(
    g: ICGraph, seeds: ArrayLike | Sequence[int], n_sims: int, engine: Engine, stepwise: bool
) -> _Plan:
    traced = any(map(is_traced, jax.tree.leaves((g.p, seeds))))
    choice = engine
    if engine == "auto":
        if stepwise or traced or jax.default_backend() != "cpu":
            # The frontier delivers messages one by one, which only a CPU does fast.
            choice = "packed"
        else:
            share = touched_share(g, np.atleast_1d(np.asarray(seeds)))
            dense = share > 0.7 and packed.slots(g) <= DENSE_SLOTS
            choice = "packed" if dense and _sweeps_pay(g, seeds, n_sims) else "frontier"
    if choice == "packed":
        return _Plan("packed", word_count(packed.slots(g), n_sims))
    return _Plan("frontier", word_count(g.n, n_sims, budget=ROWS, most=128))


def _sweeps_pay(g: ICGraph, seeds: ArrayLike | Sequence[int], n_sims: int) -> bool:
    """Tells whether sweeps over all edges are expected to cost less than visits of some."""
    words = word_count(g.n, n_sims, budget=ROWS, most=128)
    rounds, visits = expected_work(g, np.atleast_1d(np.asarray(seeds)), 32 * words)
    return rounds * packed.slots(g) < VISIT * (1 + OVERHEAD / words) * visits


@functools.partial(jax.jit, static_argnames=("plan", "max_steps"))
@own_promotion()
def _sizes(
    g: ICGraph,
    seeds: Bool[Array, " n"],
    salts: UInt32[Array, "batches planes words"],
    plan: _Plan,
    max_steps: int | None,
) -> Int[Array, "batches sims"]:
    def batch(salt: Array) -> Array:
        if plan.engine == "packed":
            start = bits.spread(seeds, plan.words)
            end = packed.spread_packed(g, start, salt, max_steps)
            return bits.count_per_simulation(end)
        active, count = frontier.spread_frontier(g, seeds, salt)
        return frontier.count_touched(active, count)

    return jax.lax.map(batch, salts)


_salts = jax.jit(bits.salts_by_word, static_argnames="words")


def _run_loop(
    g: ICGraph, seeds: Int[np.ndarray, " k"], salts: UInt32[np.ndarray, "words planes"]
) -> tuple[Int[np.ndarray, "words sims"], int, int]:
    """Final sizes by the compiled loop, a part of the words on each core, visits and rounds."""
    from jaxsim.cascades.loops import cascade  # numba is there: `loops_for` has looked

    sizes = np.zeros((len(salts), 32), np.int32)
    parts = min(CORES, -(-len(salts) // TRIAL))
    cuts = [len(salts) * i // parts for i in range(parts + 1)]

    def run(first: int, last: int) -> tuple[int, int]:
        return cascade(*g.coins, seeds, salts[first:last], sizes[first:last])

    if parts == 1:
        return sizes, *run(0, len(salts))
    with ThreadPoolExecutor(parts) as pool:
        visits, rounds = zip(*pool.map(run, cuts[:-1], cuts[1:]), strict=True)
    return sizes, sum(visits), max(rounds)


def _loop_sizes(
    g: ICGraph, seeds: ArrayLike | Sequence[int], key: PRNGKeyArray, n_sims: int, engine: Engine
) -> Int[np.ndarray, "words sims"] | None:
    """Final sizes by the compiled loop; None where sweeps are expected to take less time."""
    salts = np.asarray(_salts(key, -(-n_sims // 32)))
    ids = np.unique(np.asarray(seeds))
    ids = ids[ids >= 0].astype(np.int32)
    if engine == "loop":
        return _run_loop(g, ids, salts)[0]
    tried, visits, rounds = _run_loop(g, ids, salts[:TRIAL])
    each = visits / len(tried)
    many = each * len(salts) > MANY_VISITS and packed.slots(g) <= DENSE_SLOTS
    if many and rounds * packed.slots(g) < LOOP_VISIT * each:
        return None
    if len(salts) > TRIAL:
        return np.concatenate([tried, _run_loop(g, ids, salts[TRIAL:])[0]])
    return tried


@functools.cache
def _sharded_sizes(mesh: Mesh, plan: _Plan, max_steps: int | None) -> Callable[..., Array]:
    split = PartitionSpec(mesh.axis_names[0])
    # Loops start from values that are equal on all devices and go on with ones that are not,
    # which the check for varying axes does not accept.
    return jax.jit(
        jax.shard_map(
            functools.partial(_sizes, plan=plan, max_steps=max_steps),
            mesh=mesh,
            in_specs=(PartitionSpec(), PartitionSpec(), split),
            out_specs=split,
            check_vma=False,
        )
    )


def batch_keys(key: PRNGKeyArray, batches: int) -> PRNGKeyArray:
    """Derives a key for each batch; the first ones do not depend on how many there are.

    Args:
      key: Random key.
      batches: Number of batches.
    """
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(batches))


@own_promotion()
def simulate_ic(
    g: ICGraph,
    seeds: Int[ArrayLike, " k"] | Sequence[int],
    key: PRNGKeyArray,
    n_sims: int,
    *,
    engine: Engine = "auto",
    max_steps: int | None = None,
    mesh: Mesh | None = None,
) -> Spread:
    """Simulates independent cascades from a seed set.

    Args:
      g: The graph; its probabilities may be traced.
      seeds: Node ids; -1 pads, repeated ids count once.
      key: Random key; each simulation's result depends on it and on the simulation's number
        alone, not on the engine, the mesh or how many there are.
      n_sims: Number of simulations, at least 1.
      engine: "packed" sweeps all edges, one time step a sweep; "frontier" visits edges of nodes
        that changed; "loop" does so in a loop that numba compiles (extra `cascades`), on CPUs;
        "auto" takes what is expected to be fastest: "packed" for traced input, for `max_steps`
        and on accelerators.
      max_steps: Largest number of time steps, at least 0; only for packed sweeps.
      mesh: Device mesh of one axis over which the simulations are divided.

    Returns:
      Mean, standard error and each simulation's number of active nodes.

    Raises:
      ValueError: A seed outside the graph, or an option out of range.
      MemoryError: One word of simulations does not fit.

    Source: Kempe, Kleinberg, Tardos, "Maximizing the Spread of Influence", KDD 2003 (the model).

    Examples:
      >>> import jax
      >>> import jaxsim.cascades as jc
      >>> g = jc.from_edges([0, 1], [1, 2], [1.0, 0.0])  # a certain and an impossible edge
      >>> float(jc.simulate_ic(g, [0], jax.random.key(0), 100).mean)
      2.0
    """
    check_seeds(g, seeds)
    if n_sims < 1:
        raise ValueError(f"n_sims = {n_sims}; allowed: at least 1")
    if engine not in ("auto", "packed", "frontier", "loop"):
        allowed = "'auto', 'packed', 'frontier', 'loop'"
        raise ValueError(f"engine = {engine!r}; allowed: {allowed}")
    if max_steps is not None and (max_steps < 0 or engine in ("frontier", "loop")):
        raise ValueError(
            f"max_steps = {max_steps} with engine = {engine!r}; allowed: at least 0, and not with "
            "'frontier' or 'loop', which keep no time steps"
        )
    if mesh is not None and (len(mesh.axis_names) != 1 or engine == "loop"):
        raise ValueError(
            f"mesh has axes {mesh.axis_names}, engine = {engine!r}; allowed: exactly one, and not "
            "with 'loop', which runs on the host"
        )
    whole = max_steps is None and mesh is None and engine in ("auto", "loop")
    if whole and loops_for(g, seeds, key):
        what = f"a loop over n = {g.n}, m = {g.m}"
        memory.check(what, 16 * g.n + 20 * g.m, "split the graph")
        found = _loop_sizes(g, seeds, key, n_sims, engine)
        if found is not None:
            return summary(jnp.asarray(found.reshape(-1)[:n_sims]))
        engine = "packed"
    if engine == "loop":
        raise ValueError(
            "engine = 'loop'; allowed: on a CPU, outside jit, where numba is installed (extra "
            "'cascades')"
        )
    return summary(_batched_sizes(g, seeds, key, n_sims, engine, max_steps, mesh)[:n_sims])


def _batched_sizes(
    g: ICGraph,
    seeds: ArrayLike | Sequence[int],
    key: PRNGKeyArray,
    n_sims: int,
    engine: Engine,
    max_steps: int | None,
    mesh: Mesh | None,
) -> Int[Array, " sims"]:
    plan = _plan(g, seeds, n_sims, engine, max_steps is not None)
    rows = packed.slots(g) + 4 * g.n if plan.engine == "packed" else 2 * g.n
    memory.check(
        f"one batch of {32 * plan.words} simulations over n = {g.n}, m = {g.m}",
        4 * plan.words * rows,
        "split the graph",
    )
    batches = -(-n_sims // (32 * plan.words))
    if mesh is not None:
        batches = -(-batches // mesh.size) * mesh.size
    salts = _salts(key, batches * plan.words).reshape(batches, plan.words, -1).swapaxes(1, 2)
    mask = seed_mask(g, seeds)
    if mesh is None:
        return _sizes(g, mask, salts, plan, max_steps).reshape(-1)
    return _sharded_sizes(mesh, plan, max_steps)(g, mask, salts).reshape(-1)


@own_promotion()
def influence(
    g: ICGraph,
    seed_sets: Int[ArrayLike, "sets k"] | Sequence[Sequence[int]],
    key: PRNGKeyArray,
    n_sims: int,
) -> Spread:
    """Compares seed sets on the same random live edges, so that their differences are sharp.

    Works under `jit`, and under `vmap` over the probabilities.

    Args:
      g: The graph.
      seed_sets: Node ids, one set a row; -1 pads, repeated ids count once.
      key: Random key.
      n_sims: Number of simulations, the same ones for every set, at least 1.

    Returns:
      Mean, standard error and samples per set.

    Raises:
      ValueError: A seed outside the graph, or no simulations.

    Examples:
      >>> import jax
      >>> import jaxsim.cascades as jc
      >>> g = jc.from_edges([0, 1], [1, 2])
      >>> jc.influence(g, [[0], [2]], jax.random.key(0), 64).mean.tolist()
      [3.0, 1.0]
    """
    sets = jnp.asarray(seed_sets)
    if sets.ndim != 2:
        raise ValueError(f"seed_sets has shape {sets.shape}; allowed: (sets, k)")
    if n_sims < 1:
        raise ValueError(f"n_sims = {n_sims}; allowed: at least 1")
    masks = jnp.stack([seed_mask(g, s) for s in sets]) if len(sets) else jnp.zeros((0, g.n), bool)
    words = word_count(packed.slots(g), n_sims)
    keys = batch_keys(key, -(-n_sims // (32 * words)))
    sizes = _compare(g, masks, keys, words)
    return summary(sizes.swapaxes(0, 1).reshape(len(masks), -1)[:, :n_sims])


@functools.partial(jax.jit, static_argnames="words")
@own_promotion()
def _compare(
    g: ICGraph, masks: Bool[Array, "sets n"], keys: PRNGKeyArray, words: int
) -> Int[Array, "batches sets sims"]:
    def batch(key: PRNGKeyArray) -> Array:
        live = packed.draw_live(g, bits.salts(key, words))

        def one(mask: Array) -> Array:
            start = bits.spread(mask, words)
            end = packed.settle(lambda a: packed.sweep(g, live, a), start, None)
            return bits.count_per_simulation(end)

        return jax.lax.map(one, masks)

    return jax.lax.map(batch, keys)
