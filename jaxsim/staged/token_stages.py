"""Tokens in a pipeline: a stage is told which are there, and tells the next which it has left.

Two more activations cross each cut behind which that is known. Equations where a stage begins and
where it ends take them in and give them out, so the engines and gradients of a pipeline need know
nothing of tokens: what was decided is data to them, and has no derivative.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

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
from jaxsim.network.plan import Entry, Plan
from jaxsim.network.stages import Stage, Stages
from jaxsim.staged.attention import Marks
from jaxsim.staged.merging import Merge, merged_state
from jaxsim.staged.rows import computed_rows, find_rows
from jaxsim.staged.token_walk import (
    TokenState,
    TokenWalk,
    given_tokens,
    marked_equation,
    sized,
    state_of,
)

LEVEL = "tokens/level"
"""Path of the levels among the parameters of stages."""


class Enter(NamedTuple):
    """Where a stage begins: an equation of what it is told of tokens.

    Attributes:
      layer: Number of attentions before it.
      levels: True if it reads the levels, its first operand then.
      arguments: Arguments of the call whose arrays are the other operands, in the first stage of a
        rule that says from them which tokens there are; None where the other operands are what the
        stage before says of tokens, if that is known.
    """

    layer: int
    levels: bool
    arguments: Partitioned | None = None


class Leave(NamedTuple):
    """Where a stage ends: an equation that gives which tokens are there, and how many were.

    Where tokens are merged, it gives how many each stands for too.
    """


class ReadExit(NamedTuple):
    """A classifier that reads the tokens that are there.

    Attributes:
      feature: Function from boundary activations, and which tokens are there, to what it reads.
      axes: For each value at its cut the axis that holds rows, or None.
      known: True for each that is known before anything is computed.
      dtype: Name of the dtype of the logits.
    """

    feature: Feature
    axes: tuple[int | None, ...]
    known: tuple[bool, ...]
    dtype: str

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
        rows = computed_rows(live, self.axes, self.known)
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
        if begin.levels:
            self.rule = dataclasses.replace(self.rule, level=ins[0])
            ins = ins[1:]
        if begin.arguments is not None:
            given = dataclasses.replace(begin.arguments, arrays=tuple(ins))
            self.tokens = given_tokens(self.rule, given)
        elif ins:
            self.tokens = TokenState(*ins)
            if self.tokens.size is not None:
                self.tokens = self.tokens._replace(size=self.tokens.size.astype(jnp.float32))

    def told(self, tokens: TokenState) -> list[Array]:
        """What the next stage is told, all of it truth or whole numbers, which have no derivative.

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
    """
    found: dict[int, Any] = {**marks.of}
    for (s, i), reading in zip(cut.outputs, exits, strict=False):
        jaxpr = cut.stages[s].plan.jaxpr
        (made,) = [eqn for eqn in jaxpr.eqns if jaxpr.outvars[i] in eqn.outvars]
        found[id(made)] = reading
    rows = find_rows(arguments)[0]
    state = jax.eval_shape(state_of, jax.ShapeDtypeStruct((rows, length), bool))
    told = state.present, state.there
    if rule.merges:
        told = *told, jax.ShapeDtypeStruct((rows, length), jnp.int32)
    stages, layer = list[Stage](), 0
    sources: tuple[tuple[int, int], ...] = ()
    for at, stage in enumerate(cut.stages):
        count = marks.attentions(stage.plan)
        begin = Enter(layer, count > 0, arguments if at == 0 and rule.present else None)
        layer += count
        last = at + 1 == len(cut.stages)
        gives = () if last or not (layer or rule.present) else told
        ends = _Ends(begin, sources, gives, told, rule.level, len(cut.paths))
        made, marked = ends.added_to(stage, cut)
        found.update(marked)
        sources = tuple((at, len(stage.outputs) + i) for i in range(len(gives)))
        stages.append(made)
    walk = partial(
        StageWalk, rule=rule, marks=Marks(found, marks.inside), leave=leave, layer=0, tokens=None
    )
    return TokenStages(cut._replace(stages=tuple(stages), paths=(*cut.paths, LEVEL)), walk)


class _Ends(NamedTuple):
    """The equations at both ends of a stage.

    Attributes:
      begin: What it is told.
      sources: Where the tokens that are there come from, each as a stage and a position among its
        outputs; none if they are not known.
      gives: Shapes of what it tells the next.
      told: Shapes of what it is told.
      level: Levels, or their shape.
      place: Position of the levels among the parameters.
    """

    begin: Enter
    sources: tuple[tuple[int, int], ...]
    gives: tuple[Any, ...]
    told: Sequence[Any]
    level: Any
    place: int

    def added_to(self, stage: Stage, cut: Stages) -> tuple[Stage, dict[int, Enter | Leave]]:
        """A stage with these equations, and what they are marked with."""
        plan, line = stage.plan, cut.equations
        leaves = len(stage.params) + len(stage.buffers)
        params = [*plan.jaxpr.invars[: len(stage.params)]]
        buffers = plan.jaxpr.invars[len(stage.params) : leaves]
        given = dict(zip(stage.arguments, plan.jaxpr.invars[leaves:], strict=False))
        live = [*plan.jaxpr.invars[leaves + len(given) :]]
        read = list[jex.Var]()
        if self.begin.levels:
            read.append(_variable(self.level))
            params += read
        if self.begin.arguments is not None:
            for i, v in enumerate(line.arguments):
                read.append(given.setdefault(i, jex.Var(v.aval)))
        told = [_variable(a) for a in self.told[: len(self.sources)]]
        first = marked_equation([*read, *told], [])
        out = [_variable(a) for a in self.gives]
        eqns, entries = [first, *plan.jaxpr.eqns], [None, *plan.entries]
        marks: dict[int, Enter | Leave] = {id(first): self.begin}
        if out:
            eqns.append(marked_equation([], out))
            entries.append(None)
            marks[id(eqns[-1])] = Leave()
        consts = dict(zip(plan.jaxpr.constvars, plan.consts, strict=True))
        arguments = sorted(given)
        invars = [*params, *buffers, *(given[i] for i in arguments), *live, *told]
        outvars = [*plan.jaxpr.outvars, *out]
        levels = (self.place,) if self.begin.levels else ()
        made = stage._replace(
            plan=Plan(
                jaxpr_of(consts, invars, outvars, eqns, plan.jaxpr),
                plan.consts,
                tuple(entries),
                (None,) * len(outvars),
            ),
            params=(*stage.params, *levels),
            names=(*stage.names, *(LEVEL for _ in levels)),
            param_rows=(*stage.param_rows, *(None for _ in levels)),
            arguments=tuple(arguments),
            sources=(*stage.sources, *self.sources),
        )
        return made, marks


def _variable(a: Any) -> jex.Var:
    """A variable of an array's shape and dtype."""
    (v,) = jax.make_jaxpr(lambda a: a)(a).jaxpr.invars
    return jex.Var(v.aval)
