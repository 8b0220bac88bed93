"""Observed cascades: sampled from a graph, or read from a record."""

import functools
from collections.abc import Sequence
from os import PathLike
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PRNGKeyArray, UInt32

from jaxsim.cascades import bits, packed
from jaxsim.cascades.graph import ICGraph, concrete
from jaxsim.cascades.simulate import batch_keys
from jaxsim.files.text import read_lines
from jaxsim.numerics import memory
from jaxsim.numerics.arrays import own_promotion

WORDS = 8  # words of cascades sampled together


class Cascades(NamedTuple):
    """Observed cascades, one a row.

    Examples:
      >>> import jax
      >>> import jaxsim.cascades as jc
      >>> seen = jc.from_steps([[[0], [1, 2]], [[2]]], n=3)
      >>> seen.t, seen.n, seen.final_size.tolist()
      (2, 3, [3, 1])
    """

    S0: Bool[Array, "t n"]
    """Seeds."""
    S1: Bool[Array, "t n"]
    """Nodes that became active at step 1; disjoint from `S0`."""
    step: Int[Array, "t n"] | None
    """Time step at which each node became active, -1 for never (int16); None if not recorded."""
    final_size: Int[Array, " t"]
    """Number of active nodes in the end."""

    @property
    def t(self) -> int:
        """Number of cascades."""
        return self.S0.shape[0]

    @property
    def n(self) -> int:
        """Number of nodes."""
        return self.S0.shape[1]


@own_promotion()
def sample_cascades(
    g: ICGraph,
    q: Float[ArrayLike, " n"] | Sequence[float],
    key: PRNGKeyArray,
    t: int,
    *,
    record: Literal["one_step", "steps"] = "one_step",
) -> Cascades:
    """Samples cascades whose seeds are drawn node by node.

    Args:
      g: The graph.
      q: Probability that each node is a seed, [n] in [0, 1], or one for all.
      key: Random key.
      t: Number of cascades, at least 1.
      record: "one_step" keeps seeds, first activations and final size; "steps" also keeps when
        each node became active.

    Returns:
      The cascades.

    Raises:
      ValueError: t below 1, q outside [0, 1] or of another shape.
      MemoryError: The record exceeds `memory.LIMIT`.

    Examples:
      >>> import jax
      >>> import jaxsim.cascades as jc
      >>> g = jc.from_edges([0], [1])
      >>> jc.sample_cascades(g, [1.0, 0.0], jax.random.key(0), 2).S1.tolist()
      [[False, True], [False, True]]
    """
    if t < 1:
        raise ValueError(f"t = {t}; allowed: at least 1")
    if record not in ("one_step", "steps"):
        raise ValueError(f"record = {record!r}; allowed: 'one_step', 'steps'")
    prob = jnp.asarray(q, jnp.float32)
    if prob.shape not in ((), (g.n,)):
        raise ValueError(f"q has shape {prob.shape}; allowed: () or ({g.n},)")
    value = concrete(prob)
    if value is not None and not ((value >= 0) & (value <= 1)).all():
        bad = value[~((value >= 0) & (value <= 1))].flat[0]
        raise ValueError(f"q holds {bad}; allowed: 0 to 1")
    cells = 2 if record == "one_step" else 4
    memory.check(f"a record of t = {t} cascades over n = {g.n}", t * g.n * cells, "lower t")
    batches = -(-t // (32 * WORDS))
    out = _sample(g, jnp.broadcast_to(prob, (g.n,)), batch_keys(key, batches), record == "steps")
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:t], out)


