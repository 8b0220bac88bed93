"""Leaves of pytrees: their paths, and checks of parameters."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsim.numerics.arrays import parts_on_host
from jaxsim.numerics.checks import is_traced

PyTree = Any


def check_like(mine: PyTree, given: PyTree) -> None:
    """Checks that parameters can take the place of others.

    Args:
      mine: Parameters of the network.
      given: Parameters that are to replace them.

    Raises:
      ValueError: Another structure or shape, or integers in place of floats; the message names the
        first path.
    """
    own, other = (
        {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (mine, given)
    )
    if own.keys() != other.keys() or jax.tree.structure(mine) != jax.tree.structure(given):
        missing, more = (sorted(a.keys() - b.keys()) for a, b in ((own, other), (other, own)))
        what = "of another type"
        if missing or more:
            what = f"without {missing[0]}" if missing else f"with {more[0]}"
        raise ValueError(f"params: not the tree that the network's parameters are, but one {what}")
    for name, a in own.items():
        b = other[name]
        if np.shape(a) != np.shape(b):
            raise ValueError(
                f"params: {name} is {list(np.shape(b))}, the network's is {list(np.shape(a))}"
            )
        trained = jnp.issubdtype(jnp.result_type(a), jnp.inexact)
        if trained and not jnp.issubdtype(jnp.result_type(b), jnp.inexact):
            raise ValueError(f"params: {name} is {jnp.result_type(b)} and has no gradient")


def check_params(params: PyTree, only: Collection[str] | None = None) -> None:
    """Refuses parameters that are NaN, infinite or not arrays.

    Args:
      params: Tree of parameters.
      only: Paths to check; None checks all.

    Raises:
      ValueError: A leaf is not an array, or holds NaN or infinite values.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = path_name(path)
        if only is not None and name not in only:
            continue
        if not is_array(leaf):
            raise ValueError(f"variables: {name}={leaf!r} is not an array")
        if is_traced(leaf) or isinstance(leaf, jax.ShapeDtypeStruct):
            continue
        if jnp.issubdtype(leaf.dtype, jnp.floating) and not all(
            np.isfinite(part).all() for part in parts_on_host(leaf)
        ):
            raise ValueError(f"variables: {name} holds NaN or infinite values")


def is_array(leaf: Any) -> bool:
    """Tells if a leaf of a call's arguments is traced; anything else is static.

    Args:
      leaf: Leaf of a pytree.
    """
    return isinstance(leaf, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct)


def is_whole_number(leaf: Any) -> bool:
    """Tells a single integer, such as the length of a cache, from other leaves.

    Args:
      leaf: Leaf of a tree.
    """
    return jnp.ndim(leaf) == 0 and jnp.issubdtype(jnp.result_type(leaf), jnp.integer)


def path_name(path: Sequence[Any]) -> str:
    """Writes a path of a pytree as `layer/kernel`.

    Args:
      path: Keys from the root to a leaf, as `jax.tree_util` gives them.
    """
    keys = [str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path]
    if len(keys) > 1 and keys[-1] == "value":  # the box of a partitioned Flax parameter
        keys = keys[:-1]
    return "/".join(keys) or "params"
