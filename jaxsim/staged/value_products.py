"""Products of probabilities and values: where a traced model attends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax.extend.core as jex
import jax.extend.core.primitives as prims

from jaxsim.internals import inner_jaxprs, jaxpr_of, parameters, shape_of
from jaxsim.network.cuts import variables_of
from jaxsim.network.plan import Contraction, Inner, Plan
from jaxsim.sparsity.channels.axes import AxisGroup, Symbol, same
from jaxsim.sparsity.channels.propagate import equation_axes
from jaxsim.staged.bodies import Body
from jaxsim.staged.token_marks import Path


class ValueProduct(NamedTuple):
    """A product of probabilities and values, before it is known what its axes hold.

    Attributes:
      body: Equations that it stands among.
      scores: Position there of the product of queries and keys.
      values: Its own position.
      operand: Which operand the probabilities are.
      keys: Their axis that is summed over.
      keys_of_scores: Axis of the scores that it comes from.
      between: Positions of the equations that probabilities are computed by, behind products.
    """

    body: Body
    scores: int
    values: int
    operand: int
    keys: int
    keys_of_scores: int
    between: frozenset[int]

    @property
    def axes(self) -> tuple[AxisGroup, ...]:
        """Axis groups of the probabilities."""
        return self.body.axes[self.values].operands[self.operand]

    @property
    def attended(self) -> AxisGroup:
        """What is attended to."""
        return self.axes[self.keys]

    @property
    def attended_axes(self) -> list[int]:
        """Axes of the probabilities that run over what is attended to."""
        return [i for i, group in enumerate(self.axes) if same(group, self.attended)]

    @property
    def place(self) -> Path:
        """Position among the equations of the call, and of those inside."""
        return (*self.body.path, self.values)

    @property
    def site(self) -> str:
        """Name of its site, without that of a slice."""
        entry = self.body.entries[self.values]
        assert isinstance(entry, Contraction)
        return entry.site.name

    @property
    def name(self) -> str:
        """Name of its site, within a stack with the slice."""
        return self.body.name(self.site)


def value_products(body: Body) -> Iterator[ValueProduct]:
    """Finds the products of values among equations, those inside of others left out.

    Args:
      body: The equations.
    """
    maker = {v: i for i, eqn in enumerate(body.eqns) for v in eqn.outvars}
    for at, (eqn, entry) in enumerate(zip(body.eqns, body.entries, strict=True)):
        if not (isinstance(entry, Contraction) and entry.site.kind == "dynamic"):
            continue
        if eqn.primitive is not prims.dot_general_p:
            continue
        for operand, v in enumerate(eqn.invars):
            if not isinstance(v, jex.Var):
                continue
            seen, products = _behind(body, maker, v)
            own = shape_of(v)
            softened = any(
                _exponentiates(body.eqns[i])
                and shape_of(body.eqns[i].outvars[0]).shape == own.shape
                for i in seen
            )
            scores = [i for i in products if shape_of(body.eqns[i].outvars[0]).size == own.size]
            summed = parameters(eqn)["dimension_numbers"][0][operand]
            if not softened or len(scores) != 1 or len(summed) != 1:
                continue
            keys = _axis_of_scores(body, seen, scores[0], v, summed[0])
            if keys is not None:
                yield ValueProduct(body, scores[0], at, operand, summed[0], keys, frozenset(seen))


def find_stored(plan: Plan) -> dict[str, int]:
    """Finds which operand of each product of an attention holds its keys or its values.

    Args:
      plan: Equations of a call, those inside of loops and calls included.

    Returns:
      Its position among the operands, by name of the site.
    """
    values = {found.site: 1 - found.operand for found in _everywhere(plan)}
    return values | find_keys(plan)


def find_keys(plan: Plan) -> dict[str, int]:
    """Finds which operand of each product of scores holds the keys.

    Args:
      plan: Equations of a call, those inside of loops and calls included.

    Returns:
      Its position among the operands, by name of the site.
    """
    keys: dict[str, int] = {}
    for found in _everywhere(plan):
        eqn, entry = found.body.eqns[found.scores], found.body.entries[found.scores]
        (left, _), (batch, _) = parameters(eqn)["dimension_numbers"]
        assert isinstance(entry, Contraction)
        # axes of a result: those of both operands, of the left alone, of the right alone
        if found.keys_of_scores >= len(batch):
            of_left = shape_of(eqn.invars[0]).ndim - len(left)
            keys[entry.site.name] = int(found.keys_of_scores >= of_left)
    return keys


def _everywhere(plan: Plan) -> Iterator[ValueProduct]:
    """Finds the products of values of a call, inside of loops and calls too."""
    yield from value_products(Body.of(plan, ()))
    for entry in plan.entries:
        for inner in entry.plans if isinstance(entry, Inner) else ():
            yield from _everywhere(inner)


def _behind(body: Body, maker: Mapping[jex.Var, int], value: jex.Var) -> tuple[set[int], list[int]]:
    """Finds the equations that a value is computed by, back to products; the dynamic of these."""
    seen, products, queue = set[int](), list[int](), [value]
    while queue:
        i = maker.get(queue.pop())
        if i is None or i in seen or i in products:
            continue
        entry = body.entries[i]
        if isinstance(entry, Contraction):
            if entry.site.kind == "dynamic":
                products.append(i)
        elif not (isinstance(entry, Inner) and entry.names):
            seen.add(i)
            queue += variables_of(body.eqns[i].invars)
    return seen, products


def _exponentiates(eqn: jex.JaxprEqn) -> bool:
    inside = (inner for jaxpr, _ in inner_jaxprs(eqn) for inner in jaxpr.eqns)
    return eqn.primitive.name in ("exp", "exp2") or any(map(_exponentiates, inside))


def _axis_of_scores(
    body: Body, seen: set[int], scores: int, value: jex.Var, axis: int
) -> int | None:
    """Finds the axis of scores that an axis of probabilities comes from."""
    (start,) = body.eqns[scores].outvars
    inside, reached = list[jex.JaxprEqn](), {start}
    for eqn in (body.eqns[i] for i in sorted(seen)):
        # without what makes a mask of pairs of them, by which they would be the same
        if not reached.isdisjoint(variables_of(eqn.invars)):
            inside.append(eqn)
            reached.update(eqn.outvars)
    made = {v for eqn in inside for v in eqn.outvars}
    read = dict.fromkeys(v for eqn in inside for v in variables_of(eqn.invars))
    given = [v for v in read if v not in made]
    if start not in given or value not in made:
        return None
    # Queries and keys are the same tokens, which are told apart here, where nothing says so.
    groups = [[Symbol(n) for n in shape_of(v).shape] for v in given]
    rows = equation_axes(jaxpr_of({}, given, [value], inside, body.jaxpr), groups)
    found = {
        v: axes
        for eqn, own in zip(inside, rows, strict=True)
        for v, axes in zip(eqn.outvars, own.results, strict=True)
    }
    wanted = found[value][axis]
    hits = [i for i, g in enumerate(groups[given.index(start)]) if same(g, wanted)]
    return hits[0] if len(hits) == 1 else None
