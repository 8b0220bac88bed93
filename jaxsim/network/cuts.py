"""Where a network can be cut, what each part costs, and cuts that balance the parts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.extend.core.primitives as prims
import jax.numpy as jnp
import numpy as np

from jaxsim.cores.partition import Parts
from jaxsim.internals import inner_jaxprs, jaxpr_of, parameters, scan
from jaxsim.network.arguments import abstract_arguments
from jaxsim.network.leaves import path_name
from jaxsim.network.network import Network, check_sites
from jaxsim.network.plan import Contraction, Entry, Inner, Plan, contractions
from jaxsim.network.planner import trace_plan
from jaxsim.network.site import Site

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
        if eqn.effects or any(v in reached for v in variables_of(eqn.invars)):
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
        last.update(dict.fromkeys(variables_of(eqns[i].invars), order))
        born.update(dict.fromkeys(eqns[i].outvars, order + 1))
        if names := weighted_names(line.plan.entries[i]):
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
        amount, wanted = sum(map(_bytes, eqn.outvars)), variables_of(eqn.invars)
        while wanted:
            v = wanted.pop()
            if v in seen or (v not in params and v not in passive):
                continue
            seen.add(v)
            if v in params:
                amount += _bytes(v)
            else:
                wanted += variables_of(maker[v].invars)
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
    everywhere = frozenset(name for entry in plan.entries for name in weighted_names(entry))
    consts = dict(zip(plan.jaxpr.constvars, plan.consts, strict=True))
    eqns: list[Any] = []
    entries: list[Entry] = []
    stands_for: dict[Any, Any] = {}

    def at(atom: Any) -> Any:
        return atom if isinstance(atom, jex.Literal) else stands_for.get(atom, atom)

    def add(plan: Plan, *, fresh: bool) -> None:
        for eqn, entry in zip(plan.jaxpr.eqns, plan.entries, strict=True):
            ins = [at(v) for v in eqn.invars]
            whole = everywhere and everywhere <= frozenset(weighted_names(entry))
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
    wanted, kept = set(variables_of(plan.jaxpr.outvars)), list[int]()
    for i in reversed(range(len(plan.jaxpr.eqns))):
        eqn = plan.jaxpr.eqns[i]
        if eqn.effects or not wanted.isdisjoint(eqn.outvars):
            kept.append(i)
            wanted.update(variables_of(eqn.invars))
    kept.reverse()
    jaxpr = plan.jaxpr.replace(eqns=[plan.jaxpr.eqns[i] for i in kept])
    return plan._replace(jaxpr=jaxpr, entries=tuple(plan.entries[i] for i in kept))


def _in_valley(counts: Sequence[int], i: int) -> bool:
    """Whether the run of equal counts around i lies below whatever comes before and after it."""
    sides = (reversed(counts[:i]), iter(counts[i + 1 :]))
    return all(
        next((c for c in side if c != counts[i]), counts[i] + 1) > counts[i] for side in sides
    )


def variables_of(atoms: Sequence[Any]) -> list[Any]:
    """Those of the atoms of an equation that are variables."""
    return [v for v in atoms if isinstance(v, jex.Var)]


def sites_of(entry: Entry) -> list[Site]:
    """The sites of an equation, in order."""
    if isinstance(entry, Contraction):
        return [entry.site]
    return [] if entry is None else [c.site for plan in entry.plans for c in contractions(plan)]


def weighted_names(entry: Entry) -> list[str]:
    """Names of the sites of an equation that have a weight."""
    return [site.name for site in sites_of(entry) if site.kind != "dynamic"]


def _bytes(v: Any) -> int:
    dtype = v.aval.dtype
    return math.prod(v.aval.shape) * (dtype.itemsize if isinstance(dtype, np.dtype) else 8)


def unplaced(const: Any) -> Any:
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
