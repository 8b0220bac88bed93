"""TODO."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.extend.core as jex
import jax.numpy as jnp
from jaxtyping import Array, Key

from jaxsim.cores.core import State
from jaxsim.cores.wrapper import Wrapper
from jaxsim.internals import jaxpr_of
from jaxsim.network.cuts import (
    Cut,
    Equations,
    sites_of,
    unplaced,
    variables_of,
    weighted_names,
)
from jaxsim.network.interpreter import Walk
from jaxsim.network.network import Network
from jaxsim.network.plan import Plan


class Stage(NamedTuple):
    """A run of equations as a function of what they need.

    Attributes:
      name: its first site with a weight, "" if it has none.
      plan: its equations; it takes the parameters, buffers, arguments and live values below, in
        this order.
      params: positions of the parameters' leaves it reads.
      buffers: positions of the buffers' leaves it reads.
      arguments: positions of the arguments it reads.
      sources: for each live value it takes, the stage and the position among its outputs.
      sites: names of its sites.
      equations: number of its active equations.
    """

    name: str
    plan: Plan
    params: tuple[int, ...]
    buffers: tuple[int, ...]
    arguments: tuple[int, ...]
    sources: tuple[tuple[int, int], ...]
    sites: tuple[str, ...]
    equations: int

    @property
    def live(self) -> list[jax.ShapeDtypeStruct]:
        """Shapes of the live values it takes."""
        first = len(self.params) + len(self.buffers) + len(self.arguments)
        return [_shape(v) for v in self.plan.jaxpr.invars[first:]]

    @property
    def outputs(self) -> list[jax.ShapeDtypeStruct]:
        """Shapes of what it returns."""
        return [_shape(v) for v in self.plan.jaxpr.outvars]


class Stages(NamedTuple):
    """A network cut into stages.

    Attributes:
      stages: in order of execution.
      outputs: for each output of the network, the stage and the position among its outputs.
      equations: what was cut.
    """

    stages: tuple[Stage, ...]
    outputs: tuple[tuple[int, int], ...]
    equations: Equations


class Held(NamedTuple):
    """What of a network one stage reads.

    Attributes:
      params: leaves by path.
      masks: by path, where pruned.
      buffers: leaves, in the stage's order.
      cores: wrappers by site.
      states: by site, once deployed.
    """

    params: dict[str, Array]
    masks: dict[str, Array]
    buffers: tuple[Array, ...]
    cores: dict[str, tuple[Wrapper, ...]]
    states: dict[str, State]


def split(line: Equations, places: Sequence[Cut]) -> Stages:
    """Cuts a line of equations.

    Args:
      line: from `equations`.
      places: cuts of it, in order of execution.
    """
    jaxpr, entries = line.plan.jaxpr, line.plan.entries
    bounds = [0, *(cut.at for cut in places), len(line.active)]
    ranges = [line.active[a:b] for a, b in itertools.pairwise(bounds)]
    home: dict[Any, int] = {}  # the stage an active value is computed in
    maker: dict[Any, int] = {}  # the equation any value is computed by
    for i, eqn in enumerate(jaxpr.eqns):
        maker.update(dict.fromkeys(eqn.outvars, i))
    for stage, run in enumerate(ranges):
        home.update({v: stage for i in run for v in jaxpr.eqns[i].outvars})
    final = len(ranges) - 1
    ends = [home.get(v, final) if isinstance(v, jex.Var) else final for v in jaxpr.outvars]

    returned = [
        variables_of([v for v, s in zip(jaxpr.outvars, ends, strict=True) if s == stage])
        for stage in range(len(ranges))
    ]
    needs = [
        _closure(jaxpr, maker, home, run, stage, returned[stage])
        for stage, run in enumerate(ranges)
    ]
    # In the order of their use and of their making, which equal blocks share.
    takes = [
        [v for v in dict.fromkeys(_inputs(jaxpr, order)) if v in free and v in home]
        for order, free in needs
    ]
    read = {v for taken in takes for v in taken} | set(variables_of(jaxpr.outvars))
    gives = [[v for i in run for v in jaxpr.eqns[i].outvars if v in read] for run in ranges]
    gives[final] += [v for v in jaxpr.outvars if isinstance(v, jex.Literal) or v not in home]
    at = {v: (s, i) for s, g in enumerate(gives) for i, v in enumerate(g) if isinstance(v, jex.Var)}
    literals = {id(v): (final, i) for i, v in enumerate(gives[final])}

    position = {v: i for i, v in enumerate(jaxpr.invars)}
    first = (0, len(line.paths), len(line.paths) + line.buffers, len(jaxpr.invars))
    stages: list[Stage] = []
    for run, (order, free), taken, given in zip(ranges, needs, takes, gives, strict=True):
        leaves = sorted(position[v] for v in free if v in position)
        kinds = [[i for i in leaves if a <= i < b] for a, b in itertools.pairwise(first)]
        consts = [v for v in jaxpr.constvars if v in free]
        values = dict(zip(jaxpr.constvars, line.plan.consts, strict=True))
        held = {v: unplaced(values[v]) for v in consts}
        invars = [*(jaxpr.invars[i] for i in leaves), *taken]
        plan = Plan(
            jaxpr_of(held, invars, given, [jaxpr.eqns[i] for i in order], jaxpr),
            list(held.values()),
            tuple(entries[i] for i in order),
            (None,) * len(given),
        )
        names = [name for i in run for name in weighted_names(entries[i])]
        stages.append(
            Stage(
                name=names[0] if names else "",
                plan=plan,
                params=tuple(kinds[0]),
                buffers=tuple(i - first[1] for i in kinds[1]),
                arguments=tuple(i - first[2] for i in kinds[2]),
                sources=tuple(at[v] for v in taken),
                sites=tuple(site.name for i in run for site in sites_of(entries[i])),
                equations=len(run),
            )
        )
    outputs = tuple(at[v] if isinstance(v, jex.Var) else literals[id(v)] for v in jaxpr.outvars)
    return Stages(tuple(stages), outputs, line)


def signature(stage: Stage) -> tuple[Any, ...]:
    """What is equal for stages that differ in their parameters' values and names only."""
    text = re.sub(r"0x[0-9a-f]+", "", str(stage.plan.jaxpr))
    inputs = len(stage.arguments) + len(stage.sources)
    return len(stage.params), len(stage.buffers), inputs, text


