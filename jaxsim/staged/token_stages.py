"""Tokens in a pipeline: a stage is told which are there, and tells the next which it has left.

Two more activations cross each cut behind which that is known. Equations where a stage begins and
where it ends take them in and give them out, so the engines and gradients of a pipeline need know
nothing of tokens: what was decided is data to them, and has no derivative.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.numpy as jnp
from jaxtyping import Array

from jaxsim.adaptive.features import Feature
from jaxsim.adaptive.heads import Head, apply_head
from jaxsim.adaptive.tokens import TokenRule
from jaxsim.cores.core import State
from jaxsim.cores.partition import Partitioned
from jaxsim.internals import jaxpr_of
from jaxsim.network.cuts import Equations, cuts
from jaxsim.network.plan import Entry, Plan
from jaxsim.network.stages import Stage, Stages
from jaxsim.network.taps import Tap
from jaxsim.staged.exit_layout import ExitLayout
from jaxsim.staged.merging import Merge, merged_state
from jaxsim.staged.rows import computed_rows, find_rows
from jaxsim.staged.token_marks import Marks
from jaxsim.staged.token_walk import (
    TokenState,
    TokenWalk,
    given_tokens,
    marked_equation,
    sized,
    state_of,
)

if TYPE_CHECKING:
    from jaxsim.staged.network import Staged

LEVEL, TEMPERATURE = "tokens/level", "tokens/temperature"
"""Paths of the levels, and of the temperature of soft masks, among the parameters of stages."""


class Enter(NamedTuple):
    """Where a stage begins: an equation of what it is told of tokens.

    Attributes:
      layer: Number of attentions before it.
      settings: Number of its first operands that are settings: the levels, and with soft masks
        their temperature; 0 where no attention of the stage reads them.
      arguments: Arguments of the call whose arrays are the other operands, in the first stage of a
        rule that says from them which tokens there are; None where the other operands are what the
        stage before says of tokens, if that is known.
    """

    layer: int
    settings: int
    arguments: Partitioned | None = None


class Leave(NamedTuple):
    """Where a stage ends: an equation that gives which tokens are there, and how many were.

    Where tokens are merged, it gives how many each stands for too; where soft masks scale them, how
    much each attention so far has left of them.
    """


class Shares(NamedTuple):
    """Where the last stage ends: an equation that gives what soft masks leave, and of how many.

    That is the sum over tokens for each attention, [A], and the number of tokens.
    """


class ReadExit(NamedTuple):
    """A classifier that reads the tokens that are there.

    Attributes:
      feature: Function from boundary activations, and which tokens are there, to what it reads.
      axes: For each value at its cut the axis that holds rows, or None.
      known: True for each that is known before anything is computed.
      dtype: Name of the dtype of the logits.
      order: For each of these values its position among those that are live; None where they are
        in this order.
    """

    feature: Feature
    axes: tuple[int | None, ...]
    known: tuple[bool, ...]
    dtype: str
    order: tuple[int, ...] | None = None

    def of_all(self, shape: tuple[int, int], head: Head, live: list[Any]) -> Array:
        """Computes logits where every token is there, as one equation for a walk to replace.

        Args:
          shape: Number of rows, and of tokens.
          head: Classifier.
          live: Values at its cut.
        """
        return jax.jit(lambda head, live: self.of(head, live, jnp.ones(shape, bool)))(head, live)

    def of(self, head: Head, live: Sequence[Any], *present: Array) -> Array:
        """Computes logits.

        Args:
          head: Classifier.
          live: Values at its cut.
          *present: Which tokens are there, if it is known.
        """
        ordered = live if self.order is None else [live[i] for i in self.order]
        rows = computed_rows(ordered, self.axes, self.known)
        return apply_head(head, self.feature(rows, *present)).astype(jnp.dtype(self.dtype))


class StageWalk(TokenWalk):
    """Evaluates a stage of a pipeline, masking the tokens that left in it and before it."""

    def step(
        self,
        eqn: jex.JaxprEqn,
        entry: Entry,
        ins: list[Any],
        states: dict[str, State],
        indices: tuple[Any, ...],
    ) -> Sequence[Any]:
        """Computes the results of an equation, with what it does with tokens.

        Args:
          eqn: Equation.
          entry: Its meaning in the plan.
          ins: Values of its operands.
          states: States of the sites, by name.
          indices: Iteration of each loop around, outermost first.
        """
        mark: Any = self.marks.of.get(id(eqn))
        match mark:
            case Enter() as begin:
                self.enter(begin, ins)
                return []
            case Leave():
                assert self.tokens is not None
                return self.told(self.tokens)
            case Merge():
                assert self.tokens is not None
                assert self.into is not None
                averages = mark.of(ins, self.tokens, self.into)
                self.tokens, self.into = merged_state(self.tokens, self.into), None
                return averages
            case ReadExit() as reading:
                bias, kernel, *live = ins
                there = () if self.tokens is None else (self.tokens.present,)
                return [reading.of({"bias": bias, "kernel": kernel}, live, *there)]
            case _:
                return super().step(eqn, entry, ins, states, indices)

    def enter(self, begin: Enter, ins: list[Any]) -> None:
        """Begins a stage.

        Args:
          begin: What it is told.
          ins: Levels, and tokens or arguments.
        """
        self.layer = begin.layer
        if begin.settings:
            self.set(ins[: begin.settings])
            ins = ins[begin.settings :]
        if begin.arguments is not None:
            given = dataclasses.replace(begin.arguments, arrays=tuple(ins))
            self.tokens = given_tokens(self.rule, given)
        elif ins:
            self.hear(ins)

    def set(self, settings: Sequence[Array]) -> None:
        """Takes the settings by which tokens leave.

        Args:
          settings: Levels.
        """
        self.rule = dataclasses.replace(self.rule, level=settings[0])

    def hear(self, told: Sequence[Array]) -> None:
        """Takes what the stage before says of tokens.

        Args:
          told: As `told` gives it.
        """
        self.tokens = TokenState(*told)
        if self.tokens.size is not None:
            self.tokens = self.tokens._replace(size=self.tokens.size.astype(jnp.float32))

    def told(self, tokens: TokenState) -> list[Array]:
        """What the next stage is told; here truth or whole numbers, which have no derivative.

        Args:
          tokens: Which are there.
        """
        if not self.rule.merges:
            return [tokens.present, tokens.there]
        size = sized(tokens).size
        assert size is not None
        return [tokens.present, tokens.there, size.astype(jnp.int32)]


class TokenStages(NamedTuple):
    """Stages that hand on which tokens are there.

    Attributes:
      cut: Stages, whose parameters the levels follow.
      walk: What evaluates their equations, made from cores, ranges and key.
    """

    cut: Stages
    walk: Callable[..., StageWalk]


def hand_on_tokens(
    cut: Stages,
    marks: Marks,
    rule: TokenRule,
    arguments: Partitioned,
    exits: Sequence[ReadExit],
    length: int,
    leave: tuple[bool, ...] | None = None,
    *,
    walk: Callable[..., StageWalk] = StageWalk,
    masks: Any = None,
) -> TokenStages:
    """Makes stages tell each other which tokens are there.

    Args:
      cut: Stages of a call, classifiers among their equations.
      marks: What equations do with tokens.
      rule: When a token leaves; its levels may be shapes.
      arguments: Arguments of the call; they may be shapes.
      exits: What the classifiers read, whose logits are the first outputs.
      length: Number of tokens.
      leave: For each attention, False where no token leaves; None where any may.
      walk: What evaluates a stage.
      masks: Dtype of soft masks: stages then read their temperature and tell each other the masks
        too, and the last ends with their `Shares`. None where tokens leave.
    """
    found: dict[int, Any] = {**marks.of}
    for (s, i), reading in zip(cut.outputs, exits, strict=False):
        jaxpr = cut.stages[s].plan.jaxpr
        (made,) = [eqn for eqn in jaxpr.eqns if jaxpr.outvars[i] in eqn.outvars]
        found[id(made)] = reading
    rows = find_rows(arguments)[0]
    state = jax.eval_shape(state_of, jax.ShapeDtypeStruct((rows, length), bool))

    def told(layer: int) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes of what a stage says that ends behind so many attentions."""
        shapes = state.present, state.there
        if rule.merges:
            return *shapes, jax.ShapeDtypeStruct((rows, length), jnp.int32)
        if masks is None or not layer:
            return shapes
        return *shapes, jax.ShapeDtypeStruct((rows, layer, length), masks)

    settings: dict[str, Any] = {LEVEL: rule.level}
    if masks is not None:
        settings[TEMPERATURE] = jax.ShapeDtypeStruct((), jnp.float32)
    stages, layer, gives = list[Stage](), 0, tuple[jax.ShapeDtypeStruct, ...]()
    for at, stage in enumerate(cut.stages):
        count = marks.attentions(stage.plan)
        given = arguments if at == 0 and rule.present else None
        begin = Enter(layer, len(settings) if count else 0, given)
        layer += count
        before, end = gives, Leave()
        if at + 1 < len(cut.stages):
            gives = told(layer) if layer or rule.present else ()
        else:
            gives, end = (), Shares()
            if masks is not None:
                sums = jax.ShapeDtypeStruct((layer,), masks)
                gives = sums, jax.ShapeDtypeStruct((), jnp.int32)
        heard = len(cut.stages[at - 1].outputs)  # behind what crosses anyway
        sources = tuple((at - 1, heard + i) for i in range(len(before)))
        ends = _Ends(begin, end, sources, before, gives, settings, len(cut.paths))
        made, marked = ends.added_to(stage, cut)
        found.update(marked)
        stages.append(made)
    last = len(cut.stages) - 1
    shares = tuple((last, len(cut.stages[-1].outputs) + i) for i in range(len(gives)))
    how = partial(
        walk, rule=rule, marks=Marks(found, marks.inside), leave=leave, layer=0, tokens=None
    )
    return TokenStages(
        cut._replace(
            stages=tuple(stages),
            paths=(*cut.paths, *settings),
            outputs=(*cut.outputs, *shares),
        ),
        how,
    )


