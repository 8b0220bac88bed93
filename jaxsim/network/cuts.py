"""Places where a network can be cut, the cost of each part, and cuts that balance the parts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.extend.core.primitives as prims
import jax.numpy as jnp
import numpy as np

from jaxsim.cores.partition import Partitioned
from jaxsim.internals import (
    Atom,
    inner_jaxprs,
    parameters,
    scan,
    shape_of,
    shard_map,
)
from jaxsim.network.arguments import abstract_arguments
from jaxsim.network.experts import products
from jaxsim.network.inlining import CALLS, Opened, equations_inside, inline_calls
from jaxsim.network.leaves import path_name
from jaxsim.network.moves import UNCHANGED
from jaxsim.network.network import Network, check_sites
from jaxsim.network.plan import Contraction, Entry, Inner, Plan, Rows, contractions
from jaxsim.network.planner import trace_plan
from jaxsim.network.site import Site
from jaxsim.network.stacks import Place, part_name, stack_lengths, take_apart
from jaxsim.network.unheld import require_held

# Primitives that move numbers and compute none.
_LAYOUT = UNCHANGED | {
    "broadcast_in_dim",
    "concatenate",
    "convert_element_type",
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
    "stack",
    "tile",
    "transpose",
    "unstack",
}


class Equations(NamedTuple):
    """Equations of a network's call in order of execution, calls at top level inlined.

    A scan over stacked layers is one equation a slice, between which it can be cut.

    Attributes:
      plan: Equations and their meaning; its inputs are the leaves of the parameters, those of the
        buffers, and the arguments.
      active: Positions of the equations that an argument reaches, in order.
      paths: Paths of the parameters' leaves.
      buffers: Number of leaves of the buffers.
      out_tree: Structure of the outputs.
      whole: Equations of the model, where each such scan is one.
      places: For each equation where it comes from in `whole`.
      rows: For each value that is a part of a parameter or buffer, the leaf and the part.
      early: Number of first equations that count as active, so that stages pass on what they give.
      slices: True if scans stay one equation a slice wherever these are cut.
    """

    plan: Plan
    active: tuple[int, ...]
    paths: tuple[str, ...]
    buffers: int
    out_tree: Any
    whole: Plan
    places: tuple[Place, ...]
    rows: Mapping[jex.Var, tuple[jex.Var, Rows]]
    early: int = 0
    slices: bool = False

    @property
    def arguments(self) -> list[jex.Var]:
        """Variables of the arguments."""
        return self.plan.jaxpr.invars[len(self.paths) + self.buffers :]

    def cut_at(self, places: Sequence[Cut]) -> tuple[Equations, list[int]]:
        """Takes scans apart only where they are cut.

        Args:
          places: Cuts of these equations, in order of execution.

        Returns:
          The equations, and how many of those that an argument reaches run before each cut.
        """
        wanted = [self.places[self.active[cut.at]] for cut in places]
        lengths = stack_lengths(self.whole)
        bounds: dict[int, Sequence[int]] = {}
        for i in {i for i, *inside in wanted if i in lengths and inside != [0, 0]}:
            done = {done for j, done, _ in wanted if j == i}
            # behind its last slice a scan in parts joins them; one in one has nothing to join
            whole = lengths[i] in done
            bounds[i] = range(lengths[i] + 1) if whole else sorted({0, lengths[i], *done})
        line = self if self.slices else _taken_apart(self, bounds)
        at = {line.places[i]: order for order, i in enumerate(line.active)}
        return line, [at[place] for place in wanted]


class Cut(NamedTuple):
    """Place between two sites at which a network can be cut.

    Attributes:
      name: Name of the site that runs next; within a stack its slice behind it, `name[2]`.
      at: Number of active equations that run before it.
      live: Number of activations that cross it, arguments that are still needed among them.
      size: Bytes of these activations.
      minimal: True if no place on either side has fewer until one has more.
    """

    name: str
    at: int
    live: int
    size: int
    minimal: bool


def equations(net: Network, arguments: Partitioned) -> Equations:
    """Lists the equations of a call from shapes alone.

    Args:
      net: Network; its arrays may be shapes.
      arguments: Arguments of the call; they may be shapes.

    Raises:
      ValueError: The model rejects the arguments, or they bring sites that the network lacks.
    """
    params, buffers = jax.eval_shape(lambda net: (net.params, net.buffers), net)
    shapes = abstract_arguments(arguments)
    traced = trace_plan(net.fn, params, buffers, shapes, net.example, net.weights, net.masks)
    check_sites(net, traced.plan)
    paths = tuple(path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params))
    require_held(net.unheld, paths, traced.plan, net.states)
    plan = _drop_unused(_inline_calls(traced.plan))
    count = len(jax.tree.leaves(buffers))
    return divided(Equations(plan, (), paths, count, traced.out_tree, plan, (), {}))


def divided(line: Equations) -> Equations:
    """Takes every scan over stacked layers apart, one equation a slice.

    Args:
      line: Equations of a call, of which `whole` counts.
    """
    return _taken_apart(line, {i: range(n + 1) for i, n in stack_lengths(line.whole).items()})


def _taken_apart(line: Equations, bounds: Mapping[int, Sequence[int]]) -> Equations:
    """Equations whose scans are run in parts with these bounds."""
    plan, places, rows = take_apart(line.whole, bounds, len(line.paths) + line.buffers)
    active = active_equations(plan.jaxpr.eqns, line.arguments)
    active = tuple(sorted({*range(line.early), *active}))
    return line._replace(plan=plan, active=active, places=places, rows=rows)


def active_equations(eqns: Sequence[jex.JaxprEqn], arguments: Sequence[jex.Var]) -> tuple[int, ...]:
    """Finds the equations that an argument reaches, or that have an effect.

    Args:
      eqns: Equations in order of execution.
      arguments: Variables of the arguments.

    Returns:
      Their positions.
    """
    reached, active = set(arguments), list[int]()
    for i, eqn in enumerate(eqns):
        if eqn.effects or any(v in reached for v in variables_of(eqn.invars)):
            active.append(i)
            reached.update(eqn.outvars)
    return tuple(active)


def cuts(line: Equations) -> tuple[Cut, ...]:
    """Finds, between each two sites, the place that fewest activations cross.

    Among places that equally many cross, the one of fewest bytes, and then the last.

    Args:
      line: Equations of a call, from `equations`.
    """
    eqns = line.plan.jaxpr.eqns
    born = dict.fromkeys(line.arguments, 0)
    last: dict[Any, int] = {}
    sites: list[tuple[int, str]] = []
    for order, i in enumerate(line.active):
        last.update(dict.fromkeys(variables_of(eqns[i].invars), order))
        born.update(dict.fromkeys(eqns[i].outvars, order + 1))
        if name := begins_at(eqns[i], line.plan.entries[i]):
            sites.append((order, name))
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
        Cut(name, at, count, int(live[at][1]), _is_local_minimum(counts, i))
        for i, ((name, at), count) in enumerate(zip(found, counts, strict=True))
    )


def select_cuts(
    places: Sequence[Cut], names: Sequence[str], *, argument: str = "balance"
) -> tuple[Cut, ...]:
    """Selects cuts by name, in order of execution.

    Args:
      places: All cuts, from `cuts`.
      names: Names of the cuts wanted.
      argument: Name of the argument that held the names, for the error.

    Raises:
      ValueError: A name that no cut has, or one given twice.
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


