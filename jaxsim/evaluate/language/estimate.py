"""Perplexity and agreement with their errors, from scores of windows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxsim.evaluate.language.scores import Scores
from jaxsim.numerics.checks import checked_int, checked_seed


class Estimate(NamedTuple):
    """A number with its uncertainty from a bootstrap over windows, NaN where there is but one.

    Attributes:
      value: The number, over all windows.
      error: Its standard error.
      low: Lower end of the interval that holds 95 % of the resampled values.
      high: Upper end.

    Examples:
      >>> from jaxsim.evaluate.language import Estimate
      >>> print(Estimate(value=31.7, error=2.1, low=27.9, high=36.0))
      31.7 ± 2.1
    """

    value: float
    error: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} ± {self.error:.2g}"


def perplexity(
    scores: Scores, reference: Scores | None = None, *, draws: int = 1000, seed: int = 0
) -> Estimate:
    """Computes the perplexity, or its ratio to a reference's on the same windows.

    Windows differ far more from one another than two networks do on one of them: to tell networks
    apart take the ratio, whose error is paired.

    Args:
      scores: Scores of a network.
      reference: Scores of another network on the same windows; None for the perplexity itself.
      draws: Number of times that windows are resampled, at least 2.
      seed: Seed of the resampling, from 0 to 2**32 - 1.

    Raises:
      ValueError: Scores of other windows, or a number out of range.

    Source: Efron and Tibshirani (1993), An Introduction to the Bootstrap, chapters 6 and 13.

    Examples:
      >>> import numpy as np
      >>> from jaxsim.evaluate.language import Scores, perplexity
      >>> half = Scores(np.full((2, 3), np.log(2.0)), np.zeros((2, 3), int))
      >>> round(perplexity(half).value, 6)
      2.0
    """
    losses = scores.losses.mean(1, dtype=np.float64)
    if reference is not None:
        _check_same(scores, reference)
        losses = losses - reference.losses.mean(1, dtype=np.float64)
    return _bootstrap(losses, math.exp, draws, seed)


def agreement(scores: Scores, reference: Scores, *, draws: int = 1000, seed: int = 0) -> Estimate:
    """Computes the fraction of places at which two networks choose the same next token.

    Args:
      scores: Scores of a network.
      reference: Scores of another on the same windows.
      draws: Number of times that windows are resampled, at least 2.
      seed: Seed of the resampling, from 0 to 2**32 - 1.

    Raises:
      ValueError: Scores of other windows, or a number out of range.

    Examples:
      >>> import numpy as np
      >>> from jaxsim.evaluate.language import Scores, agreement
      >>> of = lambda *choices: Scores(np.ones((1, 2)), np.array([choices]))
      >>> agreement(of(3, 4), of(3, 5)).value
      0.5
    """
    _check_same(scores, reference)
    return _bootstrap((scores.choices == reference.choices).mean(1), float, draws, seed)


def _check_same(scores: Scores, reference: Scores) -> None:
    if scores.losses.shape != reference.losses.shape:
        raise ValueError(
            f"reference: scores {list(reference.losses.shape)}; must be of the same windows, "
            f"{list(scores.losses.shape)}"
        )


def _bootstrap(
    values: Float[np.ndarray, " W"], of_mean: Callable[[float], float], draws: int, seed: int
) -> Estimate:
    """A function of the mean over windows, with what it becomes when windows are resampled."""
    times, W = checked_int("draws", draws, 2), len(values)
    generator, value = np.random.default_rng(checked_seed(seed)), of_mean(values.mean())
    if W < 2:
        return Estimate(value, math.nan, math.nan, math.nan)
    picked = generator.integers(W, size=(times, W))
    resampled = np.array([of_mean(mean) for mean in values[picked].mean(1)])
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Estimate(value, float(resampled.std(ddof=1)), float(low), float(high))
