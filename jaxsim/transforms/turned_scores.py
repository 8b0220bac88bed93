"""Queries and keys turned by one matrix in each call, where they are multiplied or cached."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.extend.core.primitives as prims
import numpy as np
from jaxtyping import Array

from jaxsim import internals
from jaxsim.cores.partition import Partitioned
from jaxsim.internals import bind, inner_jaxprs, parameters, shape_of
from jaxsim.network.arguments import call_arguments
from jaxsim.network.calls import calls_within
from jaxsim.network.interpreter import Walk, evaluate_plan
from jaxsim.network.leaves import PyTree, path_name
from jaxsim.network.moves import destination, origins
from jaxsim.network.network import Net, Network, require_uncut
from jaxsim.network.plan import Contraction, Entry, Inner, Plan
from jaxsim.network.planner import trace_plan
from jaxsim.network.tracing import retrace
from jaxsim.numerics.checks import is_traced
from jaxsim.numerics.hadamard import mix_along, orthogonal_factors
from jaxsim.sparsity.channels.axis_rules import describe_place
from jaxsim.staged.value_products import find_keys
from jaxsim.transforms.code_cache import CodedCall
from jaxsim.transforms.score_products import (
    Product,
    Scope,
    Scopes,
    Source,
    kernels_of,
    products_in,
    scopes_around,
    sources_of,
)
from jaxsim.values.value import Value


@dataclasses.dataclass(frozen=True, eq=False)
class TurnedCall(Value):
    """A model as a function, with queries and keys turned by one orthogonal matrix.

    Queries are turned where they are multiplied. Keys are, too, unless the call takes others from
    a cache and returns it: then they are turned before they go into it, once, and what the cache
    holds is turned.

    Attributes:
      call: `(params, buffers, *args, **kwargs) -> outputs`.
      keys: Names of the sites of the scores, and which of their operands holds the keys.
      example: Arguments it was traced with.
      weights: Paths of the buffers that count as weights.
    """

    call: Callable[..., Any]
    keys: tuple[tuple[str, int], ...]
    example: Partitioned
    weights: tuple[str, ...]

    @property
    def lines(self) -> tuple[str, ...]:
        """What a checkpoint says of it."""
        return (f"queries and keys turned at {', '.join(name for name, _ in self.keys)}",)

    def __call__(self, params: PyTree, buffers: PyTree, *args: Any, **kwargs: Any) -> Any:
        """Calls the model."""
        arguments = call_arguments(args, kwargs)
        traced = trace_plan(self.call, params, buffers, arguments, self.example, self.weights)
        turned = find_turned(traced.plan, dict(self.keys), len(jax.tree.leaves(params)))
        outputs, _ = _Turning(turned).run(traced.plan, traced.values, {}, ())
        return jax.tree.unflatten(traced.out_tree, outputs)


class Turned(NamedTuple):
    """Where the equations of a call are to turn what.

    Attributes:
      scopes: Equations by the plan that they were inlined of; see `Scopes`.
      operands: For each product of scores, the positions of its operands to turn there.
      made: Axis of each value to turn where it is made, by plan and variable.
      holding: Plans with something to turn in them.
      cached: Positions of the call's inputs that hold turned keys.
    """

    scopes: Scopes
    operands: Mapping[str, tuple[int, ...]]
    made: Mapping[tuple[int, Any], int]
    holding: frozenset[int]
    cached: frozenset[int]


def products_of_scores(net: Network) -> dict[str, int]:
    """Finds the products of queries and keys of a network, which of their operands holds keys.

    Args:
      net: Network whose queries and keys are to be turned.

    Raises:
      ValueError: It has none, is cut, or its calls do more to keys than the model does.
    """
    require_uncut(net, "rotate", reason="scores=True puts equations between those it is cut at")
    for call in calls_within(net.fn):
        if isinstance(call, TurnedCall):
            raise ValueError("rotate: scores=True, and queries and keys are turned already")
        if isinstance(call, CodedCall):
            raise ValueError(
                "rotate: scores=True, and keys in the cache are codes already; put it before "
                "code_cache"
            )
    keys = find_keys(net.traced().plan)
    if not keys:
        raise ValueError(
            "rotate: scores=True, and the network has no attention: no product of two activations "
            "that goes through a softmax into another"
        )
    return keys


def turn_scores(net: Net, keys: Mapping[str, int]) -> Net:
    """Turns queries and keys of a network in each call.

    Args:
      net: Network.
      keys: Names of the sites of scores, which of their operands holds the keys.

    Raises:
      ValueError: A product that cannot be turned, or a cache that holds keys already.
    """
    call = TurnedCall(net.fn, tuple(keys.items()), net.example, net.weights)
    traced = net.traced()
    params, buffers = jax.tree.leaves(net.params), jax.tree_util.tree_leaves_with_path(net.buffers)
    turned = find_turned(traced.plan, keys, len(params))
    for i, (path, buffer) in enumerate(buffers, len(params)):
        if i in turned.cached and not is_traced(buffer) and np.any(np.asarray(buffer)):
            raise ValueError(
                f"rotate: buffers/{path_name(path)} holds keys that are not turned; begin with an "
                "empty cache"
            )
    return retrace(net, call)


def makers_of(net: Network, names: Iterable[str]) -> dict[str, tuple[int, set[str]]]:
    """Finds the parameters that make queries and keys, where nothing but sums stands between.

    Args:
      net: Network.
      names: Names of products of scores.

    Returns:
      For each of these the width of its queries and keys, and paths of the parameters.
    """
    scopes, found = Scopes(), dict[str, tuple[int, set[str]]]()
    for product in products_in(scopes, scopes.of(net.traced().plan), dict.fromkeys(names, 0)):
        kernels = kernels_of(product)
        if kernels:
            found[product.name] = (
                shape_of(product.eqn.invars[0]).shape[product.axis],
                kernels,
            )
    return found


def find_turned(plan: Plan, keys: Mapping[str, int], params: int) -> Turned:
    """Finds what a call has to turn so that queries and keys are.

    Args:
      plan: Equations of the call.
      keys: For each site of scores, which of its operands holds the keys.
      params: Number of the inputs of the plan, from the first on, that are parameters.

    Raises:
      ValueError: A product that is not there or sums over several axes, or keys that are read by
        something else than products of scores before they go into a cache.
    """
    scopes = Scopes()
    top = scopes.of(plan)
    products = {p.name: p for p in products_in(scopes, top, keys)}
    for name in keys:
        if name not in products:
            raise ValueError(
                f"rotate: this call has no product {name}, whose queries and keys are turned"
            )
        if len(parameters(products[name].eqn)["dimension_numbers"][0][0]) != 1:
            raise ValueError(f"rotate: {name} sums over more axes than one")
    sources = {name: sources_of(scopes, p) for name, p in products.items()}
    inputs = top.plan.jaxpr.invars
    free = set(inputs[params:])

    def given(found: Sequence[Source]) -> list[Source]:
        return [s for s in found if s.scope.outer is None and s.var in free]

    cached = list[str]()
    for name, found in sources.items():
        starts = {s.key: s.axis for s in given(found)}
        if starts and any(m is not None for m in _Marks(scopes, starts, {}, "").of(top)):
            cached.append(name)
    starts = {s.key: s.axis for name in cached for s in sources[name]}
    if cached:
        among = {products[name].eqn: name for name in cached}
        _Marks(scopes, starts, {id(e): products[n] for e, n in among.items()}, cached[0]).of(top)
    held = {s.key for name in cached for s in given(sources[name])}
    made = {key: axis for key, axis in starts.items() if key not in held}
    operands = {n: (1 - p.keys,) if n in cached else _both(p) for n, p in products.items()}
    inside = [p.scope for p in products.values()]
    inside += [s.scope for name in cached for s in sources[name]]
    holding = frozenset(id(scope.plan) for one in inside for scope in scopes_around(one))
    places = frozenset(i for i, v in enumerate(inputs) if (id(top.plan), v) in held)
    return Turned(scopes, operands, made, holding, places)


def _both(product: Product) -> tuple[int, ...]:
    return product.keys, 1 - product.keys


class _Marks:
    """Follows turned keys through the equations of a call."""

    def __init__(
        self,
        scopes: Scopes,
        starts: Mapping[tuple[int, Any], int],
        products: Mapping[int, Product],
        name: str,
    ):
        """Begins where keys are turned.

        Args:
          scopes: Equations.
          starts: Axis along which a value is turned, by plan and variable.
          products: Products of scores that are to read turned keys, by equation.
          name: Name of one of them, for errors; "" to look only how far vectors go.
        """
        self.scopes, self.starts, self.products, self.name = scopes, starts, products, name

    def of(self, scope: Scope, given: Sequence[int | None] = ()) -> list[int | None]:
        """Marks of the outputs: the axis along which each is turned, None where it is not.

        Raises:
          ValueError: Something else reads turned keys.
        """
        jaxpr = scope.plan.jaxpr
        marks: dict[Any, int] = {}

        def mark(v: Any, axis: int | None) -> None:
            axis = self.starts.get((id(scope.plan), v), axis)
            if axis is not None:
                marks[v] = axis

        for v, axis in zip(jaxpr.invars, given or [None] * len(jaxpr.invars), strict=True):
            mark(v, axis)
        for v in jaxpr.constvars:
            mark(v, None)
        for eqn, entry in zip(jaxpr.eqns, scope.plan.entries, strict=True):
            ins = [None if isinstance(v, jex.Literal) else marks.get(v) for v in eqn.invars]
            for v, axis in zip(eqn.outvars, self.step(scope, eqn, entry, ins), strict=True):
                mark(v, axis)
        return [None if isinstance(v, jex.Literal) else marks.get(v) for v in jaxpr.outvars]

    def step(
        self, scope: Scope, eqn: jex.JaxprEqn, entry: Entry, ins: list[int | None]
    ) -> list[int | None]:
        """Marks of the results of an equation, by those of its operands."""
        none: list[int | None] = [None] * len(eqn.outvars)
        if isinstance(entry, Inner) and not entry.rewritten:
            return self.inner(scope, eqn, entry, ins)
        marked = [(i, axis) for i, axis in enumerate(ins) if axis is not None]
        if id(eqn) in self.products:
            product = self.products[id(eqn)]
            if marked == [(product.keys, product.axis)]:
                return none
            raise self.refusal(eqn)
        if not marked:
            return none
        if entry is None and not inner_jaxprs(eqn):
            after = destination(eqn, *marked[0], scope.same)
            if after is not None:
                wanted = origins(eqn, after, scope.same) or []
                if sorted(wanted) == sorted(marked) or not self.name:
                    return [after] * len(none)
        if self.name:
            raise self.refusal(eqn)
        return none

    def inner(
        self, scope: Scope, eqn: jex.JaxprEqn, entry: Inner, ins: list[int | None]
    ) -> list[int | None]:
        """Marks of the results of a loop or a branch."""
        if eqn.primitive is prims.scan_p:
            loop = internals.scan(eqn)
            given = [
                axis if axis is None or i < loop.first_slice else axis - 1
                for i, axis in enumerate(ins)
            ]
            if any(axis is not None and axis < 0 for axis in given):
                raise self.refusal(eqn)
            body = self.scopes.inside(scope, eqn, entry, 0)
            outs = self.loop(eqn, body, given, loop.consts, loop.carry)
            made = [None if axis is None else axis + 1 for axis in outs[loop.carry :]]
            return [*outs[: loop.carry], *made]
        if eqn.primitive is prims.while_p:
            loop = internals.while_loop(eqn)
            test, body = (self.scopes.inside(scope, eqn, entry, i) for i in (0, 1))
            carry = len(eqn.outvars)
            outs = self.loop(eqn, body, ins[loop.test_consts :], loop.body_consts, carry)
            self.of(test, [*ins[: loop.test_consts], *outs])
            return outs
        first = int(eqn.primitive is prims.cond_p)
        found = [
            self.of(self.scopes.inside(scope, eqn, entry, i), ins[first:])
            for i in range(len(entry.plans))
        ]
        if any(outs != found[0] for outs in found):
            raise self.refusal(eqn)
        return found[0]

    def loop(
        self,
        eqn: jex.JaxprEqn,
        body: Scope,
        given: Sequence[int | None],
        consts: int,
        carry: int,
    ) -> list[int | None]:
        """Marks of what a body makes, whose carry goes in as it comes out."""
        outs = self.of(body, given)
        if outs[:carry] != [*given[consts : consts + carry]]:
            raise self.refusal(eqn)
        return outs

    def refusal(self, eqn: jex.JaxprEqn) -> ValueError:
        """The error that an equation reads keys of a cache in another way."""
        return ValueError(
            f"rotate: keys of {self.name or 'a cache'} cannot be turned before they are cached: "
            f"{describe_place(eqn)} reads them too, or puts others beside them"
        )


class _Turning(Walk):
    """Evaluates a plan, queries and keys turned."""

    def __init__(self, turned: Turned):
        super().__init__({}, "batch", None)
        self.turned = turned

    def run(
        self,
        plan: Plan,
        values: Sequence[Any],
        states: Mapping[str, Any],
        indices: tuple[Any, ...],
    ) -> tuple[list[Any], dict[str, Any]]:
        """Evaluates a plan, and what is inside of it."""
        plan = self.turned.scopes.inlined(plan)

        def made(v: Any, value: Any) -> Any:
            axis = self.turned.made.get((id(plan), v))
            return value if axis is None else turn(value, axis)

        def step(eqn: jex.JaxprEqn, entry: Entry, ins: list[Any]) -> Sequence[Any]:
            if isinstance(entry, Contraction) and entry.site.name in self.turned.operands:
                summed = parameters(eqn)["dimension_numbers"][0]
                for i in self.turned.operands[entry.site.name]:
                    ins[i] = turn(ins[i], summed[i][0])
                outs: Sequence[Any] = bind(eqn, ins)
            elif isinstance(entry, Inner) and self.holds(entry):
                outs, _ = self.inner(eqn, entry, ins, {}, indices)
            else:
                outs = bind(eqn, ins)
            return [made(v, value) for v, value in zip(eqn.outvars, outs, strict=True)]

        values = [made(v, value) for v, value in zip(plan.jaxpr.invars, values, strict=True)]
        return evaluate_plan(plan, values, step), {}

    def holds(self, entry: Inner) -> bool:
        """Tells if something is to turn inside of an equation."""
        inside = (self.turned.scopes.inlined(plan) for plan in entry.plans)
        return not entry.rewritten and any(id(plan) in self.turned.holding for plan in inside)


def turn(a: Array, axis: int) -> Array:
    """Multiplies by the one matrix that there is for vectors of a width.

    Args:
      a: Array.
      axis: Axis of the vectors.
    """
    with jax.ensure_compile_time_eval():
        key = jax.random.key(0, impl="threefry2x32")
        outer, inner = orthogonal_factors(key, a.shape[axis])
    return mix_along(a, axis, outer, inner).astype(a.dtype)
