"""Dependency graph: coupled groups of channels, which can only be removed together."""

from __future__ import annotations

import dataclasses
import fnmatch
import itertools
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from jaxsim.console.table import shown_as_table
from jaxsim.internals import inner_jaxprs, shape_of
from jaxsim.network.leaves import path_name
from jaxsim.network.network import Net, Network
from jaxsim.network.plan import contractions
from jaxsim.network.planner import trace_plan
from jaxsim.numerics.arrays import placed_like
from jaxsim.numerics.checks import is_traced
from jaxsim.sparsity.channels.axes import (
    AxisGroup,
    Concatenation,
    Product,
    Symbol,
    kept_entries,
    resolve,
    sum_by_symbol,
    symbols,
)
from jaxsim.sparsity.channels.axis_rules import describe_place
from jaxsim.sparsity.channels.propagate import Leaf, propagate_channels
from jaxsim.sparsity.channels.resize import resize_model
from jaxsim.sparsity.channels.tables import groups_table

Keep = Mapping[str, Bool[np.ndarray, " size"]]
"""For groups by name, which of their entries remain; all of the other groups do."""

_QUIET = ("a place in an image or a window", "a turn of a scan")


_ROLES = ("out", "in", "")


class Member(NamedTuple):
    """Axis of a parameter or buffer that loses entries with its group.

    Attributes:
      path: Path: `params/Conv_0/kernel`, `buffers/batch_stats/…`.
      axis: Axis of the parameter or buffer.
      role: "out" where a site makes the axis, "in" where a site sums over it, else "".
    """

    path: str
    axis: int
    role: str


class Group(NamedTuple):
    """Entries of axes that are removed together.

    Attributes:
      name: Name of a parameter that makes them and its axis, `Conv_0/kernel:3`; where an axis runs
        over several groups, their place in it behind a point.
      size: Number of entries.
      members: Axes that run over the group.
      reason: Why none is removed, "" if any may be.
      renormalizing: True if an entry less changes what the model computes of the others, because a
        number in it depends on the size: a mean over channels, or 1/√size.
    """

    name: str
    size: int
    members: tuple[Member, ...]
    reason: str = ""
    renormalizing: bool = False

    @property
    def renormalising(self) -> bool:
        """Old name of `renormalizing`, for one release."""
        warnings.warn(
            "Group.renormalising is now called renormalizing; the old name goes in the next "
            "release",
            DeprecationWarning,
            stacklevel=2,
        )
        return self.renormalizing


@shown_as_table
@dataclasses.dataclass(frozen=True, eq=False)
class Dependencies:
    """Coupled groups of a network; made by `dependencies`.

    Attributes:
      groups: Groups in order of execution, those that cannot be removed included.
      leaves: Axis groups of the parameters and the buffers.
      units: Symbol of each group.
      counts: Symbols of the groups of grouped convolutions, by path of the kernel.
      jaxpr: Equations of a call.
      made: Axis groups of the results of every equation.
    """

    groups: tuple[Group, ...]
    leaves: tuple[Leaf, ...]
    units: Mapping[str, Symbol]
    counts: Mapping[str, AxisGroup]
    jaxpr: jex.Jaxpr
    made: tuple[tuple[AxisGroup, ...], ...]

    def __getitem__(self, name: str) -> Group:
        """Finds a group by name.

        Args:
          name: Name of the group.

        Raises:
          ValueError: No group has it.
        """
        found = {group.name: group for group in self.groups}
        if name not in found:
            raise ValueError(f"no group {name!r}; the groups are: {', '.join(found)}")
        return found[name]

    def select(self, patterns: str | Sequence[str]) -> tuple[Group, ...]:
        """Selects the groups that globs, or regular expressions after `re:`, name.

        Args:
          patterns: One pattern or several.

        Raises:
          ValueError: No pattern, or one that matches no group.
        """
        patterns = [patterns] if isinstance(patterns, str) else list(patterns)
        if not patterns:
            raise ValueError("groups=[]: give at least one pattern")
        chosen = set[str]()
        for pattern in patterns:
            text = pattern[3:] if pattern.startswith("re:") else fnmatch.translate(pattern)
            hits = {g.name for g in self.groups if re.fullmatch(text, g.name)}
            if not hits:
                known = ", ".join(g.name for g in self.groups)
                raise ValueError(f"groups={pattern!r} matches no group; the groups are: {known}")
            chosen |= hits
        return tuple(g for g in self.groups if g.name in chosen)

    def __rich__(self) -> Any:
        def paths(group: Group, role: str) -> list[str]:
            return [m.path.partition("/")[2] for m in group.members if m.role == role]

        rows = [
            (g.name, g.size, paths(g, "out"), paths(g, "in"), paths(g, ""), g.reason)
            for g in self.groups
        ]
        return groups_table(rows)


