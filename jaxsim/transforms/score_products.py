"""Products of queries and keys in the equations of a call, and what their keys are moved from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.extend.core as jex
import jax.extend.core.primitives as prims

from jaxsim import internals
from jaxsim.internals import Atom, inner_jaxprs, parameters, shape_of
from jaxsim.network.inlining import CALLS, Opened, equations_inside, inline_calls
from jaxsim.network.moves import UNCHANGED, origins
from jaxsim.network.plan import Contraction, Entry, Inner, Plan


class Scopes:
    """Plans with the calls among their equations inlined, each once."""

    def __init__(self) -> None:
        self._held: dict[int, tuple[Plan, Plan]] = {}
        self._makers: dict[int, dict[Any, int]] = {}

    def inlined(self, plan: Plan) -> Plan:
        """The plan without calls; of one that this made, itself."""
        if id(plan) not in self._held:
            outer = Opened(plan.jaxpr, plan.consts, plan.entries)
            made = Plan(*inline_calls(outer, _opened), plan.known)
            self._held[id(plan)] = plan, made
            self._held[id(made)] = made, made
        return self._held[id(plan)][1]

    def of(self, plan: Plan) -> Scope:
        """The equations of a call."""
        return self._scope(plan, None, None, None, 0)

    def inside(self, scope: Scope, eqn: jex.JaxprEqn, entry: Inner, which: int) -> Scope:
        """Equations inside of one of a scope's: those of its plan of a number."""
        return self._scope(entry.plans[which], scope, eqn, entry, which)

    def _scope(self, plan: Plan, *rest: Any) -> Scope:
        plan = self.inlined(plan)
        eqns = enumerate(plan.jaxpr.eqns)
        if id(plan) not in self._makers:
            self._makers[id(plan)] = {v: i for i, eqn in eqns for v in eqn.outvars}
        return Scope(plan, self._makers[id(plan)], *rest)


def _opened(eqn: jex.JaxprEqn, entry: Entry) -> Opened | None:
    if eqn.primitive not in CALLS or (isinstance(entry, Inner) and entry.rewritten):
        return None
    return equations_inside(eqn, entry)


class Scope(NamedTuple):
    """Equations that run one after another, and those around them.

    Attributes:
      plan: Equations, calls inlined.
      makers: For each value the position of the equation that makes it.
      outer: What they are inside of, None at top level.
      eqn, entry: Equation of that scope which holds them, and its meaning.
      which: Number of their plan among those of this equation.
    """

    plan: Plan
    makers: Mapping[Any, int]
    outer: Scope | None
    eqn: jex.JaxprEqn | None
    entry: Inner | None
    which: int

    def same(self, atom: Atom, axis: int) -> bool:
        """Tells if a value is the same along all of an axis."""
        shape = shape_of(atom).shape
        if isinstance(atom, jex.Literal) or len(shape) <= axis or shape[axis] == 1:
            return True
        at = self.makers.get(atom)
        if at is None:
            return False
        eqn = self.plan.jaxpr.eqns[at]
        if eqn.primitive is not prims.broadcast_in_dim_p:
            return False
        along = parameters(eqn)["broadcast_dimensions"]
        return axis not in along or self.same(eqn.invars[0], along.index(axis))


class Source(NamedTuple):
    """A value that keys come from as they are: made by an equation, or an input of the call.

    Attributes:
      scope: Equations among which it is read.
      var: Its variable.
      axis: Its axis along which the vectors of keys lie.
    """

    scope: Scope
    var: Any
    axis: int

    @property
    def key(self) -> tuple[int, Any]:
        """Tells it from any other value of the call."""
        return id(self.scope.plan), self.var


class Product(NamedTuple):
    """A product of scores.

    Attributes:
      scope: Equations that it is one of.
      eqn: Its equation.
      name: Name of its site.
      keys: Which of its operands holds the keys.
    """

    scope: Scope
    eqn: jex.JaxprEqn
    name: str
    keys: int

    @property
    def axis(self) -> int:
        """Axis of the keys that is summed over."""
        return parameters(self.eqn)["dimension_numbers"][0][self.keys][0]


def kernels_of(product: Product) -> set[str]:
    """Finds the parameters that make the operands of a product; none where there is more.

    Args:
      product: Product of scores.

    Returns:
      Their paths.
    """
    scope, queue, found = product.scope, list[Any](product.eqn.invars), set[str]()
    while queue:
        at = None if isinstance(v := queue.pop(), jex.Literal) else scope.makers.get(v)
        if at is None:
            continue
        eqn, entry = scope.plan.jaxpr.eqns[at], scope.plan.entries[at]
        if isinstance(entry, Contraction) and entry.site.kind == "dot" and entry.site.param:
            found.add(entry.site.param)
        elif entry is None and eqn.primitive.name in _SUMS:
            queue += eqn.invars
        elif entry is None and (scaled := _scaled(eqn)) is not None:
            queue.append(scaled)
        else:
            return set()
    return found


