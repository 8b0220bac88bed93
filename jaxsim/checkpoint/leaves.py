"""Arrays of a pytree as orbax writes and reads them."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array


def abstract_tree(tree: Any, home: jax.sharding.Sharding) -> Any:
    """Lists the shapes of arrays, each with the sharding it has, or another.

    Args:
      tree: Tree of arrays.
      home: Sharding of those that do not lie on a mesh.
    """

    def shape(a: Any) -> jax.ShapeDtypeStruct:
        placed = getattr(a, "sharding", home)
        # what is known by its shape alone may name a mesh, but no devices
        on_mesh = isinstance(placed, NamedSharding) and isinstance(placed.mesh, Mesh)
        kept = placed if on_mesh else home
        return shape_on(a, kept)

    return jax.tree.map(shape, tree)


def shape_on(a: Any, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    """Reads shape and dtype of an array, to be placed by a sharding.

    Args:
      a: Array, or anything with a shape and dtype.
      sharding: Where it is to lie.
    """
    return jax.ShapeDtypeStruct(jnp.shape(a), jnp.result_type(a), sharding=sharding)


def to_leaf_list(tree: Any) -> dict[str, list[Any]]:
    """Puts leaves in a list as orbax takes them, random keys as their data.

    Args:
      tree: Tree of arrays.
    """
    return {"leaves": [_key_data(leaf) for leaf in jax.tree.leaves(tree)]}


def from_leaf_list(like: Any, content: dict[str, list[Any]]) -> Any:
    """Restores a tree from `to_leaf_list`, each leaf placed where that of `like` is.

    Args:
      like: Tree of the same structure.
      content: Leaves in a list.
    """
    leaves, treedef = jax.tree.flatten(like)
    arrays = [_placed_like(a, leaf) for a, leaf in zip(content["leaves"], leaves, strict=True)]
    return jax.tree.unflatten(
        treedef,
        [
            jax.random.wrap_key_data(a, impl=jax.random.key_impl(leaf)) if _is_key(leaf) else a
            for a, leaf in zip(arrays, leaves, strict=True)
        ],
    )


def _placed_like(a: Any, leaf: Any) -> Any:
    """An array that is bound to the default device only if that of the network is.

    What is read from disk is bound to the device it was put on, and calls of it compile anew.
    """
    bound = getattr(leaf, "committed", False) or not isinstance(a, jax.Array)
    if bound or a.sharding != jax.sharding.SingleDeviceSharding(jax.devices()[0]):
        return a
    return jnp.asarray(np.asarray(a))


def place_whole(a: np.ndarray, leaf: Any) -> Array:
    """Places all of an array where another lies, maybe on devices of several processes.

    Args:
      a: Array, the same in each process.
      leaf: The other, of its shape.
    """
    if getattr(leaf, "is_fully_addressable", True):
        bound = getattr(leaf, "committed", False)
        return jax.device_put(a, leaf.sharding) if bound else jnp.asarray(a)
    return jax.make_array_from_callback(a.shape, leaf.sharding, lambda index: a[index])


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)


def _key_data(leaf: Any) -> Array | jax.ShapeDtypeStruct:
    if not _is_key(leaf):
        return leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jnp.asarray(leaf)
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.eval_shape(jax.random.key_data, leaf)
    return jax.random.key_data(leaf)


def is_weak(leaf: Any) -> bool:
    """Whether an array has a weak type.

    Args:
      leaf: Array, or anything else.
    """
    return bool(getattr(leaf, "weak_type", False))


@contextmanager
def readable(path: Any) -> Generator[None]:
    """Turns what orbax and tensorstore raise on a bad checkpoint into a ValueError.

    Args:
      path: Folder of the checkpoint, for the error.
    """
    try:
        yield
    except Exception as error:
        raise ValueError(f"path={str(path)!r} is not a readable checkpoint: {error}") from error


@contextmanager
def writable(folder: Path) -> Generator[None]:
    """Turns what orbax and tensorstore raise of a disk into an OSError of one line.

    Args:
      folder: Folder that is written to, for the error.
    """
    said = logging.getLogger("absl")

    def of_a_thread(record: logging.LogRecord) -> bool:
        return "_SignalingThread" not in record.getMessage()

    said.addFilter(of_a_thread)  # a traceback a thread, of what is raised here all the same
    try:
        yield
    except Exception as error:
        code = re.search(r"os_error_code='(\d+)'", str(error))
        reason = os.strerror(int(code[1])) if code else str(error).split("\n")[0]
        raise OSError(f"{str(folder)!r} cannot be written: {reason}") from error
    finally:
        said.removeFilter(of_a_thread)


def said_by_the_first(a: np.ndarray) -> np.ndarray:
    """Hands every process an array of the first, to the bit.

    Args:
      a: Array, whose shape and dtype are the same in each process.
    """
    if jax.process_count() == 1:
        return a
    from jax.experimental import multihost_utils

    # as bytes: what is handed on is summed, and a sum has no negative zero
    content = np.frombuffer(np.ascontiguousarray(a).tobytes(), np.uint8)
    content = np.asarray(multihost_utils.broadcast_one_to_all(content))
    return np.frombuffer(content.astype(np.uint8).tobytes(), a.dtype).reshape(a.shape)


@contextmanager
def of_the_first_process(path: Any, done: str = "written") -> Generator[None]:
    """Ends in every process as it ends in the first, which alone does what is inside.

    Args:
      path: What is written, for the error.
      done: What is done with it, likewise.

    Raises:
      OSError: In the other processes, where the first raised.
    """
    if jax.process_count() == 1:
        yield
        return
    from jax.experimental import multihost_utils

    written = False
    try:
        yield
        written = True
    finally:
        written = bool(multihost_utils.broadcast_one_to_all(np.asarray(written)))
    if not written:
        raise OSError(f"{str(path)!r} was not {done}: the first process failed")
