"""Paired comparisons over seeds, corrected for how many there are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Paired(NamedTuple):
    """A comparison of two methods on the same seeds.

    Attributes:
      mean: Mean of the differences a − b.
      half_width: Half the width of its 95 % confidence interval, by Student's t.
      t_p: Two-sided p of the paired t-test.
      wilcoxon_p: Two-sided p of the signed-rank test.
      wins: Number of pairs in which a is above b.
      n: Number of pairs.

    Examples:
      >>> import jaxsim.collaborative as jcol
      >>> result = jcol.paired_test([3.0, 2.0, 4.0], [1.0, 1.0, 1.0])
      >>> result.mean, result.wins, result.n
      (2.0, 3, 3)
    """

    mean: float
    half_width: float
    t_p: float
    wilcoxon_p: float
    wins: int
    n: int


def paired_test(a: Sequence[float], b: Sequence[float]) -> Paired:
    """Compares two methods seed by seed.

    Args:
      a: Scores of the first method, one a seed, at least two.
      b: Scores of the second method with the same seeds.

    Raises:
      ValueError: Lengths that differ, fewer than two seeds, or scores that are not finite.

    Examples:
      >>> import jaxsim.collaborative as jcol
      >>> round(jcol.paired_test([3.0, 2.0, 4.0], [1.0, 1.0, 1.0]).t_p, 3)
      0.074
    """
    from scipy import stats  # slow to import, and only this needs it

    x, y = np.asarray(a, float), np.asarray(b, float)
    if x.shape != y.shape or x.ndim != 1 or len(x) < 2:
        raise ValueError(f"a{list(x.shape)}, b{list(y.shape)}: must be as long, at least 2")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("a, b: hold NaN or infinite values")
    difference = x - y
    n, error = len(x), float(difference.std(ddof=1) / np.sqrt(len(x)))
    if not difference.any():
        return Paired(0.0, 0.0, 1.0, 1.0, 0, n)
    return Paired(
        mean=float(difference.mean()),
        half_width=float(stats.t.ppf(0.975, n - 1)) * error,
        t_p=float(stats.ttest_rel(x, y).pvalue) if error else 0.0,
        wilcoxon_p=float(tuple(stats.wilcoxon(difference))[1]),
        wins=int((difference > 0).sum()),
        n=n,
    )


def holm(p_values: Sequence[float]) -> Float[np.ndarray, " m"]:
    """Corrects p values for their number: below 0.05, all of them hold at 5 % together.

    Args:
      p_values: P values of m comparisons, at least one, each in [0, 1].

    Raises:
      ValueError: None, or one outside [0, 1].

    Source: Holm (1979), Scandinavian Journal of Statistics 6.

    Examples:
      >>> import jaxsim.collaborative as jcol
      >>> jcol.holm([0.01, 0.04]).tolist()
      [0.02, 0.04]
    """
    p = np.asarray(p_values, float)
    if p.ndim != 1 or not p.size or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p_values={p_values}: must be numbers in [0, 1], at least one")
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    out = np.empty_like(p)
    out[order] = np.minimum(stepped, 1)
    return out
