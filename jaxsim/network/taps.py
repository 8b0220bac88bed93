"""Taps: functions of what is live at cuts, whose results a network returns beside its outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

from jaxsim.internals import Atom, jaxpr_of, shape_of
from jaxsim.network.cuts import Cut, Equations, variables_of
from jaxsim.network.leaves import path_name
from jaxsim.network.plan import Entry


class Tap(NamedTuple):
    """A function of the activations that are live at a cut.

    Attributes:
      cut: Where it stands: it is run before the equation that the cut names.
      name: Path of its parameters among those of the network.
      params: Its parameters, a tree of arrays or shapes.
      read: `(params, live) -> results`, where `live` are the activations computed before the cut
        and read behind it, in order of their making; any tree of results.
    """

    cut: Cut
    name: str
    params: Any
    read: Callable[[Any, list[Any]], Any]


class Tapped(NamedTuple):
    """Equations with those of taps among them.

    Attributes:
      line: Equations; parameters of taps follow the network's, results of taps precede its outputs.
      begins: For each place, how many of the equations that an argument reaches run before it.
    """

    line: Equations
    begins: list[int]


def insert_taps(line: Equations, begins: Sequence[int], taps: Sequence[tuple[int, Tap]]) -> Tapped:
    """Puts the equations of taps among those of a network.

    Args:
      line: Equations of a call, cut where the taps stand.
      begins: Places, each as the number of active equations before it.
      taps: In order of execution, the active equations before each, and the tap.
    """
    plan, jaxpr = line.plan, line.plan.jaxpr
    consts = dict(zip(jaxpr.constvars, plan.consts, strict=True))

    def shape(a: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(np.shape(a), jnp.result_type(a))

    own: list[jex.Var] = []
    paths: list[str] = []
    results: list[Atom] = []
    inserted: dict[int, list[Any]] = {}
    for before, tap in taps:
        leaves, treedef = jax.tree_util.tree_flatten_with_path(tap.params)
        live = live_at(line, before)
        shapes = [shape(a) for _, a in leaves], [shape_of(v) for v in live]
        traced = jax.make_jaxpr(
            lambda leaves, live, tap=tap, treedef=treedef: tap.read(
                jax.tree.unflatten(treedef, leaves), live
            )
        )(*shapes)
        params = [jex.Var(v.aval) for v in traced.jaxpr.invars[: len(leaves)]]
        stands_for: dict[Atom, Atom] = dict(zip(traced.jaxpr.invars, [*params, *live], strict=True))
        for v, value in zip(traced.jaxpr.constvars, traced.consts, strict=True):
            stands_for[v] = const = jex.Var(v.aval)
            consts[const] = value
        eqns = inserted.setdefault(line.active[before], [])
        for eqn in traced.jaxpr.eqns:  # fresh variables: taps that are alike share a trace
            stands_for.update({v: jex.Var(v.aval) for v in eqn.outvars})
            eqns.append(
                eqn.replace(
                    invars=[_at(stands_for, v) for v in eqn.invars],
                    outvars=variables_of([stands_for[v] for v in eqn.outvars]),
                )
            )
        results += [_at(stands_for, v) for v in traced.jaxpr.outvars]
        own += params
        paths += [f"{tap.name}/{path_name(path)}" for path, _ in leaves]
    eqns, entries, place = list[Any](), list[Entry](), dict[int, int]()
    for i, (eqn, entry) in enumerate(zip(jaxpr.eqns, plan.entries, strict=True)):
        eqns += inserted.get(i, [])
        entries += [None] * len(inserted.get(i, []))
        place[i] = len(eqns)
        eqns.append(eqn)
        entries.append(entry)
    first = len(line.paths)
    invars = [*jaxpr.invars[:first], *own, *jaxpr.invars[first:]]
    outvars = [*results, *jaxpr.outvars]
    reached, active = set(line.arguments), list[int]()
    for i, eqn in enumerate(eqns):
        if eqn.effects or any(v in reached for v in variables_of(eqn.invars)):
            active.append(i)
            reached.update(eqn.outvars)
    at = {i: order for order, i in enumerate(active)}
    known = (None,) * len(results) + plan.known
    plan = plan._replace(
        jaxpr=jaxpr_of(consts, invars, outvars, eqns, jaxpr),
        consts=list(consts.values()),
        entries=tuple(entries),
        known=known,
    )
    tapped = line._replace(plan=plan, active=tuple(active), paths=(*line.paths, *paths))
    return Tapped(tapped, [at[place[line.active[before]]] for before in begins])


def live_at(line: Equations, before: int) -> list[jex.Var]:
    """Lists the activations that are computed before a place and read behind it.

    Args:
      line: Equations of a call.
      before: Number of active equations before the place.
    """
    eqns = line.plan.jaxpr.eqns
    made = [v for i in line.active[:before] for v in eqns[i].outvars]
    read = {v for i in line.active[before:] for v in variables_of(eqns[i].invars)}
    read |= set(variables_of(line.plan.jaxpr.outvars))
    return [v for v in made if v in read]


def _at(stands_for: dict[Atom, Atom], atom: Atom) -> Atom:
    return atom if isinstance(atom, jex.Literal) else stands_for[atom]