def dependencies(net: Network) -> Dependencies:
    """Finds the channels of a network that can be removed, and those that go with them.

    Every axis of every value is followed through the equations of a call. Then all groups are cut
    to half at once and the model is traced again: where it does not run, or computes with other
    numbers, the groups to blame are found one by one and say so.

    Args:
      net: Network; only shapes count.

    Returns:
      The groups. `print` shows them as a table.

    Source: dependency graphs after Fang et al. (2023), arXiv 2301.12900; here read from a jaxpr.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> params = {"a": jnp.ones((3, 8)), "b": jnp.ones((8, 2))}
      >>> net = js.trace(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], params, jnp.ones((1, 3)))
      >>> group = js.dependencies(net)["a:1"]
      >>> group.size, [(member.path, member.axis) for member in group.members]
      (8, [('params/a', 1), ('params/b', 0)])
    """
    found = _follow_equations(net)
    free = [group.name for group in found.groups if not group.reason]
    blame = _blame(net, found, free) if free else {}
    if not blame:
        return found
    groups = tuple(
        g._replace(reason=blame[g.name].why, renormalizing=blame[g.name].renormalizing)
        if g.name in blame
        else g
        for g in found.groups
    )
    return dataclasses.replace(found, groups=groups)


def _follow_equations(net: Network) -> Dependencies:
    """Finds the groups that the equations alone show."""
    jaxpr = _trace(net).plan.jaxpr
    traced = propagate_channels(net, jaxpr)
    members: dict[Symbol, list[tuple[str, Member]]] = {}
    for leaf in traced.leaves:
        for axis, (label, role) in enumerate(zip(leaf.axes, leaf.roles, strict=True)):
            units = symbols(label)
            for i, unit in enumerate(units):
                short = leaf.path.partition("/")[2]
                name = f"{short}:{axis}" + (f".{i}" if len(units) > 1 else "")
                members.setdefault(unit, []).append((name, Member(leaf.path, axis, role)))
    first = {site.param: i for i, site in reversed([*enumerate(net.sites)])}
    last = len(first)
    groups, units = list[Group](), dict[str, Symbol]()
    for unit, places in members.items():
        if unit.size == 1 or unit.reason in _QUIET:
            continue
        places.sort(
            key=lambda p: (_ROLES.index(p[1].role), first.get(p[0].rpartition(":")[0], last))
        )
        name = places[0][0]
        groups.append(Group(name, unit.size, tuple(m for _, m in places), unit.reason))
        units[name] = unit
    groups.sort(key=lambda g: first.get(g.name.rpartition(":")[0], last))
    return Dependencies(tuple(groups), traced.leaves, units, traced.grouped, jaxpr, traced.made)


def _trace(net: Network) -> Any:
    """Traces a call with the arguments of the example, from shapes alone."""
    params, buffers = jax.eval_shape(lambda: (net.params, net.buffers))
    return trace_plan(net.fn, params, buffers, net.example, net.example, net.weights)


def remove_entries(net: Net, found: Dependencies, keep: Keep) -> Net:
    """Removes some entries of some groups from a network.

    Args:
      net: Network, not transformed; its arrays may be shapes.
      found: Dependencies of the network.
      keep: Masks of the entries that remain, by group.

    Raises:
      ValueError: The model does not run with less.
    """
    small = _cut_entries(net, found, keep)
    sites = tuple(c.site for c in contractions(_trace(small).plan))
    return dataclasses.replace(small, sites=sites)


def _cut_entries(net: Net, found: Dependencies, keep: Keep) -> Net:
    """Removes entries of groups; the sites stay those of the whole network."""
    remaining = {found.units[name]: np.asarray(mask) for name, mask in keep.items()}
    leaves = {leaf.path: leaf for leaf in found.leaves}

    def cut(path: str, a: Any) -> Any:
        for axis, label in enumerate(leaves[path].axes):
            mask = kept_entries(label, remaining)
            if not mask.all():
                a = _take(a, np.flatnonzero(mask), axis)
        return a

    params = _by_path(cut, "params", net.params)
    buffers = _by_path(cut, "buffers", net.buffers)
    masks = {name: cut(f"params/{name}", mask) for name, mask in net.masks.items()}
    counts = {
        path.removeprefix("params/"): int(kept_entries(label, remaining).sum())
        for path, label in found.counts.items()
    }
    fn = resize_model(net.fn, params, buffers, counts)
    return dataclasses.replace(net, params=params, buffers=buffers, masks=masks, fn=fn)


