"""Tiki-Taka that finds its reference on the fly, from what the fast array held a while ago."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from jaxsim.numerics.checks import check_range
from jaxsim.train.pulsed.arrays import Matrix, require_cells
from jaxsim.train.pulsed.cells import Cells
from jaxsim.train.pulsed.tiki_taka import sender
from jaxsim.train.pulsed.transfer import Rule, transfer


class Tracker(NamedTuple):
    """What is kept digitally of an array.

    Attributes:
      hidden: What reads added up to, in units of the weights, [rows, columns].
      mean: Running mean of reads.
      reference: That mean at the end of the last period: what a read of zero is taken to be.
      sign: With which sign the gradients of each row are written, [rows, 1].
      reads: How often each row was read, [rows, 1].
    """

    hidden: Matrix
    mean: Matrix
    reference: Matrix
    sign: Float[Array, "rows 1"]
    reads: Int[Array, "rows 1"]


def agad(
    fast: Cells,
    slow: Cells,
    learning_rate: optax.ScalarOrSchedule,
    key: Key[Array, ""],
    *,
    gain: optax.ScalarOrSchedule,
    period: int | Array = 10,
    tail: float | Array = 5.0,
    every: int | Array = 1,
    threshold: float | Array = 1.0,
    forget: float | Array | None = None,
    read_noise: float | Array | None = None,
    max_pulses: int | Array = 31,
    max_transfer_pulses: int | Array = 31,
) -> optax.GradientTransformation:
    """Analog gradient accumulation with a dynamic reference (AGAD): Tiki-Taka without a reference.

    The sign with which a row's gradients are written flips after a period of reads. What the row
    then moves by, from the mean of its reads before, is the gradient alone; where it lies does not
    matter. So no symmetry point is programmed or subtracted, and the fast array starts at zero. A
    read adds gain · sign · (read - mean of the last period) to a hidden matrix, which sends pulses
    as that of `buffered_tiki_taka` does; nothing is added in the first period.

    Args:
      fast: Cells of the array that gradients are written to.
      slow: Cells of the array that holds the parameter.
      learning_rate: Learning rate of the fast array: a number of at least 0, traced, or a schedule.
      key: Random key of what differs between cells, of pulses and of reads.
      gain: Learning rate of the transfer: a number of at least 0, traced, or a schedule.
      period: Reads of a row until its sign flips, at least 1. Traced.
      tail: Weight of a read in the running mean, over that of equal weights in a period: it counts
        min(tail / period, 1), so that the end of a period counts most; above 0. Traced.
      every: Updates from one read to the next, at least 1; one row is read, in turn. Traced.
      threshold: What a pulse stands for in the hidden matrix, in steps of the slow cells, above 0.
        Traced.
      forget: Share from 0 to 1 of a hidden value that stays once it has sent pulses; None takes off
        what they stand for. Traced.
      read_noise: Standard deviation of a read in units of the weights, at least 0; None for none.
        Traced.
      max_pulses: Most pulses of a fast cell in one update, at least 1. Traced.
      max_transfer_pulses: Most pulses of a slow cell in one transfer, at least 1. Traced.

    Returns:
      An optax transformation from gradients to what the parameters, the slow arrays, really change
      by. Every parameter that it sees is an array of at least two axes, as `sgd` says.

    Raises:
      ValueError: An argument out of range; when it begins and in `update`, parameters that are no
        such arrays, by their paths.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from jaxsim.train import pulsed
      >>> cells, key = pulsed.soft_bounds(0.01), jax.random.key(0)
      >>> optimizer = pulsed.agad(cells, cells, 0.1, key, gain=0.5, period=2)
      >>> params = {"w": jnp.zeros((1, 1))}
      >>> state = optimizer.init(params)
      >>> for _ in range(2):
      ...     _, state = optimizer.update(params, state, params)
      >>> state.pairs["w"].memory.sign.tolist()
      [[-1.0]]

    Source: Rasch, Carta, Fagbohungbe and Gokmen (2024), Nature Communications 15:7133, as IBM's
      aihwkit documents it, with choppers of regular periods along the rows.
    """
    require_cells("slow", slow)
    check_range("period", period, 1, whole=True)
    check_range("tail", tail, 0, above=True)
    send = sender(slow, threshold, forget, max_transfer_pulses)

    def begin(symmetry: Matrix, key: Key[Array, ""]) -> tuple[Matrix, Tracker]:
        del key
        zero, one = jnp.zeros_like(symmetry), jnp.ones((len(symmetry), 1), symmetry.dtype)
        return zero, Tracker(zero, zero, zero, one, jnp.zeros((len(symmetry), 1), jnp.int32))

    def read(memory: Tracker, row: Array, gain: Any, key: Key[Array, ""]) -> tuple[Array, Tracker]:
        del key
        begins = memory.reads % period == 0
        reference = jnp.where(begins, memory.mean, memory.reference)
        known = memory.reads >= period
        added = jnp.where(known, gain * memory.sign * (row - reference), 0)
        pulses, hidden = send(memory.hidden + added)
        share = jnp.minimum(tail / period, 1)
        mean = memory.mean + share * (row - memory.mean)
        reads = memory.reads + 1
        sign = jnp.where(reads % period == 0, -memory.sign, memory.sign)
        return pulses, Tracker(hidden, mean, reference, sign, reads)

    return transfer(
        fast,
        slow,
        Rule(begin, lambda memory: memory.sign, read),
        key,
        learning_rate=learning_rate,
        gain=gain,
        every=every,
        read_noise=read_noise,
        max_pulses=max_pulses,
        max_transfer_pulses=max_transfer_pulses,
    )
