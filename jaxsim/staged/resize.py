"""Stages of fewer tokens: the equations of a stage with other sizes along some axes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.extend.core as jex
import jax.extend.core.primitives as prims

from jaxsim import internals
from jaxsim.internals import (
    Atom,
    inner_jaxprs,
    jaxpr_of,
    of_shape,
    parameters,
    shape_of,
    with_inner,
    with_parameters,
)
from jaxsim.network.plan import Contraction, Entry, Inner, Plan
from jaxsim.sparsity.channels.axes import AxisGroup, Symbol, resized, resolve
from jaxsim.sparsity.channels.axis_rules import describe_place
from jaxsim.sparsity.channels.propagate import EquationAxes, equation_axes
from jaxsim.staged.token_marks import Last, Mark, Marks


class Resized(NamedTuple):
    """Equations with other sizes.

    Attributes:
      plan: Equations and their meaning.
      marks: What they do with tokens.
    """

    plan: Plan
    marks: Marks


def resize(
    plan: Plan,
    inputs: Sequence[Sequence[AxisGroup]],
    sizes: Mapping[Symbol, int],
    marks: Marks,
) -> Resized:
    """Rewrites equations for other sizes of some axes.

    Args:
      plan: Equations and their meaning.
      inputs: For each input the group of each axis.
      sizes: New sizes of what some axes run over.
      marks: What equations do with tokens.

    Raises:
      ValueError: An equation that cannot be rewritten, named by its line in the model.
    """
    axes = equation_axes(plan.jaxpr, inputs)
    known: dict[Symbol, int] = {}
    for symbol, size in sizes.items():
        group = resolve(symbol)
        if not isinstance(group, Symbol):
            raise ValueError("run cannot leave tokens out: a stage lays them out in several axes")
        known[group] = size
    rewriting = _Rewriting(known, marks)
    made = rewriting.plan(plan, inputs, axes)
    return Resized(made, Marks(rewriting.marks, frozenset(rewriting.inside)))


class _Rewriting:
    """Rewrites equations, those inside others too."""

    def __init__(self, sizes: Mapping[Symbol, int], marks: Marks):
        self.sizes, self.old = sizes, marks
        # those of equations that stay as they are among them
        self.marks: dict[int, Mark] = {**marks.of}
        self.inside: set[int] = {*marks.inside}

    def shape(self, axes: Sequence[AxisGroup]) -> tuple[int, ...]:
        return tuple(resized(group, self.sizes) for group in axes)

    def changes(self, axes: Sequence[AxisGroup]) -> bool:
        return self.shape(axes) != tuple(group.size for group in axes)

    def plan(
        self,
        plan: Plan,
        inputs: Sequence[Sequence[AxisGroup]],
        axes: Sequence[EquationAxes],
    ) -> Plan:
        """Rewrites a plan."""
        jaxpr = plan.jaxpr
        new: dict[Any, jex.Var] = {}
        for v, own in zip(jaxpr.invars, inputs, strict=True):
            new[v] = self.variable(v, own)

        def at(atom: Atom) -> Atom:
            return new.get(atom, atom) if isinstance(atom, jex.Var) else atom

        eqns, entries = list[jex.JaxprEqn](), list[Entry]()
        for eqn, entry, own in zip(jaxpr.eqns, plan.entries, axes, strict=True):
            if any(map(self.changes, own.operands)) or any(map(self.changes, own.results)):
                made, meaning = self.equation(eqn, entry, own)
                outvars = [
                    self.variable(v, groups)
                    for v, groups in zip(eqn.outvars, own.results, strict=True)
                ]
                new.update(zip(eqn.outvars, outvars, strict=True))
            else:
                made, meaning, outvars = eqn, entry, eqn.outvars
            made = made.replace(invars=[at(v) for v in eqn.invars], outvars=list(outvars))
            if id(eqn) in self.old.of:
                self.marks[id(made)] = self.old.of[id(eqn)]
            if isinstance(meaning, Contraction):
                meaning = _of_shapes(meaning, made)
            eqns.append(made)
            entries.append(meaning)
        consts = dict(zip(jaxpr.constvars, plan.consts, strict=True))
        made = jaxpr_of(
            consts,
            [new[v] for v in jaxpr.invars],
            [at(v) for v in jaxpr.outvars],
            eqns,
            jaxpr,
        )
        return plan._replace(jaxpr=made, entries=tuple(entries))

    def variable(self, v: jex.Var, axes: Sequence[AxisGroup]) -> jex.Var:
        return of_shape(v, self.shape(axes))

    def equation(
        self, eqn: jex.JaxprEqn, entry: Entry, own: EquationAxes
    ) -> tuple[jex.JaxprEqn, Entry]:
        """Rewrites what an equation is told.

        Raises:
          ValueError: It cannot be.
        """
        if inner_jaxprs(eqn):
            return self.nested(eqn, entry, own)
        name, params = eqn.primitive.name, parameters(eqn)
        out = self.shape(own.results[0])
        read = [group for axes in own.operands[:1] for group in axes]
        match name:
            case "broadcast_in_dim":
                return with_parameters(eqn, shape=out), entry
            case "reshape":
                return with_parameters(eqn, new_sizes=out), entry
            case "iota":
                if self.changes([own.results[0][params["dimension"]]]):
                    raise ValueError(_cannot(eqn, "counts them"))
                return with_parameters(eqn, shape=out), entry
            case "slice":
                starts = params["start_indices"]
                limits = self.whole(read, starts, params["limit_indices"])
                moved = any(
                    self.changes([group]) and start > 0
                    for group, start in zip(read, starts, strict=True)
                )
                if moved and not isinstance(self.old.of.get(id(eqn)), Last):
                    raise ValueError(_cannot(eqn, "takes some of them by number"))
                return with_parameters(eqn, limit_indices=limits), entry
            case "gather" | "dynamic_slice":
                sizes = params["slice_sizes"]
                if any(
                    self.changes([group]) and size != group.size
                    for group, size in zip(read, sizes, strict=True)
                ):
                    raise ValueError(_cannot(eqn, "takes some of them by number"))
                sizes = self.whole(read, (0,) * len(read), sizes)
                return with_parameters(eqn, slice_sizes=sizes), entry
            case "split" | "unstack" if self.changes([read[params["axis"]]]):
                raise ValueError(_cannot(eqn, "divides them"))
            case "concatenate" if self.changes([own.results[0][params["dimension"]]]):
                raise ValueError(_cannot(eqn, "puts others beside them"))
            case "conv_general_dilated" if self.changes(read) and not self.keeps_rank(own):
                raise ValueError(_cannot(eqn, "convolves them"))
            case _:
                return eqn, entry

    def whole(
        self, read: Sequence[AxisGroup], starts: Sequence[int], ends: Sequence[int]
    ) -> tuple[int, ...]:
        """Ends of a slice, where it goes over a whole axis those of its new size."""
        return tuple(
            resized(group, self.sizes) if (start, end) == (0, group.size) else end
            for group, start, end in zip(read, starts, ends, strict=True)
        )

    def keeps_rank(self, own: EquationAxes) -> bool:
        """Tells if each changed axis of the first operand is one of the result too."""
        changed = [g for g in own.operands[0] if self.changes([g])]
        return len(changed) == sum(self.changes([g]) for g in own.results[0])

    def nested(
        self, eqn: jex.JaxprEqn, entry: Entry, own: EquationAxes
    ) -> tuple[jex.JaxprEqn, Entry]:
        """Rewrites an equation that runs others."""
        inner = inner_jaxprs(eqn)
        rewritten = isinstance(entry, Inner) and entry.rewritten
        if len(inner) != 1 or rewritten:
            raise ValueError(_cannot(eqn, "runs others over them"))
        ((jaxpr, consts),) = inner
        plan = Plan(jaxpr, consts, (None,) * len(jaxpr.eqns), ())
        if isinstance(entry, Inner):
            (plan,) = entry.plans
        inputs = own.operands
        if eqn.primitive is prims.scan_p:
            first = internals.scan(eqn).first_slice
            inputs = (*inputs[:first], *(axes[1:] for axes in inputs[first:]))
        made = self.plan(plan, inputs, own.inner[0])
        running = with_inner(eqn, made.jaxpr)
        if running is None:
            raise ValueError(_cannot(eqn, "runs others over them"))
        if isinstance(entry, Inner):
            if self.old.holds(entry):
                self.inside.add(id(made.jaxpr))
            entry = entry._replace(plans=(made,))
        return running, entry


def _of_shapes(entry: Contraction, eqn: jex.JaxprEqn) -> Contraction:
    """A site with the shapes of the operands of an equation."""
    x, w = shape_of(eqn.invars[entry.x_at]), shape_of(eqn.invars[entry.w_at])
    if (x.shape, w.shape) == (entry.x.shape, entry.w.shape):
        return entry
    geometry = entry.op.geometry
    if tuple(geometry.w_shape) != w.shape:
        geometry = dataclasses.replace(geometry, w_shape=w.shape)  # pyright: ignore
    op = dataclasses.replace(entry.op, geometry=geometry)
    return entry._replace(op=op, x=x, w=w)


def _cannot(eqn: jex.JaxprEqn, why: str) -> str:
    return f"run cannot leave tokens out at {describe_place(eqn)}: it {why}; simulate can"
