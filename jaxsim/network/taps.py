"""Taps: functions of what is live at cuts, whose results a network returns beside its outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

from jaxsim.internals import Atom, jaxpr_of, shape_of
from jaxsim.network.cuts import Cut, Equations, active_equations, variables_of
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
    made = [_equations_of(tap, live_at(line, before)) for before, tap in taps]
    consts = dict(zip(jaxpr.constvars, plan.consts, strict=True))
    inserted: dict[int, list[jex.JaxprEqn]] = {}
    for (before, _), of_tap in zip(taps, made, strict=True):
        inserted.setdefault(line.active[before], []).extend(of_tap.eqns)
        consts.update(of_tap.consts)
    own = [v for of_tap in made for v in of_tap.params]
    paths = [path for of_tap in made for path in of_tap.paths]
    results = [v for of_tap in made for v in of_tap.results]
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
    active = active_equations(eqns, line.arguments)
    at = {i: order for order, i in enumerate(active)}
    known = (None,) * len(results) + plan.known
    plan = plan._replace(
        jaxpr=jaxpr_of(consts, invars, outvars, eqns, jaxpr),
        consts=list(consts.values()),
        entries=tuple(entries),
        known=known,
    )
    tapped = line._replace(plan=plan, active=active, paths=(*line.paths, *paths))
    return Tapped(tapped, [at[place[line.active[before]]] for before in begins])


class _Equations(NamedTuple):
    """A tap's own equations.

    Attributes:
      eqns: In order of execution; they read the network's live variables.
      params: Variables of its parameters.
      paths: Their paths.
      results: What it gives.
      consts: Values of its constants.
    """

    eqns: list[jex.JaxprEqn]
    params: list[jex.Var]
    paths: list[str]
    results: list[Atom]
    consts: dict[jex.Var, Any]


def _equations_of(tap: Tap, live: Sequence[jex.Var]) -> _Equations:
    """Traces a tap; its variables are new, since taps that are alike share a trace."""
    leaves, treedef = jax.tree_util.tree_flatten_with_path(tap.params)
    shapes = [jax.ShapeDtypeStruct(np.shape(a), jnp.result_type(a)) for _, a in leaves]
    traced = jax.make_jaxpr(
        lambda leaves, live: tap.read(jax.tree.unflatten(treedef, leaves), live)
    )(shapes, [shape_of(v) for v in live])
    params = [jex.Var(v.aval) for v in traced.jaxpr.invars[: len(leaves)]]
    fixed = {v: jex.Var(v.aval) for v in traced.jaxpr.constvars}
    stands_for: dict[Atom, Atom] = dict(zip(traced.jaxpr.invars, [*params, *live], strict=True))
    stands_for |= fixed
    eqns: list[jex.JaxprEqn] = []
    for eqn in traced.jaxpr.eqns:
        stands_for.update({v: jex.Var(v.aval) for v in eqn.outvars})
        eqns.append(
            eqn.replace(
                invars=[_at(stands_for, v) for v in eqn.invars],
                outvars=variables_of([stands_for[v] for v in eqn.outvars]),
            )
        )
    return _Equations(
        eqns=eqns,
        params=params,
        paths=[f"{tap.name}/{path_name(path)}" for path, _ in leaves],
        results=[_at(stands_for, v) for v in traced.jaxpr.outvars],
        consts=dict(zip(fixed.values(), traced.consts, strict=True)),
    )


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
