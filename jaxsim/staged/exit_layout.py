"""Batch axes, widths and costs of a network that is cut.

They are found by shape, from a trace with two rows and one with three.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import jax

from jaxsim.adaptive.features import Feature
from jaxsim.cores.partition import Partitioned
from jaxsim.internals import shape_of
from jaxsim.network.cost import Cost
from jaxsim.network.cuts import Cut, Equations, cuts, equations
from jaxsim.network.network import Network
from jaxsim.network.stages import Stages, split
from jaxsim.staged.attention import marks_of
from jaxsim.staged.rows import (
    abstract_leaves,
    boundary_values,
    computed_rows,
    known_values,
    select_union,
    with_batch_size,
    without_exits,
)
from jaxsim.staged.token_layout import TokenLayout, cuts_of, find_tokens, known_tokens
from jaxsim.values.memo import Memoizing, memoized


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


def _axis(two: tuple[int, ...], three: tuple[int, ...]) -> int | None:
    """Finds the axis along which a value of two rows and one of three differ."""
    changed = [i for i, (a, b) in enumerate(zip(two, three, strict=True)) if a != b]
    if len(changed) > 1 or (changed and (two[changed[0]], three[changed[0]]) != (2, 3)):
        raise ValueError(
            f"exits: a value between stages is {list(two)} for 2 rows and {list(three)} for 3; "
            "rows are to be entries of one axis"
        )
    return changed[0] if changed else None


def _check_takes_presence(feature: Feature) -> None:
    try:
        inspect.signature(feature).bind((), None)
    except TypeError:
        raise ValueError(
            f"feature={feature!r}: must take a second argument where tokens leave, which of them "
            "are there, bool [B, n]"
        ) from None
