"""Means of repeated measurements, with how far they spread."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def standard_error(values: np.ndarray | Sequence[float]) -> float:
    """Standard error of the mean of several values.

    Args:
      values: One of each seed, programming or picture.
    """
    return float(np.std(values, ddof=1) / np.sqrt(len(values)))


def mean_and_error(
    values: np.ndarray | Sequence[float], digits: int = 2, *, signed: bool = False
) -> str:
    """Shows a mean and its standard error; of one value, that alone.

    Args:
      values: One of each seed, programming or picture.
      digits: Decimals.
      signed: Whether a difference is shown, whose sign matters.
    """
    mean = f"{np.mean(values):{'+' if signed else ''}.{digits}f}"
    return f"{mean} ± {standard_error(values):.{digits}f}" if len(values) > 1 else mean