@functools.partial(jax.jit, static_argnames="steps")
@own_promotion()
def _sample(g: ICGraph, q: Array, keys: PRNGKeyArray, steps: bool) -> Cascades:
    def batch(key: PRNGKeyArray) -> Cascades:
        for_seeds, for_edges = jax.random.split(key)
        s0 = bits.bernoulli(jnp.arange(g.n), bits.threshold(q), bits.salts(for_seeds, WORDS))
        live = packed.draw_live(g, bits.salts(for_edges, WORDS))

        def advance(a: UInt32[Array, "n words"]) -> UInt32[Array, "n words"]:
            return packed.sweep(g, live, a)

        after = advance(s0)
        step = None
        if steps:

            def note(loop: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
                active, step, i = loop
                grown = advance(active)
                fresh = bits.unpack(grown & ~active)
                return grown, jnp.where(fresh, i.astype(jnp.int16), step), i + 1

            def unfinished(loop: tuple[Array, Array, Array]) -> Array:
                return jnp.any(advance(loop[0]) != loop[0])

            first = jnp.where(bits.unpack(s0), jnp.int16(0), jnp.int16(-1))
            end, step, _ = jax.lax.while_loop(unfinished, note, (s0, first, jnp.int32(1)))
            step = step.T
        else:
            end = packed.settle(advance, after, None)
        return Cascades(
            bits.unpack(s0).T,
            bits.unpack(after & ~s0).T,
            step,
            bits.count_per_simulation(end),
        )

    return jax.lax.map(batch, keys)


@own_promotion()
def from_steps(
    steps: Sequence[Sequence[ArrayLike | Sequence[int]]], n: int, *, cumulative: bool = False
) -> Cascades:
    """Builds cascades from the nodes active at each time step.

    Args:
      steps: Node ids for each time step, from 0, of each cascade.
      n: Number of nodes.
      cumulative: Whether each step lists every node active so far, rather than the new ones.

    Returns:
      The cascades.

    Raises:
      ValueError: No cascade, an id outside the graph, or a node that becomes active twice
        although `cumulative` is False.

    Examples:
      >>> import jaxsim.cascades as jc
      >>> jc.from_steps([[[0], [1, 2]]], n=4).step.tolist()
      [[0, 1, 1, -1]]
    """
    if not len(steps):
        raise ValueError("steps holds 0 cascades; allowed: at least 1")
    when = np.full((len(steps), n), -1, np.int16)
    for i, cascade in enumerate(steps):
        for s, listed in enumerate(cascade):
            ids = np.unique(np.asarray(listed, np.int64))
            if ids.size and (ids[0] < 0 or ids[-1] >= n):
                bad = ids[0] if ids[0] < 0 else ids[-1]
                raise ValueError(f"steps[{i}][{s}] holds node {bad}; allowed: 0 to {n - 1}")
            known = when[i, ids] >= 0
            if known.any() and not cumulative:
                raise ValueError(
                    f"steps[{i}][{s}] holds node {ids[known][0]}, active before; allowed: new "
                    "nodes only, or cumulative=True"
                )
            when[i, ids[~known]] = s
    return _from_when(when)


@own_promotion()
def from_arrays(
    S0: Bool[ArrayLike, "t n"] | Sequence[Sequence[bool]],
    S1: Bool[ArrayLike, "t n"] | Sequence[Sequence[bool]],
    final_size: Int[ArrayLike, " t"] | Sequence[int] | None = None,
    *,
    cumulative: bool = False,
) -> Cascades:
    """Builds one-step cascades from flags.

    Args:
      S0: Whether each node is a seed, [t, n].
      S1: Whether each node is active at step 1, [t, n]: the new ones, or with `cumulative`
        all of them.
      final_size: Number of active nodes in the end, [t]; by default those of the first two
        steps.
      cumulative: Whether `S1` includes `S0`.

    Returns:
      The cascades.

    Raises:
      ValueError: No cascade, unequal shapes, or S1 overlapping S0 although not cumulative.

    Examples:
      >>> import jaxsim.cascades as jc
      >>> jc.from_arrays([[True, False]], [[False, True]]).final_size.tolist()
      [2]
    """
    s0, s1 = np.asarray(S0, bool), np.asarray(S1, bool)
    if s0.ndim != 2 or s0.shape != s1.shape or not len(s0):
        raise ValueError(f"S0, S1 have shapes {s0.shape}, {s1.shape}; allowed: equal, (t >= 1, n)")
    both = s0 & s1
    if both.any() and not cumulative:
        i, v = np.argwhere(both)[0]
        raise ValueError(
            f"S1[{i}, {v}] is a seed; allowed: S1 disjoint from S0, or cumulative=True"
        )
    s1 = s1 & ~s0
    size = (s0 | s1).sum(1) if final_size is None else np.asarray(final_size)
    return Cascades(jnp.asarray(s0), jnp.asarray(s1), None, jnp.asarray(size, jnp.int32))


def from_events(events: Sequence[Sequence[tuple[int, float]]], n: int, *, width: float) -> Cascades:
    """Builds cascades from activation times, cut into time steps of one width.

    Args:
      events: (node, time) pairs of each cascade in any order; a node's first time counts.
      n: Number of nodes.
      width: Length of a time step, above 0; step 0 begins at the cascade's first event.

    Returns:
      The cascades; empty ones stay, as cascades without seeds.

    Raises:
      ValueError: No cascade, a width that is not positive, an id outside the graph, a time that
        is not finite.

    Examples:
      >>> import jaxsim.cascades as jc
      >>> jc.from_events([[(0, 10.0), (1, 12.5)]], n=2, width=1.0).step.tolist()
      [[0, 2]]
    """
    if not len(events):
        raise ValueError("events holds 0 cascades; allowed: at least 1")
    if not width > 0:
        raise ValueError(f"width = {width}; allowed: above 0")
    when = np.full((len(events), n), -1, np.int16)
    for i, cascade in enumerate(events):
        if not len(cascade):
            continue
        node = np.asarray([v for v, _ in cascade], np.int64)
        time = np.asarray([s for _, s in cascade], np.float64)
        if node.min() < 0 or node.max() >= n:
            bad = node.min() if node.min() < 0 else node.max()
            raise ValueError(f"events[{i}] holds node {bad}; allowed: 0 to {n - 1}")
        if not np.isfinite(time).all():
            raise ValueError(f"events[{i}] holds a time that is not finite; allowed: finite")
        steps = np.minimum((time - time.min()) // width, np.iinfo(np.int16).max)
        order = np.argsort(-steps, kind="stable")
        when[i, node[order]] = steps[order]
    return _from_when(when)


class LabeledCascades(NamedTuple):
    r"""Cascades and the names their nodes had in the file.

    Examples:
      >>> import pathlib, tempfile
      >>> import jaxsim.cascades as jc
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = pathlib.Path(folder, "cascades.txt")
      ...     _ = path.write_text("a,0 b,1\nb,5\n")
      ...     found = jc.load_cascades(path, width=1.0)
      >>> found.labels.tolist(), found.cascades.t
      (['a', 'b'], 2)
    """

    cascades: Cascades
    """The cascades, nodes numbered in order of appearance."""
    labels: np.ndarray
    """Name of node i in the file."""


def load_cascades(path: str | PathLike[str], *, width: float) -> LabeledCascades:
    r"""Reads a text file of one cascade a line: `node,time node,time ...`.

    Args:
      path: The file, in UTF-8; node names are any text without commas or white space. A field
        without a comma is skipped, as the cascade's own name; lines starting with # or % are
        comments.
      width: Length of a time step in the file's unit, above 0.

    Returns:
      The cascades and the node names.

    Raises:
      ValueError: A line that does not parse, with its number, another encoding, or a file
        without cascades.
      FileNotFoundError: No such file.

    Examples:
      >>> import pathlib, tempfile
      >>> import jaxsim.cascades as jc
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = pathlib.Path(folder, "cascades.txt")
      ...     _ = path.write_text("a,0 b,1\nb,5\n")
      ...     found = jc.load_cascades(path, width=1.0)
      >>> found.labels.tolist(), found.cascades.S0.tolist()
      (['a', 'b'], [[True, False], [False, True]])
    """
    index: dict[str, int] = {}
    events: list[list[tuple[int, float]]] = []
    for number, line in read_lines(path):
        pairs = [field.split(",") for field in line.split() if "," in field]
        if pairs:
            events.append([_event(path, number, pair, index) for pair in pairs])
    if not events:
        raise ValueError(f"path = {path} holds no cascade; allowed: lines of node,time pairs")
    memory.check(
        f"t = {len(events)} cascades over n = {len(index)}",
        4 * len(events) * len(index),
        "cut the file",
    )
    cascades = from_events(events, len(index), width=width)
    return LabeledCascades(cascades, np.asarray(list(index)))


def _event(
    path: str | PathLike[str], number: int, pair: list[str], index: dict[str, int]
) -> tuple[int, float]:
    """A node, numbered in order of appearance, and its time."""
    try:
        name, when = pair
        time = float(when)
    except ValueError:
        name, time = "", float("nan")
    if not name or not np.isfinite(time):
        raise ValueError(
            f"path = {path}, line {number}: {','.join(pair)!r}; allowed: node,time with a finite "
            "time"
        )
    return index.setdefault(name, len(index)), time


@own_promotion()
def _from_when(when: Int[np.ndarray, "t n"]) -> Cascades:
    return Cascades(
        jnp.asarray(when == 0),
        jnp.asarray(when == 1),
        jnp.asarray(when),
        jnp.asarray((when >= 0).sum(1), jnp.int32),
    )
