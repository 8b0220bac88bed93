"""Groups of channels that can only be removed together, and a network without some of them."""

from __future__ import annotations

import dataclasses
import fnmatch
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from jaxsim.console.table import render
from jaxsim.internals import inner_jaxprs
from jaxsim.network.leaves import path_name
from jaxsim.network.network import Network
from jaxsim.network.plan import contractions
from jaxsim.network.planner import trace_plan
from jaxsim.numerics.arrays import placed_like
from jaxsim.sparsity.channels.axes import Atom, Chain, Label, Product, atoms, kept, resolved, shares
from jaxsim.sparsity.channels.propagate import Leaf, place, provenance
from jaxsim.sparsity.channels.resize import resized
from jaxsim.sparsity.channels.tables import groups_table

Keep = Mapping[str, Bool[np.ndarray, " size"]]
"""For groups by name, which of their entries remain; all of the other groups do."""

_QUIET = ("a place in an image or a window", "a turn of a scan")


_ROLES = ("out", "in", "")


class Member(NamedTuple):
    """An axis of a parameter or buffer that loses entries with its group.

    Attributes:
      path: `params/Conv_0/kernel`, `buffers/batch_stats/…`.
      axis: of it.
      role: "out" where a site makes the axis, "in" where a site sums over it, else "".
    """

    path: str
    axis: int
    role: str


