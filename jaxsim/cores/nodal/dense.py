"""Products and solutions of many small dense systems."""

from __future__ import annotations

from functools import partial

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array


def solved(a: Array, b: Array) -> Array:
    """The solution of a x = b for systems of joined networks, which need no pivoting."""
    known = inverse(lax.stop_gradient(a))
    return lax.custom_linear_solve(
        partial(times, a),
        b,
        lambda _, b: times(known, b),
        lambda _, c: times(jnp.swapaxes(known, -1, -2), c),
    )


def inverse(a: Array) -> Array:
    """The inverse, by Gauss-Jordan elimination in place, one wire connected after another.

    A pivot is one plus resistance times conductance seen from either side of that wire, so at least
    one. LAPACK, called for thousands of small blocks, is slower on a busy machine by far.
    """
    index = jnp.arange(a.shape[-1])

    def connect(i: Array, a: Array) -> Array:
        here, there = index == i, (index == i)[:, None]
        row = lax.dynamic_slice_in_dim(a, i, 1, a.ndim - 2)
        column = lax.dynamic_slice_in_dim(a, i, 1, a.ndim - 1)
        row = jnp.where(here, 1, row) / lax.dynamic_slice_in_dim(row, i, 1, a.ndim - 1)
        return jnp.where(there, row, jnp.where(here, 0, a) - column * row)

    return lax.fori_loop(0, a.shape[-1], connect, a)


def times(a: Array, b: Array) -> Array:
    """The product of matrices in full precision, on every backend."""
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
