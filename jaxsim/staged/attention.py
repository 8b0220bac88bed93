"""Attention of a traced model: the products of scores and of values, and what else reads tokens.

A product of two activations is one of values where one operand is computed of an earlier product,
of scores, through an exponential of its shape. The axis that it sums over runs over the tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.extend.core as jex
import jax.extend.core.primitives as prims

from jaxsim import internals
from jaxsim.internals import inner_jaxprs, jaxpr_of, parameters, shape_of
from jaxsim.network.cuts import Equations, active_equations, variables_of
from jaxsim.network.plan import Contraction, Entry, Inner, Plan
from jaxsim.network.stacks import part_name
from jaxsim.sparsity.channels.axes import AxisGroup, Product, Symbol, resolve, same, unify
from jaxsim.sparsity.channels.propagate import (
    ELEMENTWISE,
    EquationAxes,
    describe_place,
    equation_axes,
)

Path = tuple[int, ...]
"""Position of an equation among those of a call, and of those inside it."""


class Scores(NamedTuple):
    """A product of queries and keys.

    Attributes:
      rows: Axis of its result that holds the rows of the batch.
      keys: Axis that holds the tokens that are attended to.
    """

    rows: int
    keys: int


class Values(NamedTuple):
    """A product of probabilities and values, where tokens may leave.

    Attributes:
      operand: Position of the probabilities among its operands.
      rows: Their axis that holds the rows of the batch.
      queries: That which holds the tokens that attend.
      keys: That which holds the tokens that are attended to.
    """

    operand: int
    rows: int
    queries: int
    keys: int


class Pool(NamedTuple):
    """A reduction over tokens outside of attention.

    Attributes:
      how: "sum", "max" or "min".
      operand: Position of the operand whose tokens are reduced.
      rows: Its axis that holds the rows of the batch.
      tokens: Its axis that holds the tokens.
      rows_after: Axis of the result that holds the rows.
    """

    how: str
    operand: int
    rows: int
    tokens: int
    rows_after: int


class Last(NamedTuple):
    """A slice that takes the last tokens.

    Attributes:
      number: How many.
      rows: Axis that holds the rows of the batch.
      tokens: Axis that holds the tokens.
    """

    number: int
    rows: int
    tokens: int


Mark = Scores | Values | Pool | Last
"""What an equation does with tokens."""


@dataclasses.dataclass(frozen=True, eq=False)
class Attention:
    """Where a call attends, by positions of equations, which hold for any number of rows.

    Attributes:
      names: Names of the products of values, in order of execution; within a stack the slice
        behind.
      marks: What equations do with tokens.
      at: For each of the names the position of its equation among those of the call.
      degrees: For sites, along how many of their axes tokens run.
      tokens: What an axis of tokens runs over.
      rows: What an axis of rows runs over.
      axes: Axis groups of the values of the call.
      first: Number of tokens that have to stay in front for what the model reads of them by number.
      last: Number that have to stay at the end.
    """

    names: tuple[str, ...]
    marks: Mapping[Path, Mark]
    at: tuple[int, ...]
    degrees: Mapping[str, int]
    tokens: AxisGroup
    rows: AxisGroup
    axes: Mapping[jex.Var, tuple[AxisGroup, ...]]
    first: int
    last: int

    def token_axes(self, value: Any) -> tuple[int, ...]:
        """Finds the axes of a value that hold tokens.

        Args:
          value: Variable of the call, or a literal.
        """
        return self._axes(value, self.tokens)

    def row_axes(self, value: Any) -> tuple[int, ...]:
        """Finds the axes of a value that hold rows.

        Args:
          value: Variable of the call, or a literal.
        """
        return self._axes(value, self.rows)

    def _axes(self, value: Any, wanted: AxisGroup) -> tuple[int, ...]:
        groups = self.axes.get(value, ()) if isinstance(value, jex.Var) else ()
        return tuple(i for i, group in enumerate(groups) if same(group, wanted))

    def holds_tokens(self, value: Any) -> bool:
        """Tells if tokens are a factor of an axis of a value.

        Args:
          value: Variable of the call, or a literal.
        """
        groups = self.axes.get(value, ()) if isinstance(value, jex.Var) else ()
        return any(factor_count(group, self.tokens) for group in groups)

    def in_call(self, own: Equations, other: Equations) -> Attention:
        """Says the same of a call of another number of rows.

        Args:
          own: Equations that this is of.
          other: Equations of the other call.

        Raises:
          ValueError: They are not the same equations.
        """
        if own is other:
            return self
        if not alike(own, other):
            raise ValueError(
                "prune_tokens: the model runs other equations for so many rows than for two, as "
                "many do for one row; give it two at least"
            )
        mine, others = own.plan.jaxpr, other.plan.jaxpr
        pairs = [*zip(mine.invars, others.invars, strict=True)]
        pairs += zip(mine.constvars, others.constvars, strict=False)
        for one, same_one in zip(mine.eqns, others.eqns, strict=True):
            pairs += zip(one.outvars, same_one.outvars, strict=True)
        axes = {twin: self.axes[v] for v, twin in pairs if v in self.axes}
        return dataclasses.replace(self, axes=axes)


def alike(own: Equations, other: Equations) -> bool:
    """Tells if a call of another number of rows runs the same equations.

    Args:
      own: Equations of a call.
      other: Equations of the other call.
    """
    pair = own.plan.jaxpr, other.plan.jaxpr
    names = [[eqn.primitive.name for eqn in jaxpr.eqns] for jaxpr in pair]
    return names[0] == names[1]


class _Scope(NamedTuple):
    """Equations that run one after another, with their meaning and axes."""

    path: Path
    eqns: Sequence[jex.JaxprEqn]
    entries: Sequence[Entry]
    axes: Sequence[EquationAxes]
    jaxpr: jex.Jaxpr
    name: Callable[[str], str]


class _Found(NamedTuple):
    """A product of values, before it is known what its axes hold."""

    scope: _Scope
    scores: int
    values: int
    operand: int
    keys: int
    keys_of_scores: int
    between: frozenset[int]


def find_attention(line: Equations, rowed: Sequence[bool]) -> Attention:
    """Finds where a call attends and follows its tokens.

    Args:
      line: Equations of a call of two rows or more.
      rowed: True for each argument that holds rows.

    Raises:
      ValueError: Nothing attends, queries and keys are not the same tokens, or an equation behind
        the first attention mixes tokens in a way that is not known.
    """
    jaxpr = line.plan.jaxpr
    groups = [[Symbol(n) for n in shape_of(v).shape] for v in jaxpr.invars]
    first = len(jaxpr.invars) - len(line.arguments)
    firsts = [g[0] for g, own in zip(groups[first:], rowed, strict=True) if own]
    for other in firsts[1:]:
        unify(firsts[0], other)
    if not firsts:
        raise ValueError("prune_tokens: no argument has rows")
    axes = equation_axes(jaxpr, groups)
    values: dict[jex.Var, tuple[AxisGroup, ...]] = {}
    values.update(zip(jaxpr.invars, map(tuple, groups), strict=True))
    for eqn, own in zip(jaxpr.eqns, axes, strict=True):
        values.update(zip(eqn.outvars, own.results, strict=True))
    top = _Scope((), jaxpr.eqns, line.plan.entries, axes, jaxpr, _name_of_site)
    found = [f for scope in _scopes(top) for f in _in_scope(scope)]
    found.sort(key=lambda f: (*f.scope.path, f.values))
    if not found:
        raise ValueError(
            "prune_tokens: the network has no attention: no product of two activations, one of "
            "which is a softmax of such a product"
        )
    own = [f for f in found if len(_tokens_of(f)) == 2]
    if not own:
        raise ValueError(
            "prune_tokens: nowhere do tokens attend to themselves; queries of "
            f"{found[0].scope.name(_name_at(found[0]))} are others than its keys"
        )
    tokens = _operand(own[0])[own[0].keys]
    follow = _Follow(tokens, firsts[0])
    # Attention to tokens from elsewhere, as of a decoder to what an encoder read, decides nothing.
    attended = [f for f in found if same(_operand(f)[f.keys], tokens)]
    for one in attended:
        follow.attention(one)
    own = [f for f in attended if len(_tokens_of(f)) == 2]
    begin = (*own[0].scope.path, own[0].values)
    made = computed_values(line.plan, line.arguments)
    computed = {i for i, eqn in enumerate(jaxpr.eqns) if not made.isdisjoint(eqn.outvars)}
    for scope in _scopes(top):
        follow.others(scope, attended, begin, computed)
    return Attention(
        names=tuple(follow.names),
        marks=follow.marks,
        at=tuple((*f.scope.path, f.values)[0] for f in own),
        degrees=follow.degrees,
        tokens=tokens,
        rows=firsts[0],
        axes=values,
        first=follow.first,
        last=follow.last,
    )


def find_stored(plan: Plan) -> dict[str, int]:
    """Finds which operand of each product of an attention holds its keys or its values.

    Args:
      plan: Equations of a call, those inside of loops and calls included.

    Returns:
      Its position among the operands, by name of the site.
    """
    values = {_name_at(found): 1 - found.operand for found in _everywhere(plan)}
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
        eqn, entry = found.scope.eqns[found.scores], found.scope.entries[found.scores]
        (left, _), (batch, _) = parameters(eqn)["dimension_numbers"]
        assert isinstance(entry, Contraction)
        # axes of a result: those of both operands, of the left alone, of the right alone
        if found.keys_of_scores >= len(batch):
            of_left = shape_of(eqn.invars[0]).ndim - len(left)
            keys[entry.site.name] = int(found.keys_of_scores >= of_left)
    return keys


def _everywhere(plan: Plan) -> Iterator[_Found]:
    """Finds the products of values of a call, inside of loops and calls too."""
    yield from _in_scope(_Scope((), plan.jaxpr.eqns, plan.entries, (), plan.jaxpr, _name_of_site))
    for entry in plan.entries:
        for inner in entry.plans if isinstance(entry, Inner) else ():
            yield from _everywhere(inner)


def factor_count(group: AxisGroup, wanted: AxisGroup) -> int:
    """Counts how often what one axis runs over is a factor of another.

    Args:
      group: What the other axis runs over.
      wanted: What the one runs over.
    """
    group = resolve(group)
    if same(group, wanted):
        return 1
    parts = group.parts if isinstance(group, Product) else ()
    return sum(factor_count(part, wanted) for part in parts)


class Marks(NamedTuple):
    """What equations do with tokens, by identity: they stay the same objects where a call is cut.

    Attributes:
      of: Mark of an equation.
      inside: Jaxprs that hold marked equations.
    """

    of: Mapping[int, Mark]
    inside: frozenset[int]

    def holds(self, entry: Entry) -> bool:
        """Tells if the equations inside one are marked.

        Args:
          entry: Meaning of the equation.
        """
        return isinstance(entry, Inner) and any(id(p.jaxpr) in self.inside for p in entry.plans)

    def attentions(self, plan: Plan) -> int:
        """Counts the attentions of a stage.

        Args:
          plan: Equations of the stage.
        """
        count = 0
        for eqn, entry in zip(plan.jaxpr.eqns, plan.entries, strict=True):
            count += isinstance(self.of.get(id(eqn)), Values)
            if self.holds(entry):
                turns = internals.scan(eqn).length if eqn.primitive is prims.scan_p else 1
                count += turns * self.attentions(_entry(entry).plans[0])
        return count


def marks_of(line: Equations, attention: Attention) -> Marks:
    """Finds the marked equations of a call.

    Args:
      line: Equations of a call, of any number of rows.
      attention: Where it attends.
    """
    marks, inside = dict[int, Mark](), set[int]()
    for path, mark in attention.marks.items():
        plan: Plan = line.plan
        for i in path[:-1]:
            (plan,) = _entry(plan.entries[i]).plans
            inside.add(id(plan.jaxpr))
        marks[id(plan.jaxpr.eqns[path[-1]])] = mark
    return Marks(marks, frozenset(inside))


def computed_values(plan: Plan, arguments: Sequence[jex.Var]) -> set[Any]:
    """Finds the values that a product of an activation reaches: the others are known beforehand.

    Args:
      plan: Equations of a call.
      arguments: Variables of its arguments.
    """
    eqns, found = plan.jaxpr.eqns, set[Any]()
    active = set(active_equations(eqns, arguments))
    for i, (eqn, entry) in enumerate(zip(eqns, plan.entries, strict=True)):
        site = isinstance(entry, Contraction) or (isinstance(entry, Inner) and bool(entry.names))
        reached = any(v in found for v in variables_of(eqn.invars))
        if (i in active and site) or eqn.effects or reached:
            found.update(eqn.outvars)
    return found


def _entry(entry: Entry) -> Inner:
    assert isinstance(entry, Inner)
    return entry


def _name_of_site(name: str) -> str:
    return name


def _scopes(scope: _Scope) -> Iterator[_Scope]:
    """Lists equations and those inside that run as if they stood there."""
    yield scope
    for i, (eqn, entry, own) in enumerate(zip(scope.eqns, scope.entries, scope.axes, strict=True)):
        if not runs_in_place(eqn, entry):
            continue
        plan = _entry(entry).plans[0]
        if len(own.inner) != 1 or len(own.inner[0]) != len(plan.jaxpr.eqns):
            continue
        name = scope.name
        if _entry(entry).rows is not None:
            name = _Slice(eqn, _entry(entry))
        yield from _scopes(
            _Scope(
                (*scope.path, i),
                plan.jaxpr.eqns,
                plan.entries,
                own.inner[0],
                plan.jaxpr,
                name,
            )
        )


class _Slice(NamedTuple):
    """Names sites of a slice of a stack."""

    eqn: jex.JaxprEqn
    entry: Inner

    def __call__(self, name: str) -> str:
        return part_name(self.eqn, self.entry, name)


def runs_in_place(eqn: jex.JaxprEqn, entry: Entry) -> bool:
    """Tells if the equations inside one may be run as if they stood in its place.

    Args:
      eqn: Equation.
      entry: Its meaning.
    """
    if not isinstance(entry, Inner) or entry.rewritten or len(entry.plans) != 1:
        return False
    if eqn.primitive is prims.scan_p:
        return internals.scan(eqn).length == 1
    return eqn.primitive in (prims.jit_p, prims.closed_call_p, prims.remat_p)


def _operand(found: _Found) -> tuple[AxisGroup, ...]:
    return found.scope.axes[found.values].operands[found.operand]


def _tokens_of(found: _Found) -> list[int]:
    """Axes of the probabilities that run over what its keys do."""
    axes = _operand(found)
    return [i for i, group in enumerate(axes) if same(group, axes[found.keys])]


def _name_at(found: _Found) -> str:
    entry = found.scope.entries[found.values]
    assert isinstance(entry, Contraction)
    return entry.site.name


def _in_scope(scope: _Scope) -> Iterator[_Found]:
    """Finds the products of values among equations."""
    maker = {v: i for i, eqn in enumerate(scope.eqns) for v in eqn.outvars}
    for at, (eqn, entry) in enumerate(zip(scope.eqns, scope.entries, strict=True)):
        if not (isinstance(entry, Contraction) and entry.site.kind == "dynamic"):
            continue
        if eqn.primitive is not prims.dot_general_p:
            continue
        for operand, v in enumerate(eqn.invars):
            if not isinstance(v, jex.Var):
                continue
            seen, products = _behind(scope, maker, v)
            shape = shape_of(v).shape
            softened = any(
                _exponentiates(scope.eqns[i]) and shape_of(scope.eqns[i].outvars[0]).shape == shape
                for i in seen
            )
            scores = [i for i in products if shape_of(scope.eqns[i].outvars[0]).size == _size(v)]
            summed = parameters(eqn)["dimension_numbers"][0][operand]
            if not softened or len(scores) != 1 or len(summed) != 1:
                continue
            keys = _axis_of_scores(scope, seen, scores[0], v, summed[0])
            if keys is not None:
                yield _Found(scope, scores[0], at, operand, summed[0], keys, frozenset(seen))


def _size(v: Any) -> int:
    return shape_of(v).size


def _behind(
    scope: _Scope, maker: Mapping[jex.Var, int], value: jex.Var
) -> tuple[set[int], list[int]]:
    """Finds the equations that a value is computed by, back to products; the dynamic of these."""
    seen, products, queue = set[int](), list[int](), [value]
    while queue:
        i = maker.get(queue.pop())
        if i is None or i in seen or i in products:
            continue
        entry = scope.entries[i]
        if isinstance(entry, Contraction):
            if entry.site.kind == "dynamic":
                products.append(i)
        elif not (isinstance(entry, Inner) and entry.names):
            seen.add(i)
            queue += variables_of(scope.eqns[i].invars)
    return seen, products


def _exponentiates(eqn: jex.JaxprEqn) -> bool:
    inside = (inner for jaxpr, _ in inner_jaxprs(eqn) for inner in jaxpr.eqns)
    return eqn.primitive.name in ("exp", "exp2") or any(map(_exponentiates, inside))


def _axis_of_scores(
    scope: _Scope, seen: set[int], scores: int, value: jex.Var, axis: int
) -> int | None:
    """Finds the axis of scores that an axis of probabilities comes from."""
    (start,) = scope.eqns[scores].outvars
    inside, reached = list[jex.JaxprEqn](), {start}
    for eqn in (scope.eqns[i] for i in sorted(seen)):
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
    rows = equation_axes(jaxpr_of({}, given, [value], inside, scope.jaxpr), groups)
    found = {
        v: axes
        for eqn, own in zip(inside, rows, strict=True)
        for v, axes in zip(eqn.outvars, own.results, strict=True)
    }
    wanted = found[value][axis]
    hits = [i for i, g in enumerate(groups[given.index(start)]) if same(g, wanted)]
    return hits[0] if len(hits) == 1 else None


class _Follow:
    """Follows the tokens of a call through its equations."""

    def __init__(self, tokens: AxisGroup, rows: AxisGroup):
        self.tokens, self.rows = tokens, rows
        self.names: list[str] = []
        self.marks: dict[Path, Mark] = {}
        self.degrees: dict[str, int] = {}
        self.first = self.last = 0

    def along(self, axes: Sequence[AxisGroup]) -> list[int]:
        """Axes that hold tokens."""
        return [i for i, group in enumerate(axes) if same(group, self.tokens)]

    def row_axis(self, axes: Sequence[AxisGroup]) -> int | None:
        """The axis that holds rows."""
        found = [i for i, group in enumerate(axes) if same(group, self.rows)]
        return found[0] if len(found) == 1 else None

    def attention(self, one: _Found) -> None:
        """Marks one attention to tokens.

        Raises:
          ValueError: Its axes are merged.
        """
        scope, name = one.scope, one.scope.name(_name_at(one))
        axes, scores = _operand(one), scope.axes[one.scores].results[0]
        rows, rows_of_scores = self.row_axis(axes), self.row_axis(scores)
        if rows is None or rows_of_scores is None:
            raise ValueError(
                f"prune_tokens cannot follow {name} ({describe_place(scope.eqns[one.values])}): no "
                "axis of its probabilities holds the rows of the batch alone (heads merged with "
                "them, or windows)"
            )
        self.marks[(*scope.path, one.scores)] = Scores(rows_of_scores, one.keys_of_scores)
        queries = [i for i in _tokens_of(one) if i != one.keys]
        if len(queries) == 1:
            self.names.append(name)
            self.marks[(*scope.path, one.values)] = Values(one.operand, rows, queries[0], one.keys)

    def others(
        self, scope: _Scope, found: Sequence[_Found], begin: Path, computed: set[int]
    ) -> None:
        """Marks what else reads tokens behind the first attention.

        Raises:
          ValueError: An equation that mixes tokens in a way that is not known.
        """
        between = {(*f.scope.path, i) for f in found for i in (*f.between, f.values)}
        for i, (eqn, entry, own) in enumerate(
            zip(scope.eqns, scope.entries, scope.axes, strict=True)
        ):
            path = (*scope.path, i)
            if isinstance(entry, Contraction):
                self.degrees[entry.site.name] = self.degree(eqn, own)
            late = path > begin and path[0] in computed
            if not late or path in self.marks or path in between or runs_in_place(eqn, entry):
                continue
            if isinstance(entry, Contraction) and entry.site.multiplies and self.sums(eqn, own):
                raise ValueError(_mixes(eqn))
            self.other(path, eqn, own)

    def sums(self, eqn: jex.JaxprEqn, own: EquationAxes) -> bool:
        """Tells if a product sums over tokens."""
        if eqn.primitive is not prims.dot_general_p:
            return any(map(self.share, own.operands[0])) and not any(
                map(self.share, own.results[0])
            )
        summed = parameters(eqn)["dimension_numbers"][0][0]
        return any(self.share(own.operands[0][i]) for i in summed)

    def degree(self, eqn: jex.JaxprEqn, own: EquationAxes) -> int:
        """Along how many axes of a product tokens run, those summed over among them."""
        axes = list(own.results[0])
        if eqn.primitive is prims.dot_general_p:
            (summed, _), _ = parameters(eqn)["dimension_numbers"]
            axes += [own.operands[0][i] for i in summed]
        return sum(self.share(group) for group in axes)

    def share(self, group: AxisGroup) -> int:
        """How often tokens are a factor of an axis."""
        return factor_count(group, self.tokens)

    def other(
        self, path: Path, eqn: jex.JaxprEqn, own: EquationAxes, *, whole: bool = True
    ) -> None:
        """Marks an equation that is no attention's, if it reduces over tokens.

        Args:
          path: Where it stands.
          eqn: Equation.
          own: Axis groups of what it reads and makes.
          whole: False within an equation that does not run in place, where none can be marked.

        Raises:
          ValueError: It mixes tokens in another way, or in one that is not known.
        """
        if not any(self.share(group) for axes in own.operands for group in axes):
            return
        if inner := inner_jaxprs(eqn):
            if eqn.primitive is prims.scan_p:
                first = internals.scan(eqn).first_slice
                if any(self.share(axes[0]) for axes in own.operands[first:]):
                    raise ValueError(_mixes(eqn))
            for (jaxpr, _), axes in zip(inner, own.inner, strict=True):
                for each, groups in zip(jaxpr.eqns, axes, strict=True):
                    self.other(path, each, groups, whole=False)
            return
        if (pool := self.reduced(eqn, own)) is not None:
            if not whole:
                raise ValueError(_mixes(eqn))
            how, axis = pool
            self.pool(path, eqn, own, how, axis)
        elif not (self.keeps(eqn, own) or (whole and self.slice(path, eqn, own))):
            raise ValueError(_mixes(eqn))

    def reduced(self, eqn: jex.JaxprEqn, own: EquationAxes) -> tuple[str, int | None] | None:
        """How an equation reduces over tokens, and along which axis; None if it does not."""
        name, along = eqn.primitive.name, self.along(own.operands[0])
        if name == "dot_general" and self.sums(eqn, own):
            return "sum", _one(along, parameters(eqn)["dimension_numbers"][0][0])
        if name in _POOLS:
            axes = [i for i in parameters(eqn)["axes"] if self.share(own.operands[0][i])]
            return (_POOLS[name], _one(along, axes)) if axes else None
        return None

    def keeps(self, eqn: jex.JaxprEqn, own: EquationAxes) -> bool:
        """Tells if an equation does to each token what it does to any other."""
        name = eqn.primitive.name
        if name in ELEMENTWISE or name in _PASSING or name == "dot_general" or name in _POOLS:
            return True
        params, read = parameters(eqn), own.operands[0]
        match name:
            case "reshape":
                return self.most(own.operands) == self.most(own.results)
            case "gather":
                numbers = params["dimension_numbers"]
                found = {*numbers.start_index_map, *numbers.collapsed_slice_dims}
                return not any(self.share(read[i]) for i in found)
            case "dynamic_slice":
                sizes = params["slice_sizes"]
                return all(n == g.size for g, n in zip(read, sizes, strict=True) if self.share(g))
            case "dynamic_update_slice":
                pairs = zip(read, own.operands[1], strict=True)
                return all(a.size == b.size for a, b in pairs if self.share(a) or self.share(b))
            case "concatenate":
                at = params["dimension"]
                return not any(self.share(axes[at]) for axes in (*own.operands, *own.results))
            case "pad":
                pairs = zip(read, params["padding_config"], strict=True)
                return not any(self.share(g) for g, width in pairs if any(width))
            case "split" | "unstack":
                return not self.share(read[params["axis"]])
            case "tile":
                pairs = zip(read, params["reps"], strict=True)
                return not any(self.share(g) for g, n in pairs if n > 1)
            case "top_k":
                return not self.share(read[params.get("axis", -1)])
            case "conv_general_dilated":
                return self.convolves_each(eqn, own)
            case _ if name in _ALONG:
                keys = ("axes", "axis", "dimension", "dimensions")
                axes = next(params[k] for k in keys if k in params)
                axes = axes if isinstance(axes, Sequence) else [axes]
                return not any(self.share(read[i]) for i in axes)
            case _ if name.startswith("reduce_window"):
                pairs = zip(read, params["window_dimensions"], strict=True)
                return not any(self.share(g) for g, n in pairs if n > 1)
            case _:
                return False

    def convolves_each(self, eqn: jex.JaxprEqn, own: EquationAxes) -> bool:
        """Tells if a convolution looks at one token at a time."""
        numbers = parameters(eqn)["dimension_numbers"]
        x, w = own.operands
        _, feature, *places = numbers.lhs_spec
        windows = [w[i].size for i in numbers.rhs_spec[2:]]
        wide = [self.share(x[i]) for i, n in zip(places, windows, strict=True) if n > 1]
        return not (any(wide) or self.share(x[feature]) or any(map(self.share, w)))

    def most(self, groups: Sequence[Sequence[AxisGroup]]) -> int:
        """Along how many axes tokens run in what has most of them."""
        return max((sum(map(self.share, axes)) for axes in groups), default=0)

    def slice(self, path: Path, eqn: jex.JaxprEqn, own: EquationAxes) -> bool:
        """Marks a slice of the first or the last tokens; False if it is another equation."""
        if eqn.primitive.name != "slice":
            return False
        params = parameters(eqn)
        if params["strides"] is not None and set(params["strides"]) != {1}:
            return False
        for i, group in enumerate(own.operands[0]):
            start, stop = params["start_indices"][i], params["limit_indices"][i]
            if (start, stop) == (0, group.size):
                continue
            if not self.share(group):
                continue
            rows = self.row_axis(own.operands[0])
            if not same(group, self.tokens) or rows is None:
                return False
            if start == 0:
                self.first = max(self.first, stop)
            elif stop == group.size:
                self.last = max(self.last, stop - start)
                self.marks[path] = Last(stop - start, rows, i)
            else:
                return False
        return True

    def pool(
        self, path: Path, eqn: jex.JaxprEqn, own: EquationAxes, how: str, axis: int | None
    ) -> None:
        rows, after = self.row_axis(own.operands[0]), self.row_axis(own.results[0])
        if axis is None or rows is None or after is None:
            raise ValueError(_mixes(eqn))
        self.marks[path] = Pool(how, 0, rows, axis, after)


def _one(along: Sequence[int], axes: Sequence[int]) -> int | None:
    found = [i for i in along if i in axes]
    return found[0] if len(found) == 1 else None


def _mixes(eqn: jex.JaxprEqn) -> str:
    return (
        f"prune_tokens cannot follow {describe_place(eqn)}: behind the first attention it mixes "
        "tokens in a way that has no meaning once some have left"
    )


_POOLS = {"reduce_sum": "sum", "reduce_max": "max", "reduce_min": "min"}

_PASSING = {
    *("broadcast_in_dim", "expand_dims", "squeeze", "stack", "transpose"),
    *("random_seed", "random_fold_in"),
}

_ALONG = {
    *("argmax", "argmin", "cumlogsumexp", "cummax", "cummin", "cumprod", "cumsum", "rev", "sort"),
    *("reduce_and", "reduce_or", "reduce_prod", "reduce_xor"),
}
