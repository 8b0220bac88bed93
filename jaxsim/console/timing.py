"""Times of alternatives, taken in turn so that a drifting machine is fair to all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from jaxsim.numerics.checks import checked_int


class Timing(NamedTuple):
    """Times of one alternative.

    Attributes:
      first: Seconds of the first call, compilation included.
      median: Median seconds of a warm call.
      best: Seconds of the shortest warm call.
      runs: Number of warm calls.
    """

    first: float
    median: float
    best: float
    runs: int


def alternate(
    alternatives: Mapping[str, Callable[[], Any]], *, runs: int = 21, inner: int = 1
) -> dict[str, Timing]:
    """Times alternatives: each is called once, then all in turn, the order reversed every round.

    Args:
      alternatives: Functions to time, by name; results are waited for.
      runs: Number of rounds, at least 5.
      inner: Number of calls in one measurement, at least 1; more for very short functions.

    Returns:
      Times by name.

    Raises:
      ValueError: Too few of either.
    """
    runs, inner = checked_int("runs", runs, 5), checked_int("inner", inner, 1)
    first = {name: _seconds(f, 1) for name, f in alternatives.items()}
    warm: dict[str, list[float]] = {name: [] for name in alternatives}
    for i in range(runs):
        order = list(alternatives.items())
        for name, f in order if i % 2 == 0 else reversed(order):
            warm[name].append(_seconds(f, inner) / inner)
    return {
        name: Timing(first[name], statistics.median(times), min(times), len(times))
        for name, times in warm.items()
    }


def _seconds(f: Callable[[], Any], calls: int) -> float:
    start = time.perf_counter()
    result = f()
    for _ in range(calls - 1):
        result = f()
    jax.block_until_ready(result)
    return time.perf_counter() - start
