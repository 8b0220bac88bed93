"""Interpreter: evaluates a plan, each transformed site by its core."""

from __future__ import annotations

import copy
import dataclasses
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.extend.core as jex
import jax.extend.core.primitives as prims
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Key

from jaxsim import internals
from jaxsim.cores.core import State
from jaxsim.cores.operand import WrittenOperand
from jaxsim.cores.operand import write_key as write_key_of
from jaxsim.cores.wrapper import Wrapper
from jaxsim.internals import Atom, bind, parameters, shape_of, sharding_of
from jaxsim.network.mesh_places import device_axes, differing, strip, unstrip, varies
from jaxsim.network.plan import Contraction, Entry, Inner, Plan, contractions
from jaxsim.network.site_call import SiteCall, look_up, multiply
from jaxsim.numerics.arrays import in_auto_axes
from jaxsim.numerics.short_floats import as_bytes, from_bytes


def evaluate_plan(
    plan: Plan,
    values: Sequence[Any],
    step: Callable[[jex.JaxprEqn, Entry, list[Any]], Sequence[Any]],
) -> list[Any]:
    """Evaluates a jaxpr, each of its equations by a function.

    Args:
      plan: Jaxpr with its constants and the meaning of each equation.
      values: Values of the jaxpr's inputs.
      step: Computes an equation's results, `(equation, entry, operands) -> results`.

    Returns:
      The outputs of the jaxpr.
    """
    env = dict(zip(plan.jaxpr.invars, values, strict=True))
    env.update(zip(plan.jaxpr.constvars, plan.consts, strict=True))

    def read(atom: Atom) -> Any:
        return atom.val if isinstance(atom, jex.Literal) else env[atom]

    for eqn, entry in zip(plan.jaxpr.eqns, plan.entries, strict=True):
        outs = step(eqn, entry, [read(atom) for atom in eqn.invars])
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(atom) for atom in plan.jaxpr.outvars]


def site_key(key: Key[Array, ""] | None, name: str, indices: Iterable[Any]) -> Any:
    """Derives a random key for a site in this iteration of each loop around it.

    Args:
      key: Key of the call; None gives None.
      name: Name of the site, hashed into the key.
      indices: Iteration of each loop around the site, outermost first.
    """
    if key is None:
        return None
    key = jax.random.fold_in(key, zlib.crc32(name.encode()))
    for index in indices:
        key = jax.random.fold_in(key, index)
    return key


