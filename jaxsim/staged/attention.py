"""Attention of a traced model: the products of scores and of values, and what else reads tokens.

A product of two activations is one of values where one operand is computed of an earlier product,
of scores, through an exponential of its shape. The axis that it sums over runs over the tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.extend.core as jex

from jaxsim.internals import shape_of
from jaxsim.network.cuts import Equations, active_equations, variables_of
from jaxsim.network.plan import Contraction, Inner, Plan
from jaxsim.sparsity.channels.axes import AxisGroup, Symbol, factor_count, same, unify
from jaxsim.sparsity.channels.propagate import equation_axes
from jaxsim.staged.bodies import Body
from jaxsim.staged.token_flow import TokenFlow
from jaxsim.staged.token_marks import Mark, Marks, Path
from jaxsim.staged.value_products import value_products


@dataclasses.dataclass(frozen=True, eq=False)
class Attention:
    """Where a call attends, by positions of equations, which hold for any number of rows.

    Attributes:
      names: Names of the products of values, in order of execution; within a stack the slice
        behind.
      marks: What equations do with tokens.
      at: For each of the names the position of its equation among those of the call.
      degrees: For sites, along how many of their axes tokens run.
      tokens: What an axis of tokens runs over.
      rows: What an axis of rows runs over.
      axes: Axis groups of the values of the call.
      first: Number of tokens that have to stay in front for what the model reads of them by number.
      last: Number that have to stay at the end.
    """

    names: tuple[str, ...]
    marks: Mapping[Path, Mark]
    at: tuple[int, ...]
    degrees: Mapping[str, int]
    tokens: AxisGroup
    rows: AxisGroup
    axes: Mapping[jex.Var, tuple[AxisGroup, ...]]
    first: int
    last: int

    def token_axes(self, value: Any) -> tuple[int, ...]:
        """Finds the axes of a value that hold tokens.

        Args:
          value: Variable of the call, or a literal.
        """
        return self._axes(value, self.tokens)

    def row_axes(self, value: Any) -> tuple[int, ...]:
        """Finds the axes of a value that hold rows.

        Args:
          value: Variable of the call, or a literal.
        """
        return self._axes(value, self.rows)

    def _axes(self, value: Any, wanted: AxisGroup) -> tuple[int, ...]:
        groups = self.axes.get(value, ()) if isinstance(value, jex.Var) else ()
        return tuple(i for i, group in enumerate(groups) if same(group, wanted))

    def holds_tokens(self, value: Any) -> bool:
        """Tells if tokens are a factor of an axis of a value.

        Args:
          value: Variable of the call, or a literal.
        """
        groups = self.axes.get(value, ()) if isinstance(value, jex.Var) else ()
        return any(factor_count(group, self.tokens) for group in groups)

    def in_call(self, own: Equations, other: Equations) -> Attention:
        """Says the same of a call of another number of rows.

        Args:
          own: Equations that this is of.
          other: Equations of the other call.

        Raises:
          ValueError: They are not the same equations.
        """
        if own is other:
            return self
        if not alike(own, other):
            raise ValueError(
                "prune_tokens: the model runs other equations for so many rows than for two, as "
                "many do for one row; give it two at least"
            )
        mine, others = own.plan.jaxpr, other.plan.jaxpr
        pairs = [*zip(mine.invars, others.invars, strict=True)]
        pairs += zip(mine.constvars, others.constvars, strict=False)
        for one, same_one in zip(mine.eqns, others.eqns, strict=True):
            pairs += zip(one.outvars, same_one.outvars, strict=True)
        axes = {twin: self.axes[v] for v, twin in pairs if v in self.axes}
        return dataclasses.replace(self, axes=axes)


def alike(own: Equations, other: Equations) -> bool:
    """Tells if a call of another number of rows runs the same equations.

    Args:
      own: Equations of a call.
      other: Equations of the other call.
    """
    pair = own.plan.jaxpr, other.plan.jaxpr
    names = [[eqn.primitive.name for eqn in jaxpr.eqns] for jaxpr in pair]
    return names[0] == names[1]


def find_attention(line: Equations, rowed: Sequence[bool]) -> Attention:
    """Finds where a call attends and follows its tokens.

    Args:
      line: Equations of a call of two rows or more.
      rowed: True for each argument that holds rows.

    Raises:
      ValueError: Nothing attends, queries and keys are not the same tokens, or an equation behind
        the first attention mixes tokens in a way that is not known.
    """
    jaxpr = line.plan.jaxpr
    groups = [[Symbol(n) for n in shape_of(v).shape] for v in jaxpr.invars]
    first = len(jaxpr.invars) - len(line.arguments)
    firsts = [g[0] for g, own in zip(groups[first:], rowed, strict=True) if own]
    for other in firsts[1:]:
        unify(firsts[0], other)
    if not firsts:
        raise ValueError("prune_tokens: no argument has rows")
    axes = equation_axes(jaxpr, groups)
    values: dict[jex.Var, tuple[AxisGroup, ...]] = {}
    values.update(zip(jaxpr.invars, map(tuple, groups), strict=True))
    for eqn, own in zip(jaxpr.eqns, axes, strict=True):
        values.update(zip(eqn.outvars, own.results, strict=True))
    bodies = list(Body.of(line.plan, axes).everywhere())
    found = [f for body in bodies for f in value_products(body)]
    found.sort(key=lambda f: f.place)
    if not found:
        raise ValueError(
            "prune_tokens: the network has no attention: no product of two activations, one of "
            "which is a softmax of such a product"
        )
    own = [f for f in found if len(f.attended_axes) == 2]
    if not own:
        raise ValueError(
            f"prune_tokens: nowhere do tokens attend to themselves; queries of {found[0].name} "
            "are others than its keys"
        )
    tokens = own[0].attended
    flow = TokenFlow(tokens, firsts[0])
    # Attention to tokens from elsewhere, as of a decoder to what an encoder read, decides nothing.
    attended = [f for f in found if same(f.attended, tokens)]
    for one in attended:
        flow.mark_attention(one)
    own = [f for f in attended if len(f.attended_axes) == 2]
    made = computed_values(line.plan, line.arguments)
    computed = {i for i, eqn in enumerate(jaxpr.eqns) if not made.isdisjoint(eqn.outvars)}
    for body in bodies:
        flow.mark_others(body, attended, own[0].place, computed)
    return Attention(
        names=tuple(flow.names),
        marks=flow.marks,
        at=tuple(f.place[0] for f in own),
        degrees=flow.degrees,
        tokens=tokens,
        rows=firsts[0],
        axes=values,
        first=flow.first,
        last=flow.last,
    )


def marks_of(line: Equations, attention: Attention) -> Marks:
    """Finds the marked equations of a call.

    Args:
      line: Equations of a call, of any number of rows.
      attention: Where it attends.
    """
    marks, inside = dict[int, Mark](), set[int]()
    for path, mark in attention.marks.items():
        plan: Plan = line.plan
        for i in path[:-1]:
            entry = plan.entries[i]
            assert isinstance(entry, Inner)
            (plan,) = entry.plans
            inside.add(id(plan.jaxpr))
        marks[id(plan.jaxpr.eqns[path[-1]])] = mark
    return Marks(marks, frozenset(inside))


def computed_values(plan: Plan, arguments: Sequence[jex.Var]) -> set[Any]:
    """Finds the values that a product of an activation reaches: the others are known beforehand.

    Args:
      plan: Equations of a call.
      arguments: Variables of its arguments.
    """
    eqns, found = plan.jaxpr.eqns, set[Any]()
    active = set(active_equations(eqns, arguments))
    for i, (eqn, entry) in enumerate(zip(eqns, plan.entries, strict=True)):
        site = isinstance(entry, Contraction) or (isinstance(entry, Inner) and bool(entry.names))
        reached = any(v in found for v in variables_of(eqn.invars))
        if (i in active and site) or eqn.effects or reached:
            found.update(eqn.outvars)
    return found
