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
      rows: For each value that is a part of a leaf, along its first axis: the leaf and the part.
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
        if isinstance(entry, Inner) and not entry.rewritten and eqn.primitive is prims.scan_p:
            length = internals.scan(eqn).length
            sites = (c.site for inner in entry.plans for c in contractions(inner))
            if length > 1 and any(s.multiplies and s.stacked[:1] == (True,) for s in sites):
                found[i] = length
    return found


def take_apart(plan: Plan, bounds: Mapping[int, Sequence[int]], leaves: int) -> Apart:
    """Runs scans in parts, one after another.

    Args:
      plan: Equations of a call.
      leaves: Number of its inputs, from the first, that are parameters and buffers.
      bounds: For scans by position, how many slices have run where each part begins, and all of
        them at the end.
    """
    read = {v for eqn in plan.jaxpr.eqns for v in eqn.invars if isinstance(v, jex.Var)}
    read |= {v for v in plan.jaxpr.outvars if isinstance(v, jex.Var)}
    parts = _Parts(read, set(plan.jaxpr.invars[:leaves]))
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

    def __init__(self, read: set[jex.Var], leaves: set[jex.Var]):
        self.read, self.leaves = read, leaves
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
        carried = eqn.invars[loop.consts : loop.first_slice]
        scanned, stacked = eqn.invars[loop.first_slice :], eqn.outvars[loop.carry :]
        parts = [Rows(a, b, loop.length) for a, b in itertools.pairwise(bounds)]
        rows = [Rows(loop.length - b, loop.length - a, n) for a, b, n in parts]
        rows = rows if loop.reverse else parts
        taken = [self.slices(x, rows) for x in scanned]
        pieces = [[e.outvars[0] for e in self.slices(y, rows)] for y in stacked]
        for k, own in enumerate(rows):
            begin, last = bounds[k], k == len(rows) - 1
            for j, (x, each) in enumerate(zip(scanned, taken, strict=True)):
                self.add(each[k], None, (i, begin, j))
                if x in self.leaves:
                    self.rows[each[k].outvars[0]] = (x, own)
            after = eqn.outvars[: loop.carry]
            after = after if last else [jex.Var(v.aval) for v in after]
            inputs = [*eqn.invars[: loop.consts], *carried, *(each[k].outvars[0] for each in taken)]
            made = stacked if len(rows) == 1 else [each[k] for each in pieces]
            part = internals.scan_of_length(eqn, own.last - own.first, inputs, [*after, *made])
            self.add(part, entry._replace(rows=own), (i, begin, len(taken)))
            carried = after
        for k, (y, each) in enumerate(zip(stacked, pieces, strict=True)):
            if len(rows) > 1 and y in self.read:
                (joined,) = _equations(lambda *a: [jnp.concatenate(a)], *_in_order(each, rows))
                self.add(joined.replace(outvars=[y]), None, (i, loop.length, k))

    def slices(self, x: Any, rows: Sequence[Rows]) -> list[jex.JaxprEqn]:
        """Equations that take parts of a value along its first axis."""
        return _equations(lambda a: [lax.slice_in_dim(a, r.first, r.last) for r in rows], x)


def _in_order(pieces: Sequence[jex.Var], rows: Sequence[Rows]) -> list[jex.Var]:
    """Pieces of a stack in the order of their slices."""
    return [piece for _, piece in sorted(zip(rows, pieces, strict=True), key=lambda pair: pair[0])]


def _equations(function: Callable[..., list[Any]], *operands: Atom) -> list[jex.JaxprEqn]:
    """The equations that a function of operands is, one a result, with results of their own."""
    eqns = jax.make_jaxpr(function)(*map(shape_of, operands)).jaxpr.eqns
    return [
        eqn.replace(invars=[*operands], outvars=[jex.Var(v.aval) for v in eqn.outvars])
        for eqn in eqns
    ]
