"""Exit step: one stage and the decision at its end, for `simulate` and `run` alike."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxsim.adaptive.features import Feature
from jaxsim.adaptive.heads import Head, apply_head
from jaxsim.adaptive.rule import PatienceState, Rule, should_exit
from jaxsim.adaptive.tokens import TokenRule, check_level_count
from jaxsim.cores.partition import Partitioned
from jaxsim.internals import compile_count, shape_of
from jaxsim.network.cuts import cuts, equations
from jaxsim.network.interpreter import Walk
from jaxsim.network.plan import Plan
from jaxsim.network.stages import StageParams, Stages, run_stage, split
from jaxsim.sparsity.channels.axes import Symbol
from jaxsim.staged.attention import marks_of
from jaxsim.staged.exit_layout import ExitLayout, exit_layout
from jaxsim.staged.merging import merged, merged_state, merging_leave
from jaxsim.staged.resize import resize
from jaxsim.staged.rows import (
    abstract_leaves,
    batch_first,
    boundary_values,
    computed_rows,
    find_rows,
    select_union,
    with_batch_size,
    without_exits,
)
from jaxsim.staged.token_layout import cuts_of, known_tokens, runs_alike
from jaxsim.staged.token_marks import Mark, Marks
from jaxsim.staged.token_walk import TokenState, TokenWalk
from jaxsim.values.memo import memoized

if TYPE_CHECKING:
    from jaxsim.staged.network import Staged


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
    """Stages for one number of rows; kept, and compared by identity.

    Attributes:
      cut: Stages of the network.
      boundary: For each cut the values that cross it, each as a stage and a position among its
        outputs.
      layout: Batch axes, widths and costs, which hold for any number of rows.
      feature: Function from boundary activations to the features that classifiers read.
      patience, first: Static part of the rule.
      ranges: Where cores take ranges from, as `Network.ranges`.
      tokens: Where tokens leave its stages; None where all stay.
      twice: True if its equations are of two rows, and one is run beside a copy of itself.
      step: `(at, …) -> ExitStep`, `stage_and_exit` of this plan, compiled for each stage.
      sized: Plans of fewer tokens, by their number.
    """

    cut: Stages
    boundary: tuple[tuple[tuple[int, int], ...], ...]
    layout: ExitLayout
    feature: Feature
    patience: int
    first: int
    ranges: Literal["batch", "stored", "missing"]
    tokens: TokenPlan | None = None
    twice: bool = False
    step: Any = None
    sized: dict[int, Prepared] = dataclasses.field(default_factory=dict)


class TokenPlan(NamedTuple):
    """Where tokens leave the stages of a call.

    Attributes:
      marks: What equations do with tokens.
      rowed: True for each argument of the call that holds rows.
      leave: For each attention, False where no token leaves; None where any may.
      row_by_row: Stages that run one row at a time.
    """

    marks: Marks
    rowed: tuple[bool, ...]
    leave: tuple[bool, ...] | None = None
    row_by_row: frozenset[int] = frozenset()


class Answer(NamedTuple):
    """What an exit says of the rows that reach it.

    Attributes:
      logits: Logits [B, C].
      leave: True for the rows that leave, [B].
      uncertainty: Normalized entropy of the logits, [B].
    """

    logits: Array
    leave: Array
    uncertainty: Array


class ExitStep(NamedTuple):
    """Result of a stage and its exit.

    Attributes:
      live: Boundary activations for the next stage.
      answer: What this exit says; None behind a stage at whose end only a device takes over.
      streak: State of patience after this exit.
      tokens: Which tokens are there, if it is known.
      kept: How many tokens each attention of the stage has kept, [B] each.
    """

    live: list[Array]
    answer: Answer | None
    streak: PatienceState
    tokens: TokenState | None = None
    kept: tuple[Array, ...] = ()


def prepared(
    net: Staged,
    arguments: Partitioned,
    batched: tuple[bool, ...],
    others: tuple[str, ...] = (),
    leave: tuple[bool, ...] | None = None,
) -> Prepared:
    """Builds the stages of a call, kept for calls of the same shapes.

    Args:
      net: Network with exits.
      arguments: Arguments of the call; they may be shapes.
      batched: True for each of their arrays that holds rows, from `find_rows`.
      others: Names of sites before which it is cut beside its exits.
      leave: For each attention, False where no token leaves; None where any may.

    Raises:
      ValueError: A cut that does not exist any more, classifiers that do not fit, or what
        `exit_layout` raises.
    """
    leaves_, treedef = jax.tree.flatten((net, arguments))
    return memoized(net, _prepared, treedef, abstract_leaves(leaves_), batched, others, leave)


def _prepared(
    treedef: Any,
    shapes: tuple[jax.ShapeDtypeStruct, ...],
    batched: tuple[bool, ...],
    others: tuple[str, ...],
    leave: tuple[bool, ...] | None,
) -> Prepared:
    net, arguments = jax.tree.unflatten(treedef, shapes)
    found = exit_layout(net, arguments, batched, net.exits, net.feature, others, leave)
    check_heads(net, found)
    line, tokens, twice = equations(without_exits(net), arguments), None, False
    if found.tokens is not None:
        if find_rows(arguments)[0] == 1 and not runs_alike(found.tokens, line):
            arguments, twice = with_batch_size(arguments, batched, 2), True
            line = equations(without_exits(net), arguments)
        check_level_count(net.tokens.level, len(found.tokens.attention.names))
        line, attention = known_tokens(found.tokens, line)
        others = (*others, *cuts_of(found.tokens, leave))
        own = merging_leave(found.tokens, found.places, leave) if net.tokens.merges else leave
        tokens = TokenPlan(marks_of(line, attention), batched, own)
    cut = split(line, select_union(cuts(line), net.exits, others))
    return with_step(
        Prepared(
            cut=cut,
            boundary=boundary_values(cut),
            layout=found,
            feature=net.feature,
            patience=net.patience,
            first=net.first,
            ranges=net.ranges,
            tokens=tokens,
            twice=twice,
        )
    )


def with_step(plan: Prepared) -> Prepared:
    """Gives a plan a step of its own, compiled for each stage.

    Args:
      plan: Stages for one number of rows.
    """
    step = jax.jit(partial(stage_and_exit, plan), static_argnums=0)
    _steps.add(step)
    return dataclasses.replace(plan, step=step)


def of_tokens(plan: Prepared, count: int) -> Prepared:
    """Gives the stages behind the first another number of tokens; kept.

    Args:
      plan: Stages for one number of rows, at all tokens.
      count: Number of tokens.

    Raises:
      ValueError: As `resize` raises.
    """
    if count not in plan.sized:
        plan.sized[count] = _of_tokens(plan, count)
    return plan.sized[count]


def _of_tokens(plan: Prepared, count: int) -> Prepared:
    tokens = plan.tokens
    assert tokens is not None
    stages, alone = [plan.cut.stages[0]], set[int]()
    marks, inside = dict[int, Mark](), set[int]()
    for at, stage in enumerate(plan.cut.stages[1:], 1):
        made = sized_stage(plan, at, count)
        stages.append(stage._replace(plan=made.plan))
        marks.update(made.marks.of)
        inside |= made.marks.inside
        alone |= {at} if made.row_by_row else set()
    own = tokens._replace(marks=Marks(marks, frozenset(inside)), row_by_row=frozenset(alone))
    cut = plan.cut._replace(stages=tuple(stages))
    return with_step(dataclasses.replace(plan, cut=cut, tokens=own, sized={}))


class SizedStage(NamedTuple):
    """Equations of a stage for fewer tokens.

    Attributes:
      plan: Equations and their meaning.
      marks: What they do with tokens.
      row_by_row: Whether they are of one row, since something known of its tokens is its own.
    """

    plan: Plan
    marks: Marks
    row_by_row: bool


def sized_stage(plan: Prepared, at: int, count: int, *, together: bool = False) -> SizedStage:
    """Rewrites the equations of a stage behind the first for fewer tokens.

    Args:
      plan: Stages for one number of rows, at all tokens.
      at: Index of the stage, at least 1.
      count: Number of tokens.
      together: Whether they stay of all rows: to be counted, not run.

    Raises:
      ValueError: As `resize` raises.
    """
    found, tokens, stage = plan.layout, plan.tokens, plan.cut.stages[at]
    assert tokens is not None
    assert found.tokens is not None
    here = {source: i for i, source in enumerate(plan.boundary[at - 1])}
    crossing = [here[source] for source in stage.sources]
    rows = [found.axes[at - 1][i] for i in crossing]
    along = [found.tokens.axes[at - 1][i] for i in crossing]
    row_by_row = any(r is None and t for r, t in zip(rows, along, strict=True))
    first = len(stage.plan.jaxpr.invars) - len(crossing) - len(stage.arguments)
    shapes = [shape_of(v).shape for v in stage.plan.jaxpr.invars]
    groups = [[Symbol(n) for n in shape] for shape in shapes]
    batch, token = Symbol(_rows_of(plan, at)), Symbol(found.tokens.length)
    given, live = (
        groups[first : first + len(stage.arguments)],
        groups[len(groups) - len(rows) :],
    )
    for i, own in zip(stage.arguments, given, strict=True):
        if tokens.rowed[i]:
            own[0] = batch
    for own, r, ts in zip(live, rows, along, strict=True):
        if r is not None:
            own[r] = batch
        for t in ts:
            own[t] = token
    sizes = {token: count, **({batch: 1} if row_by_row and not together else {})}
    made = resize(stage.plan, groups, sizes, tokens.marks)
    return SizedStage(made.plan, made.marks, row_by_row)


def _rows_of(plan: Prepared, at: int) -> int:
    """Number of rows of a stage, from what crosses the cut before it."""
    for (s, i), axis in zip(plan.boundary[at - 1], plan.layout.axes[at - 1], strict=True):
        if axis is not None:
            return plan.cut.stages[s].outputs[i].shape[axis]
    raise ValueError("run: nothing that holds rows crosses a cut")


def check_heads(net: Staged, found: ExitLayout) -> None:
    """Checks that classifiers fit the features that they read.

    Args:
      net: Network with exits.
      found: Widths of its exits.

    Raises:
      ValueError: One does not.
    """
    for i, (head, width) in enumerate(zip(net.heads, found.widths, strict=True)):
        if head["kernel"].shape != (width, found.classes):
            raise ValueError(
                f"heads[{i}]: a kernel {list(head['kernel'].shape)} where "
                f"{[width, found.classes]} is needed; another transform has changed the features: "
                "exit_early and distill_exits after it"
            )


class Advanced(NamedTuple):
    """What a stage leaves.

    Attributes:
      live: What crosses the cut behind it, or the logits.
      tokens: Which tokens are there, if it is known.
      kept: How many each attention of the stage has kept, [B] each.
      into: For each token the one that it is to be merged into, [B, n]; None where none is.
    """

    live: list[Array]
    tokens: TokenState | None = None
    kept: tuple[Array, ...] = ()
    into: Array | None = None


class StageInputs(NamedTuple):
    """What a stage is given for some rows; a pytree.

    Attributes:
      own: Parameters and states that it reads.
      arguments: Arguments that it reads.
      live: Boundary activations before it.
      key: Random key of the call, or None.
      part: Tells apart the read noise of batches.
      rule: When a token leaves; None where all stay.
      tokens: Which are there, if it is known.
    """

    own: StageParams
    arguments: Sequence[Any]
    live: Sequence[Array]
    key: Any
    part: Any = None
    rule: TokenRule | None = None
    tokens: TokenState | None = None


def advance(plan: Prepared, at: int, given: StageInputs) -> Advanced:
    """Runs one stage: returns what crosses the cut behind it, or the logits.

    Args:
      plan: Stages of the call.
      at: Index of the stage.
      given: What it is given.
    """
    run = _twice if plan.twice else _advance
    if plan.tokens is not None and at in plan.tokens.row_by_row:
        run = _row_by_row
    return _merged(plan, at, run(plan, at, given))


def _merged(plan: Prepared, at: int, out: Advanced) -> Advanced:
    """What a stage leaves once its tokens are merged; what is known of one stays its own."""
    if out.into is None:
        return out
    found, tokens, into = plan.layout, out.tokens, out.into
    assert found.tokens is not None
    assert tokens is not None
    axes = zip(found.axes[at], found.tokens.axes[at], found.tokens.known[at], strict=True)
    live = [
        a if rows is None or known or not along else merged(a, rows, along[0], tokens, into)
        for a, (rows, along, known) in zip(out.live, axes, strict=True)
    ]
    return Advanced(live, merged_state(tokens, into), out.kept)


def _advance(plan: Prepared, at: int, given: StageInputs) -> Advanced:
    stage, last = plan.cut.stages[at], len(plan.boundary)
    known = dict(zip(plan.boundary[at - 1] if at else (), given.live, strict=True))
    walks: list[TokenWalk] = []

    def walk(*settings: Any, part: Any) -> TokenWalk:
        assert plan.tokens is not None
        assert given.rule is not None
        assert plan.layout.tokens is not None
        made = TokenWalk(
            *settings,
            part=part,
            rule=given.rule,
            marks=plan.tokens.marks,
            leave=plan.tokens.leave,
            layer=plan.layout.tokens.layers[at],
            tokens=given.tokens,
        )
        walks.append(made)
        return made

    outputs = run_stage(
        stage,
        given.own,
        [jnp.asarray(a) for a in given.arguments],
        [known[source] for source in stage.sources],
        ranges=plan.ranges,
        key=given.key,
        part=given.part,
        walk=Walk if plan.tokens is None else walk,
    )
    known.update({(at, i): y for i, y in enumerate(outputs)})
    after = [known[source] for source in (plan.boundary[at] if at < last else plan.cut.outputs)]
    for made in walks:
        return Advanced(after, made.tokens, tuple(made.kept), made.into)
    return Advanced(after)


def _rowed(plan: Prepared, at: int) -> list[bool]:
    """Which of the arguments that a stage reads hold rows."""
    assert plan.tokens is not None
    return [plan.tokens.rowed[i] for i in plan.cut.stages[at].arguments]


def _ends(plan: Prepared, at: int) -> tuple[Sequence[int | None], Sequence[int | None]]:
    """Axes that hold the rows of what a stage takes, and of what it gives."""
    axes = plan.layout.axes
    return axes[at - 1] if at else (), (*axes, (0,))[at]


def _twice(plan: Prepared, at: int, given: StageInputs) -> Advanced:
    """Runs a stage for one row beside a copy of it, as its equations are of two."""
    before, after = _ends(plan, at)
    pairs = zip(given.arguments, _rowed(plan, at), strict=True)
    arguments = [jnp.repeat(jnp.asarray(a), 2, 0) if own else a for a, own in pairs]
    live = [
        a if i is None else jnp.repeat(a, 2, i) for a, i in zip(given.live, before, strict=True)
    ]
    tokens = jax.tree.map(lambda a: jnp.repeat(a, 2, 0), given.tokens)
    out = _advance(plan, at, given._replace(arguments=arguments, live=live, tokens=tokens))
    left = [
        a if i is None else jax.lax.slice_in_dim(a, 0, 1, axis=i)
        for a, i in zip(out.live, after, strict=True)
    ]
    return Advanced(left, *jax.tree.map(lambda a: a[:1], (out.tokens, out.kept, out.into)))


def _row_by_row(plan: Prepared, at: int, given: StageInputs) -> Advanced:
    """Runs a stage one row at a time, as what is known of its tokens differs by row."""
    assert given.tokens is not None
    before, after = _ends(plan, at)
    row = jnp.arange(len(given.tokens.there))

    def one(row: Array, arguments: list[Any], live: list[Any], tokens: TokenState) -> Advanced:
        key = None if given.key is None else jax.random.fold_in(given.key, row)
        live = [a if i is None else a[None] for a, i in zip(live, before, strict=True)]
        live = [
            a if i is None else jnp.moveaxis(a, 0, i) for a, i in zip(live, before, strict=True)
        ]
        tokens = jax.tree.map(lambda a: a[None], tokens)
        own = given._replace(arguments=arguments, live=live, key=key, tokens=tokens)
        out = _advance(plan, at, own)
        left = [a if i is None else jnp.squeeze(a, i) for a, i in zip(out.live, after, strict=True)]
        return Advanced(left, *jax.tree.map(lambda a: a[0], (out.tokens, out.kept, out.into)))

    live = zip(given.live, before, strict=True)
    rows = [a if i is None else jnp.moveaxis(a, i, 0) for a, i in live]
    rowed = _rowed(plan, at)
    pairs = zip(given.arguments, rowed, strict=True)
    arguments = [jnp.asarray(a)[:, None] if own else a for a, own in pairs]
    split = [0 if own else None for own in rowed]
    out = jax.vmap(one, in_axes=(0, split, 0, 0))(row, arguments, rows, given.tokens)
    left = [a if i is None else jnp.moveaxis(a, 0, i) for a, i in zip(out.live, after, strict=True)]
    return Advanced(left, out.tokens, out.kept, out.into)


def features_of(plan: Prepared, at: int, live: Sequence[Array], tokens: TokenState | None) -> Array:
    """Computes what the classifier behind a stage reads.

    Args:
      plan: Stages of the call.
      at: Index of the stage.
      live: What crosses the cut behind it.
      tokens: Which tokens are there, if it is known.
    """
    found = plan.layout
    if found.tokens is None:
        return plan.feature(batch_first(live, found.axes[at]))
    rows = computed_rows(live, found.axes[at], found.tokens.known[at])
    return plan.feature(rows) if tokens is None else plan.feature(rows, tokens.present)


def stage_and_exit(
    plan: Prepared,
    at: int,
    given: StageInputs,
    head: Head | None,
    threshold: Any,
    streak: PatienceState,
) -> ExitStep:
    """Runs one stage, and decides at its end where an exit stands there.

    Args:
      plan: Stages of the call.
      at: Index of the stage.
      given: What the stage is given.
      head: Classifier of this exit; None for the last, which is the network's, and where none is.
      threshold: Uncertainty below which rows leave.
      streak: State of patience.
    """
    after, tokens, kept, _ = advance(plan, at, given)
    number = (*plan.layout.exits, len(plan.layout.widths))[at]
    if number is None:
        return ExitStep(after, None, streak, tokens, kept)
    if head is None:
        (logits,), after = after, []
    else:
        logits = apply_head(head, features_of(plan, at, after, tokens))
    leaving = Rule(threshold, plan.patience, plan.first)
    leave, uncertainty, streak = should_exit(leaving, logits, streak, number + 1)
    return ExitStep(after, Answer(logits, leave, uncertainty), streak, tokens, kept)


_steps: weakref.WeakSet[Any] = weakref.WeakSet()
"""Compiled steps of all networks that live."""


def live_steps() -> list[Any]:
    """Lists the compiled steps of all networks that live; none goes while the list is there."""
    return list(_steps)


def count_programs() -> int:
    """Counts the programs that `run` and `warm_up` hold compiled, one per stage and batch size."""
    return compile_count(*live_steps())