class Group(NamedTuple):
    """Entries of axes that are removed together.

    Attributes:
      name: a parameter that makes them and its axis, `Conv_0/kernel:3`; where an axis runs over
        several groups, their place in it behind a point.
      size: number of entries.
      members: the axes.
      reason: why none is removed, "" if any may be.
      renormalising: an entry less changes what the model computes of the others, because a number
        in it depends on the size: a mean over channels, or 1/√size.
    """

    name: str
    size: int
    members: tuple[Member, ...]
    reason: str = ""
    renormalising: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Dependencies:
    """What of a network can be removed together; made by `dependencies`.

    Attributes:
      groups: in order of execution, those that cannot be removed included.
      leaves: labels of the parameters and the buffers.
      units: what each group is in these labels.
      counts: for the kernels of convolutions in groups, what those groups are.
      jaxpr: the equations of a call.
      made: what the axes of every value in it are.
    """

    groups: tuple[Group, ...]
    leaves: tuple[Leaf, ...]
    units: Mapping[str, Atom]
    counts: Mapping[str, Label]
    jaxpr: Any
    made: tuple[tuple[Label, ...], ...]

    def __getitem__(self, name: str) -> Group:
        """The group of a name."""
        return next(group for group in self.groups if group.name == name)

    def select(self, patterns: str | Sequence[str]) -> tuple[Group, ...]:
        """The groups that globs, or regular expressions behind `re:`, name.

        Raises:
          ValueError: no pattern, or one that matches no group.
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

    def __str__(self) -> str:
        return render(self.__rich__())

    def __rich__(self) -> Any:
        def paths(group: Group, role: str) -> list[str]:
            return [m.path.partition("/")[2] for m in group.members if m.role == role]

        rows = [
            (g.name, g.size, paths(g, "out"), paths(g, "in"), paths(g, ""), g.reason)
            for g in self.groups
        ]
        return groups_table(rows)


def dependencies(net: Network) -> Dependencies:
    """Finds which channels of a network can be removed, and what goes with them.

    Every axis of every value is followed through the equations of a call. Then all groups are cut
    to half at once and the model is traced again: where it does not run, or computes with other
    numbers, the groups to blame are found one by one and say so.

    Args:
      net: a network; only shapes count.

    Returns:
      The groups. `print` shows them as a table.

    Source: dependency graphs after Fang et al. (2023), arXiv 2301.12900; here read from a jaxpr.
    """
    found = _followed(net)
    free = [group.name for group in found.groups if not group.reason]
    blame = _blame(net, found, free) if free else {}
    if not blame:
        return found
    groups = tuple(
        g._replace(reason=blame[g.name].why, renormalising=blame[g.name].renormalising)
        if g.name in blame
        else g
        for g in found.groups
    )
    return dataclasses.replace(found, groups=groups)


def _followed(net: Network) -> Dependencies:
    """Groups as the equations alone show them."""
    jaxpr = _traced(net).plan.jaxpr
    traced = provenance(net, jaxpr)
    members: dict[Atom, list[tuple[str, Member]]] = {}
    for leaf in traced.leaves:
        for axis, (label, role) in enumerate(zip(leaf.axes, leaf.roles, strict=True)):
            units = atoms(label)
            for i, unit in enumerate(units):
                short = leaf.path.partition("/")[2]
                name = f"{short}:{axis}" + (f".{i}" if len(units) > 1 else "")
                members.setdefault(unit, []).append((name, Member(leaf.path, axis, role)))
    first = {site.param: i for i, site in reversed([*enumerate(net.sites)])}
    last = len(first)
    groups, units = list[Group](), dict[str, Atom]()
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


def _traced(net: Network) -> Any:
    """A call with the arguments of the example, from shapes alone."""
    params, buffers = jax.eval_shape(lambda: (net.params, net.buffers))
    return trace_plan(net.fn, params, buffers, net.example, net.example, net.weights)


def smaller(net: Network, found: Dependencies, keep: Keep) -> Network:
    """A network without some entries of some groups.

    Args:
      net: not transformed; its arrays may be shapes.
      found: its dependencies.
      keep: what remains.

    Raises:
      ValueError: the model does not run with less.
    """
    remaining = {found.units[name]: np.asarray(mask) for name, mask in keep.items()}
    leaves = {leaf.path: leaf for leaf in found.leaves}

    def cut(path: str, a: Any) -> Any:
        for axis, label in enumerate(leaves[path].axes):
            mask = kept(label, remaining)
            if not mask.all():
                a = _taken(a, np.flatnonzero(mask), axis)
        return a

    params = _by_path(cut, "params", net.params)
    buffers = _by_path(cut, "buffers", net.buffers)
    masks = {name: cut(f"params/{name}", mask) for name, mask in net.masks.items()}
    counts = {
        path.removeprefix("params/"): int(kept(label, remaining).sum())
        for path, label in found.counts.items()
    }
    fn = resized(net.fn, params, buffers, counts)
    small = dataclasses.replace(net, params=params, buffers=buffers, masks=masks, fn=fn)
    sites = tuple(c.site for c in contractions(_traced(small).plan))
    return dataclasses.replace(small, sites=sites)


def without(net: Network, found: Dependencies, keep: Keep) -> Network:
    """A network of the same size, zeros where `smaller` removes entries.

    Args:
      net: not transformed.
      found: its dependencies.
      keep: what remains.
    """
    remaining = {found.units[name]: np.asarray(mask) for name, mask in keep.items()}
    leaves = {leaf.path: leaf for leaf in found.leaves}

    def zeroed(path: str, a: Any) -> Any:
        for axis, label in enumerate(leaves[path].axes):
            mask = kept(label, remaining)
            if not mask.all():
                others = tuple(i for i in range(a.ndim) if i != axis)
                a = a * jnp.expand_dims(mask, others).astype(a.dtype)
        return a

    params = _by_path(zeroed, "params", net.params)
    return dataclasses.replace(net, params=params, buffers=_by_path(zeroed, "buffers", net.buffers))


def importances(
    found: Dependencies, scores: Any, *, role: str | None = None
) -> dict[str, Float[np.ndarray, " size"]]:
    """The sum of the scores of all parameters that each entry of each group would take with it.

    Args:
      found: dependencies of a network.
      scores: a number for each parameter of it, in its structure.
      role: of the members that count; None for all.
    """
    total = {name: np.zeros(unit.size) for name, unit in found.units.items()}
    for name, own_role, own in _member_scores(found, scores):
        if role in (None, own_role):
            total[name] += own
    return total


def unmade(found: Dependencies, scores: Any) -> dict[str, Bool[np.ndarray, " size"]]:
    """The entries of each group of which one of the parameters that make them holds nothing.

    Args:
      found: dependencies of a network.
      scores: for each parameter of it, in its structure, what is left: 0 is nothing.
    """
    empty = {name: np.zeros(unit.size, bool) for name, unit in found.units.items()}
    for name, role, own in _member_scores(found, scores):
        if role == "out":
            empty[name] |= own == 0
    return empty


def _member_scores(
    found: Dependencies, scores: Any
) -> Iterator[tuple[str, str, Float[np.ndarray, " size"]]]:
    """Group, role and sum for each entry, for every axis of a parameter that is of a group."""
    names = {unit: name for name, unit in found.units.items()}
    leaves = {leaf.path: leaf for leaf in found.leaves}
    for path, leaf in jax.tree_util.tree_leaves_with_path(scores):
        numbers = np.asarray(leaf, np.float64)
        held = leaves[f"params/{path_name(path)}"]
        for axis, (label, own_role) in enumerate(zip(held.axes, held.roles, strict=True)):
            others = tuple(i for i in range(numbers.ndim) if i != axis)
            for unit, own in shares(label, numbers.sum(others)).items():
                if unit in names:
                    yield names[unit], own_role, own


def _by_path(change: Any, root: str, tree: Any) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: change(f"{root}/{path_name(path)}", leaf), tree
    )


def _taken(a: Any, index: np.ndarray, axis: int) -> Any:
    if isinstance(a, jax.ShapeDtypeStruct):
        shape = (*a.shape[:axis], len(index), *a.shape[axis + 1 :])
        return jax.ShapeDtypeStruct(shape, a.dtype)
    return placed_like(jnp.take(a, index, axis), a)


class Blame(NamedTuple):
    """Why a group cannot be cut.

    Attributes:
      why: in words.
      renormalising: it can, but the model then computes with other numbers.
    """

    why: str
    renormalising: bool


def tied_sizes(found: Dependencies) -> dict[str, tuple[str, ...]]:
    """For groups of convolutions in groups, the groups of channels within them.

    An axis of such a kernel's inputs or outputs runs over the product of the two, so that both
    have a part in how many channels are left.
    """
    names = {unit: name for name, unit in found.units.items()}
    within: dict[str, dict[str, None]] = {}
    outer = {atom for label in found.counts.values() for atom in atoms(label)} & names.keys()
    for leaf in found.leaves:
        for axis in map(resolved, leaf.axes):
            for part in axis.parts if isinstance(axis, Chain) else (axis,):
                own = atoms(part)
                if isinstance(part, Product) and len(own) == 2 and own[0] in outer:
                    inner = names.get(own[1])
                    if inner is not None:
                        within.setdefault(names[own[0]], {})[inner] = None
    return {name: tuple(inner) for name, inner in within.items()}


def refusal(net: Network, found: Dependencies, keep: Keep) -> Blame | None:
    """Why a network cannot be cut so, None if it can.

    Args:
      net: not transformed; only shapes count.
      found: its dependencies.
      keep: what remains.
    """
    shapes = jax.eval_shape(lambda: (net.params, net.buffers, net.masks))
    net = dataclasses.replace(net, params=shapes[0], buffers=shapes[1], masks=shapes[2])
    try:
        small = smaller(net, found, keep)
    except ValueError as error:
        text = str(error).partition("the model raised: ")[2] or str(error)
        return Blame(f"the model does not run with less: {text.splitlines()[0]}", False)
    jaxpr = _traced(small).plan.jaxpr
    if fixed := _fixed_size(found, keep, jaxpr):
        return Blame(fixed, False)
    changed = _changed_number(found.jaxpr, jaxpr)
    return Blame(changed, True) if changed else None


def _blame(net: Network, found: Dependencies, names: Sequence[str]) -> dict[str, Blame]:
    """The groups that cannot be cut to half nor to some other size, and why."""
    sizes = {name: -(-found[name].size // 2) for name in names}

    def tried(some: Sequence[str]) -> Blame | None:
        return refusal(net, found, {n: np.arange(found[n].size) < sizes[n] for n in some})

    if tried(names) is None:
        return {}
    blame: dict[str, Blame] = {}
    for name in names:
        why = tried([name])
        half = sizes[name]
        # at half, a model's own test of shapes may come out otherwise than at every other size
        others = (n for n in (half + 1, half - 1, found[name].size - 1) if 0 < n < found[name].size)
        while why is not None and not why.renormalising and (size := next(others, 0)):
            sizes[name] = size
            why = tried([name]) and why
        if why is not None:
            blame[name] = why
    rest = [name for name in names if name not in blame]
    together = tried(rest) if rest else None
    return blame if together is None else blame | dict.fromkeys(rest, together)


def _fixed_size(found: Dependencies, keep: Keep, jaxpr: Any) -> str:
    """Where a trace of a smaller model has values of other sizes than its axes say; "" if none."""
    remaining = {found.units[name]: mask for name, mask in keep.items()}
    sizes = _Sizes(remaining)
    for axes, made in itertools.zip_longest(found.made, _made(jaxpr)):
        if axes is None or made is None or len(axes) != len(made[0]):
            return "the model runs other equations with less"
        expected = tuple(map(sizes.of, axes))
        if expected != made[0]:
            return f"{made[1]} makes {list(made[0])} where {list(expected)} is left"
    return ""


class _Sizes:
    """What remains of labels, each looked at once."""

    def __init__(self, remaining: Mapping[Atom, Any]):
        self.remaining = remaining
        self.known: dict[int, int] = {}

    def of(self, label: Label) -> int:
        """Number of entries that remain."""
        size = self.known.get(id(label))
        if size is None:
            size = self.known[id(label)] = int(kept(label, self.remaining).sum())
        return size


def _made(jaxpr: Any) -> Iterator[tuple[tuple[int, ...], str]]:
    """Shape and place of every output of every equation, those inside others before it."""
    for eqn in jaxpr.eqns:
        for inner, _ in inner_jaxprs(eqn):
            yield from _made(inner)
        for v in eqn.outvars:
            yield v.aval.shape, place(eqn)


def _changed_number(before: Any, after: Any) -> str:
    """Where two traces of a model compute with different numbers; "" if they do not."""
    rows = itertools.zip_longest(_numbers(before), _numbers(after))
    for one, other in rows:
        if one is None or other is None or one[0] != other[0]:
            return "the model runs other equations with less"
        if one[1] != other[1]:
            return f"{one[2]} depends on its size: {one[1]:.6g} becomes {other[1]:.6g}"
    return ""


def _numbers(jaxpr: Any) -> Iterator[tuple[str, float, str]]:
    """Primitive, number and place of every scalar that a jaxpr's equations hold."""
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        literals = [v.val for v in eqn.invars if isinstance(v, jex.Literal)]
        for value in literals:
            if np.ndim(value) == 0:
                yield name, float(value), place(eqn)
        for inner, consts in inner_jaxprs(eqn):
            for value in consts:
                if np.ndim(value) == 0:
                    yield name, float(value), place(eqn)
            yield from _numbers(inner)