class _Ends(NamedTuple):
    """The equations at both ends of a stage.

    Attributes:
      begin: What it is told.
      end: What it tells.
      sources: Where what it is told comes from, each as a stage and a position among its outputs.
      hears: Shapes of that.
      gives: Shapes of what it tells.
      settings: Settings of tokens by their paths among the parameters, or their shapes.
      place: Position of these among the parameters.
    """

    begin: Enter
    end: Leave | Shares
    sources: tuple[tuple[int, int], ...]
    hears: Sequence[Any]
    gives: Sequence[Any]
    settings: dict[str, Any]
    place: int

    def added_to(self, stage: Stage, cut: Stages) -> tuple[Stage, dict[int, Any]]:
        """A stage with these equations, and what they are marked with."""
        plan, line = stage.plan, cut.equations
        leaves = len(stage.params) + len(stage.buffers)
        params = [*plan.jaxpr.invars[: len(stage.params)]]
        buffers = plan.jaxpr.invars[len(stage.params) : leaves]
        given = dict(zip(stage.arguments, plan.jaxpr.invars[leaves:], strict=False))
        live = [*plan.jaxpr.invars[leaves + len(given) :]]
        names = tuple(self.settings)[: self.begin.settings]
        read = [_variable(self.settings[name]) for name in names]
        params += read
        if self.begin.arguments is not None:
            for i, v in enumerate(line.arguments):
                read.append(given.setdefault(i, jex.Var(v.aval)))
        told = [_variable(a) for a in self.hears]
        first = marked_equation([*read, *told], [])
        out = [_variable(a) for a in self.gives]
        eqns, entries = [first, *plan.jaxpr.eqns], [None, *plan.entries]
        marks: dict[int, Any] = {id(first): self.begin}
        if out:
            eqns.append(marked_equation([], out))
            entries.append(None)
            marks[id(eqns[-1])] = self.end
        consts = dict(zip(plan.jaxpr.constvars, plan.consts, strict=True))
        arguments = sorted(given)
        invars = [*params, *buffers, *(given[i] for i in arguments), *live, *told]
        outvars = [*plan.jaxpr.outvars, *out]
        made = stage._replace(
            plan=Plan(
                jaxpr_of(consts, invars, outvars, eqns, plan.jaxpr),
                plan.consts,
                tuple(entries),
                (None,) * len(outvars),
            ),
            params=(*stage.params, *(self.place + i for i in range(len(names)))),
            names=(*stage.names, *names),
            param_rows=(*stage.param_rows, *(None for _ in names)),
            arguments=tuple(arguments),
            sources=(*stage.sources, *self.sources),
        )
        return made, marks


