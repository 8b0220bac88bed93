"""Accuracy for parameters. Both measures are definitions of this library, not of a paper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxsim.numerics.checks import check_range, checked_int


def parameter_efficiency(accuracy: float, nonzeros: int) -> float:
    """Accuracy per parameter that is not zero.

    It rewards what is small even where it is useless: a network with one parameter that guesses is
    better than any trained one. `hardness_normalized` does not. Our definition.

    Args:
      accuracy: share in [0, 1].
      nonzeros: parameters that are not zero.

    Raises:
      ValueError: an argument out of range.
    """
    check_range("accuracy", accuracy, 0, 1)
    return float(accuracy) / checked_int("nonzeros", nonzeros, 1)


def hardness_normalized(
    score: float,
    nonzeros: int,
    reference: Sequence[tuple[float, float]] | Float[np.ndarray, "N 2"],
) -> float:
    """How many parameters dense networks need for the same score, over those that are not zero.

    Above 1 the sparse network does better than a dense one of its size. The last points of accuracy
    cost more parameters than the first, and here they count as much more. What dense networks need
    is a monotone cubic through the logarithms of their sizes, over the score. Our definition.

    Args:
      score: of the sparse network: accuracy, or anything that rises with size (a negative loss).
      nonzeros: its parameters that are not zero.
      reference: (parameters, score) of dense networks, at least two; both must rise together.

    Returns:
      The ratio; NaN where no reference scores so low or so high.

    Raises:
      ValueError: fewer than two references, or scores that do not rise with size.
    """
    from scipy.interpolate import PchipInterpolator

    rows = np.asarray(sorted(map(tuple, reference)), float)
    if rows.ndim != 2 or rows.shape[0] < 2 or rows.shape[1] != 2 or not np.isfinite(rows).all():
        raise ValueError(f"reference={reference!r}: give at least two pairs (parameters, score)")
    sizes, scores = rows.T
    if sizes[0] <= 0 or (np.diff(sizes) <= 0).any() or (np.diff(scores) <= 0).any():
        raise ValueError(f"reference={reference!r}: scores must rise with the parameters")
    needed: Any = PchipInterpolator(scores, np.log(sizes), extrapolate=False)(score)
    return float(np.exp(needed)) / checked_int("nonzeros", nonzeros, 1)
