"""Arrays as the package computes with them: dtypes, promotion and devices."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array

from jaxsim.numerics.checks import is_traced


@contextlib.contextmanager
def own_promotion() -> Generator[None]:
    """JAX's standard promotion of types and ranks, which this package's arithmetic is written for.

    A caller's strict modes (`jax_numpy_dtype_promotion`, `jax_numpy_rank_promotion`) are about the
    caller's code. Also a decorator.
    """
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def in_auto_axes(f: Callable[..., Any], *args: Any, out: Any = None) -> Any:
    """Calls a function whose operations say nothing of how their results are sharded.

    Where an argument lies on a mesh of explicit axes, JAX would ask each reshape and contraction;
    inside, the compiler decides. Arguments of a model's own `auto_axes` are there already.

    Args:
      f: Function of trees of arrays.
      *args: Its arguments; it must close over no array.
      out: How its results are sharded where axes are explicit; None leaves them whole on each
        device.
    """
    meshes = [jax.typeof(a).sharding.mesh for a in jax.tree.leaves(args) if isinstance(a, Array)]
    mesh = next((mesh for mesh in meshes if mesh.explicit_axes), None)
    if mesh is None:
        inside = next((mesh for mesh in meshes if not mesh.empty), None)
        if inside is None or not jax.sharding.get_abstract_mesh().explicit_axes:
            return f(*args)
        with jax.sharding.use_abstract_mesh(inside):
            return f(*args)
    with jax.sharding.use_abstract_mesh(mesh):
        return jax.sharding.auto_axes(
            f, axes=mesh.explicit_axes, out_sharding=out or PartitionSpec()
        )(*args)


@contextlib.contextmanager
def traced_for_auto_axes() -> Generator[None]:
    """Traces what is inside for `in_auto_axes`: as if no axis of the mesh around were explicit."""
    mesh = jax.sharding.get_abstract_mesh()
    types = (AxisType.Auto,) * len(mesh.axis_names)
    with jax.sharding.use_abstract_mesh(mesh.update(axis_types=types) if types else mesh):
        yield


def native(a: Any) -> Any:
    """An array in this machine's byte order; anything else as it is.

    jax reads the bytes of others as if they were its own, once a program is compiled.
    """
    if isinstance(a, np.ndarray | np.generic) and not a.dtype.isnative:
        return a.astype(a.dtype.newbyteorder("="))
    return a


def whole_on_host(a: Any) -> np.ndarray:
    """All of an array in NumPy; of one that other processes hold parts of, each takes all."""
    if getattr(a, "is_fully_addressable", True):
        return np.asarray(a)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(a, tiled=True))


def parts_on_host(a: Any) -> list[np.ndarray]:
    """What this process holds of an array, in NumPy: one part where that is all of it."""
    if getattr(a, "is_fully_addressable", True):
        return [np.asarray(a)]
    return [np.asarray(shard.data) for shard in a.addressable_shards]


def placed_like(a: Array, other: Any) -> Array:
    """An array on the devices of another one of its rank, cut as that is where its sizes allow it.

    Args:
      a: What is made beside a parameter, such as its mask.
      other: The parameter; nothing happens where it is traced or not on a mesh.
    """
    sharding = None if is_traced(a) or is_traced(other) else getattr(other, "sharding", None)
    if not isinstance(sharding, jax.sharding.NamedSharding) or np.ndim(a) != np.ndim(other):
        return a
    try:
        sharding.shard_shape(np.shape(a))
    except ValueError:  # a size that the mesh does not divide
        return a
    return jax.device_put(a, sharding)