class Walk:
    """Evaluates a plan and hands each transformed site to its core.

    Every method threads the states of the sites inside: unchanged when reading, updated when
    calibrating. Its arguments are those of `run`; `eqn` is the equation at hand, `entry` its
    meaning in the plan and `ins` the values of its operands.
    """

    def __init__(
        self,
        cores: Mapping[str, tuple[Wrapper, ...]],
        ranges: Literal["batch", "stored", "missing"],
        key: Key[Array, ""] | None,
        *,
        calibrating: bool = False,
        part: Any = None,
    ):
        """Prepares to evaluate.

        Args:
          cores: Wrappers of each transformed site, outermost first.
          ranges: Where cores take ranges from, as `Network.ranges`.
          key: Random key of the call, or None.
          calibrating: If True, ranges are updated and states returned.
          part: Tells apart the read noise of parts of one call, such as microbatches.
        """
        self.cores = cores
        self.ranges: Literal["batch", "stored", "missing"] = ranges
        self.key = key
        self.read_key = key if key is None or part is None else jax.random.fold_in(key, part)
        self.calibrating = calibrating

    def run(
        self,
        plan: Plan,
        values: Sequence[Any],
        states: Mapping[str, State],
        indices: tuple[Any, ...],
    ) -> tuple[list[Any], dict[str, State]]:
        """Evaluates a plan.

        Args:
          plan: Jaxpr with its constants and the meaning of each equation.
          values: Values of the jaxpr's inputs.
          states: States of the sites inside; a site without one writes its weight first.
          indices: Iteration of each loop around, outermost first.

        Returns:
          The outputs, and the states of the sites inside.
        """
        states = dict(states)

        def step(eqn: jex.JaxprEqn, entry: Entry, ins: list[Any]) -> Sequence[Any]:
            return self.step(eqn, entry, ins, states, indices)

        return evaluate_plan(plan, values, step), states

    def step(
        self,
        eqn: jex.JaxprEqn,
        entry: Entry,
        ins: list[Any],
        states: dict[str, State],
        indices: tuple[Any, ...],
    ) -> Sequence[Any]:
        """Computes the results of an equation, and updates the states of the sites inside.

        Args:
          eqn: Equation.
          entry: Its meaning in the plan.
          ins: Values of its operands.
          states: States of the sites, by name.
          indices: Iteration of each loop around, outermost first.
        """
        if isinstance(entry, Contraction) and entry.site.name in self.cores:
            y, state = self.site(eqn, entry, ins, states.get(entry.site.name), indices)
            if state is not None:
                states[entry.site.name] = state
            return [y.astype(shape_of(eqn.outvars[0]).dtype)]
        if isinstance(entry, Inner) and not entry.names.isdisjoint(self.cores):
            outs, updated = self.inner(eqn, entry, ins, states, indices)
            states.update(updated)
            return outs
        return bind(eqn, ins)

    def site(
        self,
        eqn: jex.JaxprEqn,
        entry: Contraction,
        ins: list[Any],
        state: State | None,
        indices: tuple[Any, ...],
    ) -> tuple[Array, State | None]:
        """Computes a site's output by its core.

        Args:
          eqn: Equation of the site.
          entry: Site in the plan.
          ins: Values of the equation's operands.
          state: State of the site, None where its weight is not written yet.
          indices: Iteration of each loop around, outermost first.

        Returns:
          The output, and the state.
        """
        site, wrappers = entry.site, self.cores[entry.site.name]
        at = tuple(i for i, stacked in zip(indices, site.stacked, strict=True) if stacked)
        places, indices = indices, differing(site, indices, ins[entry.x_at], ins[entry.w_at])
        read_key = site_key(self.read_key, site.name + ":read", indices)
        per_call = site.kind == "dynamic"
        over = indices if per_call else at
        source = write_key_of(wrappers, self.key, self.read_key) if per_call else self.key
        write_key = site_key(source, site.name, over) if state is None or per_call else None
        op = dataclasses.replace(
            entry.op,
            ranges="batch" if state is None else self.ranges,
            deterministic=self.calibrating,
        )
        sharing = {
            (axis, size): place
            for axis, stacked, size, place in zip(
                site.axes, site.stacked, site.lengths, places, strict=False
            )
            if axis and not stacked and varies(axis, place, ins[entry.x_at])
        }
        call = SiteCall(op, state is not None, self.calibrating, tuple(sharing))
        w = ins[entry.w_at] if state is None else state
        if per_call and state is not None:
            w, write_key = WrittenOperand(ins[entry.w_at], write_key, state), None
        spec = sharding_of(eqn.outvars[0])
        given = (w, at, write_key, read_key)
        if site.kind == "lookup":
            rows = partial(look_up, call, eqn, entry)
            return in_auto_axes(rows, wrappers, ins, *given, out=spec), state
        y, updated = in_auto_axes(
            partial(multiply, call),
            wrappers,
            ins[entry.x_at],
            *given,
            tuple(sharing.values()),
            ins[entry.rows_at] if entry.rows_at is not None and self.calibrating else None,
            out=(spec, PartitionSpec()),
        )
        if isinstance(updated, WrittenOperand):
            updated = updated.held
        return y, state if updated is None else updated

    def on_devices(
        self,
        local: internals.ShardMap,
        plan: Plan,
        ins: list[Any],
        states: dict[str, State],
        indices: tuple[Any, ...],
    ) -> tuple[list[Any], dict[str, State]]:
        """Evaluates a `shard_map`: states are cut over the devices along which the weight is.

        Args:
          local: What it is told.
          plan: Plan of its body.
          ins: Values of its operands.
          states: States of the sites inside.
          indices: Iteration of each loop around, outermost first.
        """
        stacked = device_axes(plan, local, len(indices))

        def body(places: tuple[Array, ...], ins: list[Any], states: dict[str, State]) -> Any:
            mine = {k: strip(s, len(stacked[k])) for k, s in states.items()}
            outs, after = self.run(plan, ins, mine, (*indices, *places))
            changed = states if self.calibrating else {}
            return outs, {k: unstrip(after[k], len(stacked[k])) for k in changed}

        specs = {k: PartitionSpec(*stacked[k]) for k in states}
        after_specs = specs if self.calibrating else {}
        return local.run(
            body, (list(local.in_specs), specs), (list(local.out_specs), after_specs), ins, states
        )

    def inner(
        self,
        eqn: jex.JaxprEqn,
        entry: Inner,
        ins: list[Any],
        states: Mapping[str, State],
        indices: tuple[Any, ...],
    ) -> tuple[list[Any], dict[str, State]]:
        """Evaluates an equation that holds transformed sites, such as a loop or a branch.

        Args:
          eqn: Equation.
          entry: Plans of its inner jaxprs.
          ins: Values of its operands.
          states: States of the sites inside.
          indices: Iteration of each loop around, outermost first.

        Returns:
          The equation's results, and the states of the sites inside.
        """
        plans = entry.plans
        inside = {name: states[name] for name in entry.names if name in states}
        if entry.rewritten:
            return self.rewritten(eqn, entry, ins, inside, indices)
        if (local := internals.shard_map(eqn)) is not None:
            return self.on_devices(local, plans[0], ins, inside, indices)
        match eqn.primitive:
            case prims.scan_p:
                return self.scan(eqn, entry, ins, inside, indices)
            case prims.while_p:
                return self.loop(eqn, entry, ins, inside, indices)
            case prims.cond_p:
                branches = [partial(self.branch, plan, inside, indices) for plan in plans]
                return lax.switch(ins[0], branches, *ins[1:])
            case prims.remat_p:
                params = parameters(eqn)
                run = jax.checkpoint(
                    partial(self.branch, plans[0], inside, indices),
                    prevent_cse=params["prevent_cse"],
                    policy=params["policy"],
                )
                return run(*ins)
            case _:
                return self.run(plans[0], ins, inside, indices)

    def rewritten(
        self,
        eqn: jex.JaxprEqn,
        entry: Inner,
        ins: list[Any],
        states: dict[str, State],
        indices: tuple[Any, ...],
    ) -> tuple[list[Any], dict[str, State]]:
        """Evaluates what says an equation in other words, and leaves sharding to the compiler.

        Args:
          eqn: Equation.
          entry: Plan of what says it.
          ins: Values of the plan's inputs.
          states: States of the sites inside.
          indices: Iteration of each loop around, outermost first.
        """

        def run(
            cores: dict[str, tuple[Wrapper, ...]],
            keys: list[Any],
            ins: list[Any],
            states: dict[str, State],
            indices: tuple[Any, ...],
        ) -> tuple[list[Any], dict[str, State]]:
            walk = copy.copy(self)
            walk.cores, (walk.key, walk.read_key) = cores, keys
            outs, after = walk.run(entry.plans[0], ins, states, indices)
            return outs, after if self.calibrating else {}

        outs, updated = in_auto_axes(
            run,
            *({name: self.cores[name] for name in entry.names if name in self.cores},),
            *([self.key, self.read_key], ins, states, indices),
            out=([sharding_of(v) for v in eqn.outvars], PartitionSpec()),
        )
        return outs, {**states, **updated}

    def branch(
        self, plan: Plan, states: Mapping[str, State], indices: tuple[Any, ...], *ins: Any
    ) -> tuple[list[Any], dict[str, State]]:
        """Evaluates a plan as `run` does, with the operands last.

        Args:
          plan: Jaxpr with its constants and the meaning of each equation.
          states: States of the sites inside.
          indices: Iteration of each loop around, outermost first.
          *ins: Values of the jaxpr's inputs.
        """
        return self.run(plan, ins, states, indices)

    def scan(
        self,
        eqn: jex.JaxprEqn,
        entry: Inner,
        ins: list[Any],
        states: dict[str, State],
        indices: tuple[Any, ...],
    ) -> tuple[list[Any], dict[str, State]]:
        """Evaluates a scan: stacked states go in (and, calibrated, come out) slice by slice.

        Of a part of a scan the states are those of its slices, counted from the whole one's first.

        Args:
          eqn: Equation of the scan.
          entry: Plan of its body.
          ins: Values of its operands.
          states: States of the sites inside.
          indices: Iteration of each loop around, outermost first.
        """
        loop, (plan,) = internals.scan(eqn), entry.plans
        carried, before = loop.carry, 0 if entry.rows is None else entry.rows.first
        sites = {c.site.name: c.site for c in contractions(plan)}
        stacked = {k: s for k, s in states.items() if sites[k].stacked[len(indices)]}
        fixed = {k: s for k, s in states.items() if k not in stacked}
        types = jax.tree.map(lambda a: a.dtype, stacked)

        def body(carry: Any, slices: Any) -> Any:
            values, fixed_now = carry
            index, xs, stacked_now = slices
            outs, after = self.run(
                plan,
                [*ins[: loop.consts], *values, *xs],
                {**fixed, **fixed_now, **jax.tree.map(from_bytes, stacked_now, types)},
                (*indices, index),
            )
            changed = {k: after[k] for k in stacked} if self.calibrating else {}
            kept = self.handed_on(entry, values, outs[:carried])
            return (kept, {k: after[k] for k in fixed_now}), (outs[carried:], changed)

        (carry, fixed_after), (ys, stacked_after) = lax.scan(
            body,
            (ins[loop.consts : loop.first_slice], fixed if self.calibrating else {}),
            (
                before + jnp.arange(loop.length),
                ins[loop.first_slice :],
                jax.tree.map(as_bytes, stacked),
            ),
            length=loop.length,
            reverse=loop.reverse,
            unroll=loop.unroll,
        )
        return [*carry, *ys], {**states, **fixed_after, **stacked_after}

    def handed_on(self, entry: Inner, before: Sequence[Any], after: list[Any]) -> list[Any]:
        """Chooses what one iteration of a scan hands to the next: what it made.

        Args:
          entry: Meaning of the scan.
          before: What the iteration was given.
          after: What it made of it.
        """
        return after

    def loop(
        self,
        eqn: jex.JaxprEqn,
        entry: Inner,
        ins: list[Any],
        states: dict[str, State],
        indices: tuple[Any, ...],
    ) -> tuple[list[Any], dict[str, State]]:
        """Evaluates a while loop; iterations are counted so that each draws its own noise.

        The test runs at the end of each step, where what it calibrates can be carried on.

        Args:
          eqn: Equation of the loop.
          entry: Plans of its test and its body.
          ins: Values of its operands.
          states: States of the sites inside.
          indices: Iteration of each loop around, outermost first.
        """
        numbers, (test, body) = internals.while_loop(eqn), entry.plans
        test_consts = ins[: numbers.test_consts]
        body_consts = ins[numbers.test_consts : numbers.first_carry]

        def run_test(index: Array, values: list[Any], states_now: dict[str, State]) -> Any:
            (go_on,), after = self.run(test, [*test_consts, *values], states_now, (*indices, index))
            return go_on, index, values, after

        def step(carry: Any) -> Any:
            _, index, values, states_now = carry
            outs, after = self.run(body, [*body_consts, *values], states_now, (*indices, index))
            return run_test(index + 1, outs, after)

        start = run_test(jnp.zeros((), jnp.int32), ins[numbers.first_carry :], states)
        _, _, outs, after = lax.while_loop(lambda carry: carry[0], step, start)
        return outs, after
