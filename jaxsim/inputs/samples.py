"""Checks of inputs and of their classes on the host, once, before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsim.numerics.checks import is_traced


def check_labels(name: str, labels: Any, classes: int | None = None) -> None:
    """Checks that labels are classes; a traced array is checked by its type only.

    Args:
      name: Of the argument, for the error.
      labels: Whole numbers from 0.
      classes: How many there are; None where that is not known.

    Raises:
      ValueError: They are floats, one-hot rows or booleans, or one of them is no class.
    """
    found = labels if is_traced(labels) else np.asarray(labels)
    allowed = "" if classes is None else f" from 0 to {classes - 1}"
    if found.dtype.kind not in "iu":
        rows = f"{found.dtype}{list(found.shape)}"
        raise ValueError(
            f"{name}: {rows}; expected classes as integers{allowed}"
            + (", one an input: argmax(…, -1) of one-hot rows" if found.ndim > 1 else "")
        )
    if is_traced(labels):
        return
    wrong = (found < 0) if classes is None else (found < 0) | (found >= classes)
    if wrong.any():
        where = np.argwhere(wrong)[0].tolist()
        at = ", ".join(map(str, where))
        allowed = allowed or " of at least 0"
        raise ValueError(f"{name}[{at}]={found[tuple(where)]}: must be a class{allowed}")


def check_finite(name: str, inputs: Any) -> None:
    """Checks that every array holds numbers, neither NaN nor infinite; traced ones are not read.

    Args:
      name: Of the argument, for the error.
      inputs: An array, or a tree of them.

    Raises:
      ValueError: One does not, with the first place.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(inputs):
        if is_traced(leaf) or not _is_inexact(leaf):
            continue
        # Where it lies: a device answers one question, and nothing is copied from it.
        if bool((jnp if isinstance(leaf, jax.Array) else np).isfinite(leaf).all()):
            continue
        whole = np.asarray(leaf)
        where = tuple(np.argwhere(~np.isfinite(whole.astype(np.complex128)))[0].tolist())
        at = ", ".join(map(str, where))
        place = jax.tree_util.keystr(path)
        raise ValueError(f"{name}{place}[{at}]={whole[where]}: must be finite")


def check_batch(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Checks that every array of a batch holds numbers, neither NaN nor infinite.

    Args:
      name: Of the argument, for the error.
      args: Positional arguments of a network.
      kwargs: Keyword arguments of it.

    Raises:
      ValueError: One does not, with the first place.
    """
    if len(args) == 1 and not kwargs:
        check_finite(name, args[0])
    else:
        check_finite(name, args)
        check_finite(name, kwargs)


def _is_inexact(leaf: Any) -> bool:
    dtype = getattr(leaf, "dtype", np.asarray(leaf).dtype)
    return jnp.issubdtype(dtype, np.inexact)
