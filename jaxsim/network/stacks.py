"""Stacks: scans over stacked layers, taken apart between their slices."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.extend.core.primitives as prims
import jax.numpy as jnp
from jax import lax

from jaxsim import internals
from jaxsim.internals import Atom, jaxpr_of, shape_of
from jaxsim.network.plan import Entry, Inner, Plan, Rows, contractions

Place = tuple[int, int, int]
"""Where an equation comes from: the equation it is part of, the slices that have run before it, and
its number among the equations of this part."""


class Apart(NamedTuple):
    """Equations some of whose scans are run in parts.

    Attributes:
      plan: Equations and their meaning.
      places: For each equation where it comes from.
      rows: For each value that is a part of an input, along its first axis: the input and the part.
    """

    plan: Plan
    places: tuple[Place, ...]
    rows: Mapping[jex.Var, tuple[jex.Var, Rows]]


def stack_lengths(plan: Plan) -> dict[int, int]:
    """Finds the scans that hold layers of a stack, one weight or more a slice.

    Args:
      plan: Equations of a call.

    Returns:
      The number of slices by position of the equation, where there are several.
    """
    found: dict[int, int] = {}
    for i, (eqn, entry) in enumerate(zip(plan.jaxpr.eqns, plan.entries, strict=True)):
        if isinstance(entry, Inner) and eqn.primitive is prims.scan_p:
            length = internals.scan(eqn).length
            sites = (c.site for inner in entry.plans for c in contractions(inner))
            if length > 1 and any(s.multiplies and s.stacked[:1] == (True,) for s in sites):
                found[i] = length
    return found


def take_apart(plan: Plan, bounds: Mapping[int, Sequence[int]]) -> Apart:
    """Runs scans in parts, one after another.

    Args:
      plan: Equations of a call.
      bounds: For scans by position, how many slices have run where each part begins, and all of
        them at the end.
    """
    read = {v for eqn in plan.jaxpr.eqns for v in eqn.invars if isinstance(v, jex.Var)}
    read |= {v for v in plan.jaxpr.outvars if isinstance(v, jex.Var)}
    parts = _Parts(read, set(plan.jaxpr.invars))
    for i, (eqn, entry) in enumerate(zip(plan.jaxpr.eqns, plan.entries, strict=True)):
        if i in bounds and isinstance(entry, Inner):
            parts.scan(i, eqn, entry, bounds[i])
        else:
            parts.add(eqn, entry, (i, 0, 0))
    consts = dict(zip(plan.jaxpr.constvars, plan.consts, strict=True))
    jaxpr = jaxpr_of(consts, plan.jaxpr.invars, plan.jaxpr.outvars, parts.eqns, plan.jaxpr)
    apart = Plan(jaxpr, plan.consts, tuple(parts.entries), plan.known)
    return Apart(apart, tuple(parts.places), parts.rows)


def part_name(eqn: jex.JaxprEqn, entry: Entry, name: str) -> str:
    """Names an equation by a site of it, and by the slice that runs first if it is not a stack's.

    Args:
      eqn: Equation.
      entry: Its meaning.
      name: Name of a site.
    """
    rows = entry.rows if isinstance(entry, Inner) else None
    if rows is None:
        return name
    reverse = internals.scan(eqn).reverse
    begins = rows.last == rows.total if reverse else rows.first == 0
    return name if begins else f"{name}[{rows.last - 1 if reverse else rows.first}]"


class _Parts:
    """Equations that are collected, with where each comes from."""

    def __init__(self, read: set[jex.Var], inputs: set[jex.Var]):
        self.read, self.inputs = read, inputs
        self.eqns: list[jex.JaxprEqn] = []
        self.entries: list[Entry] = []
        self.places: list[Place] = []
        self.rows: dict[jex.Var, tuple[jex.Var, Rows]] = {}

    def add(self, eqn: jex.JaxprEqn, entry: Entry, place: Place) -> None:
        self.eqns.append(eqn)
        self.entries.append(entry)
        self.places.append(place)

    def scan(self, i: int, eqn: jex.JaxprEqn, entry: Inner, bounds: Sequence[int]) -> None:
        """Adds the parts of a scan, and what joins the slices that it stacks."""
        loop = internals.scan(eqn)
        carried, scanned = (
            eqn.invars[loop.consts : loop.first_slice],
            eqn.invars[loop.first_slice :],
        )
        stacked = eqn.outvars[loop.carry :]
        pieces: list[list[Any]] = []
        for begin, end in itertools.pairwise(bounds):
            rows = Rows(begin, end, loop.length)
            if loop.reverse:
                rows = Rows(loop.length - end, loop.length - begin, loop.length)
            taken = [self.slice(x, rows, (i, begin, k)) for k, x in enumerate(scanned)]
            after = eqn.outvars[: loop.carry]
            if end < loop.length:
                after = [jex.Var(v.aval) for v in after]
            made = [_slice_of(y, rows).outvars[0] for y in stacked]
            part = internals.scan_of_length(
                eqn,
                rows.last - rows.first,
                [*eqn.invars[: loop.consts], *carried, *taken],
                [*after, *made],
            )
            self.add(part, entry._replace(rows=rows), (i, begin, len(taken)))
            carried = after
            pieces.append(made)
        if loop.reverse:
            pieces.reverse()
        for k, (y, each) in enumerate(zip(stacked, zip(*pieces, strict=True), strict=False)):
            if y in self.read:
                joined = _equation(jnp.concatenate, each)
                self.add(joined.replace(outvars=[y]), None, (i, loop.length, k))

    def slice(self, x: Any, rows: Rows, place: Place) -> jex.Var:
        """Adds the equation that takes a part of an operand along its first axis."""
        eqn = _slice_of(x, rows)
        self.add(eqn, None, place)
        if x in self.inputs:
            self.rows[eqn.outvars[0]] = (x, rows)
        return eqn.outvars[0]


def _slice_of(x: Any, rows: Rows) -> jex.JaxprEqn:
    def take(operands: Sequence[Any]) -> Any:
        return lax.slice_in_dim(operands[0], rows.first, rows.last)

    return _equation(take, [x])


def _equation(function: Callable[[Sequence[Any]], Any], operands: Sequence[Atom]) -> jex.JaxprEqn:
    """The one equation that a function of operands is, with a result of its own."""
    shapes = [shape_of(operand) for operand in operands]
    (eqn,) = jax.make_jaxpr(function)(shapes).jaxpr.eqns
    return eqn.replace(invars=[*operands], outvars=[jex.Var(v.aval) for v in eqn.outvars])
