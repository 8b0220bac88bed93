"""Equations of a network as nodes of an ONNX graph, one after the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

from jaxsim import internals
from jaxsim.export import quantized_sites as sites
from jaxsim.export.graph import Graph, Tensor, is_fixed
from jaxsim.export.primitives import RULES, in_words
from jaxsim.export.refusals import NoFormError, refusal, site_refusal
from jaxsim.integer.equations import CALLS, inner_plan
from jaxsim.internals import Atom, bind, parameters, shape_of
from jaxsim.network.lookups import as_written
from jaxsim.network.network import Network
from jaxsim.network.plan import Contraction, Entry, Inner, Plan, contractions
from jaxsim.network.unheld import live_equations

_LOOPS: dict[str, str] = dict.fromkeys(
    ("while", "cond", "shard_map"), "is a loop or a branch, which is not unrolled here"
)
"""Primitives that run equations several times, or some of them, and why they are refused."""

_ROUNDS = 256
"""Most rounds of a scan that are written one after the other."""

_OTHER = "has no form in ONNX here"


class Lowering:
    """Walks equations; what no input reaches is computed on the way.

    Attributes:
      graph: Graph that they are added to.
    """

    def __init__(
        self,
        net: Network,
        graph: Graph,
        product: Callable[[Any], Tensor] | None = None,
        *,
        states: Mapping[str, Any] | None = None,
        rounds: tuple[int, ...] = (),
    ):
        """Begins with a graph.

        Args:
          net: Network without cores, or deployed.
          graph: Graph to add to.
          product: What stands for the call named `MARK`, in what is computed around a site.
          states: What is written of sites, in a scan that of a round; None for the network's.
          rounds: Round of each scan around, outermost first.
        """
        self.net = net
        self.graph = graph
        self.product = product
        self.states = as_written(net.states) if states is None else states
        self.rounds = rounds

    def run(self, plan: Plan, values: Sequence[Any]) -> list[Any]:
        """Adds the equations of a plan.

        Args:
          plan: Equations.
          values: What its inputs are: known arrays, or values of the graph.

        Returns:
          What its outputs are.
        """
        env = dict(zip(plan.jaxpr.invars, values, strict=True))
        env.update(zip(plan.jaxpr.constvars, plan.consts, strict=True))

        def read(atom: Atom) -> Any:
            if isinstance(atom, jex.Literal):
                return np.asarray(atom.val, shape_of(atom).dtype)
            return env.get(atom)  # None of what nothing reads

        live = live_equations(plan, self.net.states)
        for eqn, entry, runs in zip(plan.jaxpr.eqns, plan.entries, live, strict=True):
            if runs:
                outs = self.equation(eqn, entry, list(map(read, eqn.invars)))
                env.update(zip(eqn.outvars, outs, strict=True))
        return [read(atom) for atom in plan.jaxpr.outvars]

    def equation(self, eqn: jex.JaxprEqn, entry: Entry, ins: list[Any]) -> Sequence[Any]:
        """Adds an equation.

        Args:
          eqn: Equation.
          entry: Its meaning in the plan.
          ins: What its operands are.

        Returns:
          What its results are.

        Raises:
          ValueError: It has no form in ONNX.
        """
        name = eqn.primitive.name
        if isinstance(entry, Contraction) and entry.site.name in self.net.cores:
            return [self.site(eqn, entry, ins)]
        if isinstance(entry, Inner) and (inside := entry.names & self.net.cores.keys()):
            if entry.rewritten:
                return self.run(entry.plans[0], ins)
            if eqn.primitive not in CALLS and name != "scan":
                raise site_refusal(min(inside), f"is in a {name}, which {_LOOPS.get(name, _OTHER)}")
        elif _is_known(eqn, ins):
            return [_spread(eqn, ins[0])] if name == "broadcast_in_dim" else bind(eqn, ins)
        if self.product is not None and parameters(eqn).get("name") == sites.MARK:
            return [self.product(ins[0])]
        if eqn.primitive in CALLS:
            try:
                return self.run(inner_plan(eqn, entry), ins)
            except NoFormError as error:
                raise error.within(eqn) from None
        if name == "scan":
            return self.scan(eqn, entry, ins)
        if name in RULES:
            outs = RULES[name](self.graph, eqn, ins)
            return outs if isinstance(outs, list) else [outs]
        said = in_words(eqn)
        if said is None:
            raise refusal(eqn, _LOOPS.get(name, _OTHER))
        return self.run(said, ins)

    def scan(self, eqn: jex.JaxprEqn, entry: Entry, ins: list[Any]) -> Sequence[Any]:
        """Adds the rounds of a scan, one after the other, each with its slices.

        Args:
          eqn: Equation of the scan.
          entry: Its meaning in the plan.
          ins: What its operands are.

        Raises:
          ValueError: It has many rounds, or multiplies by experts that are chosen.
        """
        loop, plan = internals.scan(eqn), inner_plan(eqn, entry)
        if not is_fixed(loop.length):
            raise refusal(eqn, f"has a round for each of {loop.length}, a size that is free")
        if loop.length > _ROUNDS:
            raise refusal(eqn, f"has {loop.length} rounds, and at most {_ROUNDS} are unrolled here")
        sites_inside = {c.site.name: c.site for c in contractions(plan)}
        if experts := sorted(n for n, site in sites_inside.items() if site.chosen):
            raise site_refusal(experts[0], "is one of several experts, which are chosen in a scan")
        depth, states = len(self.rounds), dict(self.states)
        stacked = [n for n, site in sites_inside.items() if n in states and site.stacked[depth]]
        values, made = ins[loop.consts : loop.first_slice], list[list[Any]]()
        order = range(loop.length)
        for i in reversed(order) if loop.reverse else order:
            mine = {n: jax.tree.map(lambda a, i=i: a[i], self.states[n]) for n in stacked}
            inside = Lowering(
                self.net,
                self.graph,
                self.product,
                states=states | mine,
                rounds=(*self.rounds, i),
            )
            slices = [self._slice(a, i) for a in ins[loop.first_slice :]]
            outs = inside.run(plan, [*ins[: loop.consts], *values, *slices])
            values = outs[: loop.carry]
            made.append(outs[loop.carry :])
        rows = zip(*(made[::-1] if loop.reverse else made), strict=True)
        shapes = [shape_of(v).shape for v in eqn.outvars[loop.carry :]]
        return [*values, *(self._stack(a, s) for a, s in zip(rows, shapes, strict=True))]

    def _slice(self, value: Any, i: int) -> Any:
        """What a round reads of a value, whose first axis is that of rounds."""
        if not isinstance(value, Tensor):
            return None if value is None else value[i]
        at = np.asarray(i if value.shape[0] != 1 else 0, np.int64)
        return self.graph.add("Gather", [value, at], value.shape[1:], axis=0)

    def _stack(self, rows: Sequence[Any], shape: Sequence[Any]) -> Any:
        """What rounds have made, one behind the other."""
        if not any(isinstance(row, Tensor) for row in rows):
            return np.stack([np.broadcast_to(row, shape[1:]) for row in rows])
        whole = [self.graph.full(row, shape[1:]) for row in rows]
        parts = [self.graph.reshape(row, (1, *shape[1:])) for row in whole]
        return self.graph.add("Concat", parts, shape, axis=0)

    def site(self, eqn: jex.JaxprEqn, entry: Contraction, ins: list[Any]) -> Tensor:
        """Adds a quantized site.

        Args:
          eqn: Equation of the contraction.
          entry: Site.
          ins: What its operands are.
        """
        name, out = entry.site.name, shape_of(eqn.outvars[0])
        if entry.site.kind == "dynamic":
            raise site_refusal(name, "contracts two inputs, and only sites of weights are written")
        chain, state = sites.chain_of(name, self.net.cores[name]), self.states[name]
        at = tuple(i for i, a in zip(self.rounds, entry.site.stacked, strict=True) if a)
        entry = entry._replace(op=dataclasses.replace(entry.op, scan_index=at))
        if entry.site.kind == "lookup":
            held = sites.table(self.graph, name, chain, state, entry)
            ins = [held if i == entry.w_at else a for i, a in enumerate(ins)]
            return RULES[eqn.primitive.name](self.graph, eqn, ins)

        def product(x: Any) -> Tensor:
            return sites.multiply(self.graph, eqn, entry, chain, state, x)

        around = sites.around_site(chain, entry, state)
        x = self.graph.tensor(ins[entry.x_at])
        (y,) = Lowering(self.net, self.graph, product).run(around, [x])
        return y if out.dtype == jnp.float32 else self.graph.cast(y, out.dtype)


def _is_known(eqn: jex.JaxprEqn, ins: Sequence[Any]) -> bool:
    """Whether an equation is computed beforehand: no input reaches it, and no size that is free."""
    fixed = all(is_fixed(n) for v in eqn.outvars for n in shape_of(v).shape)
    fixed = fixed and eqn.primitive.name != "dim_as_value"
    return fixed and not any(isinstance(value, Tensor) for value in ins)


def _spread(eqn: jex.JaxprEqn, value: Any) -> np.ndarray:
    """A known value that is the same along axes, without memory for all of it."""
    shape, axes = shape_of(eqn.outvars[0]).shape, parameters(eqn)["broadcast_dimensions"]
    sizes = [1] * len(shape)
    for axis, size in zip(axes, np.shape(value), strict=True):
        sizes[axis] = size
    return np.broadcast_to(np.reshape(value, sizes), shape)


def known(value: Any) -> Any:
    """A parameter or buffer as an array, a random key as it is."""
    keys = jnp.issubdtype(jnp.result_type(value), jax.dtypes.prng_key)
    return value if keys else np.asarray(value)