_SUMS = {
    *("add", "broadcast_in_dim", "convert_element_type", "dynamic_update_slice", *UNCHANGED),
    *("reshape", "slice", "split", "squeeze", "transpose", "unstack"),
}
"""Primitives that add or move: a matrix behind them may stand before them."""


def _scaled(eqn: jex.JaxprEqn) -> Atom | None:
    """What an equation multiplies by a number, or divides; None where it does something else."""
    if eqn.primitive not in (prims.mul_p, prims.div_p):
        return None
    left, right = eqn.invars
    if shape_of(right).size == 1:
        return left
    return right if eqn.primitive is prims.mul_p and shape_of(left).size == 1 else None


def scopes_around(scope: Scope | None) -> Sequence[Scope]:
    """Lists a scope and those around it, the innermost first.

    Args:
      scope: Scope, or None.
    """
    found = list[Scope]()
    while scope is not None:
        found.append(scope)
        scope = scope.outer
    return found


def products_in(scopes: Scopes, scope: Scope, keys: Mapping[str, int]) -> list[Product]:
    """Lists the products of scores among equations, and inside of these.

    Args:
      scopes: Equations by the plan that they were inlined of.
      scope: Equations.
      keys: Names of the sites of scores, which of their operands holds the keys.
    """
    found = list[Product]()
    for eqn, entry in zip(scope.plan.jaxpr.eqns, scope.plan.entries, strict=True):
        if isinstance(entry, Contraction) and entry.site.name in keys:
            found.append(Product(scope, eqn, entry.site.name, keys[entry.site.name]))
        elif isinstance(entry, Inner) and not entry.rewritten:
            for which in range(len(entry.plans)):
                found += products_in(scopes, scopes.inside(scope, eqn, entry, which), keys)
    return found


def _body(entry: Inner) -> int:
    return len(entry.plans) - 1


def sources_of(scopes: Scopes, product: Product) -> list[Source]:
    """Finds the values that the keys of a product are moved from, through loops and branches.

    Args:
      scopes: Equations by the plan that they were inlined of.
      product: Product of scores.
    """
    found: dict[tuple[int, Any], Source] = {}
    queue = [Source(product.scope, product.eqn.invars[product.keys], product.axis)]
    seen = set[tuple[int, Any, int]]()
    while queue:
        at = queue.pop()
        scope, var, axis = at
        if isinstance(var, jex.Literal) or (*at.key, axis) in seen:
            continue
        seen.add((*at.key, axis))
        number = scope.makers.get(var)
        if number is not None:
            eqn, entry = scope.plan.jaxpr.eqns[number], scope.plan.entries[number]
            before = _made_inside(scopes, scope, eqn, entry, var, axis)
            if before is None and entry is None and not inner_jaxprs(eqn):
                moved = origins(eqn, axis, scope.same)
                before = (
                    None if moved is None else [Source(scope, eqn.invars[i], b) for i, b in moved]
                )
        else:
            before = _given_from(scope, var, axis)
        if before is None:
            found[at.key] = at
        else:
            queue += before
    return list(found.values())


def _made_inside(
    scopes: Scopes, scope: Scope, eqn: jex.JaxprEqn, entry: Entry, var: Any, axis: int
) -> list[Source] | None:
    """What a result of a loop or a branch is inside of it."""
    if not isinstance(entry, Inner) or entry.rewritten:
        return None
    place = eqn.outvars.index(var)
    if eqn.primitive is prims.scan_p and place >= internals.scan(eqn).carry:
        if axis == 0:
            return None
        axis -= 1
    each = [_body(entry)] if eqn.primitive is prims.while_p else range(len(entry.plans))
    insides = [scopes.inside(scope, eqn, entry, which) for which in each]
    return [Source(s, s.plan.jaxpr.outvars[place], axis) for s in insides]


def _given_from(scope: Scope, var: Any, axis: int) -> list[Source] | None:
    """What an input of a loop or a branch is outside of it, and of a carry in the turn before."""
    inputs = scope.plan.jaxpr.invars
    if scope.outer is None or scope.eqn is None or var not in inputs:
        return None
    place, eqn = inputs.index(var), scope.eqn
    operand, carried = _operand(eqn, scope, place)
    is_slice = eqn.primitive is prims.scan_p and place >= internals.scan(eqn).first_slice
    found = [Source(scope.outer, eqn.invars[operand], axis + is_slice)]
    if carried is not None:
        found.append(Source(scope, scope.plan.jaxpr.outvars[carried], axis))
    return found


def _operand(eqn: jex.JaxprEqn, scope: Scope, place: int) -> tuple[int, int | None]:
    """Which operand an input of a body is, and which output of it, where it is carried."""
    if eqn.primitive is prims.scan_p:
        loop = internals.scan(eqn)
        carried = loop.consts <= place < loop.first_slice
        return place, place - loop.consts if carried else None
    if eqn.primitive is prims.while_p:
        loop = internals.while_loop(eqn)
        consts = (loop.test_consts, loop.body_consts)[scope.which]
        if place >= consts:
            return loop.first_carry + place - consts, place - consts if scope.which else None
        return place + loop.test_consts * scope.which, None
    return place + (eqn.primitive is prims.cond_p), None