def held(net: Network, cut: Stages, stage: Stage) -> Held:
    """What a stage reads of its network."""
    paths = [cut.equations.paths[i] for i in stage.params]
    leaves, buffers = jax.tree.leaves(net.params), jax.tree.leaves(net.buffers)
    sites = [name for name in stage.sites if name in net.cores]
    return Held(
        params={p: leaves[i] for p, i in zip(paths, stage.params, strict=True)},
        masks={p: net.masks[p] for p in paths if p in net.masks},
        buffers=tuple(buffers[i] for i in stage.buffers),
        cores={name: net.cores[name] for name in sites},
        states={name: net.states[name] for name in sites if name in net.states},
    )


def run_stage(
    stage: Stage,
    held: Held,
    arguments: Sequence[Array],
    live: Sequence[Array],
    *,
    ranges: Literal["batch", "stored", "missing"],
    key: Key[Array, ""] | None = None,
    part: Any = None,
) -> list[Array]:
    """The outputs of a stage: a pure function.

    Args:
      stage: what to run.
      held: what it reads of its network.
      arguments: those it reads, in its order.
      live: the live values it takes.
      ranges: where its cores take ranges from, `Network.ranges`.
      key: of the call.
      part: tells apart the read noise of parts of one call.
    """
    params = [
        p * held.masks[name].astype(p.dtype) if name in held.masks else p
        for name, p in held.params.items()
    ]
    walk = Walk(held.cores, ranges, key, part=part)
    values = [*params, *held.buffers, *arguments, *live]
    outputs, _ = walk.run(stage.plan, values, held.states, ())
    return [jnp.asarray(y) for y in outputs]


def _closure(
    jaxpr: Any,
    maker: Mapping[Any, int],
    home: Mapping[Any, int],
    run: Sequence[int],
    stage: int,
    returned: Sequence[Any],
) -> tuple[list[int], set[Any]]:
    """The equations a stage runs, those of weights and constants included, and what it takes."""
    order, free, queue = set(run), set[Any](), [*returned, *_inputs(jaxpr, run)]
    while queue:
        v = queue.pop()
        if v in free or home.get(v) == stage:
            continue
        if v in home or v not in maker:
            free.add(v)
        elif maker[v] not in order:
            order.add(maker[v])
            queue += variables_of(jaxpr.eqns[maker[v]].invars)
    return sorted(order), free


def _inputs(jaxpr: Any, run: Sequence[int]) -> list[Any]:
    """The variables that equations read."""
    return [v for i in run for v in variables_of(jaxpr.eqns[i].invars)]


def _shape(v: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype)
