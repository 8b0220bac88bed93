"""Steps and scales of numbers that neither overflow nor vanish."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

TINY = float(np.finfo(np.float32).tiny)
"""The smallest normal float32: hardware may take what lies below it for zero."""

FAR = 2.0**30
"""Steps from zero beyond which no code lies, by far."""


def step_of(width: Float[Array, "..."], count: float | Array, *, empty: float) -> Array:
    """A share of a width that can be divided by.

    `width / count`, and at least the smallest normal float, since a quotient below it may be
    flushed to zero.

    Args:
      width: at least 0.
      count: into how many steps.
      empty: the step where the width is zero, or so small that it may be taken for it.
    """
    return jnp.where(width >= TINY, jnp.maximum(width / count, TINY), empty)


def scale_product(y: Float[Array, "..."], a: Array | float, b: Array) -> Float[Array, "..."]:
    """`y * (a * b)`, and `y * a * b` where the product of two scales is no normal float."""
    both = a * b
    fits = (both >= TINY) & (both < jnp.inf)
    return y * jnp.where(fits, both, a) * jnp.where(fits, 1.0, b)


def power_below(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The largest power of two that is no larger than each magnitude, at most 2^126; 0 for zero.

    What is divided by it keeps its digits, and can be squared or added up.
    """
    bits = lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32) & 0x7F800000
    return jnp.minimum(lax.bitcast_convert_type(bits, jnp.float32), 2.0**126)


def unit_of(x: Float[Array, "..."], axes: Sequence[int]) -> Float[Array, "..."]:
    """A power of two that brings the largest magnitude near one; 1 for zeros.

    Args:
      x: no derivative flows to the unit.
      axes: what shares a unit, kept with size 1.
    """
    most = jnp.max(jnp.abs(lax.stop_gradient(x)), axes, keepdims=True, initial=0)
    unit = power_below(most)
    return jnp.where(unit > 0, unit, 1.0)


@jax.custom_jvp
def divide(x: Float[Array, "..."], by: Float[Array, "..."]) -> Float[Array, "..."]:
    """`x / by` for any normal `by`, with a derivative that is finite where the quotient is.

    Compilers multiply by the reciprocal of what they broadcast, in a kernel of its own: it may be
    flushed to zero above 2^126, and rounds twice. The usual derivative squares `by`.
    """
    x, by = jnp.broadcast_arrays(x, by)
    # not a number by itself is none either; so `by` differs from entry to entry to the compiler
    return x / jnp.where(x != x, x, by)


def _quotient(x: Array, by: Array) -> Array:
    less = jnp.where(jnp.abs(by) > 1, 0.25, 1.0).astype(by.dtype)
    return (x * less) / (by * less)


divide.defjvps(
    lambda tangent, ans, x, by: _quotient(tangent, by),
    # what no derivative reaches, because it is clipped, may be infinite
    lambda tangent, ans, x, by: -jnp.clip(ans, -FAR, FAR) * _quotient(tangent, by),
)
