"""The layers of a decoder, found in the equations of its call: where a token may leave."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

import jax.extend.core as jex

from jaxsim.cores.partition import Partitioned
from jaxsim.internals import jaxpr_of, scan, shape_of
from jaxsim.network.cuts import (
    Cut,
    Equations,
    begins_at,
    equation_flops,
    equations,
    variables_of,
)
from jaxsim.network.network import Network
from jaxsim.network.plan import Inner, Plan
from jaxsim.network.stacks import stack_lengths
from jaxsim.network.stages import Stage, Stages, split
from jaxsim.numerics.checks import checked_int


class State(NamedTuple):
    """What one layer hands to the next.

    Attributes:
      shape: Its shape, rows first.
      dtype: Its dtype.
    """

    shape: tuple[int, ...]
    dtype: Any

    def is_like(self, value: Any) -> bool:
        """Tells if a value, or a variable, is of this shape and dtype.

        Args:
          value: Array or variable.
        """
        shape = shape_of(value) if isinstance(value, jex.Var) else value
        return shape.shape == self.shape and shape.dtype == self.dtype


class LayerStep(NamedTuple):
    """A call of a decoder on one token a row, cut where its layers end.

    Attributes:
      cut: Stages: what comes before the layers, layers, and the head with the rest of the cache.
      state: What one layer hands to the next.
      given: For each stage but the last, the position of the state among its outputs.
      exits: Stages behind which tokens may leave.
      layers: Number of layers that have run at each exit, and of all.
      head: The last stage, as far as logits go.
      rest: The last stage without them.
      logits: Position of the logits among the last stage's outputs.
      flops: Arithmetic operations of rows that leave at each exit, and of those that do not, heads
        left out.
      head_flops: Those of the head.
    """

    cut: Stages
    state: State
    given: tuple[int, ...]
    exits: tuple[int, ...]
    layers: tuple[int, ...]
    head: Stage
    rest: Stage
    logits: int
    flops: tuple[int, ...]
    head_flops: int


def layer_step(
    net: Network, arguments: Partitioned, rows: int, after: Sequence[int], what: str
) -> LayerStep:
    """Cuts a call of a decoder where its layers end.

    A layer is what adds to the cache: equations between two places that one value crosses on its
    way to the logits, of a shape that stays.

    Args:
      net: Decoder.
      arguments: Arguments of a call on one token a row and a cache; they may be shapes.
      rows: Number of rows.
      after: Numbers of layers after which tokens may leave.
      what: What asks, for errors.

    Raises:
      ValueError: Layers that there are not, or a network in which none are found.
    """
    line = equations(net, arguments)
    live = _Live(line, what)
    state, places, counts = live.layers(rows)
    total = counts[-1]
    if total < 2:
        raise ValueError(
            f"{what}: the network adds to its cache in {total} layers; must be 2 at least"
        )
    leave = [checked_int("after", k, 1, total - 1) for k in after]
    if not leave or sorted({*leave}) != leave:
        raise ValueError(f"after={list(after)}: must be rising numbers of layers, one at least")
    ends = {k: place for place, k in zip(places, counts, strict=True)}
    stacks = stack_lengths(line.whole)

    def inside(place: int) -> bool:
        at, done, _ = line.places[line.active[place]]
        return 0 < done < stacks.get(at, 0)

    # a stack freezes the state between its slices by itself
    wanted = [k for k in ends if k in (0, *leave, total) or not inside(ends[k])]
    line, found = line.cut_at([_cut(ends[k]) for k in wanted])
    line = line._replace(slices=True)
    cut = split(line, [_cut(at) for at in found])
    again = _Live(line, what)
    states = [again.one_like(state, at) for at in found]
    given = list[int]()
    for stage, v in zip(cut.stages, states, strict=False):
        if v is None or v not in (made := stage.plan.jaxpr.outvars):
            raise ValueError(f"{what}: behind {stage.name or 'the embedding'} no state is made")
        given.append(made.index(v))
    last, (final, logits) = cut.stages[-1], cut.outputs[0]
    if final != len(found):
        raise ValueError(f"{what}: the logits are made before the last layer ends")
    outvars = last.plan.jaxpr.outvars
    head = _reduced(last, [outvars[logits]])
    rest = _reduced(last, [v for i, v in enumerate(outvars) if i != logits])
    exits = tuple(wanted.index(k) for k in leave)
    _check_head(head, given, exits, what)
    full = [stage.flops for stage in cut.stages[:-1]]
    light = [
        _kept_flops(
            stage.plan, [v for i, v in enumerate(stage.plan.jaxpr.outvars) if i != g], state
        )
        for stage, g in zip(cut.stages, given, strict=False)
    ]
    around = full[0] + _flops(rest.plan.jaxpr.eqns)
    sums = [around + sum(full[1 : e + 1]) + sum(light[e + 1 :]) for e in (*exits, len(given) - 1)]
    spoken = _flops(head.plan.jaxpr.eqns)
    return LayerStep(
        cut=cut,
        state=state,
        given=tuple(given),
        exits=exits,
        layers=(*leave, total),
        head=head,
        rest=rest,
        logits=logits,
        flops=tuple(sums),
        head_flops=spoken,
    )


def _cut(at: int) -> Cut:
    return Cut("", at, 0, 0, False)


class _Live:
    """What is read on the way to the logits, by place: how many equations have run."""

    def __init__(self, line: Equations, what: str):
        self.line, self.what = line, what
        self.jaxpr = line.plan.jaxpr
        self.spoken, *self.kept = variables_of(self.jaxpr.outvars)
        toward = _needed(self.jaxpr, [self.spoken])
        eqns = self.jaxpr.eqns
        self.born: dict[Any, int] = dict.fromkeys(line.arguments, 0)
        self.last: dict[Any, int] = {}
        self.sites: list[int] = []
        self.every: dict[Any, int] = {}
        for order, i in enumerate(line.active):
            self.born.update(dict.fromkeys(eqns[i].outvars, order + 1))
            read = dict.fromkeys(variables_of(eqns[i].invars), order)
            self.every.update(read)
            if i in toward:
                self.last.update(read)
                if begins_at(eqns[i], line.plan.entries[i]):
                    self.sites.append(order)

    def at(self, place: int) -> list[jex.Var]:
        """Values that cross a place on their way to the logits."""
        return [v for v, end in self.last.items() if self.born.get(v, place + 1) <= place <= end]

    def crowd(self, place: int) -> int:
        """Number of all values that cross a place."""
        return sum(self.born.get(v, place + 1) <= place <= end for v, end in self.every.items())

    def one_like(self, state: State, place: int) -> jex.Var | None:
        """The one value of a shape that crosses a place; None where there are none or several."""
        found = [v for v in self.at(place) if state.is_like(v)]
        return found[0] if len(found) == 1 else None

    def layers(self, rows: int) -> tuple[State, list[int], list[int]]:
        """What layers hand on, places that it crosses alone, and how many layers end before."""
        if len(self.sites) < 2:
            raise ValueError(f"{self.what}: logits must be made by a head behind layers")
        first, head = self.sites[0], self.sites[-1]
        end = min(
            range(self.sites[-2] + 1, head + 1), key=lambda p: (len(self.at(p)), self.crowd(p), p)
        )
        made = [v for v in self.at(end) if self.born[v] > first]
        if len(made) != 1 or shape_of(made[0]).shape[:1] != (rows,):
            shapes = [list(shape_of(v).shape) for v in made]
            raise ValueError(
                f"{self.what}: the head reads {shapes} of the layers; must be one state of "
                f"{rows} rows"
            )
        state = State(shape_of(made[0]).shape, shape_of(made[0]).dtype)
        places, states = list[int](), list[jex.Var]()
        bounds = [-1, *(order for order in self.sites if order < head)]
        between = [range(a + 1, b + 1) for a, b in itertools.pairwise(bounds)]
        for places_here in [*between, [end]]:
            alone = [p for p in places_here if self.one_like(state, p) is not None]
            if alone:
                place = min(alone, key=lambda p: (len(self.at(p)), self.crowd(p), p))
                v = self.one_like(state, place)
                if v is not None and v not in states:
                    places.append(place)
                    states.append(v)
        cached = _needed(self.jaxpr, self.kept, states)
        writes = [
            order
            for order, i in enumerate(self.line.active)
            if i in cached and begins_at(self.jaxpr.eqns[i], self.line.plan.entries[i])
        ]
        counts = [0]
        for a, b in itertools.pairwise(places):
            counts.append(counts[-1] + any(a <= order < b for order in writes))
        return state, places, counts


def _needed(jaxpr: jex.Jaxpr, wanted: Iterable[Any], without: Collection[jex.Var] = ()) -> set[int]:
    """Numbers of the equations that values are made by, not looking behind some."""
    maker = {v: i for i, eqn in enumerate(jaxpr.eqns) for v in eqn.outvars}
    found, queue = set[int](), [v for v in wanted if isinstance(v, jex.Var)]
    stop = set(without)
    while queue:
        v = queue.pop()
        if v in stop or (i := maker.get(v)) is None or i in found:
            continue
        found.add(i)
        queue += variables_of(jaxpr.eqns[i].invars)
    return found


def _reduced(stage: Stage, outvars: Sequence[Any]) -> Stage:
    """A stage that returns some of its outputs, by the equations that these need."""
    plan = stage.plan
    keep = sorted(_needed(plan.jaxpr, outvars))
    values = dict(zip(plan.jaxpr.constvars, plan.consts, strict=True))
    eqns = [plan.jaxpr.eqns[i] for i in keep]
    jaxpr = jaxpr_of(values, plan.jaxpr.invars, outvars, eqns, plan.jaxpr)
    entries = tuple(plan.entries[i] for i in keep)
    return stage._replace(plan=Plan(jaxpr, plan.consts, entries, (None,) * len(outvars)))


def _check_head(head: Stage, given: Sequence[int], exits: Sequence[int], what: str) -> None:
    """Checks that logits can be made of a state, wherever it comes from."""
    jaxpr = head.plan.jaxpr
    read = {v for eqn in jaxpr.eqns for v in variables_of(eqn.invars)}
    live = jaxpr.invars[len(jaxpr.invars) - len(head.sources) :]
    last = len(given) - 1
    for v, (stage, i) in zip(live, head.sources, strict=True):
        if v in read and (stage, i) != (last, given[last]) and stage > exits[0]:
            raise ValueError(
                f"{what}: the head reads {list(shape_of(v).shape)} of later layers beside their "
                "state, which a token that left has not"
            )


def _kept_flops(plan: Plan, wanted: Sequence[Any], state: State) -> int:
    """Arithmetic operations of a stage for what is not its state, which stays."""
    total = 0
    for i in _needed(plan.jaxpr, wanted):
        eqn, entry = plan.jaxpr.eqns[i], plan.entries[i]
        if isinstance(entry, Inner) and entry.rows is not None:
            loop, (body,) = scan(eqn), entry.plans
            outs = body.jaxpr.outvars
            carried = [v for v in outs[: loop.carry] if not state.is_like(shape_of(v))]
            inner = _needed(body.jaxpr, [*carried, *outs[loop.carry :]])
            total += loop.length * _flops([body.jaxpr.eqns[j] for j in inner])
        else:
            total += equation_flops(eqn)
    return total


def _flops(eqns: Iterable[jex.JaxprEqn]) -> int:
    return sum(map(equation_flops, eqns))
