"""At which steps a network in training is pruned, and to what sparsity."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxsim.numerics.checks import check_range, check_share


class Schedule(NamedTuple):
    """Schedule of pruning in a training run; steps count from 0 and may be traced.

    Attributes:
      due: Function from a step to True where masks are made before it.
      sparsity: Function from a step to the fraction that is then left out; None where the pattern
        fixes it.

    Examples:
      >>> import jaxsim as js
      >>> schedule = js.sparsity.Schedule(lambda step: step == 3, lambda step: 0.5)
      >>> schedule.due(3), schedule.sparsity(3)
      (True, 0.5)
    """

    due: Callable[[Int[Array, ""]], Bool[Array, ""]]
    sparsity: Callable[[Int[Array, ""]], Float[Array, ""]] | None


def one_shot(sparsity: float | Array | None = None, *, at: int | Array = 0) -> Schedule:
    """Prunes at one step.

    Args:
      sparsity: Fraction to leave out, in [0, 1); None where the pattern fixes it.
      at: Step, at least 0.

    Raises:
      ValueError: An argument out of range.

    Examples:
      >>> import jaxsim as js
      >>> schedule = js.sparsity.one_shot(0.5, at=10)
      >>> [bool(schedule.due(step)) for step in (9, 10, 11)]
      [False, True, False]
    """
    check_range("at", at, 0, whole=True)
    if sparsity is None:
        return Schedule(lambda step: step == at, None)
    check_share("sparsity", sparsity)
    return Schedule(lambda step: step == at, lambda step: jnp.float32(sparsity))


def iterative(
    sparsity: float | Array, *, begin: int | Array, every: int | Array, rounds: int | Array
) -> Schedule:
    """Prunes the same fraction of what is left in each round.

    Round i of n, at begin + (i - 1) · every, ends at the sparsity 1 - (1 - s)^(i/n).

    Args:
      sparsity: Fraction s left out after the last round, in [0, 1).
      begin: Step of the first round, at least 0.
      every: Steps from a round to the next, at least 1.
      rounds: N, at least 1.

    Raises:
      ValueError: An argument out of range.

    Source: Han et al. (2015), arXiv 1506.02626, section 3.3; Frankle and Carbin (2019),
    arXiv 1803.03635.

    Examples:
      >>> import jaxsim as js
      >>> schedule = js.sparsity.iterative(0.75, begin=0, every=10, rounds=2)
      >>> [round(float(schedule.sparsity(step)), 2) for step in (0, 10)]
      [0.5, 0.75]
    """
    check_share("sparsity", sparsity)
    check_range("begin", begin, 0, whole=True)
    check_range("every", every, 1, whole=True)
    check_range("rounds", rounds, 1, whole=True)

    def due(step: Array) -> Array:
        past = step - begin
        return (past >= 0) & (past % every == 0) & (past < every * jnp.asarray(rounds))

    def target(step: Array) -> Array:
        done = jnp.clip((step - begin) // every + 1, 0, rounds)
        return 1 - (1 - jnp.float32(sparsity)) ** (done / rounds)

    return Schedule(due, target)


def cubic(
    sparsity: float | Array,
    *,
    begin: int | Array,
    every: int | Array,
    updates: int | Array,
    initial: float | Array = 0.0,
) -> Schedule:
    """Prunes fast at first: s_f + (s_i - s_f) (1 - (t - t_0) / (n Δt))³.

    Args:
      sparsity: Last sparsity s_f, in [0, 1).
      begin: Step t_0 of the first pruning, at least 0.
      every: Number of steps Δt from one pruning to the next, at least 1.
      updates: Number n, at least 1; the last pruning is at t_0 + n Δt.
      initial: Sparsity s_i at t_0, in [0, 1).

    Raises:
      ValueError: An argument out of range.

    Source: Zhu and Gupta (2017), arXiv 1710.01878, eq. 1.

    Examples:
      >>> import jaxsim as js
      >>> schedule = js.sparsity.cubic(0.8, begin=0, every=10, updates=2)
      >>> [round(float(schedule.sparsity(step)), 2) for step in (0, 10, 20)]
      [0.0, 0.7, 0.8]
    """
    check_share("sparsity", sparsity)
    check_share("initial", initial)
    check_range("begin", begin, 0, whole=True)
    check_range("every", every, 1, whole=True)
    check_range("updates", updates, 1, whole=True)

    def due(step: Array) -> Array:
        past = step - begin
        return (past >= 0) & (past % every == 0) & (past <= every * jnp.asarray(updates))

    def target(step: Array) -> Array:
        left = 1 - jnp.clip((step - begin) / (jnp.asarray(updates) * every), 0, 1)
        return sparsity + (initial - jnp.float32(sparsity)) * left**3

    return Schedule(due, target)
