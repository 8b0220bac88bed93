"""Batch axes: which axes of the values between stages hold the rows of a batch.

They are found by shape, from a trace with two rows and one with three.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxsim.adaptive.features import Feature
from jaxsim.adaptive.tokens import check_level_count
from jaxsim.cores.partition import Partitioned
from jaxsim.internals import shape_of
from jaxsim.network.arguments import abstract_arguments
from jaxsim.network.cost import Cost
from jaxsim.network.cuts import Cut, Equations, cuts, equations, select_cuts
from jaxsim.network.network import Network, base_network
from jaxsim.network.stages import Stages, split
from jaxsim.network.taps import live_at
from jaxsim.staged.attention import Attention, alike, find_attention, marks_of
from jaxsim.staged.early import known_first
from jaxsim.values.memo import Memoizing, memoized


class TokenLayout(NamedTuple):
    """Where tokens leave a network, and what they cost; holds for any number of rows.

    Attributes:
      line: Equations of a call of two rows, what is known of tokens first.
      attention: Where it attends.
      before: The equations as they were.
      attention_before: Where those attend.
      cuts: For each attention the name of the cut at which tokens leave; None where none follows.
      ends: For each attention but the last the name of the cut at which the next layer begins.
      axes: For each cut and each value that crosses it, the axes that hold tokens.
      known: For each of these values, if it is known before anything is computed.
      layers: For each stage how many attentions were before it.
      arguments: For each argument the axes that hold tokens.
      spent: For each stage the floating-point operations of one row at all tokens: those that do
        not depend on their number, those in proportion to it, and those to its square.
      read: Floating-point operations of one row in the classifier of each stage.
      length: Number of tokens of a call.
    """

    line: Equations
    attention: Attention
    before: Equations
    attention_before: Attention
    cuts: tuple[str | None, ...] = ()
    ends: tuple[str, ...] = ()
    axes: tuple[tuple[tuple[int, ...], ...], ...] = ()
    known: tuple[tuple[bool, ...], ...] = ()
    layers: tuple[int, ...] = ()
    arguments: tuple[tuple[int, ...], ...] = ()
    spent: tuple[tuple[float, float, float], ...] = ()
    read: tuple[float, ...] = ()
    length: int = 0


class ExitLayout(NamedTuple):
    """Batch axes, widths and costs of a cut network, which hold for any number of rows.

    Attributes:
      places: Names of the cuts, in order of execution.
      exits: For each cut the number of the exit that stands there, from 0; None where only a device
        takes over.
      axes: For each cut and each value that crosses it, the axis that holds the rows; None where
        none does.
      widths: Number of features that each classifier reads.
      classes: Number of classes C.
      flops: Floating-point operations of one row up to each exit, at the sites and in the
        classifiers.
      dtype: Name of the dtype of the network's logits, which those of the classifiers take too.
      tokens: Where tokens leave; None where all stay.
    """

    places: tuple[str, ...]
    exits: tuple[int | None, ...]
    axes: tuple[tuple[int | None, ...], ...]
    widths: tuple[int, ...]
    classes: int
    flops: tuple[float, ...]
    dtype: str
    tokens: TokenLayout | None = None


class BatchPair(NamedTuple):
    """Equations of a network for two rows and for three, and where they can be cut.

    Attributes:
      two, three: Equations.
      places: Cuts of them.
      tokens: Where tokens leave; None where all stay.
    """

    two: Equations
    three: Equations
    places: tuple[Cut, ...]
    tokens: TokenLayout | None = None


def trace_batch_pair(
    net: Network, arguments: Partitioned, batched: tuple[bool, ...], *, leaving: bool
) -> BatchPair:
    """Lists the equations of a network for two rows and for three: axes that differ hold the rows.

    Args:
      net: Network; its arrays may be shapes.
      arguments: Arguments of a call; they may be shapes.
      batched: True for each of their arrays that holds rows.
      leaving: True if tokens leave.
    """
    two, three = (
        equations(without_exits(net), with_batch_size(arguments, batched, n)) for n in (2, 3)
    )
    if not leaving:
        return BatchPair(two, three, cuts(two))
    tokens = find_tokens(two, batched)
    return BatchPair(tokens.line, known_tokens(tokens, three)[0], cuts(tokens.line), tokens)


def find_tokens(line: Equations, rowed: Sequence[bool]) -> TokenLayout:
    """Finds where a call attends, and computes what is known of its tokens first.

    Args:
      line: Equations of a call of two rows.
      rowed: True for each argument that holds rows.

    Raises:
      ValueError: As `find_attention` raises.
    """
    before = find_attention(line, rowed)
    early = known_first(line, before)
    attention = find_attention(early, rowed)
    leave, ends = token_cuts(early, attention)
    return TokenLayout(
        line=early,
        attention=attention,
        before=line,
        attention_before=before,
        cuts=leave,
        ends=ends,
        arguments=tuple(attention.token_axes(v) for v in early.arguments),
        length=attention.tokens.size,
    )


def known_tokens(tokens: TokenLayout, line: Equations) -> tuple[Equations, Attention]:
    """Computes what is known of tokens first, in a call of another number of rows.

    Args:
      tokens: Where tokens leave.
      line: Equations of that call.

    Raises:
      ValueError: The model runs other equations for another number of rows.
    """
    before = tokens.attention_before.in_call(tokens.before, line)
    early = known_first(line, before)
    return early, tokens.attention.in_call(tokens.line, early)


def runs_alike(tokens: TokenLayout, line: Equations) -> bool:
    """Tells if a call runs the same equations as one of two rows.

    Args:
      tokens: Where tokens leave.
      line: Equations of the call.
    """
    return alike(tokens.before, line)


def cuts_of(tokens: TokenLayout, leave: Sequence[bool] | None) -> tuple[str, ...]:
    """Names the cuts at which tokens leave.

    Args:
      tokens: Where they can.
      leave: For each attention, False where none does; None where any may.

    Raises:
      ValueError: It is of another number of attentions, as the levels are that it comes from.
    """
    chosen = [True] * len(tokens.cuts) if leave is None else leave
    check_level_count(chosen, len(tokens.cuts))
    pairs = zip(tokens.cuts, chosen, strict=True)
    return tuple(name for name, own in pairs if name is not None and own)


class TokenCuts(NamedTuple):
    """Cuts behind attentions.

    Attributes:
      leave: For each attention the first that fewest activations of tokens cross before the next;
        None where there is none.
      ends: For each but the last the last of these.
    """

    leave: tuple[str | None, ...]
    ends: tuple[str, ...]


def token_cuts(line: Equations, attention: Attention) -> TokenCuts:
    """Finds where tokens leave behind each attention, and where the next layer begins.

    Args:
      line: Equations of a call.
      attention: Where it attends.
    """
    early = {v for eqn in line.plan.jaxpr.eqns[: line.early] for v in eqn.outvars}
    places = [(line.active[cut.at], cut) for cut in cuts(line)]
    bounds = (*attention.at[1:], len(line.plan.jaxpr.eqns))
    leave, ends = list[str | None](), list[str]()
    for begin, end in zip(attention.at, bounds, strict=True):
        behind: list[tuple[int, str]] = []
        for at, cut in places:
            if begin < at <= end:
                live = [v for v in live_at(line, cut.at) if v not in early]
                if any(map(attention.token_axes, live)):
                    behind.append((len(live), cut.name))
        fewest = [name for n, name in behind if n == min(count for count, _ in behind)]
        leave.append(fewest[0] if fewest else None)
        ends += fewest[-1:]
    return TokenCuts(tuple(leave), tuple(ends[: len(attention.at) - 1]))


def find_batch_axes(
    found: BatchPair, places: Sequence[Cut], exits: Collection[str], feature: Feature
) -> tuple[tuple[tuple[int | None, ...], ...], tuple[int, ...]]:
    """Finds the batch axes of what crosses each cut, and how many features a classifier reads.

    Args:
      found: Equations for two rows and for three.
      places: Cuts, in order of execution.
      exits: Names of those at which a classifier stands.
      feature: Function from boundary activations to the features that a classifier reads.

    Raises:
      ValueError: Features other than [B, d], a value whose rows lie on several axes, or what
        `feature` raises.
    """
    cut, wider = split(found.two, places), split(found.three, places)
    present = []
    if found.tokens is not None:
        present = [jax.ShapeDtypeStruct((2, found.tokens.length), bool)]
        _check_takes_presence(feature)
    along: list[tuple[int | None, ...]] = []
    widths: list[int] = []
    for place, crossed in zip(places, boundary_values(cut), strict=True):
        live = [cut.stages[s].outputs[i] for s, i in crossed]
        more = [wider.stages[s].outputs[i] for s, i in crossed]
        axes = tuple(_axis(a.shape, b.shape) for a, b in zip(live, more, strict=True))
        along.append(axes)
        if place.name not in exits:
            continue
        told = known_values(cut, crossed, found.two)
        read = jax.eval_shape(
            lambda live, *present, axes=axes, told=told: feature(
                computed_rows(live, axes, told), *present
            ),
            live,
            *present,
        )
        if read.ndim != 2 or read.shape[0] != 2:
            raise ValueError(
                f"feature: gives {list(read.shape)} for 2 rows at {place.name}, not [B, d]"
            )
        widths.append(read.shape[1])
    return tuple(along), tuple(widths)


def _check_takes_presence(feature: Feature) -> None:
    try:
        inspect.signature(feature).bind((), None)
    except TypeError:
        raise ValueError(
            f"feature={feature!r}: must take a second argument where tokens leave, which of them "
            "are there, bool [B, n]"
        ) from None


def exit_layout(
    net: Network,
    arguments: Partitioned,
    batched: tuple[bool, ...],
    names: Sequence[str],
    feature: Feature,
    others: Sequence[str] = (),
    leave: tuple[bool, ...] | None = None,
) -> ExitLayout:
    """Finds the batch axes, widths and costs of a network at its cuts.

    Args:
      net: Network; its arrays may be shapes.
      arguments: Arguments of a call; they may be shapes.
      batched: True for each of their arrays that holds rows.
      names: Names of the sites before which classifiers stand.
      feature: Function from boundary activations to the features that a classifier reads.
      others: Names of sites before which it is cut beside these.
      leave: For each attention, False where no token leaves and no cut is needed; None where any
        may.

    Raises:
      ValueError: A cut that does not exist, outputs other than logits [B, C], or what
        `find_batch_axes` raises.
    """
    few = with_batch_size(arguments, batched, 2)
    leaves_, treedef = jax.tree.flatten((without_exits(net), few))
    shapes, leaving = abstract_leaves(leaves_), getattr(net, "tokens", None) is not None
    settings = (treedef, shapes, batched, tuple(names), feature, tuple(others), leaving, leave)
    if isinstance(net, Memoizing):
        return memoized(net, _outline, *settings)
    return _outline(*settings)


def _outline(
    treedef: Any,
    shapes: tuple[jax.ShapeDtypeStruct, ...],
    batched: tuple[bool, ...],
    names: tuple[str, ...],
    feature: Feature,
    others: tuple[str, ...],
    leaving: bool,
    leave: tuple[bool, ...] | None,
) -> ExitLayout:
    net, few = jax.tree.unflatten(treedef, shapes)
    found = trace_batch_pair(net, few, batched, leaving=leaving)
    if found.tokens is not None:
        others = (*others, *cuts_of(found.tokens, leave))
    places = select_union(found.places, names, others)
    cut = split(found.two, places)
    outputs, more = (
        [list(shape_of(v).shape) for v in line.plan.jaxpr.outvars]
        for line in (found.two, found.three)
    )
    classes = outputs[0][-1] if outputs and outputs[0] else 0
    if classes < 2 or outputs != [[2, classes]] or more != [[3, classes]]:
        raise ValueError(
            f"exits: the network returns {outputs} for 2 rows, not logits [B, C]; exit_early and "
            "prune_tokens take output=, a function from what it returns to its logits"
        )
    axes, widths = find_batch_axes(found, places, names, feature)
    counted: list[Cost] = []

    def count(net: Network) -> None:
        args, kwargs = few.combine()
        counted.append(net.cost(*args, **kwargs))

    jax.eval_shape(count, net)  # settings of wrappers are numbers there, and only shapes here
    macs = {site.name: site.spent["macs"] / 2 for site in counted[0].sites}
    stages = [
        sum(
            2 * macs[name] * (1 if rows is None else rows.share)
            for name, rows in zip(stage.sites, stage.site_rows, strict=True)
        )
        for stage in cut.stages
    ]
    numbers = itertools.count()
    exits = tuple(next(numbers) if place.name in names else None for place in places)
    reading = [2.0 * width * classes for width in widths] + [0.0]
    read = [0.0 if number is None else reading[number] for number in (*exits, len(names))]
    spent, flops = 0.0, list[float]()
    for amount, more, number in zip(stages, read, (*exits, len(names)), strict=True):
        spent += amount + more
        if number is not None:
            flops.append(spent)
    ((at, i),) = cut.outputs
    return ExitLayout(
        places=tuple(place.name for place in places),
        exits=exits,
        axes=axes,
        widths=widths,
        classes=classes,
        flops=tuple(flops),
        dtype=str(cut.stages[at].outputs[i].dtype),
        tokens=None if found.tokens is None else _with_costs(found.tokens, cut, macs, read),
    )


def _with_costs(
    tokens: TokenLayout, cut: Stages, macs: dict[str, float], read: Sequence[float]
) -> TokenLayout:
    """Tells tokens apart in the values between stages and in what stages cost."""
    attention, layers = tokens.attention, [0]
    marks = marks_of(tokens.line, attention)
    spent: list[tuple[float, float, float]] = []
    for stage in cut.stages:
        layers.append(layers[-1] + marks.attentions(stage.plan))
        amounts = [0.0, 0.0, 0.0]
        for name, rows in zip(stage.sites, stage.site_rows, strict=True):
            share = 1 if rows is None else rows.share
            amounts[min(attention.degrees.get(name, 0), 2)] += 2 * macs[name] * share
        spent.append((amounts[0], amounts[1], amounts[2]))
    crossing = (
        tuple(attention.token_axes(cut.stages[s].plan.jaxpr.outvars[i]) for s, i in crossed)
        for crossed in boundary_values(cut)
    )
    known = (known_values(cut, crossed, tokens.line) for crossed in boundary_values(cut))
    return tokens._replace(
        axes=tuple(crossing),
        known=tuple(known),
        layers=tuple(layers[:-1]),
        spent=tuple(spent),
        read=tuple(read),
    )


def select_union(
    places: Sequence[Cut], exits: Sequence[str], others: Sequence[str]
) -> tuple[Cut, ...]:
    """Selects the cuts of exits and those of devices, in order of execution.

    Args:
      places: All cuts.
      exits: Names of the sites before which classifiers stand.
      others: Names of sites before which a device takes over.

    Raises:
      ValueError: A name that no cut has, or one given twice.
    """
    others = tuple(dict.fromkeys(others))
    chosen = {*select_cuts(places, exits, argument="exits"), *select_cuts(places, others)}
    return tuple(sorted(chosen, key=lambda cut: cut.at))


def cut_names(
    net: Network, arguments: Partitioned, exits: Sequence[str], others: Sequence[str]
) -> tuple[str, ...]:
    """Names the sites that the stages but the first begin with, in order of execution.

    Args:
      net: Network of any kind.
      arguments: Arguments of a call; they may be shapes.
      exits: Names of those before which classifiers stand.
      others: Names of those before which a device takes over.
    """
    if not (exits and others):
        return (*exits, *others)  # each in order already
    line = equations(without_exits(net), abstract_arguments(arguments))
    return tuple(cut.name for cut in select_union(cuts(line), exits, others))


def boundary_values(cut: Stages) -> tuple[tuple[tuple[int, int], ...], ...]:
    """Lists for each cut the values computed before it and read after it.

    Args:
      cut: Stages of a network.

    Returns:
      For each value the stage that computes it and the position among its outputs.
    """
    last = {source: at for at, stage in enumerate(cut.stages) for source in stage.sources}
    last.update(dict.fromkeys(cut.outputs, len(cut.stages) - 1))
    return tuple(
        tuple(sorted(source for source, end in last.items() if source[0] <= at < end))
        for at in range(len(cut.stages) - 1)
    )


def without_exits(net: Network) -> Network:
    """Removes exits and masks of a network, which change nothing in its equations.

    Args:
      net: Network of any kind.
    """
    return dataclasses.replace(base_network(net), masks={})


def batch_first(live: Sequence[Array], axes: Sequence[int | None]) -> tuple[Array, ...]:
    """Moves the batch axis of values to the front; values without one are dropped.

    Args:
      live: Values at a cut.
      axes: Batch axis of each, or None.
    """
    return tuple(jnp.moveaxis(a, i, 0) for a, i in zip(live, axes, strict=True) if i is not None)


def computed_rows(
    live: Sequence[Array], axes: Sequence[int | None], known: Sequence[bool]
) -> tuple[Array, ...]:
    """Selects the values at a cut that a classifier reads, their batch axis in front.

    Args:
      live: Values at a cut.
      axes: Batch axis of each, or None.
      known: True for each that is known before anything is computed, such as a mask of tokens.
    """
    axes = [None if told else axis for axis, told in zip(axes, known, strict=True)]
    return batch_first(live, axes)


def known_values(
    cut: Stages, crossed: Sequence[tuple[int, int]], line: Equations
) -> tuple[bool, ...]:
    """Tells which values at a cut are known before anything is computed.

    Args:
      cut: Stages of a call.
      crossed: Values that cross it, each as a stage and a position among its outputs.
      line: Equations of the call.
    """
    early = {v for eqn in line.plan.jaxpr.eqns[: line.early] for v in eqn.outvars}
    return tuple(cut.stages[s].plan.jaxpr.outvars[i] in early for s, i in crossed)


def _axis(two: tuple[int, ...], three: tuple[int, ...]) -> int | None:
    """Finds the axis along which a value of two rows and one of three differ."""
    changed = [i for i, (a, b) in enumerate(zip(two, three, strict=True)) if a != b]
    if len(changed) > 1 or (changed and (two[changed[0]], three[changed[0]]) != (2, 3)):
        raise ValueError(
            f"exits: a value between stages is {list(two)} for 2 rows and {list(three)} for 3; "
            "rows are to be entries of one axis"
        )
    return changed[0] if changed else None


def find_rows(arguments: Partitioned) -> tuple[int, tuple[bool, ...]]:
    """Finds the number of rows, the leading axis of the first array that has one.

    Args:
      arguments: Arguments of a call.

    Returns:
      The number of rows, and for each array whether it holds them.

    Raises:
      ValueError: No array has an axis, or there is no row.
    """
    shapes = [np.shape(a) for a in arguments.arrays]
    rows = next((shape[0] for shape in shapes if shape), 0)
    if rows == 0:
        raise ValueError("args: the first array with an axis must have a row at least")
    return rows, tuple(shape[:1] == (rows,) for shape in shapes)


def with_batch_size(arguments: Partitioned, batched: tuple[bool, ...], rows: int) -> Partitioned:
    """Replaces arguments by shapes with another number of rows.

    Args:
      arguments: Arguments of a call.
      batched: True for each of their arrays that holds rows.
      rows: Number of rows.
    """
    return dataclasses.replace(
        arguments,
        arrays=tuple(
            jax.ShapeDtypeStruct(
                (rows, *np.shape(a)[1:]) if own else np.shape(a), jnp.result_type(a)
            )
            for a, own in zip(arguments.arrays, batched, strict=True)
        ),
    )


def abstract_leaves(leaves_: Sequence[Any]) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Replaces arrays by their shapes and dtypes, which are hashable.

    Args:
      leaves_: Arrays or shapes.
    """
    return tuple(jax.ShapeDtypeStruct(np.shape(a), jnp.result_type(a)) for a in leaves_)