def zero_entries(net: Net, found: Dependencies, keep: Keep) -> Net:
    """Sets the entries that `remove_entries` removes to zero, at the same size.

    Args:
      net: Network, not transformed.
      found: Dependencies of the network.
      keep: Masks of the entries that remain, by group.
    """
    remaining = {found.units[name]: np.asarray(mask) for name, mask in keep.items()}
    leaves = {leaf.path: leaf for leaf in found.leaves}

    def zero_leaf(path: str, a: Any) -> Any:
        for axis, label in enumerate(leaves[path].axes):
            mask = kept_entries(label, remaining)
            if not mask.all():
                others = tuple(i for i in range(a.ndim) if i != axis)
                a = a * np.expand_dims(mask, others).astype(a.dtype)
        return a

    params = _by_path(zero_leaf, "params", net.params)
    return dataclasses.replace(
        net, params=params, buffers=_by_path(zero_leaf, "buffers", net.buffers)
    )


def importances(
    found: Dependencies, scores: Any, *, role: str | None = None
) -> dict[str, Float[np.ndarray, " size"]]:
    """Sums the scores of all parameters that each entry of each group would take with it.

    Args:
      found: Dependencies of a network.
      scores: Number for each parameter, in the structure of the network's parameters.
      role: Role of the members that count; None for all.
    """
    total = {name: np.zeros(unit.size) for name, unit in found.units.items()}
    for name, own_role, own in _member_scores(found, scores):
        if role in (None, own_role):
            total[name] += own
    return total


def find_unmade(found: Dependencies, scores: Any) -> dict[str, Bool[np.ndarray, " size"]]:
    """Finds the entries of each group for which a parameter that makes them has nothing left.

    Args:
      found: Dependencies of a network.
      scores: What is left of each parameter, in the structure of the network's parameters: 0 is
        nothing.
    """
    empty = {name: np.zeros(unit.size, bool) for name, unit in found.units.items()}
    for name, role, own in _member_scores(found, scores):
        if role == "out":
            empty[name] |= own == 0
    return empty


def _member_scores(
    found: Dependencies, scores: Any
) -> Iterator[tuple[str, str, Float[np.ndarray, " size"]]]:
    """Sums scores by entry for every axis of a parameter that belongs to a group."""
    names = {unit: name for name, unit in found.units.items()}
    leaves = {leaf.path: leaf for leaf in found.leaves}
    for path, leaf in jax.tree_util.tree_leaves_with_path(scores):
        numbers = np.asarray(leaf, np.float64)
        held = leaves[f"params/{path_name(path)}"]
        for axis, (label, own_role) in enumerate(zip(held.axes, held.roles, strict=True)):
            others = tuple(i for i in range(numbers.ndim) if i != axis)
            for unit, own in sum_by_symbol(label, numbers.sum(others)).items():
                if unit in names:
                    yield names[unit], own_role, own


def _by_path(change: Any, root: str, tree: Any) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: change(f"{root}/{path_name(path)}", leaf), tree
    )


def _take(a: Any, index: np.ndarray, axis: int) -> Any:
    if isinstance(a, jax.ShapeDtypeStruct):
        shape = (*a.shape[:axis], len(index), *a.shape[axis + 1 :])
        return jax.ShapeDtypeStruct(shape, a.dtype)
    if is_traced(a) or not getattr(a, "is_fully_addressable", True):
        return placed_like(jnp.take(a, index, axis), a)
    return placed_like(jnp.asarray(np.take(np.asarray(a), index, axis)), a)


class Blame(NamedTuple):
    """Reason why a group cannot be cut.

    Attributes:
      why: Reason in words.
      renormalizing: True if it can be cut, but the model then computes with other numbers.
    """

    why: str
    renormalizing: bool


def tied_sizes(found: Dependencies) -> dict[str, tuple[str, ...]]:
    """Finds for groups of grouped convolutions the groups of channels within them.

    An axis of such a kernel's inputs or outputs runs over the product of the two, so that both have
    a part in how many channels are left.

    Args:
      found: Dependencies of a network.
    """
    names = {unit: name for name, unit in found.units.items()}
    within: dict[str, dict[str, None]] = {}
    outer = {symbol for label in found.counts.values() for symbol in symbols(label)} & names.keys()
    for leaf in found.leaves:
        for axis in map(resolve, leaf.axes):
            for part in axis.parts if isinstance(axis, Concatenation) else (axis,):
                own = symbols(part)
                if isinstance(part, Product) and len(own) == 2 and own[0] in outer:
                    inner = names.get(own[1])
                    if inner is not None:
                        within.setdefault(names[own[0]], {})[inner] = None
    return {name: tuple(inner) for name, inner in within.items()}


