"""A network's equations cut into stages, each one a pure function.

Equations that no input reaches (casts and layouts of weights, constants) belong to no place: every
stage computes those it needs. The others stand in a line, the calls at top level opened, and can be
cut between any two sites where the fewest activations are live.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.extend.core as jex
import jax.extend.core.primitives as prims
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from jaxsim.core import Parts, State, Wrapper
from jaxsim.internals import inner_jaxprs, jaxpr_of, parameters, scan
from jaxsim.network import (
    Contraction,
    Entry,
    Inner,
    Network,
    Plan,
    Site,
    Walk,
    abstract_arguments,
    check_sites,
    contractions,
    path_name,
    trace_plan,
)

# Primitives that move numbers and compute none.
_LAYOUT = {
    "broadcast_in_dim",
    "concatenate",
    "convert_element_type",
    "copy",
    "dynamic_slice",
    "dynamic_update_slice",
    "expand_dims",
    "gather",
    "iota",
    "pad",
    "reshape",
    "rev",
    "slice",
    "split",
    "squeeze",
    "stop_gradient",
    "transpose",
}


class Equations(NamedTuple):
    """A call of a network as one line of equations.

    Attributes:
      plan: its equations, calls at top level opened; what it takes are the leaves of the
        parameters, those of the buffers, and the arguments.
      active: positions of the equations that an argument reaches, in order.
      paths: of the parameters' leaves.
      buffers: number of leaves of the buffers.
      out_tree: structure of the outputs.
    """

    plan: Plan
    active: tuple[int, ...]
    paths: tuple[str, ...]
    buffers: int
    out_tree: Any

    @property
    def arguments(self) -> list[Any]:
        """The variables of the arguments."""
        return self.plan.jaxpr.invars[len(self.paths) + self.buffers :]


class Cut(NamedTuple):
    """A place between two sites.

    Attributes:
      name: the site that runs next.
      at: how many of the active equations run before it.
      live: number of activations that cross it, arguments that are still needed among them.
      size: their bytes.
      minimal: no place on either side has fewer until one has more.
    """

    name: str
    at: int
    live: int
    size: int
    minimal: bool


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


def equations(net: Network, arguments: Parts) -> Equations:
    """The equations of a call, from shapes alone.

    Args:
      net: its arrays may be shapes.
      arguments: of the call; they may be shapes.

    Raises:
      ValueError: the model rejects the arguments, or they bring sites that the network lacks.
    """
    params, buffers = jax.eval_shape(lambda net: (net.params, net.buffers), net)
    shapes = abstract_arguments(arguments)
    traced = trace_plan(net.fn, params, buffers, shapes, net.example, net.weights, net.masks)
    check_sites(net, traced.plan)
    plan = _needed(_opened(traced.plan))
    paths = tuple(path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params))
    count = len(jax.tree.leaves(buffers))
    reached, active = set(plan.jaxpr.invars[len(paths) + count :]), list[int]()
    for i, eqn in enumerate(plan.jaxpr.eqns):
        if eqn.effects or any(v in reached for v in _variables(eqn.invars)):
            active.append(i)
            reached.update(eqn.outvars)
    return Equations(plan, tuple(active), paths, count, traced.out_tree)


def cuts(line: Equations) -> tuple[Cut, ...]:
    """The place of fewest live activations before each site and after the site before it.

    Among places with equally many, the one with the fewest bytes, and then the last.
    """
    eqns = line.plan.jaxpr.eqns
    born = dict.fromkeys(line.arguments, 0)
    last: dict[Any, int] = {}
    sites: list[tuple[int, str]] = []
    for order, i in enumerate(line.active):
        last.update(dict.fromkeys(_variables(eqns[i].invars), order))
        born.update(dict.fromkeys(eqns[i].outvars, order + 1))
        if names := _weighted(line.plan.entries[i]):
            sites.append((order, names[0]))
    change = np.zeros((len(line.active) + 2, 2), np.int64)
    for variable, start in born.items():
        if variable in last:
            amount = np.array([1, _bytes(variable)])
            change[start] += amount
            change[last[variable] + 1] -= amount
    live = np.cumsum(change, 0)
    found: list[tuple[str, int]] = []
    before = 0
    for after, name in sites:
        if places := range(before + 1, after + 1):
            found.append((name, min(places, key=lambda p: (*live[p], -p))))
        before = after
    counts = [int(live[at][0]) for _, at in found]
    return tuple(
        Cut(name, at, count, int(live[at][1]), _in_valley(counts, i))
        for i, ((name, at), count) in enumerate(zip(found, counts, strict=True))
    )


def chosen(
    places: Sequence[Cut], names: Sequence[str], *, argument: str = "balance"
) -> tuple[Cut, ...]:
    """The cuts of these names, in order of execution.

    Args:
      places: all cuts.
      names: of those wanted.
      argument: what the names were given as, for the error.

    Raises:
      ValueError: a name that is no cut, or given twice.
    """
    known = {cut.name: cut for cut in places}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(
            f"{argument}={list(names)}: no cut at {', '.join(map(str, unknown))}; a stage can "
            f"begin at: {', '.join(known) or 'none'}"
        )
    if len(set(names)) < len(names):
        raise ValueError(f"{argument}={list(names)}: names a cut twice")
    return tuple(sorted((known[name] for name in names), key=lambda cut: cut.at))


def candidates(places: Sequence[Cut], stages: int) -> tuple[Cut, ...]:
    """The minimal cuts, or all where there are too few of them for so many stages.

    Raises:
      ValueError: too few of any kind.
    """
    minimal = tuple(cut for cut in places if cut.minimal)
    found = minimal if len(minimal) >= stages - 1 else tuple(places)
    if len(found) < stages - 1:
        raise ValueError(
            f"stages={stages}: the network has {len(found)} cuts, for at most {len(found) + 1} "
            "stages (a scan over layers is one site and is not cut)"
        )
    return found


def balanced(weights: Sequence[float], stages: int) -> tuple[int, ...]:
    """Contiguous groups of blocks whose largest sum is least and, of those, of least variance.

    Args:
      weights: of the blocks, in order.
      stages: number of groups, at most the number of blocks.

    Returns:
      For each group but the first, the block it begins with.
    """
    n = len(weights)
    upto = np.concatenate([[0.0], np.cumsum(np.asarray(weights, float))])

    def best(limit: float, worth: Any, join: Any) -> tuple[float, tuple[int, ...]]:
        """Least joined worth of groups within the limit, by dynamic programming."""
        row = {i: (worth(upto[i]), ()) for i in range(1, n + 1) if upto[i] <= limit}
        for _ in range(stages - 1):
            longer: dict[int, Any] = {}
            for i in range(1, n + 1):
                options = [
                    (join(value, worth(upto[i] - upto[j])), (*begins, j))
                    for j, (value, begins) in row.items()
                    if j < i and upto[i] - upto[j] <= limit
                ]
                if options:
                    longer[i] = min(options)
            row = longer
        return row[n]

    largest, _ = best(math.inf, float, max)
    _, begins = best(largest * (1 + 1e-9), lambda s: s * s, lambda a, b: a + b)
    return begins


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
        _variables([v for v, s in zip(jaxpr.outvars, ends, strict=True) if s == stage])
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
    read = {v for taken in takes for v in taken} | set(_variables(jaxpr.outvars))
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
        held = {v: _anywhere(values[v]) for v in consts}
        invars = [*(jaxpr.invars[i] for i in leaves), *taken]
        plan = Plan(
            jaxpr_of(held, invars, given, [jaxpr.eqns[i] for i in order], jaxpr),
            list(held.values()),
            tuple(entries[i] for i in order),
            (None,) * len(given),
        )
        names = [name for i in run for name in _weighted(entries[i])]
        stages.append(
            Stage(
                name=names[0] if names else "",
                plan=plan,
                params=tuple(kinds[0]),
                buffers=tuple(i - first[1] for i in kinds[1]),
                arguments=tuple(i - first[2] for i in kinds[2]),
                sources=tuple(at[v] for v in taken),
                sites=tuple(site.name for i in run for site in _sites(entries[i])),
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


def flops(line: Equations) -> list[int]:
    """Additions, multiplications and the like of each active equation."""
    return [_flops(line.plan.jaxpr.eqns[i]) for i in line.active]


def sizes(line: Equations) -> list[int]:
    """Bytes that each active equation writes, and of the parameters it is the first to read."""
    jaxpr = line.plan.jaxpr
    params = set(jaxpr.invars[: len(line.paths)])
    maker = {v: eqn for eqn in jaxpr.eqns for v in eqn.outvars}
    active, seen, amounts = set(line.active), set[Any](), list[int]()
    known = [eqn for i, eqn in enumerate(jaxpr.eqns) if i not in active]
    passive = {v for eqn in known for v in eqn.outvars}
    for i in line.active:
        eqn = jaxpr.eqns[i]
        amount, wanted = sum(map(_bytes, eqn.outvars)), _variables(eqn.invars)
        while wanted:
            v = wanted.pop()
            if v in seen or (v not in params and v not in passive):
                continue
            seen.add(v)
            if v in params:
                amount += _bytes(v)
            else:
                wanted += _variables(maker[v].invars)
        amounts.append(amount)
    return amounts


def blocks(places: Sequence[Cut], amounts: Sequence[int]) -> list[int]:
    """Amounts by equation summed between cuts."""
    bounds = [0, *(cut.at for cut in places), len(amounts)]
    return [sum(amounts[a:b]) for a, b in itertools.pairwise(bounds)]


def _opened(plan: Plan) -> Plan:
    """A plan with the calls at top level replaced by what they call.

    A rematerialised call is opened only where it holds every site of the model.
    """
    everywhere = frozenset(name for entry in plan.entries for name in _weighted(entry))
    consts = dict(zip(plan.jaxpr.constvars, plan.consts, strict=True))
    eqns: list[Any] = []
    entries: list[Entry] = []
    stands_for: dict[Any, Any] = {}

    def at(atom: Any) -> Any:
        return atom if isinstance(atom, jex.Literal) else stands_for.get(atom, atom)

    def add(plan: Plan, *, fresh: bool) -> None:
        for eqn, entry in zip(plan.jaxpr.eqns, plan.entries, strict=True):
            ins = [at(v) for v in eqn.invars]
            whole = everywhere and everywhere <= frozenset(_weighted(entry))
            if eqn.primitive in (prims.jit_p, prims.closed_call_p) or (
                eqn.primitive is prims.remat_p and whole
            ):
                ((jaxpr, values),) = inner_jaxprs(eqn)
                inner = Plan(jaxpr, values, (None,) * len(jaxpr.eqns), ())
                if isinstance(entry, Inner):
                    (inner,) = entry.plans
                for v, value in zip(jaxpr.constvars, values, strict=True):
                    stands_for[v] = jex.Var(v.aval)
                    consts[stands_for[v]] = value
                stands_for.update(zip(jaxpr.invars, ins, strict=True))
                add(inner, fresh=True)
                stands_for.update(zip(eqn.outvars, [at(v) for v in jaxpr.outvars], strict=True))
                continue
            if fresh:
                stands_for.update({v: jex.Var(v.aval) for v in eqn.outvars})
            eqns.append(eqn.replace(invars=ins, outvars=[at(v) for v in eqn.outvars]))
            entries.append(entry)

    add(plan, fresh=False)
    outvars = [at(v) for v in plan.jaxpr.outvars]
    jaxpr = jaxpr_of(consts, plan.jaxpr.invars, outvars, eqns, plan.jaxpr)
    return Plan(jaxpr, list(consts.values()), tuple(entries), plan.known)


def _needed(plan: Plan) -> Plan:
    """A plan without the equations that no output needs, which would keep activations live."""
    wanted, kept = set(_variables(plan.jaxpr.outvars)), list[int]()
    for i in reversed(range(len(plan.jaxpr.eqns))):
        eqn = plan.jaxpr.eqns[i]
        if eqn.effects or not wanted.isdisjoint(eqn.outvars):
            kept.append(i)
            wanted.update(_variables(eqn.invars))
    kept.reverse()
    jaxpr = plan.jaxpr.replace(eqns=[plan.jaxpr.eqns[i] for i in kept])
    return plan._replace(jaxpr=jaxpr, entries=tuple(plan.entries[i] for i in kept))


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
            queue += _variables(jaxpr.eqns[maker[v]].invars)
    return sorted(order), free


def _in_valley(counts: Sequence[int], i: int) -> bool:
    """Whether the run of equal counts around i lies below whatever comes before and after it."""
    sides = (reversed(counts[:i]), iter(counts[i + 1 :]))
    return all(
        next((c for c in side if c != counts[i]), counts[i] + 1) > counts[i] for side in sides
    )


def _inputs(jaxpr: Any, run: Sequence[int]) -> list[Any]:
    """The variables that equations read."""
    return [v for i in run for v in _variables(jaxpr.eqns[i].invars)]


def _variables(atoms: Sequence[Any]) -> list[Any]:
    return [v for v in atoms if isinstance(v, jex.Var)]


def _sites(entry: Entry) -> list[Site]:
    """The sites of an equation, in order."""
    if isinstance(entry, Contraction):
        return [entry.site]
    return [] if entry is None else [c.site for plan in entry.plans for c in contractions(plan)]


def _weighted(entry: Entry) -> list[str]:
    """Names of the sites of an equation that have a weight."""
    return [site.name for site in _sites(entry) if site.kind != "dynamic"]


def _shape(v: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype)


def _bytes(v: Any) -> int:
    dtype = v.aval.dtype
    return math.prod(v.aval.shape) * (dtype.itemsize if isinstance(dtype, np.dtype) else 8)


def _anywhere(const: Any) -> Any:
    """A constant that is bound to no device."""
    if jnp.issubdtype(jnp.result_type(const), jax.dtypes.extended):
        return const
    return np.asarray(const)


def _flops(eqn: Any) -> int:
    primitive, written = eqn.primitive, sum(math.prod(v.aval.shape) for v in eqn.outvars)
    if primitive is prims.dot_general_p:
        (contracted, _), _ = parameters(eqn)["dimension_numbers"]
        return 2 * written * math.prod(eqn.invars[0].aval.shape[a] for a in contracted)
    if primitive is prims.conv_general_dilated_p:
        kernel = eqn.invars[1].aval.shape
        features = parameters(eqn)["dimension_numbers"].rhs_spec[0]
        return 2 * written * math.prod(kernel) // kernel[features]
    if inner := inner_jaxprs(eqn):
        each = [sum(map(_flops, jaxpr.eqns)) for jaxpr, _ in inner]
        total = max(each) if primitive is prims.cond_p else sum(each)
        return total * scan(eqn).length if primitive is prims.scan_p else total
    if primitive.name in _LAYOUT:
        return 0
    if primitive.name.startswith(("reduce", "arg")):
        return math.prod(eqn.invars[0].aval.shape)
    return written
