"""How a pixel becomes the angle of a rotation about Y: any function from pixels to angles."""

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
    """The angle π·pixel, for pixels in [0, 1]; warns outside, where x and 2 − x look the same."""
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
    """The encoding that turns a wire to |1> for pixels above a threshold.

    Args:
      at: the threshold. Its derivative is zero.

    Raises:
      ValueError: it is not a finite number.
    """
    if not is_traced(at) and not (np.ndim(at) == 0 and np.isfinite(at)):
        raise ValueError(f"at={at}: must be a finite number")

    def angles(pixels: Float[Array, "..."]) -> Float[Array, "..."]:
        pixels = jnp.asarray(pixels)
        return jnp.where(pixels > at, math.pi, 0.0).astype(pixels.dtype)

    return angles
