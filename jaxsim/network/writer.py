"""Writer: writes the weight of each site into its core."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, cast

import jax
import jax.extend.core as jex
import jax.extend.core.primitives as prims
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Key

from jaxsim import internals
from jaxsim.cores.core import State
from jaxsim.cores.op import Op
from jaxsim.cores.operand import writes_in_calls
from jaxsim.cores.wrapper import Wrapper, build
from jaxsim.internals import bind
from jaxsim.network.interpreter import evaluate_plan, site_key
from jaxsim.network.mesh_places import device_axes, gathered, unstrip
from jaxsim.network.network import Network, trace_call
from jaxsim.network.params import param_names
from jaxsim.network.plan import Contraction, Entry, Inner, Plan, contractions
from jaxsim.numerics.arrays import in_auto_axes, own_promotion
from jaxsim.numerics.gradients import shard_like


def write_states(
    net: Network, key: Key[Array, ""] | None, *, layout: Literal["plain", "lean"] = "plain"
) -> dict[str, State]:
    """Writes every transformed site's weight, from the parameters alone.

    Parameters of sites that are alike are written by one small program, called for each; what is
    computed, stacked or like nothing else, by one program for all of it.

    Args:
      net: Network with transformed sites.
      key: Random key for cores that draw when they write, or None.
      layout: "lean" for a deployed network, whose states hold what reads need; see `Op`.
    """
    states = _write_most(net, key, layout)
    return {
        name: found.written(net.cores[name], site_key(key, name, ()))
        if isinstance(found, _Unwritten)
        else found
        for name, found in states.items()
    }


@partial(jax.tree_util.register_dataclass, data_fields=["w", "mask"], meta_fields=["op"])
@dataclasses.dataclass(frozen=True)
class _Unwritten:
    """A parameter that is the weight of a site, with its mask."""

    w: Array
    mask: Array | None
    op: Op

    def written(self, wrappers: Sequence[Wrapper], key: Any) -> State:
        return _write(self.op, tuple(wrappers), self.w, (), key, self.mask)


@partial(jax.jit, static_argnums=2)
def _write_most(
    net: Network, key: Key[Array, ""] | None, layout: Literal["plain", "lean"]
) -> dict[str, Any]:
    """The states of sites that are like no other, and the parameters of the others as they are."""
    traced = trace_call(net, net.example)
    known = traced.values[: len(traced.values) - len(net.example.arrays)]
    values = [*known, *[None] * len(net.example.arrays)]
    named = zip(param_names(net), jax.tree.leaves(net.params), known, strict=False)
    params = {id(value): (p, net.masks.get(name)) for name, p, value in named}
    _, states = _Writer(net.cores, key, params, layout).run(traced.plan, values, ())

    def kind(name: str) -> Any:
        leaves, structure = jax.tree.flatten((states[name], net.cores[name]))
        return structure, tuple(map(jax.typeof, leaves))

    kinds = {name: kind(name) for name, found in states.items() if isinstance(found, _Unwritten)}
    often = collections.Counter(kinds.values())
    for name, mine in kinds.items():
        if often[mine] == 1:
            states[name] = states[name].written(net.cores[name], site_key(key, name, ()))
    return states


def shard_like_weights(
    net: Network, states: Mapping[str, State], put: Callable[[Any, Any], Any]
) -> dict[str, State]:
    """Shards states over the devices of their site's weight, where writing them lost its sharding.

    Args:
      net: Network whose parameters lie on a mesh; nothing happens otherwise.
      states: States by site, as arrays or as shapes and dtypes.
      put: Function that gives a leaf a sharding.
    """
    params = dict(zip(param_names(net), jax.tree.leaves(net.params), strict=True))
    weights = {site.name: params[site.param] for site in net.sites if site.param in params}

    def place(a: Any, w: Any) -> Any:
        sharding = shard_like(a, w)
        return a if sharding is None else put(a, sharding)

    return {
        name: jax.tree.map(lambda a, w=weights[name]: place(a, w), state)
        if name in weights
        else state
        for name, state in states.items()
    }


@partial(jax.jit, static_argnums=0)
@own_promotion()
def _write(
    op: Op, wrappers: Any, w: Array | None, over: Any, key: Any, mask: Array | None = None
) -> State:
    """Writes a weight, none for an operand of calls; sites that are alike are traced once."""
    w = w if w is None or mask is None else w * mask.astype(w.dtype)
    return build(wrappers).write(dataclasses.replace(op, scan_index=over), cast(Any, w), key)


class _Writer:
    """Evaluates what the parameters alone determine, and writes each site's weight."""

    def __init__(
        self,
        cores: Mapping[str, tuple[Wrapper, ...]],
        key: Key[Array, ""] | None,
        params: Mapping[int, tuple[Array, Array | None]],
        layout: Literal["plain", "lean"],
    ):
        """Prepares to write.

        Args:
          cores: Wrappers of each transformed site, outermost first.
          key: Random key, or None.
          params: Parameters and their masks, by the identity of the masked one: where one is the
            weight of a site and no loop is around, it is left unwritten.
          layout: Layout of the states, as in `Op`.
        """
        self.layout: Literal["plain", "lean"] = layout
        self.cores = cores
        self.key = key
        self.params = params

    def run(
        self, plan: Plan, values: Sequence[Any], indices: tuple[Any, ...]
    ) -> tuple[list[Any], dict[str, State]]:
        """Evaluates what is constant-derived, and collects the states written inside.

        `values` holds None for what is not known, `indices` the iteration of each loop around; so
        do the outputs.
        """
        states: dict[str, State] = {}

        def step(eqn: jex.JaxprEqn, entry: Entry, ins: list[Any]) -> Sequence[Any]:
            outs: Sequence[Any] = [None] * len(eqn.outvars)
            if isinstance(entry, Contraction):
                self.write(entry, ins, indices, states)
            elif entry is not None:
                outs, written = self.inner(eqn, entry, ins, indices)
                states.update(written)
            elif all(value is not None for value in ins):
                outs = bind(eqn, ins)
            return outs

        return evaluate_plan(plan, values, step), states

    def write(
        self,
        entry: Contraction,
        ins: list[Any],
        indices: tuple[Any, ...],
        states: dict[str, State],
    ) -> None:
        site = entry.site
        if site.name in self.cores and site.kind == "dynamic":
            if writes_in_calls(self.cores[site.name]):
                op = dataclasses.replace(entry.op, integer=True, layout=self.layout)
                key = site_key(self.key, site.name, ())
                states[site.name] = _write(op, self.cores[site.name], None, (), key)
        elif site.name in self.cores:
            over = [i for i, stacked in zip(indices, site.stacked, strict=True) if stacked]
            key, w = site_key(self.key, site.name, over), ins[entry.w_at]
            op = dataclasses.replace(entry.op, integer=True, layout=self.layout)
            explicit = jax.typeof(w).sharding.mesh.explicit_axes
            if id(w) in self.params and not indices and not explicit:
                states[site.name] = _Unwritten(*self.params[id(w)], op)
                return
            states[site.name] = in_auto_axes(
                partial(_write, op), *(self.cores[site.name], w, tuple(over), key)
            )

    def inner(
        self, eqn: jex.JaxprEqn, entry: Inner, ins: list[Any], indices: tuple[Any, ...]
    ) -> tuple[Sequence[Any], dict[str, State]]:
        plans = entry.plans
        if (local := internals.shard_map(eqn)) is not None:
            return self.on_devices(local, plans[0], ins, indices)
        if eqn.primitive is prims.scan_p:
            return self.scan(eqn, entry, ins, indices)
        if eqn.primitive is prims.while_p:
            loop = internals.while_loop(eqn)
            carry = [
                value if tag is not None else None
                for value, tag in zip(ins[loop.first_carry :], plans[1].known, strict=True)
            ]
            test, body = ins[: loop.test_consts], ins[loop.test_consts : loop.first_carry]
            within = (*indices, 0)
            _, states = self.run(plans[0], [*test, *carry], within)
            _, more = self.run(plans[1], [*body, *carry], within)
            return carry, {**states, **more}
        if eqn.primitive is prims.cond_p:
            runs = [self.run(plan, ins[1:], indices) for plan in plans]
            merged = {name: state for _, states in runs for name, state in states.items()}
            return [None] * len(eqn.outvars), merged
        if entry.rewritten:

            def write(
                cores: dict[str, tuple[Wrapper, ...]], key: Any, ins: list[Any], indices: Any
            ) -> dict[str, State]:
                return _Writer(cores, key, {}, self.layout).run(plans[0], ins, indices)[1]

            states = in_auto_axes(write, dict(self.cores), self.key, ins, indices)
            return [None] * len(eqn.outvars), states
        return self.run(plans[0], ins, indices)

    def on_devices(
        self,
        local: internals.ShardMap,
        plan: Plan,
        ins: list[Any],
        indices: tuple[Any, ...],
    ) -> tuple[Sequence[Any], dict[str, State]]:
        """Writes inside a `shard_map`: one for each part of a weight that is cut over devices."""
        given = [i for i, value in enumerate(ins) if value is not None]
        found = [i for i, tag in enumerate(plan.known) if tag is not None]
        axes = {
            c.site.name: device_axes(plan, local, len(indices))[c.site.name]
            for c in contractions(plan)
            if c.site.name in self.cores and c.site.kind != "dynamic"
        }

        def write(places: tuple[Array, ...], known: list[Any]) -> Any:
            values: list[Any] = [None] * len(ins)
            for i, value in zip(given, known, strict=True):
                values[i] = value
            outs, states = self.run(plan, values, (*indices, *places))
            mine = {name: unstrip(states[name], len(local.axes)) for name in axes}
            return [outs[i] for i in found], mine

        # a part that several devices have is read off one: its type may say that it varies
        known, states = local.run(
            write,
            ([local.in_specs[i] for i in given],),
            ([local.out_specs[i] for i in found], PartitionSpec(*local.axes)),
            [ins[i] for i in given],
        )
        outs: list[Any] = [None] * len(plan.known)
        for i, value in zip(found, known, strict=True):
            outs[i] = value
        return outs, {name: gathered(s, local, axes[name]) for name, s in states.items()}

    def scan(
        self, eqn: jex.JaxprEqn, entry: Inner, ins: list[Any], indices: tuple[Any, ...]
    ) -> tuple[Sequence[Any], dict[str, State]]:
        """Writes inside a scan: one for each slice of a stacked weight, one for the others."""
        loop, (plan,) = internals.scan(eqn), entry.plans
        carry = [
            value if tag is not None else None
            for value, tag in zip(ins[loop.consts :], plan.known, strict=False)
        ][: loop.carry]
        fixed, xs = [*ins[: loop.consts], *carry], ins[loop.first_slice :]
        sites = {c.site.name: c.site for c in contractions(plan) if c.site.name in self.cores}
        axes = {
            name: 0 if site.stacked[len(indices)] else None
            for name, site in sites.items()
            if site.kind != "dynamic" or writes_in_calls(self.cores[name])
        }

        def write_slice(index: Any, xs: list[Any]) -> dict[str, State]:
            _, states = self.run(plan, [*fixed, *xs], (*indices, index))
            return states

        states = jax.vmap(write_slice, in_axes=(0, 0), out_axes=axes)(jnp.arange(loop.length), xs)
        return [*carry, *[None] * (len(eqn.outvars) - len(carry))], states
