"""Calls that are replaced by the equations inside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.extend.core as jex
import jax.extend.core.primitives as prims

from jaxsim.internals import Atom, inner_jaxprs, jaxpr_of, shape_of
from jaxsim.network.plan import Inner

CALLS = (prims.jit_p, prims.closed_call_p)
"""Primitives that run the equations inside them once and mean nothing else."""

TAKING = ("gather", "dynamic_slice")
"""Primitives that take a part of an array at integers."""


class Opened(NamedTuple):
    """What stands inside a call.

    Attributes:
      jaxpr: Its equations.
      consts: Values of its constants.
      entries: What is said of each equation.
    """

    jaxpr: jex.Jaxpr
    consts: Sequence[Any]
    entries: Sequence[Any]


def equations_inside(eqn: jex.JaxprEqn, entry: Any) -> Opened:
    """Opens a call of one jaxpr.

    Args:
      eqn: The call.
      entry: What its plan says of it: a plan of the equations inside, or nothing of any of them.
    """
    if isinstance(entry, Inner):
        (plan,) = entry.plans
        return Opened(plan.jaxpr, plan.consts, plan.entries)
    ((jaxpr, consts),) = inner_jaxprs(eqn)
    return Opened(jaxpr, consts, (None,) * len(jaxpr.eqns))


def inline_calls(
    outer: Opened, opened: Callable[[jex.JaxprEqn, Any], Opened | None]
) -> tuple[jex.Jaxpr, list[Any], tuple[Any, ...]]:
    """Replaces calls by the equations inside them, and the calls among those too.

    Args:
      outer: Equations with what is said of each.
      opened: Of an equation and what is said of it, what stands inside; None where it stays.

    Returns:
      The equations, the values of their constants, and what is said of each equation.
    """
    consts = dict(zip(outer.jaxpr.constvars, outer.consts, strict=True))
    eqns: list[jex.JaxprEqn] = []
    entries: list[Any] = []
    stands_for: dict[Atom, Atom] = {}

    def at(atom: Atom) -> Atom:
        return atom if isinstance(atom, jex.Literal) else stands_for.get(atom, atom)

    def add(held: Opened, *, fresh: bool) -> None:
        for eqn, entry in zip(held.jaxpr.eqns, held.entries, strict=True):
            ins = [at(v) for v in eqn.invars]
            inner = opened(eqn, entry)
            if inner is not None:
                for v, value in zip(inner.jaxpr.constvars, inner.consts, strict=True):
                    stands_for[v] = variable = jex.Var(v.aval)
                    consts[variable] = value
                stands_for.update(zip(inner.jaxpr.invars, ins, strict=True))
                add(inner, fresh=True)
                results = [at(v) for v in inner.jaxpr.outvars]
                stands_for.update(zip(eqn.outvars, results, strict=True))
                continue
            if fresh:
                stands_for.update({v: jex.Var(v.aval) for v in eqn.outvars})
            outs: list[Any] = [at(v) for v in eqn.outvars]
            eqns.append(eqn.replace(invars=ins, outvars=outs))
            entries.append(entry)

    add(outer, fresh=False)
    outvars = [at(v) for v in outer.jaxpr.outvars]
    jaxpr = jaxpr_of(consts, outer.jaxpr.invars, outvars, eqns, outer.jaxpr)
    return jaxpr, list(consts.values()), tuple(entries)


def inline_slices(jaxpr: jex.Jaxpr, consts: Sequence[Any]) -> tuple[jex.Jaxpr, Sequence[Any]]:
    """Replaces the calls that take slices of an array of three axes or more by their equations.

    `jnp.take` is such a call: what it returns is then taken by an equation beside its readers.

    Args:
      jaxpr: Equations; inner jaxprs of loops and branches stay as they are.
      consts: Values of its constants.

    Returns:
      The equations and the values of their constants; what was given where there is no such call.
    """
    if not any(eqn.primitive in CALLS and _takes_slices(eqn) for eqn in jaxpr.eqns):
        return jaxpr, consts

    def opened(eqn: jex.JaxprEqn, entry: Any) -> Opened | None:
        if eqn.primitive not in CALLS or not _takes_slices(eqn):
            return None
        ((called, held),) = inner_jaxprs(eqn)
        return Opened(called, held, [entry] * len(called.eqns))

    inlined, values, _ = inline_calls(Opened(jaxpr, consts, [None] * len(jaxpr.eqns)), opened)
    return inlined, values


def _takes_slices(eqn: jex.JaxprEqn) -> bool:
    """Tells if an equation takes slices of an array of three axes, itself or in calls inside."""
    if eqn.primitive in CALLS:
        return any(map(_takes_slices, inner_jaxprs(eqn)[0][0].eqns))
    return eqn.primitive.name in TAKING and len(shape_of(eqn.invars[0]).shape) > 2
