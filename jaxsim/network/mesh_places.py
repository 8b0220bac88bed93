"""Places on a mesh, inside a `shard_map`: which weight a device holds, and what others hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxsim import internals
from jaxsim.cores.core import State
from jaxsim.network.plan import Plan, contractions
from jaxsim.network.site import Site


def device_axes(plan: Plan, local: internals.ShardMap, depth: int) -> dict[str, tuple[str, ...]]:
    """Finds the axes of a mesh along which the weight of each site inside a `shard_map` is cut.

    Args:
      plan: Plan of its body.
      local: What it is told.
      depth: Number of loops around it.
    """
    return {
        c.site.name: tuple(a for i, a in enumerate(local.axes, depth) if c.site.stacked[i])
        for c in contractions(plan)
    }


def strip(state: State, axes: int) -> State:
    """Takes off leading axes of length one, of one device.

    Args:
      state: State, with these axes.
      axes: Number of axes.
    """
    return jax.tree.map(lambda a: a.reshape(a.shape[axes:]), state)


def unstrip(state: State, axes: int) -> State:
    """Adds leading axes of length one, of one device.

    Args:
      state: State of one device.
      axes: Number of axes.
    """
    return jax.tree.map(lambda a: a.reshape((1,) * axes + a.shape), state)


def gathered(state: State, local: internals.ShardMap, stacked: Sequence[str]) -> State:
    """Takes one of the equal states along the axes of a mesh that a weight is not cut along.

    Args:
      state: State with axes for all axes of the mesh.
      local: What the `shard_map` is told.
      stacked: Names of the axes to keep.
    """
    places = tuple(slice(None) if axis in stacked else 0 for axis in local.axes)
    return jax.tree.map(lambda a: a[places], state)


def everyone(axes: Sequence[tuple[str, int]], places: Sequence[Any], x: Array) -> Array:
    """Collects the inputs of all devices that hold one weight.

    Args:
      axes: Names and sizes of the axes of a mesh along which they are.
      places: Place of this device along each.
      x: Input of this device.

    Returns:
      The inputs, with a leading axis.
    """
    xs = x[None]
    for (axis, size), place in zip(axes, places, strict=True):
        # a sum, as what is gathered is of a type that says it differs
        here = (jnp.arange(size) == place).reshape(-1, *[1] * xs.ndim)
        xs = lax.psum(jnp.where(here, xs, 0), axis).reshape(-1, *x.shape)
    return xs


def varies(axis: str, place: Any, *operands: Any) -> bool:
    """Tells if devices along an axis of a mesh may hold different operands.

    Args:
      axis: Name of the axis.
      place: Place along it.
      *operands: Operands of an equation.
    """
    # where types are not checked, a place itself is not said to vary
    told = axis in internals.varying_axes(place)
    return not told or any(axis in internals.varying_axes(a) for a in operands)


def differing(site: Site, indices: tuple[Any, ...], *operands: Any) -> tuple[Any, ...]:
    """Leaves out the places of devices that compute the same, and so are to draw the same.

    Args:
      site: Site.
      indices: Iteration of each loop around, and place along each axis of a mesh.
      *operands: What the site contracts.
    """
    if not any(site.axes):
        return indices
    return tuple(
        index
        for index, axis, stacked in zip(indices, site.axes, site.stacked, strict=True)
        if not axis or stacked or varies(axis, index, *operands)
    )
