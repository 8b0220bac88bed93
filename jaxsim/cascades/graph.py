"""Graphs that cascades run on: edges sorted by target, and the two layouts the engines read."""

import dataclasses
import functools
import warnings
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PRNGKeyArray

from jaxsim.cascades.coins import Coins, coins_of
from jaxsim.cascades.skips import Skips, skips_of, traced_skips_of
from jaxsim.numerics.arrays import own_promotion
from jaxsim.numerics.checks import is_traced

ROW_WIDTH = 16  # inputs a pull row may have; longer lists are split and merged again


class Pull(NamedTuple):
    """In-edges as short rows of equal width, so that an OR over in-neighbors has a static shape.

    A node with at most `ROW_WIDTH` in-edges is one row. The rows of a larger node are the inputs
    of rows on the next level, and so on until one row is left.
    """

    levels: tuple[tuple[Int[Array, "rows width"], ...], ...]
    """Per level, per width: input indices. Level 0 indexes edges (`m` = none), level i indexes
    the concatenated rows of level i-1 (their number = none)."""
    tails: tuple[Int[Array, "rows width"], ...]
    """Tail of each edge in level 0 (`n` = none)."""
    node_row: Int[Array, " n"]
    """Row that ends with each node's OR, counted over all levels; the total count = no in-edge."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ICGraph:
    """A directed graph whose edges carry activation probabilities (or threshold weights).

    Build it with `from_edges`, `from_networkx`, `from_scipy` or `load_edgelist`; these check the
    input. Only `p` should be replaced afterwards (`with_p`): the other fields depend on each other.

    Examples:
      >>> import jaxsim.cascades as jc
      >>> g = jc.from_edges([0, 0, 1], [1, 2, 2], 0.5)
      >>> g.n, g.m, g.in_degree().tolist()
      (3, 3, [0, 1, 2])
      >>> g.with_p(0.25).p.tolist()
      [0.25, 0.25, 0.25]
    """

    src: Int[Array, " m"]
    """Tail of each edge; edges are sorted by head, then tail."""
    dst: Int[Array, " m"]
    """Head of each edge."""
    p: Float[Array, " m"]
    """Probability that an active tail activates the head, in [0, 1]."""
    in_start: Int[Array, " n+1"]
    """In-edges of node v are `in_start[v]:in_start[v+1]`."""
    by_src: Int[Array, " m"]
    """The edges in order of tail."""
    pull: Pull
    """Row layout for bit-parallel sweeps."""
    n: int = dataclasses.field(metadata={"static": True})
    """Number of nodes."""

    @property
    def m(self) -> int:
        """Number of edges."""
        return self.src.shape[0]

    @own_promotion()
    def with_p(self, p: Float[ArrayLike, " m"]) -> "ICGraph":
        """The same edges with other probabilities; `p` may be traced, so sweeps compile once.

        Args:
          p: Probability of each edge in this graph's edge order, in [0, 1], or one for all.

        Returns:
          A new graph.

        Raises:
          ValueError: A concrete `p` outside [0, 1] or of another shape.
        """
        traced = is_traced(p)
        if not traced:
            _check_probability("p", np.asarray(p))
        value = jnp.asarray(p, jnp.float32)
        if value.ndim and value.shape != (self.m,):
            raise ValueError(f"p has shape {value.shape}; allowed: () or ({self.m},), one per edge")
        if not traced:  # by numpy: a broadcast would be a program of each number of edges
            value = np.asarray(value)
        spread = (jnp if traced else np).broadcast_to(value, (self.m,))
        return dataclasses.replace(self, p=jnp.asarray(spread))

    @own_promotion()
    def in_degree(self) -> Int[Array, " n"]:
        """Number of in-edges of each node."""
        return jnp.diff(self.in_start)

    @functools.cached_property
    def coins(self) -> Coins:
        """What a loop over out-edges reads of this concrete graph, worked out once."""
        return coins_of(self.src, self.dst, self.p, self.by_src, self.n)

    @functools.cached_property
    def skips(self) -> Skips:
        """What geometric skips over in-edges read, worked out once for this graph."""
        arrays = (self.p, self.in_start, self.dst)
        if any(is_traced(x) for x in arrays):
            return traced_skips_of(*arrays)
        return skips_of(*(np.asarray(x) for x in arrays))


def _check_probability(name: str, p: np.ndarray) -> None:
    bad = ~((p >= 0) & (p <= 1))
    if bad.any():
        where = np.argwhere(bad)[0]
        raise ValueError(f"{name}{list(map(int, where))} = {p[tuple(where)]}; allowed: 0 to 1")


def _pull_rows(src: np.ndarray, dst: np.ndarray, n: int) -> Pull:
    """Lays out in-edges (sorted by `dst`) as a tree of rows of at most `ROW_WIDTH` inputs."""
    node_row = np.full(n, -1, np.int64)
    levels: list[tuple[np.ndarray, ...]] = []
    owner, item, n_items, base = dst.astype(np.int64), np.arange(len(dst)), len(dst), 0
    while len(owner):
        counts = np.bincount(owner, minlength=n)
        first = np.concatenate([[0], np.cumsum(counts)])
        rank = np.arange(len(owner)) - first[owner]
        opens = rank % ROW_WIDTH == 0
        row_of_item = np.cumsum(opens) - 1
        row_owner = owner[opens]
        width = np.bincount(row_of_item)
        bucket = np.ceil(np.log2(width)).astype(np.int64)
        order = np.argsort(bucket, kind="stable")
        new_id = np.empty_like(order)
        new_id[order] = np.arange(len(order))
        table = np.full((len(order), ROW_WIDTH), n_items, np.int32)
        table[new_id[row_of_item], rank % ROW_WIDTH] = item
        sizes = np.bincount(bucket)
        ends = np.cumsum(sizes)
        levels.append(
            tuple(
                table[end - size : end, : 1 << b]
                for b, (size, end) in enumerate(zip(sizes, ends, strict=True))
                if size
            )
        )
        done = counts[row_owner] <= ROW_WIDTH
        node_row[row_owner[done]] = base + new_id[done]
        owner, item = row_owner[~done], new_id[~done]
        n_items, base = len(order), base + len(order)
    node_row[node_row < 0] = base
    return Pull(
        tuple(tuple(jnp.asarray(rows) for rows in level) for level in levels),
        tuple(jnp.asarray(np.append(src, n)[rows], jnp.int32) for rows in levels[0])
        if levels
        else (),
        jnp.asarray(node_row, jnp.int32),
    )


def from_edges(
    src: Int[ArrayLike, " m"] | Sequence[int],
    dst: Int[ArrayLike, " m"] | Sequence[int],
    p: Float[ArrayLike, " m"] | Sequence[float] = 1.0,
    n: int | None = None,
    *,
    undirected: bool = False,
    parallel: Literal["error", "combine"] = "error",
) -> ICGraph:
    """Builds a graph from concrete edge arrays.

    Args:
      src: Tail of each edge, a node id from 0.
      dst: Head of each edge, a node id from 0.
      p: Activation probability of each edge in [0, 1], or one for all.
      n: Number of nodes; by default the largest id plus one.
      undirected: Whether to add each edge's reverse with the same probability.
      parallel: Treatment of repeated (src, dst) pairs: "error" refuses them, "combine" makes
        them one edge of probability `1 - prod(1 - p)`. `undirected` also makes a pair
        listed both ways a repeat.

    Returns:
      The graph. Self-loops can never matter and are dropped with a warning.

    Raises:
      ValueError: Unequal lengths, an id outside [0, n), p outside [0, 1], a repeated edge.

    Examples:
      >>> import jaxsim.cascades as jc
      >>> g = jc.from_edges([0, 1], [1, 2], [0.5, 0.25])
      >>> g.n, g.m, g.p.tolist()
      (3, 2, [0.5, 0.25])
    """
    tail, head = np.atleast_1d(np.asarray(src)), np.atleast_1d(np.asarray(dst))
    if tail.shape != head.shape or tail.ndim != 1:
        raise ValueError(f"src and dst have shapes {tail.shape}, {head.shape}; allowed: equal, 1-d")
    if tail.size and not (
        np.issubdtype(tail.dtype, np.integer) and np.issubdtype(head.dtype, np.integer)
    ):
        raise ValueError(f"src and dst have dtypes {tail.dtype}, {head.dtype}; allowed: integers")
    prob = np.asarray(p, np.float64)
    if prob.ndim and prob.shape != tail.shape:
        raise ValueError(f"p has shape {prob.shape}; allowed: () or {tail.shape}")
    _check_probability("p", prob)
    prob = np.broadcast_to(prob, tail.shape)
    tail, head = tail.astype(np.int64), head.astype(np.int64)
    highest = int(max(tail.max(initial=-1), head.max(initial=-1)))
    size = highest + 1 if n is None else n
    lowest = int(min(tail.min(initial=0), head.min(initial=0)))
    if lowest < 0 or highest >= size:
        bad = lowest if lowest < 0 else highest
        raise ValueError(f"src or dst holds node {bad}; allowed: 0 to {size - 1}")
    loops = tail == head
    if loops.any():
        warnings.warn(f"{int(loops.sum())} self-loops dropped", stacklevel=2)
        tail, head, prob = tail[~loops], head[~loops], prob[~loops]
    if undirected:
        tail, head = np.concatenate([tail, head]), np.concatenate([head, tail])
        prob = np.concatenate([prob, prob])
    order = np.argsort(head * size + tail, kind="stable")
    tail, head, prob = tail[order], head[order], prob[order]
    fresh = np.ones(len(tail), bool)
    fresh[1:] = (tail[1:] != tail[:-1]) | (head[1:] != head[:-1])
    if not fresh.all():
        if parallel == "error":
            at = int(np.argmin(fresh))
            raise ValueError(
                f"edge ({tail[at]}, {head[at]}) is repeated; allowed: distinct edges, "
                'or parallel="combine"'
            )
        prob = 1 - np.multiply.reduceat(1 - prob, np.flatnonzero(fresh))
        tail, head = tail[fresh], head[fresh]
    return ICGraph(
        src=jnp.asarray(tail, jnp.int32),
        dst=jnp.asarray(head, jnp.int32),
        p=jnp.asarray(prob, jnp.float32),
        in_start=jnp.asarray(np.searchsorted(head, np.arange(size + 1)), jnp.int32),
        by_src=jnp.asarray(np.argsort(tail, kind="stable"), jnp.int32),
        pull=_pull_rows(tail, head, size),
        n=size,
    )


@own_promotion()
def weighted_cascade(g: ICGraph) -> ICGraph:
    """Gives every edge probability 1 / in-degree of its head.

    Args:
      g: The graph, whose probabilities are replaced.

    Examples:
      >>> import jaxsim.cascades as jc
      >>> jc.weighted_cascade(jc.from_edges([0, 1, 0], [2, 2, 1])).p.tolist()
      [1.0, 0.5, 0.5]
    """
    return g.with_p(1 / g.in_degree().astype(jnp.float32)[g.dst])


@own_promotion()
def uniform(g: ICGraph, p: float | Float[Array, ""]) -> ICGraph:
    """Gives every edge the same probability.

    Args:
      g: The graph, whose probabilities are replaced.
      p: Probability of each edge, in [0, 1]. Traced.

    Examples:
      >>> import jaxsim.cascades as jc
      >>> jc.uniform(jc.from_edges([0, 1], [1, 2]), 0.25).p.tolist()
      [0.25, 0.25]
    """
    return g.with_p(jnp.asarray(p, jnp.float32))


@own_promotion()
def trivalency(
    g: ICGraph, key: PRNGKeyArray, levels: tuple[float, ...] = (0.1, 0.01, 0.001)
) -> ICGraph:
    """Gives every edge one of a few probabilities, drawn uniformly.

    Args:
      g: The graph, whose probabilities are replaced.
      key: Random key.
      levels: Probabilities to draw from, each in [0, 1].

    Examples:
      >>> import jax
      >>> import jaxsim.cascades as jc
      >>> g = jc.from_edges([0, 1], [1, 2])
      >>> jc.trivalency(g, jax.random.key(0), (0.5,)).p.tolist()
      [0.5, 0.5]
    """
    return g.with_p(jax.random.choice(key, jnp.asarray(levels, jnp.float32), (g.m,)))


def from_scipy(matrix: Any) -> ICGraph:
    """Converts a scipy sparse matrix: entry (u, v) is the probability of the edge u -> v.

    Args:
      matrix: Square sparse matrix with entries in [0, 1]; entry (u, v) is the edge u -> v.

    Returns:
      The graph; explicit zeros stay edges of probability 0.

    Raises:
      ValueError: A matrix that is not square, or an entry outside [0, 1].

    Examples:
      >>> import scipy.sparse
      >>> import jaxsim.cascades as jc
      >>> g = jc.from_scipy(scipy.sparse.coo_matrix(([0.5], ([0], [1])), (3, 3)))
      >>> g.n, g.m, g.p.tolist()
      (3, 1, [0.5])
    """
    rows, columns = matrix.shape
    if rows != columns:
        raise ValueError(f"matrix has shape {matrix.shape}; allowed: square")
    coo = matrix.tocoo()
    coo.sum_duplicates()
    return from_edges(
        coo.row.astype(np.int64), coo.col.astype(np.int64), coo.data.astype(np.float64), rows
    )


def check_seeds(g: ICGraph, seeds: Int[ArrayLike, " k"] | Sequence[int]) -> None:
    """Refuses seeds outside a graph; traced ones are not looked at.

    Args:
      g: The graph.
      seeds: Node ids in [0, n), or -1.

    Raises:
      ValueError: A concrete id outside that range.
    """
    if not any(map(is_traced, jax.tree.leaves(seeds))):
        ids = np.asarray(seeds)
        if ids.size and not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(f"seeds has dtype {ids.dtype}; allowed: integers")
        bad = (ids < -1) | (ids >= g.n)
        if bad.any():
            raise ValueError(f"seeds holds {ids[bad].flat[0]}; allowed: 0 to {g.n - 1}, -1 to pad")


@own_promotion()
def seed_mask(g: ICGraph, seeds: Int[ArrayLike, " k"] | Sequence[int]) -> Bool[Array, " n"]:
    """Turns seed ids into a mask; -1 pads and repeated ids count once.

    Args:
      g: The graph.
      seeds: Node ids in [0, n), or -1; traced values are clipped to that by dropping the rest.

    Returns:
      True at each seed.

    Raises:
      ValueError: A concrete id outside that range.
    """
    check_seeds(g, seeds)
    ids = jnp.asarray(seeds, jnp.int32)
    return jnp.zeros(g.n, bool).at[jnp.where(ids < 0, g.n, ids)].set(True, mode="drop")


def concrete(x: Array) -> np.ndarray | None:
    """The value of `x` as numpy, or None where it is being traced.

    Args:
      x: An array.
    """
    return None if is_traced(x) else np.asarray(x)
