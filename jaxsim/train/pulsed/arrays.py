"""Parameters as arrays of cells: which they are, and as which matrix each is wired."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxsim.network.leaves import path_name
from jaxsim.numerics.checks import check_called
from jaxsim.train.pulsed.cells import Cells

Matrix = Float[Array, "rows columns"]


def matrices(params: Any, name: str) -> dict[str, Matrix]:
    """Arranges each parameter as the matrix of its array, by its path.

    The last axis are the columns, all others together the rows: what drives an array comes in along
    its rows, as to a dense layer's kernel or a convolution's.

    Args:
      params: Tree of parameters.
      name: Name of the optimizer, for the error.

    Raises:
      ValueError: No parameters, or one that is no array of cells: integers, complex numbers, half
        precision, or fewer than two axes; an optimizer around it that sets its state.
    """
    if params is None:
        raise ValueError(f"params=None: {name} needs the parameters; update(…, params)")
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        at, dtype = path_name(path), jnp.result_type(leaf)
        if dtype not in (jnp.float32, jnp.float64):
            raise ValueError(
                f"params: {at} is {dtype}; cells of {name} hold weights in float32 or float64, as "
                "less would round their steps away"
            )
        if jnp.ndim(leaf) < 2 or jnp.size(leaf) == 0:
            raise ValueError(
                f"params: {at} is {list(jnp.shape(leaf))}, and no array of rows and columns; train "
                "it digitally beside the arrays, by optax.multi_transform or optax.masked"
            )
        found[at] = as_matrix(leaf)
    if not found:  # as optax shows what goes around it, to find what is like parameters
        raise ValueError(
            f"params: none for {name}. What wraps it and sets parts of its state, as optimizers of "
            "js.sparsity do, cannot: no pulse does that; masks of js.prune stay without them"
        )
    return found


def as_matrix(leaf: Any) -> Matrix:
    """Joins all axes but the last.

    Args:
      leaf: Array of at least two axes.
    """
    shape = jnp.shape(leaf)
    return jnp.reshape(leaf, (math.prod(shape[:-1]), shape[-1]))


def gradients(updates: Any) -> dict[str, Matrix]:
    """Arranges gradients as the matrices of their parameters, by path.

    Args:
      updates: Tree of gradients.
    """
    found = jax.tree_util.tree_leaves_with_path(updates)
    return {path_name(path): as_matrix(leaf) for path, leaf in found}


def changes(params: Any, new: Mapping[str, Matrix]) -> Any:
    """Makes the tree of what optax adds to parameters.

    Args:
      params: Tree of parameters.
      new: What their arrays hold now, by path.
    """

    def change(path: Any, old: Array) -> Array:
        return new[path_name(path)].reshape(jnp.shape(old)) - old

    return jax.tree_util.tree_map_with_path(change, params)


def require_cells(name: str, cells: Any) -> None:
    """Refuses what are no cells that pulses change.

    Args:
      name: Name of the argument.
      cells: What was given.

    Raises:
      ValueError: No `Cells`.
    """
    check_called(name, cells)
    if not isinstance(cells, Cells):
        raise ValueError(f"{name}={cells!r}: must be pulsed.Cells, as soft_bounds(…)")
