"""One stage and the decision at its end, for `simulate` and `run` alike."""

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
from jaxsim.adaptive.heads import Head, classified
from jaxsim.adaptive.rows import (
    Outline,
    abstract_leaves,
    batch_first,
    crossing,
    outline,
    without_exits,
)
from jaxsim.adaptive.rule import Rule, Streak, leaves
from jaxsim.cores.partition import Parts
from jaxsim.internals import compile_count
from jaxsim.network.cuts import chosen, cuts, equations
from jaxsim.network.stages import Held, Stages, run_stage, split
from jaxsim.values.memo import memoized

if TYPE_CHECKING:
    from jaxsim.adaptive.exits import EarlyExit


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
    """Stages for one number of rows; kept, and compared by identity.

    Attributes:
      cut: the stages.
      crossing: for each cut the values that cross it, each as a stage and a position among its
        outputs.
      outline: what holds for any number of rows.
      feature: what classifiers read.
      patience, first: of the rule.
      ranges: where cores take ranges from.
      step: `(at, …) -> Decided`, `stage_and_exit` of this plan, compiled for each stage.
    """

    cut: Stages
    crossing: tuple[tuple[tuple[int, int], ...], ...]
    outline: Outline
    feature: Feature
    patience: int
    first: int
    ranges: Literal["batch", "stored", "missing"]
    step: Any = None


class Decided(NamedTuple):
    """What a step gives: values for the next one, and for each row whether it leaves with what."""

    live: list[Array]
    logits: Array
    leave: Array
    uncertainty: Array
    streak: Streak


def prepared(net: EarlyExit, arguments: Parts, rowed: tuple[bool, ...]) -> Prepared:
    """The stages of a call, kept for calls of the same shapes.

    Args:
      net: the network.
      arguments: of the call; they may be shapes.
      rowed: which of their arrays hold rows, from `with_rows`.

    Raises:
      ValueError: what `outline` raises, a cut that is no more, or classifiers that do not fit.
    """
    leaves_, treedef = jax.tree.flatten((net, arguments))
    return memoized(net, _prepared, treedef, abstract_leaves(leaves_), rowed)


def _prepared(
    treedef: Any, shapes: tuple[jax.ShapeDtypeStruct, ...], rowed: tuple[bool, ...]
) -> Prepared:
    net, arguments = jax.tree.unflatten(treedef, shapes)
    found = outline(net, arguments, rowed, net.cuts, net.feature)
    for i, (head, width) in enumerate(zip(net.heads, found.widths, strict=True)):
        if head["kernel"].shape != (width, found.classes):
            raise ValueError(
                f"heads[{i}]: a kernel {list(head['kernel'].shape)} where "
                f"{[width, found.classes]} is needed; another transform has changed the features: "
                "exit_early and distill_exits after it"
            )
    line = equations(without_exits(net), arguments)
    cut = split(line, chosen(cuts(line), net.cuts, argument="exits"))
    plan = Prepared(cut, crossing(cut), found, net.feature, net.patience, net.first, net.ranges)
    step = jax.jit(partial(stage_and_exit, plan), static_argnums=0)
    _steps.add(step)
    return dataclasses.replace(plan, step=step)


def advance(
    plan: Prepared,
    at: int,
    own: Held,
    arguments: Sequence[Any],
    live: Sequence[Array],
    key: Any,
    part: Any,
) -> list[Array]:
    """One stage: what crosses the cut behind it, or the logits."""
    stage, last = plan.cut.stages[at], len(plan.crossing)
    known = dict(zip(plan.crossing[at - 1] if at else (), live, strict=True))
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
    return [known[source] for source in (plan.crossing[at] if at < last else plan.cut.outputs)]


def stage_and_exit(
    plan: Prepared,
    at: int,
    own: Held,
    head: Head | None,
    threshold: Any,
    arguments: Sequence[Any],
    live: Sequence[Array],
    streak: Streak,
    key: Any,
    part: Any,
) -> Decided:
    """One stage, and at its end the decision."""
    after = advance(plan, at, own, arguments, live, key, part)
    if head is None:
        (logits,), after = after, []
    else:
        logits = classified(head, plan.feature(batch_first(after, plan.outline.axes[at])))
    rule = Rule(threshold, plan.patience, plan.first)
    return Decided(after, logits, *leaves(rule, logits, streak, at + 1))


_steps: weakref.WeakSet[Any] = weakref.WeakSet()
"""Compiled steps of all networks that live."""


def live_steps() -> list[Any]:
    """Lists the compiled steps of all networks that live; none goes while the list is there."""
    return list(_steps)


def programmes() -> int:
    """How many programs `run` and `warm_up` hold compiled, each for a stage and a batch."""
    return compile_count(*live_steps())
