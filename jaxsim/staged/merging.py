"""Tokens that are merged into others at a cut, and where that has a meaning.

A token that is merged stands for several. What is known of tokens before anything is computed (a
position, a mask) stays that of the token which others are merged into; what a model says of pairs
of places (a causal mask, a bias by distance) would be of several places at once, and is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax.extend.core as jex
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxsim.internals import Atom, jaxpr_of
from jaxsim.network.cuts import Equations, active_equations, cuts, variables_of
from jaxsim.network.plan import Entry
from jaxsim.network.stacks import Place
from jaxsim.network.taps import live_at
from jaxsim.sparsity.channels.axis_rules import describe_place
from jaxsim.staged.attention import Attention, computed_values
from jaxsim.staged.early import counts_tokens
from jaxsim.staged.token_layout import TokenLayout
from jaxsim.staged.token_marks import Marks, Scores, Values
from jaxsim.staged.token_walk import TokenState, marked_equation


class Merge(NamedTuple):
    """An equation that merges tokens.

    Attributes:
      axes: For each operand the axis that holds rows, and the one that holds tokens.
    """

    axes: tuple[tuple[int, int], ...]

    def of(
        self, values: Sequence[Array], state: TokenState, into: Int[Array, "B n"]
    ) -> list[Array]:
        """Averages tokens of each operand.

        Args:
          values: Operands.
          state: Which tokens were there, and how many each stood for.
          into: For each token the one that it is merged into, or itself.
        """
        pairs = zip(values, self.axes, strict=True)
        return [merged(x, rows, tokens, state, into) for x, (rows, tokens) in pairs]


class Merging(NamedTuple):
    """Equations of a call with those that merge tokens among them.

    Attributes:
      line: Equations.
      marks: What they do with tokens.
    """

    line: Equations
    marks: Marks


def merged(x: Array, rows: int, tokens: int, state: TokenState, into: Int[Array, "B n"]) -> Array:
    """Averages tokens that are merged, each by how many it stands for.

    Args:
      x: Value of tokens.
      rows: Its axis that holds the rows of the batch.
      tokens: Its axis that holds the tokens.
      state: Which were there, and how many each stood for.
      into: For each token the one that it is merged into, or itself.
    """
    assert state.size is not None
    moved = jnp.moveaxis(x, (rows, tokens), (0, 1))
    size = jnp.expand_dims(state.size.astype(x.dtype), tuple(range(2, x.ndim)))
    row = jnp.arange(len(into))[:, None]
    total = jnp.zeros_like(size).at[row, into].add(size)
    sums = jnp.zeros_like(moved).at[row, into].add(moved * size)
    mean = jnp.where(total > 0, sums / jnp.where(total > 0, total, 1), 0)
    return jnp.moveaxis(mean, (0, 1), (rows, tokens))


def merged_state(state: TokenState, into: Int[Array, "B n"]) -> TokenState:
    """Which tokens are there once some are merged, and how many each stands for.

    Args:
      state: Which were there, and how many each stood for.
      into: For each token the one that it is merged into, or itself.
    """
    assert state.size is not None
    row = jnp.arange(len(into))[:, None]
    present = state.present & (into == jnp.arange(into.shape[1]))
    return state._replace(
        present=present, size=jnp.zeros_like(state.size).at[row, into].add(state.size)
    )


def merging_leave(
    tokens: TokenLayout, places: Sequence[str], leave: Sequence[bool] | None
) -> tuple[bool, ...]:
    """Tells for each attention if tokens are merged behind it; not where nothing is cut behind.

    Args:
      tokens: Where tokens leave.
      places: Names of the cuts of stages.
      leave: For each attention, False where none is merged; None where any may be.

    Raises:
      ValueError: Another cut lies within an attention or between one and where its tokens are
        merged, or one is that of two attentions.
    """
    at = {cut.name: cut.at for cut in cuts(tokens.line)}
    _check_whole(tokens, {name: at[name] for name in places})
    named = [name for name in tokens.cuts if name is not None]
    if len(set(named)) < len(named):
        raise ValueError(
            "merge: two attentions stand before one cut, where each would merge tokens"
        )
    found = list[bool]()
    for i, name in enumerate(tokens.cuts):
        found.append(name is not None and (leave is None or leave[i]))
        if name is None or not found[-1]:
            continue
        ends = next((p for p, n in zip(places, tokens.layers[1:], strict=False) if n > i), name)
        if at[ends] < at[name]:
            raise ValueError(
                f"merge: the network is cut at {ends}, between {tokens.attention.names[i]} and "
                f"{name}, where its tokens are merged; cut elsewhere"
            )
    return tuple(found)


def _check_whole(tokens: TokenLayout, places: Mapping[str, int]) -> None:
    """Refuses a cut between the scores of an attention, whose keys are matched, and its values."""
    marks = sorted(tokens.attention.marks.items())
    scores = [path for path, mark in marks if isinstance(mark, Scores)]
    for path in (path for path, mark in marks if isinstance(mark, Values)):
        begin = max((own for own in scores if own < path), default=path)[0]
        for name, at in places.items():
            if begin < tokens.line.active[at] <= path[0]:
                raise ValueError(
                    f"merge: the network is cut at {name}, within an attention, whose keys are "
                    "matched where its values are read; cut elsewhere"
                )


def insert_merges(
    line: Equations, marks: Marks, attention: Attention, names: Collection[str]
) -> Merging:
    """Puts equations that merge tokens among those of a call.

    Args:
      line: Equations of a call, one a slice of a scan.
      marks: What they do with tokens.
      attention: Where they attend.
      names: Cuts at which tokens are merged.
    """
    jaxpr = line.plan.jaxpr
    at = {line.active[cut.at]: cut.at for cut in cuts(line) if cut.name in names}
    found: dict[int, Any] = {**marks.of}
    average: dict[Any, jex.Var] = {}
    eqns, entries, places = list[jex.JaxprEqn](), list[Entry](), list[Place]()

    def add(eqn: jex.JaxprEqn, entry: Entry, place: Place) -> None:
        eqns.append(eqn)
        entries.append(entry)
        places.append(place)

    for i, (eqn, entry, place) in enumerate(
        zip(jaxpr.eqns, line.plan.entries, line.places, strict=True)
    ):
        if i in at:
            live = _averaged(line, attention, at[i])
            axes = [(attention.row_axes(v)[0], attention.token_axes(v)[0]) for v in live]
            after = {v: jex.Var(v.aval) for v in live}
            made = marked_equation([average.get(v, v) for v in live], [*after.values()])
            found[id(made)] = Merge(tuple(axes))
            add(made, None, (place[0], place[1], -1))
            average.update(after)
        if not average.keys().isdisjoint(variables_of(eqn.invars)):
            mark = found.pop(id(eqn), None)
            eqn = eqn.replace(invars=[_at(average, v) for v in eqn.invars])
            if mark is not None:
                found[id(eqn)] = mark
        add(eqn, entry, place)
    consts = dict(zip(jaxpr.constvars, line.plan.consts, strict=True))
    outvars = [_at(average, v) for v in jaxpr.outvars]
    plan = line.plan._replace(
        jaxpr=jaxpr_of(consts, jaxpr.invars, outvars, eqns, jaxpr), entries=tuple(entries)
    )
    active = sorted({*range(line.early), *active_equations(eqns, line.arguments)})
    line = line._replace(plan=plan, active=tuple(active), places=tuple(places))
    return Merging(line, Marks(found, marks.inside))


def _averaged(line: Equations, attention: Attention, before: int) -> list[jex.Var]:
    """Values of tokens that cross a cut, but for those that are known beforehand."""
    early = {v for eqn in line.plan.jaxpr.eqns[: line.early] for v in eqn.outvars}
    return [v for v in live_at(line, before) if v not in early and attention.holds_tokens(v)]


def _at(average: Mapping[Any, jex.Var], atom: Atom) -> Atom:
    return atom if isinstance(atom, jex.Literal) else average.get(atom, atom)


def check_merging(tokens: TokenLayout) -> None:
    """Refuses to merge tokens of a model that reads pairs of places, or tokens without their sizes.

    Args:
      tokens: Where tokens leave.

    Raises:
      ValueError: Such a model, by the line that does it, or a cut at which tokens lie along two
        axes of a value or along one with something else.
    """
    line, attention = tokens.line, tokens.attention
    for cut in cuts(line):
        live = _averaged(line, attention, cut.at)
        alone = [(len(attention.row_axes(v)), len(attention.token_axes(v))) for v in live]
        if cut.name in tokens.cuts and set(alone) - {(1, 1)}:
            raise ValueError(
                f"merge: at {cut.name} tokens lie along two axes of a value, or along one with "
                "something else"
            )
    _check_pairs(line, attention)


def _check_pairs(line: Equations, attention: Attention) -> None:
    """Refuses a model that tells pairs of tokens apart by their places."""
    marks = [*attention.marks.values()]
    if sum(isinstance(m, Scores) for m in marks) > sum(isinstance(m, Values) for m in marks):
        raise ValueError(
            "merge: queries from elsewhere attend to the tokens, and would not know how many each "
            "stands for; keeps=js.tokens.top leaves tokens out instead"
        )
    jaxpr = line.plan.jaxpr
    computed = computed_values(line.plan, line.arguments)
    told = {v for v in (*jaxpr.invars, *jaxpr.constvars) if attention.token_axes(v)}
    pairs = [v for v in told if len(attention.token_axes(v)) > 1]
    if pairs:
        raise ValueError(f"merge: an argument or parameter {pairs[0].aval} {_OF_PAIRS}")
    for eqn in jaxpr.eqns:
        if not computed.isdisjoint(eqn.outvars):
            continue
        read = [v for v in variables_of(eqn.invars) if v in told]
        if not read and not counts_tokens(eqn, attention):
            continue
        told.update(eqn.outvars)
        paired = any(len(attention.token_axes(v)) > 1 for v in eqn.outvars)
        joins = len(read) > 1 and eqn.primitive.name not in ("mul", "and")
        looks_up = eqn.primitive.name == "gather"
        if paired and (joins or looks_up):
            raise ValueError(f"merge: {describe_place(eqn)} {_OF_PAIRS}")


_OF_PAIRS = (
    "tells pairs of tokens apart by their places (a causal mask, a bias by distance), and a merged "
    "token has several; keeps=js.tokens.top leaves tokens out instead"
)
