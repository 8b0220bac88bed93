"""Encodings: functions from pixels to angles of rotations about Y."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxsim.numerics.checks import is_traced

Encoding = Callable[[Float[Array, "..."]], Float[Array, "..."]]
"""From pixels to angles of the same shape, each on its own."""


def ry(pixels: Float[Array, "..."]) -> Float[Array, "..."]:
    """Encodes pixels in [0, 1] as angles π·pixel; warns outside, where x and 2 − x look the same.

    Args:
      pixels: Numbers in [0, 1], of any shape.

    Returns:
      Angles in radians.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim.quantum as jq
      >>> [round(a, 2) for a in jq.ry(jnp.array([0.0, 1.0])).tolist()]
      [0.0, 3.14]
    """
    if not is_traced(pixels) and pixels.size:
        known = np.asarray(pixels)
        lo, hi = known.min(), known.max()
        if lo < 0 or hi > 1:
            warnings.warn(
                f"x in [{lo:.3g}, {hi:.3g}]: RY(πx) cannot tell x from −x and 2 − x; scale pixels "
                "to [0, 1]",
                stacklevel=2,
            )
    return math.pi * pixels


def threshold(at: float | Array = 0.5) -> Encoding:
    """Makes an encoding that turns a wire to |1> for pixels above a threshold.

    Args:
      at: The threshold, finite. Its derivative is zero.

    Returns:
      A function from pixels to the angles 0 and π.

    Raises:
      ValueError: It is not a finite number.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim.quantum as jq
      >>> (jq.threshold(0.5)(jnp.array([0.2, 0.7])) > 3).tolist()
      [False, True]
    """
    if not is_traced(at) and not (np.ndim(at) == 0 and np.isfinite(at)):
        raise ValueError(f"at={at}: must be a finite number")

    def angles(pixels: Float[Array, "..."]) -> Float[Array, "..."]:
        pixels = jnp.asarray(pixels)
        return jnp.where(pixels > at, math.pi, 0.0).astype(pixels.dtype)

    return angles