def exit_reads(net: Staged, found: ExitLayout) -> list[ReadExit]:
    """Lists what the classifiers of a network's exits read.

    Args:
      net: Network in stages.
      found: Batch axes of what crosses its cuts.
    """
    told = tuple((False,) * len(axes) for axes in found.axes)
    known = told if found.tokens is None else found.tokens.known
    return [
        ReadExit(net.feature, axes, own, found.dtype)
        for number, axes, own in zip(found.exits, found.axes, known, strict=True)
        if number is not None
    ]


def exit_taps(
    net: Staged, found: ExitLayout, line: Equations, reads: Sequence[Callable[..., Array]]
) -> tuple[Tap, ...]:
    """Makes the classifiers of a network's exits taps of its equations.

    Args:
      net: Network in stages.
      found: Where its exits stand.
      line: Equations of its call.
      reads: For each exit `(head, live) -> logits`.
    """
    named = {cut.name: cut for cut in cuts(line)}
    exits = [
        name for name, number in zip(found.places, found.exits, strict=True) if number is not None
    ]
    return tuple(
        Tap(named[name], f"exit at {name}", head, read)
        for name, head, read in zip(exits, net.heads, reads, strict=True)
    )


def _variable(a: Any) -> jex.Var:
    """A variable of an array's shape and dtype."""
    (v,) = jax.make_jaxpr(lambda a: a)(a).jaxpr.invars
    return jex.Var(v.aval)
