"""Digits of integer codes, and the dtypes that hold them."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Num


def digit_count(largest: int, bits: int) -> int:
    """Digits of `bits` bits that the magnitudes up to `largest` take, at least one."""
    return max(1, -(-largest.bit_length() // bits))


def digit(code: Num[Array, "..."], place: int, bits: int, count: int) -> Num[Array, "..."]:
    """One digit of the magnitude of each code, with the code's sign.

    Args:
      code: whole numbers, as integers or floats.
      place: value of the digit's place, a power of two.
      bits: bits of a digit.
      count: digits of a code; the gradient of each is an equal share of the code's.
    """
    if jnp.issubdtype(code.dtype, jnp.integer):
        wide = code.astype(jnp.int32)
        found = jnp.sign(wide) * ((jnp.abs(wide) // place) % 2**bits)
        return found.astype(code_dtype(0, 2**bits - 1))
    magnitude = jnp.floor(jnp.abs(code) / place) % 2**bits
    found = lax.stop_gradient(jnp.sign(code) * magnitude)
    return found + (code - lax.stop_gradient(code)) / (place * count)


def broadcast_planes(values: Any, ndim: int) -> Array:
    """One value a plane, as it broadcasts to an array of that rank which begins with the planes."""
    shape = (*values.shape, *(1,) * (ndim - values.ndim))
    if isinstance(values, np.ndarray | np.generic):
        # made by operations: a constant would lie on axes of the mesh around, explicit ones where
        # those of `in_auto_axes` are not, and nothing could be differentiated through it
        each = [jnp.full(1, value, values.dtype) for value in values.ravel()]
        values = jnp.concatenate(each) if len(set(values.ravel().tolist())) > 1 else each[0]
        values = jnp.broadcast_to(values, math.prod(shape))
    return jnp.reshape(values, shape)


def code_dtype(lo: int, hi: int) -> np.dtype[np.signedinteger]:
    """The narrowest signed integer type that holds every code from `lo` to `hi`."""
    return next(
        np.dtype(t)
        for t in ("int8", "int16", "int32")
        if lo >= np.iinfo(t).min and hi <= np.iinfo(t).max
    )