def find_blame(net: Network, found: Dependencies, keep: Keep) -> Blame | None:
    """Finds why a network cannot be cut so, None if it can.

    Args:
      net: Network, not transformed; only shapes count.
      found: Dependencies of the network.
      keep: Masks of the entries that remain, by group.
    """
    shapes = jax.eval_shape(lambda: (net.params, net.buffers, net.masks))
    net = dataclasses.replace(net, params=shapes[0], buffers=shapes[1], masks=shapes[2])
    try:
        jaxpr = _trace(_cut_entries(net, found, keep)).plan.jaxpr
    except ValueError as error:
        text = str(error).partition("the model raised: ")[2] or str(error)
        return Blame(f"the model does not run with less: {text.splitlines()[0]}", False)
    if fixed := _fixed_size(found, keep, jaxpr):
        return Blame(fixed, False)
    changed = _changed_number(found.jaxpr, jaxpr)
    return Blame(changed, True) if changed else None


def _blame(net: Network, found: Dependencies, names: Sequence[str]) -> dict[str, Blame]:
    """Finds the groups that cannot be cut to half nor to some other size, and why."""
    sizes = {name: -(-found[name].size // 2) for name in names}

    def try_cut(some: Sequence[str]) -> Blame | None:
        return find_blame(net, found, {n: np.arange(found[n].size) < sizes[n] for n in some})

    if try_cut(names) is None:
        return {}
    blame: dict[str, Blame] = {}
    for name in names:
        why = try_cut([name])
        half = sizes[name]
        # at half, a model's own test of shapes may come out otherwise than at every other size
        others = (n for n in (half + 1, half - 1, found[name].size - 1) if 0 < n < found[name].size)
        while why is not None and not why.renormalizing and (size := next(others, 0)):
            sizes[name] = size
            why = try_cut([name]) and why
        if why is not None:
            blame[name] = why
    rest = [name for name in names if name not in blame]
    together = try_cut(rest) if rest else None
    return blame if together is None else blame | dict.fromkeys(rest, together)


def _fixed_size(found: Dependencies, keep: Keep, jaxpr: jex.Jaxpr) -> str:
    """Finds where a trace of a smaller model has values of unexpected sizes; "" if nowhere."""
    remaining = {found.units[name]: mask for name, mask in keep.items()}
    sizes = _Sizes(remaining)
    for axes, made in itertools.zip_longest(found.made, _list_results(jaxpr)):
        if axes is None or made is None or len(axes) != len(made[0]):
            return "the model runs other equations with less"
        expected = tuple(map(sizes.of, axes))
        if expected != made[0]:
            return f"{made[1]} makes {list(made[0])} where {list(expected)} is left"
    return ""


class _Sizes:
    """Number of entries that remain of axis groups, each computed once."""

    def __init__(self, remaining: Mapping[Symbol, Any]):
        self.remaining = remaining
        self.known: dict[int, int] = {}

    def of(self, label: AxisGroup) -> int:
        """Counts the entries of an axis group that remain."""
        size = self.known.get(id(label))
        if size is None:
            size = self.known[id(label)] = int(kept_entries(label, self.remaining).sum())
        return size


def _list_results(jaxpr: jex.Jaxpr) -> Iterator[tuple[tuple[int, ...], str]]:
    """Lists shape and place of every result of every equation, those inside others first."""
    for eqn in jaxpr.eqns:
        for inner, _ in inner_jaxprs(eqn):
            yield from _list_results(inner)
        for v in eqn.outvars:
            yield shape_of(v).shape, describe_place(eqn)


def _changed_number(before: jex.Jaxpr, after: jex.Jaxpr) -> str:
    """Finds where two traces of a model compute with different numbers; "" if nowhere."""
    rows = itertools.zip_longest(_list_numbers(before), _list_numbers(after))
    for one, other in rows:
        if one is None or other is None or one[0] != other[0]:
            return "the model runs other equations with less"
        if one[1] != other[1]:
            return f"{one[2]} depends on its size: {one[1]:.6g} becomes {other[1]:.6g}"
    return ""


def _list_numbers(jaxpr: jex.Jaxpr) -> Iterator[tuple[str, float, str]]:
    """Lists primitive, value and place of every scalar in a jaxpr's equations."""
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        literals = [v.val for v in eqn.invars if isinstance(v, jex.Literal)]
        for value in literals:
            if np.ndim(value) == 0:
                yield name, float(value), describe_place(eqn)
        for inner, consts in inner_jaxprs(eqn):
            for value in consts:
                if np.ndim(value) == 0:
                    yield name, float(value), describe_place(eqn)
            yield from _list_numbers(inner)
