"""Parameter efficiency: accuracy for parameters. Both measures are defined here, not in a paper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxsim.numerics.checks import check_range, checked_int


def parameter_efficiency(accuracy: float, nonzeros: int) -> float:
    """Computes accuracy per nonzero parameter.

    It rewards what is small even where it is useless: a network with one parameter that guesses is
    better than any trained one. `hardness_normalized` does not. Our definition.

    Args:
      accuracy: Fraction of right answers, in [0, 1].
      nonzeros: Number of nonzero parameters, at least 1.

    Raises:
      ValueError: An argument out of range.

    Examples:
      >>> import jaxsim as js
      >>> js.parameter_efficiency(0.5, 1000)
      0.0005
    """
    check_range("accuracy", accuracy, 0, 1)
    return float(accuracy) / checked_int("nonzeros", nonzeros, 1)


def hardness_normalized(
    score: float,
    nonzeros: int,
    reference: Sequence[tuple[float, float]] | Float[np.ndarray, "N 2"],
) -> float:
    """Computes the parameters that dense networks need for a score, over the nonzero ones used.

    Above 1 the sparse network does better than a dense one of its size. The last points of accuracy
    cost more parameters than the first, and here they count as much more. What dense networks need
    is a monotone cubic through the logarithms of their sizes, over the score. Our definition.

    Args:
      score: Score of the sparse network: accuracy, or anything that rises with size (a negative
        loss).
      nonzeros: Number of its nonzero parameters, at least 1.
      reference: Pairs (parameters, score) of dense networks, at least two; both must rise together.

    Returns:
      The ratio; NaN where no reference scores so low or so high.

    Raises:
      ValueError: Fewer than two references, or scores that do not rise with size.

    Examples:
      >>> import jaxsim as js
      >>> round(js.hardness_normalized(0.9, 500, [(100, 0.8), (1000, 0.9), (10000, 0.95)]), 3)
      2.0
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
