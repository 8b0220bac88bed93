"""What a network knows of tokens before it computes: positions, masks, biases, computed first.

Behind a cut at which tokens leave, a stage runs with fewer of them. A mask or a table of positions
that it would make there, by counting, would be of other tokens; made in the first stage, it crosses
the cuts like any other activation, and loses the entries of the tokens that leave.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp

from jaxsim.internals import Atom, jaxpr_of, parameters, shape_of
from jaxsim.network.cuts import Equations, divided, variables_of
from jaxsim.network.plan import Entry
from jaxsim.staged.attention import Attention, computed_values


def known_first(line: Equations, attention: Attention) -> Equations:
    """Moves what no product of an activation reaches, and tells tokens apart, to the front.

    Args:
      line: Equations of a call.
      attention: Where it attends.
    """
    whole = line.whole
    eqns, entries, jaxpr = whole.jaxpr.eqns, whole.entries, whole.jaxpr
    begin = line.places[attention.at[0]][0]
    computed = computed_values(whole, line.arguments)
    maker = {v: i for i, eqn in enumerate(eqns) for v in eqn.outvars}
    roots = {v for v in (*jaxpr.invars, *jaxpr.constvars) if attention.token_axes(v)}
    told = set(roots)
    for eqn in eqns:
        if computed.isdisjoint(eqn.outvars) and (
            counts_tokens(eqn, attention) or not told.isdisjoint(variables_of(eqn.invars))
        ):
            told.update(eqn.outvars)
    # a loop that attends reads what it is told again in each slice
    readers = [i for i in range(begin, len(eqns)) if not computed.isdisjoint(eqns[i].outvars)]
    wanted = {v for i in readers for v in variables_of(eqns[i].invars) if v in told}
    copies = {v: _copy(v) for v in jaxpr.invars + jaxpr.constvars if v in wanted & roots}
    early, queue = set[int](), [v for v in wanted if v in maker]
    while queue:
        i = maker.get(queue.pop())
        if i is not None and i not in early:
            early.add(i)
            queue += variables_of(eqns[i].invars)
    late = set(readers)

    def at(i: int, atom: Atom) -> Atom:
        if i in late and isinstance(atom, jex.Var) and atom in copies:
            return copies[atom].outvars[0]
        return atom

    rest = [i for i in range(len(eqns)) if i not in early]
    ordered: list[jex.JaxprEqn] = [*copies.values(), *(eqns[i] for i in sorted(early))]
    meaning: list[Entry] = [*[None] * len(copies), *(entries[i] for i in sorted(early))]
    count = len(ordered)
    for i in rest:
        ordered.append(eqns[i].replace(invars=[at(i, v) for v in eqns[i].invars]))
        meaning.append(entries[i])
    consts = dict(zip(jaxpr.constvars, whole.consts, strict=True))
    made = jaxpr_of(consts, jaxpr.invars, jaxpr.outvars, ordered, jaxpr)
    return divided(
        line._replace(
            whole=whole._replace(jaxpr=made, entries=tuple(meaning)), early=count, slices=True
        )
    )


def counts_tokens(eqn: jex.JaxprEqn, attention: Attention) -> bool:
    """Tells if an equation counts tokens.

    Args:
      eqn: Equation.
      attention: Where its call attends.
    """
    if eqn.primitive.name != "iota":
        return False
    return parameters(eqn)["dimension"] in attention.token_axes(eqn.outvars[0])


def _copy(v: Any) -> jex.JaxprEqn:
    (eqn,) = jax.make_jaxpr(jnp.copy)(shape_of(v)).jaxpr.eqns
    return eqn.replace(invars=[v], outvars=[jex.Var(v.aval)])
