"""A cut network as pure functions that run one after another."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.extend.core as jex
import jax.numpy as jnp
from jaxtyping import Array, Key

from jaxsim.cores.core import State
from jaxsim.cores.wrapper import Wrapper
from jaxsim.internals import Atom, jaxpr_of, shape_of
from jaxsim.network.cuts import (
    Cut,
    Equations,
    begins_at,
    equation_flops,
    rows_of,
    sites_of,
    variables_of,
    without_device,
)
from jaxsim.network.interpreter import Walk
from jaxsim.network.network import Network
from jaxsim.network.plan import Plan, Rows
from jaxsim.network.taps import Tap, insert_taps


class Stage(NamedTuple):
    """Consecutive equations as a function of what they need.

    Attributes:
      name: Name of its first site with a weight, "" if it has none; within a stack its slice behind
        it, as in `Cut`.
      plan: Its equations; inputs are the parameters, buffers, arguments and live values below, in
        this order.
      params: Positions of the parameters' leaves it reads.
      names: For each of these its path, `path[a:b]` for slices of a stack.
      param_rows: For each of these the slices it reads of a stack; None for the whole.
      buffers: Positions of the buffers' leaves it reads.
      buffer_rows: For each of these the slices it reads of a stack; None for the whole.
      arguments: Positions of the arguments it reads.
      sources: For each live value it takes, the stage that computes it and the position among its
        outputs.
      sites: Names of the sites it runs, lookups that no argument reaches among them.
      site_rows: For each of these the slices it runs of a stack; None for anything else.
      equations: Number of its active equations.
      flops: Arithmetic operations of these.
    """

    name: str
    plan: Plan
    params: tuple[int, ...]
    names: tuple[str, ...]
    param_rows: tuple[Rows | None, ...]
    buffers: tuple[int, ...]
    buffer_rows: tuple[Rows | None, ...]
    arguments: tuple[int, ...]
    sources: tuple[tuple[int, int], ...]
    sites: tuple[str, ...]
    site_rows: tuple[Rows | None, ...]
    equations: int
    flops: int

    @property
    def live(self) -> list[jax.ShapeDtypeStruct]:
        """Shapes of the live values that the stage takes."""
        first = len(self.params) + len(self.buffers) + len(self.arguments)
        return [shape_of(v) for v in self.plan.jaxpr.invars[first:]]

    @property
    def outputs(self) -> list[jax.ShapeDtypeStruct]:
        """Shapes of what the stage returns."""
        return [shape_of(v) for v in self.plan.jaxpr.outvars]


class Stages(NamedTuple):
    """A network cut into stages.

    Attributes:
      stages: Stages in order of execution.
      outputs: For each output of the network, the stage that computes it and the position among its
        outputs.
      equations: Equations that were cut, without taps.
      paths: Paths of the parameters' leaves, those of taps behind the network's.
    """

    stages: tuple[Stage, ...]
    outputs: tuple[tuple[int, int], ...]
    equations: Equations
    paths: tuple[str, ...]


class StageParams(NamedTuple):
    """Parameters, masks, buffers and core states that one stage reads.

    Attributes:
      params: Leaves by `Stage.names`.
      masks: Masks alike, where pruned.
      buffers: Leaves, in the stage's order.
      cores: Wrappers by site.
      states: Written states by site, once deployed.
    """

    params: dict[str, Array]
    masks: dict[str, Array]
    buffers: tuple[Array, ...]
    cores: dict[str, tuple[Wrapper, ...]]
    states: dict[str, State]


def split(line: Equations, places: Sequence[Cut], taps: Sequence[Tap] = ()) -> Stages:
    """Cuts the equations of a call into stages.

    Args:
      line: Equations of a call, from `equations`.
      places: Cuts of them, in order of execution.
      taps: Functions of what is live at cuts, in order of execution. Each is run by the stage that
        ends behind it; its results precede the network's outputs.
    """
    given = line
    every = sorted({*places, *(tap.cut for tap in taps)}, key=lambda cut: cut.at)
    line, found = line.cut_at(every)
    at = dict(zip(every, found, strict=True))
    begins = [at[cut] for cut in places]
    if taps:
        line, begins = insert_taps(line, begins, [(at[tap.cut], tap) for tap in taps])
    jaxpr = line.plan.jaxpr
    bounds = [0, *begins, len(line.active)]
    ranges = [line.active[a:b] for a, b in itertools.pairwise(bounds)]
    maker = {v: i for i, eqn in enumerate(jaxpr.eqns) for v in eqn.outvars if v not in line.rows}
    home = {
        v: stage for stage, run in enumerate(ranges) for i in run for v in jaxpr.eqns[i].outvars
    }
    needs = _stage_needs(jaxpr, maker, home, ranges)
    # In the order of their use and of their making, which equal blocks share.
    takes = [
        [v for v in dict.fromkeys(_inputs(jaxpr, order)) if v in free and v in home]
        for order, free in needs
    ]
    gives = _stage_outputs(jaxpr, home, ranges, takes)
    given_by = {
        v: (s, i) for s, g in enumerate(gives) for i, v in enumerate(g) if isinstance(v, jex.Var)
    }
    final = len(ranges) - 1
    literals = {id(v): (final, i) for i, v in enumerate(gives[final])}
    stages = tuple(
        _stage(line, run, need, taken, made, tuple(given_by[v] for v in taken))
        for run, need, taken, made in zip(ranges, needs, takes, gives, strict=True)
    )
    outputs = tuple(
        given_by[v] if isinstance(v, jex.Var) else literals[id(v)] for v in jaxpr.outvars
    )
    return Stages(stages, outputs, given, line.paths)


def _stage_needs(
    jaxpr: jex.Jaxpr,
    maker: Mapping[jex.Var, int],
    home: Mapping[jex.Var, int],
    ranges: Sequence[Sequence[int]],
) -> list[tuple[list[int], set[jex.Var]]]:
    """Finds for each stage the equations it runs and the values it takes."""
    final = len(ranges) - 1
    ends = [home.get(v, final) if isinstance(v, jex.Var) else final for v in jaxpr.outvars]
    returned = [
        variables_of([v for v, s in zip(jaxpr.outvars, ends, strict=True) if s == stage])
        for stage in range(len(ranges))
    ]
    return [
        _closure(jaxpr, maker, home, run, stage, returned[stage])
        for stage, run in enumerate(ranges)
    ]


def _stage_outputs(
    jaxpr: jex.Jaxpr,
    home: Mapping[jex.Var, int],
    ranges: Sequence[Sequence[int]],
    takes: Sequence[Sequence[jex.Var]],
) -> list[list[Atom]]:
    """Finds for each stage the values it returns; the last returns what no stage computes."""
    read = {v for taken in takes for v in taken} | set(variables_of(jaxpr.outvars))
    gives: list[list[Atom]] = [
        [v for i in run for v in jaxpr.eqns[i].outvars if v in read] for run in ranges
    ]
    gives[-1] += [v for v in jaxpr.outvars if isinstance(v, jex.Literal) or v not in home]
    return gives


def _stage(
    line: Equations,
    run: Sequence[int],
    need: tuple[Sequence[int], Collection[jex.Var]],
    taken: Sequence[jex.Var],
    given: Sequence[Atom],
    sources: tuple[tuple[int, int], ...],
) -> Stage:
    """Builds a stage from its equations, what they need, and what it takes and returns."""
    jaxpr, entries = line.plan.jaxpr, line.plan.entries
    order, free = need
    first = (0, len(line.paths), len(line.paths) + line.buffers, len(jaxpr.invars))
    leaves: list[tuple[int, Rows | None, jex.Var]] = [
        (i, None, v) for i, v in enumerate(jaxpr.invars) if v in free
    ]
    parts = {v: i for i, v in enumerate(jaxpr.invars)}
    leaves += [(parts[of], rows, v) for v, (of, rows) in line.rows.items() if v in free]
    leaves.sort(key=lambda leaf: leaf[0])
    kinds = [[leaf for leaf in leaves if a <= leaf[0] < b] for a, b in itertools.pairwise(first)]
    values = dict(zip(jaxpr.constvars, line.plan.consts, strict=True))
    constants = {v: without_device(values[v]) for v in jaxpr.constvars if v in free}
    invars = [*(v for _, _, v in leaves), *taken]
    plan = Plan(
        jaxpr_of(constants, invars, given, [jaxpr.eqns[i] for i in order], jaxpr),
        list(constants.values()),
        tuple(entries[i] for i in order),
        (None,) * len(given),
    )
    names = (begins_at(jaxpr.eqns[i], entries[i]) for i in run)
    sites = [(site.name, rows_of(entries[i])) for i in order for site in sites_of(entries[i])]
    return Stage(
        name=next((name for name in names if name), ""),
        plan=plan,
        params=tuple(i for i, _, _ in kinds[0]),
        names=tuple(
            line.paths[i] if rows is None else f"{line.paths[i]}[{rows.first}:{rows.last}]"
            for i, rows, _ in kinds[0]
        ),
        param_rows=tuple(rows for _, rows, _ in kinds[0]),
        buffers=tuple(i - first[1] for i, _, _ in kinds[1]),
        buffer_rows=tuple(rows for _, rows, _ in kinds[1]),
        arguments=tuple(i - first[2] for i, _, _ in kinds[2]),
        sources=sources,
        sites=tuple(name for name, _ in sites),
        site_rows=tuple(rows for _, rows in sites),
        equations=len(run),
        flops=sum(equation_flops(jaxpr.eqns[i]) for i in run),
    )


def take_rows(a: Any, rows: Rows | None) -> Any:
    """Takes slices of a stack along its first axis; all of it where there are none to take.

    Args:
      a: Array.
      rows: Slices, or None.
    """
    if rows is None:
        return a
    if isinstance(a, jax.ShapeDtypeStruct):
        return jax.eval_shape(lambda a: a[rows.first : rows.last], a)
    return a[rows.first : rows.last]


def signature(stage: Stage) -> tuple[Any, ...]:
    """Computes a value that is equal for stages that differ only in names and values of parameters.

    Args:
      stage: Stage.
    """
    text = re.sub(r"0x[0-9a-f]+", "", str(stage.plan.jaxpr))
    inputs = len(stage.arguments) + len(stage.sources)
    return len(stage.params), len(stage.buffers), inputs, text


def stage_params(net: Network, cut: Stages, stage: Stage, taps: Any = ()) -> StageParams:
    """Collects what a stage reads of its network.

    Args:
      net: Network that was cut.
      cut: Its stages.
      stage: One of them.
      taps: Parameters of the taps it was cut with.
    """
    leaves, buffers = jax.tree.leaves((net.params, taps)), jax.tree.leaves(net.buffers)
    read = list(zip(stage.names, stage.params, stage.param_rows, strict=True))
    stacked = {site.name for site in net.sites if site.stacked[:1] == (True,)}
    sites = {
        name: rows if name in stacked else None
        for name, rows in zip(stage.sites, stage.site_rows, strict=True)
        if name in net.cores
    }
    masks = [(key, net.masks.get(cut.paths[i]), rows) for key, i, rows in read]
    return StageParams(
        params={key: take_rows(leaves[i], rows) for key, i, rows in read},
        masks={key: take_rows(mask, rows) for key, mask, rows in masks if mask is not None},
        buffers=tuple(
            take_rows(buffers[i], rows)
            for i, rows in zip(stage.buffers, stage.buffer_rows, strict=True)
        ),
        cores={name: net.cores[name] for name in sites},
        states={
            name: jax.tree.map(lambda a, rows=rows: take_rows(a, rows), net.states[name])
            for name, rows in sites.items()
            if name in net.states
        },
    )


def run_stage(
    stage: Stage,
    tensors: StageParams,
    arguments: Sequence[Array],
    live: Sequence[Array],
    *,
    ranges: Literal["batch", "stored", "missing"],
    key: Key[Array, ""] | None = None,
    part: Any = None,
    walk: Callable[..., Walk] = Walk,
) -> list[Array]:
    """Computes the outputs of a stage: a pure function.

    Args:
      stage: Stage to run.
      tensors: Parameters and states that it reads, from `stage_params`.
      arguments: Arguments that it reads, in its order.
      live: Live values that it takes.
      ranges: Where its cores take ranges from, as `Network.ranges`.
      key: Random key of the call, or None.
      part: Tells apart the read noise of parts of one call.
      walk: What evaluates its equations, made from cores, ranges and key.
    """
    # In the stage's order: a tree of arrays that has been through a program is sorted by name.
    params = [
        p * tensors.masks[name].astype(p.dtype) if name in tensors.masks else p
        for name, p in ((name, tensors.params[name]) for name in stage.names)
    ]
    values = [*params, *tensors.buffers, *arguments, *live]
    outputs, _ = walk(tensors.cores, ranges, key, part=part).run(
        stage.plan, values, tensors.states, ()
    )
    return [jnp.asarray(y) for y in outputs]


def _closure(
    jaxpr: jex.Jaxpr,
    maker: Mapping[jex.Var, int],
    home: Mapping[jex.Var, int],
    run: Sequence[int],
    stage: int,
    returned: Sequence[jex.Var],
) -> tuple[list[int], set[jex.Var]]:
    """Finds the equations a stage runs, those of weights and constants included, and its inputs."""
    order, free, queue = set(run), set[jex.Var](), [*returned, *_inputs(jaxpr, run)]
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


def _inputs(jaxpr: jex.Jaxpr, run: Sequence[int]) -> list[jex.Var]:
    """Lists the variables that equations read."""
    return [v for i in run for v in variables_of(jaxpr.eqns[i].invars)]