def candidate_cuts(places: Sequence[Cut], stages: int) -> tuple[Cut, ...]:
    """Selects the minimal cuts, or all where there are too few of them for so many stages.

    Args:
      places: All cuts, from `cuts`.
      stages: Number of stages, at least 1.

    Raises:
      ValueError: There are too few cuts of any kind.
    """
    minimal = tuple(cut for cut in places if cut.minimal)
    found = minimal if len(minimal) >= stages - 1 else tuple(places)
    if len(found) < stages - 1:
        raise ValueError(
            f"stages={stages}: the network has {len(found)} cuts, for at most {len(found) + 1} "
            "stages (a scan is cut between the layers that it stacks and nowhere else)"
        )
    return found


def balance_blocks(weights: Sequence[float], stages: int) -> tuple[int, ...]:
    """Groups blocks contiguously so that the largest sum is least and, of those, the variance.

    Args:
      weights: Cost of each block, in order.
      stages: Number of groups, at most the number of blocks.

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
    """Counts the arithmetic operations of each active equation.

    Args:
      line: Equations of a call, from `equations`.
    """
    return [equation_flops(line.plan.jaxpr.eqns[i]) for i in line.active]


def sizes(line: Equations) -> list[int]:
    """Counts the bytes that each active equation writes and those of parameters it reads first.

    Args:
      line: Equations of a call, from `equations`.
    """
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
            if v in params or v in line.rows:
                amount += _bytes(v)
            else:
                wanted += variables_of(maker[v].invars)
        amounts.append(amount)
    return amounts


def blocks(places: Sequence[Cut], amounts: Sequence[int]) -> list[int]:
    """Sums amounts by equation between cuts.

    Args:
      places: Cuts, in order of execution.
      amounts: An amount for each active equation.
    """
    bounds = [0, *(cut.at for cut in places), len(amounts)]
    return [sum(amounts[a:b]) for a, b in itertools.pairwise(bounds)]


def _inline_calls(plan: Plan) -> Plan:
    """Inlines the calls at top level of a plan.

    A rematerialized call is inlined only where it holds every site of the model.
    """
    everywhere = frozenset(name for entry in plan.entries for name in weighted_names(entry))

    def opened(eqn: jex.JaxprEqn, entry: Entry) -> Opened | None:
        rewritten = isinstance(entry, Inner) and entry.rewritten
        whole = everywhere and everywhere <= frozenset(weighted_names(entry))
        if not (
            (eqn.primitive in CALLS and not rewritten) or (eqn.primitive is prims.remat_p and whole)
        ):
            return None
        return equations_inside(eqn, entry)

    outer = Opened(plan.jaxpr, plan.consts, plan.entries)
    return Plan(*inline_calls(outer, opened), plan.known)


def _drop_unused(plan: Plan) -> Plan:
    """Drops the equations that no output needs, which would keep activations live."""
    wanted, kept = set(variables_of(plan.jaxpr.outvars)), list[int]()
    for i in reversed(range(len(plan.jaxpr.eqns))):
        eqn = plan.jaxpr.eqns[i]
        if eqn.effects or not wanted.isdisjoint(eqn.outvars):
            kept.append(i)
            wanted.update(variables_of(eqn.invars))
    kept.reverse()
    jaxpr = plan.jaxpr.replace(eqns=[plan.jaxpr.eqns[i] for i in kept])
    return plan._replace(jaxpr=jaxpr, entries=tuple(plan.entries[i] for i in kept))


def _is_local_minimum(counts: Sequence[int], i: int) -> bool:
    """Tells if the run of equal counts around i lies below whatever comes before and after it."""
    sides = (reversed(counts[:i]), iter(counts[i + 1 :]))
    return all(
        next((c for c in side if c != counts[i]), counts[i] + 1) > counts[i] for side in sides
    )


def variables_of(atoms: Sequence[Atom]) -> list[jex.Var]:
    """Selects the variables among the operands of an equation, without the literals.

    Args:
      atoms: Operands or results of equations.
    """
    return [v for v in atoms if isinstance(v, jex.Var)]


def sites_of(entry: Entry) -> list[Site]:
    """Lists the sites of an equation, in order.

    Args:
      entry: Meaning of the equation in its plan.
    """
    if isinstance(entry, Contraction):
        return [entry.site]
    return [] if entry is None else [c.site for plan in entry.plans for c in contractions(plan)]


def rows_of(entry: Entry) -> Rows | None:
    """Tells which slices of a stack an equation runs, None if it is no part of a scan.

    Args:
      entry: Meaning of the equation in its plan.
    """
    return entry.rows if isinstance(entry, Inner) else None


def weighted_names(entry: Entry) -> list[str]:
    """Lists the names of an equation's sites that multiply by a weight.

    Args:
      entry: Meaning of the equation in its plan.
    """
    return [site.name for site in sites_of(entry) if site.multiplies]


def begins_at(eqn: jex.JaxprEqn, entry: Entry) -> str:
    """Names a stage that begins with an equation, "" if no site of it multiplies by a weight.

    Args:
      eqn: Equation.
      entry: Its meaning in its plan.
    """
    names = weighted_names(entry)
    return part_name(eqn, entry, names[0]) if names else ""


def _bytes(v: jex.Var) -> int:
    shape, dtype = shape_of(v).shape, shape_of(v).dtype
    return math.prod(shape) * (dtype.itemsize if isinstance(dtype, np.dtype) else 8)


def without_device(const: Any) -> Any:
    """Copies a constant to the host, so that it is bound to no device.

    Args:
      const: Array, or an array of keys, which stays where it is.
    """
    if jnp.issubdtype(jnp.result_type(const), jax.dtypes.extended):
        return const
    return np.asarray(const)


def equation_flops(eqn: jex.JaxprEqn) -> int:
    """Counts the arithmetic operations of an equation, those of its inner equations included.

    Args:
      eqn: Equation.
    """
    primitive, written = eqn.primitive, sum(shape_of(v).size for v in eqn.outvars)
    if primitive is prims.dot_general_p or primitive.name == "ragged_dot_general":
        return 2 * products(eqn)
    if primitive is prims.conv_general_dilated_p:
        kernel = shape_of(eqn.invars[1]).shape
        features = parameters(eqn)["dimension_numbers"].rhs_spec[0]
        return 2 * written * math.prod(kernel) // kernel[features]
    if inner := inner_jaxprs(eqn):
        each = [sum(map(equation_flops, jaxpr.eqns)) for jaxpr, _ in inner]
        total = max(each) if primitive is prims.cond_p else sum(each)
        return total * scan(eqn).length if primitive is prims.scan_p else total
    if (local := shard_map(eqn)) is not None:
        return sum(map(equation_flops, local.body[0].eqns)) * math.prod(local.sizes)
    if primitive.name in _LAYOUT:
        return 0
    if primitive.name.startswith(("reduce", "arg")):
        return shape_of(eqn.invars[0]).size
    return written
