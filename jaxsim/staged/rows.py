"""Rows of a batch: in arguments, and in the values between stages."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxsim.cores.partition import Partitioned
from jaxsim.network.arguments import abstract_arguments
from jaxsim.network.cuts import Cut, Equations, cuts, equations, select_cuts
from jaxsim.network.network import Network, base_network
from jaxsim.network.stages import Stages


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
