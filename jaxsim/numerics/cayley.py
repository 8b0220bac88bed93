"""Orthogonal matrices that are moved along themselves."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def cayley(skew: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    """The orthogonal matrix of Cayley's transform, to second order the exponential.

    A product with it moves an orthogonal matrix along all orthogonal ones, in any direction and
    without leaving them.

    Args:
      skew: Matrix whose transpose is its negative: what each channel is turned by towards each
        other, in radians where that is little.

    Source: Wen and Yin (2013), A feasible method for optimization with orthogonality constraints.
    """
    half = np.asarray(skew, np.float64) / 2
    one = np.eye(len(half))
    return np.linalg.solve(one - half, one + half)
