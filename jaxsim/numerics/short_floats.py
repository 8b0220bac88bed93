"""Floats of eight bits as the bytes that they are."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array


def as_bytes(a: Array) -> Array:
    """Floats of eight bits as bytes, other numbers as they are.

    On a CPU, XLA chooses among such floats, and takes them through loops, as floats of sixteen
    bits, which it makes anew for each number that is used.

    Args:
      a: Array.
    """
    short = jnp.issubdtype(a.dtype, jnp.floating) and a.dtype.itemsize == 1
    return lax.bitcast_convert_type(a, jnp.uint8) if short else a


def from_bytes(a: Array, dtype: Any) -> Array:
    """The inverse of `as_bytes`.

    Args:
      a: Array from it, or a part.
      dtype: Type that its numbers had.
    """
    return a if a.dtype == dtype else lax.bitcast_convert_type(a, dtype)
