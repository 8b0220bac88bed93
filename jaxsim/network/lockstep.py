"""A float call of a network on several batches at once, one site after the other.

All batches have reached a site before any goes on, so what is known of it (its inputs, and what to
multiply them by from here on) is known of all of them, and nothing is kept of sites that are past.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from functools import partial
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxsim import internals
from jaxsim.cores.partition import Partitioned
from jaxsim.internals import shape_of
from jaxsim.network.interpreter import Walk
from jaxsim.network.network import Network, trace_call
from jaxsim.network.plan import Contraction, Inner, Plan
from jaxsim.network.stepwise import Block, cut_blocks

Visit = Callable[[Contraction, tuple[int, ...], list[Array], Array], list[Array]]
"""Function `(site, slice of its stack, inputs of each batch, weight) -> outputs of each batch`."""

Values = list[list[Any]]
"""Values of a plan's inputs or outputs for each batch."""


def walk_together(
    net: Network, sites: Container[str], calls: Sequence[Partitioned], visit: Visit, what: str
) -> None:
    """Runs a network in floats on several batches, all of them up to a site before any goes on.

    Scans that hold sites run slice by slice. What lies behind the last of the sites is not run.

    Args:
      net: Network, not deployed; its cores are not looked at.
      sites: Names of the sites to stop at.
      calls: Arguments of each call, of the same shapes.
      visit: Computes the outputs of a site.
      what: What walks, for errors.

    Raises:
      ValueError: Batches of several shapes, or a site inside a branch, a loop whose length is not
        known, a `shard_map`, or experts.
    """
    shapes = [jax.tree.map(jnp.shape, call) for call in calls]
    if any(shape != shapes[0] for shape in shapes):
        raise ValueError(f"inputs: {what} needs batches of one shape; leave out the last, or fill")
    traced = trace_call(net, calls[0])
    held = traced.values[: len(traced.values) - len(calls[0].arrays)]
    together = [[*held, *call.arrays] for call in calls]
    _Together(sites, visit, what).run(traced.plan, together, (), last=True)


class _Together:
    """Evaluates plans on all batches, block by block."""

    def __init__(self, sites: Container[str], visit: Visit, what: str):
        self.sites, self.visit, self.what = sites, visit, what
        self.cut: dict[int, list[Block]] = {}

    def blocks(self, plan: Plan) -> list[Block]:
        """The blocks of a plan, the same ones at every turn of a loop."""
        if id(plan) not in self.cut:
            self.cut[id(plan)] = cut_blocks(plan, self.sites, scans=True)
        return self.cut[id(plan)]

    def run(
        self, plan: Plan, batches: Values, indices: tuple[int, ...], *, last: bool = False
    ) -> Values:
        """Evaluates a plan; as far as its last site if nothing is read of it."""
        jaxpr, blocks = plan.jaxpr, self.blocks(plan)
        consts = dict(zip(jaxpr.constvars, plan.consts, strict=True))
        envs = [{**consts, **dict(zip(jaxpr.invars, values, strict=True))} for values in batches]
        batches.clear()  # what is read no more is to go
        final = {v: n for n, block in enumerate(blocks) for v in block.read}
        end = max((n for n, block in enumerate(blocks) if block.names), default=len(blocks))
        for n, block in enumerate(blocks):
            ins = [[env[v] for v in block.read] for env in envs]
            for v in {v for v in block.read if final[v] == n and v not in jaxpr.outvars}:
                for env in envs:
                    del env[v]
            for env, outs in zip(envs, self.block(block, ins, indices), strict=True):
                env.update(
                    (v, out)
                    for v, out in zip(block.given, outs, strict=True)
                    if v in final or v in jaxpr.outvars
                )
            if last and n == end:
                return []

        def read(env: dict[Any, Any], atom: internals.Atom) -> Any:
            return atom.val if isinstance(atom, jex.Literal) else env[atom]

        return [[read(env, atom) for atom in jaxpr.outvars] for env in envs]

    def block(self, block: Block, batches: Values, indices: tuple[int, ...]) -> Values:
        """Evaluates a block on all batches; what none of them tells apart is evaluated once."""
        eqn, entry = block.plan.jaxpr.eqns[0], block.plan.entries[0]
        if block.kind == "rest":
            if block.names:
                raise ValueError(
                    f"{self.what} at {block.names[0]}: it runs inside a branch, a loop of unknown "
                    "length, experts or a shard_map; leave it out by sites="
                )
            return _for_each(partial(_run_rest, block), batches)
        place = {v: i for i, v in enumerate(block.read)}

        def operands(values: list[Any]) -> list[Any]:
            return [v.val if isinstance(v, jex.Literal) else values[place[v]] for v in eqn.invars]

        ins = [operands(values) for values in batches]
        batches.clear()
        if isinstance(entry, Contraction):
            at = zip(indices, entry.site.stacked, strict=True)
            slices = tuple(i for i, stacked in at if stacked)
            xs = [values[entry.x_at] for values in ins]
            dtype = shape_of(eqn.outvars[0]).dtype
            ys = self.visit(entry, slices, xs, ins[0][entry.w_at])
            outs = [[y.astype(dtype)] for y in ys]
        else:
            assert isinstance(entry, Inner)
            if block.kind == "scan":
                outs = self.scan(eqn, entry, ins, indices)
            else:
                outs = self.run(entry.plans[0], ins, indices)
        keep = [eqn.outvars.index(v) for v in block.given]
        return [[values[i] for i in keep] for values in outs]

    def scan(
        self, eqn: jex.JaxprEqn, entry: Inner, batches: Values, indices: tuple[int, ...]
    ) -> Values:
        """Evaluates a scan, slice by slice."""
        loop, (plan,) = internals.scan(eqn), entry.plans
        fixed = [values[: loop.consts] for values in batches]
        carried = [values[loop.consts : loop.first_slice] for values in batches]
        scanned = [values[loop.first_slice :] for values in batches]
        batches.clear()
        stacked: list[list[list[Any]]] = [[] for _ in fixed]
        turns = range(loop.length)
        for index in reversed(turns) if loop.reverse else turns:
            slices = _for_each(partial(_slice, jnp.int32(index)), scanned)
            ins = [[*c, *v, *x] for c, v, x in zip(fixed, carried, slices, strict=True)]
            carried.clear()
            del slices
            for outs, ys in zip(self.run(plan, ins, (*indices, index)), stacked, strict=True):
                carried.append(outs[: loop.carry])
                ys.append(outs[loop.carry :])
        ordered = [ys[::-1] if loop.reverse else ys for ys in stacked]
        return [
            [*carry, *(jnp.stack(list(each)) for each in zip(*ys, strict=True))]
            for carry, ys in zip(carried, ordered, strict=True)
        ]


def _for_each(run: Callable[[list[Any]], list[Any]], batches: Values) -> Values:
    """Evaluates for each batch, or once where all have the same values."""
    first, *others = batches
    if all(a is b for values in others for a, b in zip(first, values, strict=True)):
        return [run(first)] * len(batches)
    return [run(values) for values in batches]


@jax.jit
def _slice(index: Array, xs: list[Array]) -> list[Array]:
    return [lax.dynamic_index_in_dim(x, index, keepdims=False) for x in xs]


@partial(jax.jit, static_argnums=0)
def _run_rest(block: Block, ins: list[Any]) -> list[Any]:
    """Evaluates equations that hold no site as one program."""
    return Walk({}, "batch", None).run(block.plan, ins, {}, ())[0]
