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
from jaxsim.cores.partition import Partitioned
from jaxsim.internals import compile_count
from jaxsim.network.cuts import cuts, equations
from jaxsim.network.stages import StageParams, Stages, run_stage, split
from jaxsim.staged.rows import (
    ExitLayout,
    abstract_leaves,
    batch_first,
    boundary_values,
    exit_layout,
    select_union,
    without_exits,
)
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
      step: `(at, …) -> ExitStep`, `stage_and_exit` of this plan, compiled for each stage.
    """

    cut: Stages
    boundary: tuple[tuple[tuple[int, int], ...], ...]
    layout: ExitLayout
    feature: Feature
    patience: int
    first: int
    ranges: Literal["batch", "stored", "missing"]
    step: Any = None


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
    """

    live: list[Array]
    answer: Answer | None
    streak: PatienceState


def prepared(
    net: Staged,
    arguments: Partitioned,
    batched: tuple[bool, ...],
    others: tuple[str, ...] = (),
) -> Prepared:
    """Builds the stages of a call, kept for calls of the same shapes.

    Args:
      net: Network with exits.
      arguments: Arguments of the call; they may be shapes.
      batched: True for each of their arrays that holds rows, from `find_rows`.
      others: Names of sites before which it is cut beside its exits.

    Raises:
      ValueError: A cut that does not exist any more, classifiers that do not fit, or what
        `exit_layout` raises.
    """
    leaves_, treedef = jax.tree.flatten((net, arguments))
    return memoized(net, _prepared, treedef, abstract_leaves(leaves_), batched, others)


def _prepared(
    treedef: Any,
    shapes: tuple[jax.ShapeDtypeStruct, ...],
    batched: tuple[bool, ...],
    others: tuple[str, ...],
) -> Prepared:
    net, arguments = jax.tree.unflatten(treedef, shapes)
    found = exit_layout(net, arguments, batched, net.exits, net.feature, others)
    check_heads(net, found)
    line = equations(without_exits(net), arguments)
    cut = split(line, select_union(cuts(line), net.exits, others))
    plan = Prepared(
        cut, boundary_values(cut), found, net.feature, net.patience, net.first, net.ranges
    )
    step = jax.jit(partial(stage_and_exit, plan), static_argnums=0)
    _steps.add(step)
    return dataclasses.replace(plan, step=step)


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


def advance(
    plan: Prepared,
    at: int,
    own: StageParams,
    arguments: Sequence[Any],
    live: Sequence[Array],
    key: Any,
    part: Any,
) -> list[Array]:
    """Runs one stage: returns what crosses the cut behind it, or the logits.

    Args:
      plan: Stages of the call.
      at: Index of the stage.
      own: Parameters and states that it reads.
      arguments: Arguments that it reads.
      live: Boundary activations before it.
      key: Random key of the call, or None.
      part: Tells apart the read noise of batches.
    """
    stage, last = plan.cut.stages[at], len(plan.boundary)
    known = dict(zip(plan.boundary[at - 1] if at else (), live, strict=True))
    outputs = run_stage(
        stage,
        own,
        [jnp.asarray(a) for a in arguments],
        [known[source] for source in stage.sources],
        ranges=plan.ranges,
        key=key,
        part=part,
    )
    known.update({(at, i): y for i, y in enumerate(outputs)})
    return [known[source] for source in (plan.boundary[at] if at < last else plan.cut.outputs)]


def stage_and_exit(
    plan: Prepared,
    at: int,
    own: StageParams,
    head: Head | None,
    threshold: Any,
    arguments: Sequence[Any],
    live: Sequence[Array],
    streak: PatienceState,
    key: Any,
    part: Any,
) -> ExitStep:
    """Runs one stage, and decides at its end where an exit stands there.

    Args:
      plan: Stages of the call.
      at: Index of the stage.
      own: Parameters and states that it reads.
      head: Classifier of this exit; None for the last, which is the network's, and where none is.
      threshold: Uncertainty below which rows leave.
      arguments: Arguments that it reads.
      live: Boundary activations before it.
      streak: State of patience.
      key: Random key of the call, or None.
      part: Tells apart the read noise of batches.
    """
    after = advance(plan, at, own, arguments, live, key, part)
    number = (*plan.layout.exits, len(plan.layout.widths))[at]
    if number is None:
        return ExitStep(after, None, streak)
    if head is None:
        (logits,), after = after, []
    else:
        logits = apply_head(head, plan.feature(batch_first(after, plan.layout.axes[at])))
    rule = Rule(threshold, plan.patience, plan.first)
    leave, uncertainty, streak = should_exit(rule, logits, streak, number + 1)
    return ExitStep(after, Answer(logits, leave, uncertainty), streak)


_steps: weakref.WeakSet[Any] = weakref.WeakSet()
"""Compiled steps of all networks that live."""


def live_steps() -> list[Any]:
    """Lists the compiled steps of all networks that live; none goes while the list is there."""
    return list(_steps)


def count_programs() -> int:
    """Counts the programs that `run` and `warm_up` hold compiled, one per stage and batch size."""
    return compile_count(*live_steps())
