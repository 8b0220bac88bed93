"""Inlining of the calls that take slices of an array, so that what is taken can be followed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.extend.core as jex
import jax.extend.core.primitives as prims

from jaxsim.internals import Atom, inner_jaxprs, jaxpr_of, shape_of

CALLS = (prims.jit_p, prims.closed_call_p)
"""Primitives that run the equations inside them once and mean nothing else."""

TAKING = ("gather", "dynamic_slice")
"""Primitives that take a part of an array at integers."""


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
    values = dict(zip(jaxpr.constvars, consts, strict=True))
    eqns: list[jex.JaxprEqn] = []
    stands_for: dict[Atom, Atom] = {}

    def at(atom: Atom) -> Atom:
        return atom if isinstance(atom, jex.Literal) else stands_for.get(atom, atom)

    def add(inner: jex.Jaxpr, *, fresh: bool) -> None:
        for eqn in inner.eqns:
            ins = [at(v) for v in eqn.invars]
            if eqn.primitive in CALLS and _takes_slices(eqn):
                ((called, held),) = inner_jaxprs(eqn)
                for v, value in zip(called.constvars, held, strict=True):
                    stands_for[v] = variable = jex.Var(v.aval)
                    values[variable] = value
                stands_for.update(zip(called.invars, ins, strict=True))
                add(called, fresh=True)
                stands_for.update(zip(eqn.outvars, [at(v) for v in called.outvars], strict=True))
                continue
            if fresh:
                stands_for.update({v: jex.Var(v.aval) for v in eqn.outvars})
            outs: list[Any] = [at(v) for v in eqn.outvars]
            eqns.append(eqn.replace(invars=ins, outvars=outs))

    add(jaxpr, fresh=False)
    inlined = jaxpr_of(values, jaxpr.invars, [at(v) for v in jaxpr.outvars], eqns, jaxpr)
    return inlined, list(values.values())


def _takes_slices(eqn: jex.JaxprEqn) -> bool:
    """Tells if an equation takes slices of an array of three axes, itself or in calls inside."""
    if eqn.primitive in CALLS:
        return any(map(_takes_slices, inner_jaxprs(eqn)[0][0].eqns))
    return eqn.primitive.name in TAKING and len(shape_of(eqn.invars[0]).shape) > 2
