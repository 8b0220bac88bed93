"""Tiki-Taka: gradients in a second array, whose asymmetry forgets them, and what improved it."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from jaxsim.cores.cells import normal
from jaxsim.numerics.checks import check_range
from jaxsim.train.pulsed.arrays import Matrix, require_cells
from jaxsim.train.pulsed.cells import Cells
from jaxsim.train.pulsed.transfer import Rule, transfer


def tiki_taka(
    fast: Cells,
    slow: Cells,
    learning_rate: optax.ScalarOrSchedule,
    key: Key[Array, ""],
    *,
    gain: optax.ScalarOrSchedule,
    every: int | Array = 1,
    reference_error: float | Array = 0.0,
    read_noise: float | Array | None = None,
    max_pulses: int | Array = 31,
    max_transfer_pulses: int | Array = 31,
) -> optax.GradientTransformation:
    """Tiki-Taka: gradients move a fast array about its symmetry point, and it moves the weights.

    Where gradients have no preferred sign, the asymmetry of the fast cells drives them back to
    their symmetry point, which is what a reference holds: a read of zero. What is left above it
    moves the weights, so that they come to rest where the gradient is zero and not where asymmetric
    pulses cancel. A transfer changes the weights by gain · (read - reference), by pulses.

    Args:
      fast: Cells of the array that gradients are written to; asymmetric ones, as `soft_bounds(…)`.
      slow: Cells of the array that holds the parameter.
      learning_rate: Learning rate of the fast array: a number of at least 0, traced, or a schedule.
      key: Random key of what differs between cells, of pulses and of reads.
      gain: Learning rate of the transfer: a number of at least 0, traced, or a schedule.
      every: Updates from one read to the next, at least 1; one row is read, in turn. Traced.
      reference_error: Standard deviation of the reference about the symmetry point, in units of the
        weights, drawn once for each cell; at least 0. Traced.
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
      >>> optimizer = pulsed.tiki_taka(cells, cells, 0.1, key, gain=1.0)
      >>> params, grads = {"w": jnp.zeros((1, 1))}, {"w": jnp.full((1, 1), 0.1)}
      >>> updates, state = optimizer.update(grads, optimizer.init(params), params)
      >>> round(float(state.pairs["w"].fast[0, 0]), 2), round(float(updates["w"][0, 0]), 2)
      (-0.01, -0.01)

    Source: Gokmen and Haensch (2020), Frontiers in Neuroscience 14:103, with weights that are the
      slow array alone.
    """
    require_cells("slow", slow)
    check_range("reference_error", reference_error, 0)

    def begin(symmetry: Matrix, key: Key[Array, ""]) -> tuple[Matrix, Matrix]:
        return symmetry, _reference(symmetry, reference_error, key)

    def read(reference: Array, row: Array, gain: Any, key: Key[Array, ""]) -> tuple[Array, Array]:
        del key
        return gain * (row - reference) / slow.size, reference

    return transfer(
        fast,
        slow,
        Rule(begin, lambda reference: 1.0, read),
        key,
        learning_rate=learning_rate,
        gain=gain,
        every=every,
        read_noise=read_noise,
        max_pulses=max_pulses,
        max_transfer_pulses=max_transfer_pulses,
    )


class Buffer(NamedTuple):
    """What is kept digitally of an array.

    Attributes:
      hidden: What reads added up to, in units of the weights, [rows, columns].
      reference: What a read of zero is taken to be.
      sign: With which sign the gradients of each row are written, [rows, 1].
    """

    hidden: Matrix
    reference: Matrix
    sign: Float[Array, "rows 1"]


def buffered_tiki_taka(
    fast: Cells,
    slow: Cells,
    learning_rate: optax.ScalarOrSchedule,
    key: Key[Array, ""],
    *,
    gain: optax.ScalarOrSchedule,
    every: int | Array = 1,
    threshold: float | Array = 1.0,
    forget: float | Array | None = None,
    reference_error: float | Array = 0.0,
    read_noise: float | Array | None = None,
    max_pulses: int | Array = 31,
    max_transfer_pulses: int | Array = 31,
) -> optax.GradientTransformation:
    """Tiki-Taka with a digital buffer behind the fast array (TTv2), which filters noise.

    A transfer adds gain · (read - reference) to a hidden matrix. What there exceeds a step of the
    slow cells is sent as pulses and taken off.

    Args:
      fast: Cells of the array that gradients are written to; asymmetric ones, as `soft_bounds(…)`.
      slow: Cells of the array that holds the parameter.
      learning_rate: Learning rate of the fast array: a number of at least 0, traced, or a schedule.
      key: Random key of what differs between cells, of pulses and of reads.
      gain: Learning rate of the transfer: a number of at least 0, traced, or a schedule.
      every: Updates from one read to the next, at least 1; one row is read, in turn. Traced.
      threshold: What a pulse stands for in the hidden matrix, in steps of the slow cells, above 0.
        Traced.
      forget: Share from 0 to 1 of a hidden value that stays once it has sent pulses; None takes off
        what they stand for. Traced.
      reference_error: Standard deviation of the reference about the symmetry point, in units of the
        weights, drawn once for each cell; at least 0. Traced.
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
      >>> optimizer = pulsed.buffered_tiki_taka(cells, cells, 0.1, key, gain=0.5)
      >>> params, grads = {"w": jnp.zeros((1, 1))}, {"w": jnp.full((1, 1), 0.1)}
      >>> updates, state = optimizer.update(grads, optimizer.init(params), params)
      >>> float(updates["w"][0, 0]), round(float(state.pairs["w"].memory.hidden[0, 0]), 3)
      (0.0, -0.005)

    Source: Gokmen (2021), Frontiers in Artificial Intelligence 4:699148.
    """
    return chopped_tiki_taka(
        fast,
        slow,
        learning_rate,
        key,
        gain=gain,
        flip=0.0,
        every=every,
        threshold=threshold,
        forget=forget,
        reference_error=reference_error,
        read_noise=read_noise,
        max_pulses=max_pulses,
        max_transfer_pulses=max_transfer_pulses,
    )


def chopped_tiki_taka(
    fast: Cells,
    slow: Cells,
    learning_rate: optax.ScalarOrSchedule,
    key: Key[Array, ""],
    *,
    gain: optax.ScalarOrSchedule,
    flip: float | Array = 0.1,
    every: int | Array = 1,
    threshold: float | Array = 1.0,
    forget: float | Array | None = None,
    reference_error: float | Array = 0.0,
    read_noise: float | Array | None = None,
    max_pulses: int | Array = 31,
    max_transfer_pulses: int | Array = 31,
) -> optax.GradientTransformation:
    """Buffered Tiki-Taka whose gradients change sign at random (c-TTv2), which offsets do not.

    Each row is written with a sign and read with it. After a read the sign flips with a chance. An
    error of the reference enters the hidden matrix with both signs and cancels; gradients add up.

    Args:
      fast: Cells of the array that gradients are written to; asymmetric ones, as `soft_bounds(…)`.
      slow: Cells of the array that holds the parameter.
      learning_rate: Learning rate of the fast array: a number of at least 0, traced, or a schedule.
      key: Random key of what differs between cells, of pulses, reads and signs.
      gain: Learning rate of the transfer: a number of at least 0, traced, or a schedule.
      flip: Chance from 0 to 1 that the sign of a row flips after it was read. Traced.
      every: Updates from one read to the next, at least 1; one row is read, in turn. Traced.
      threshold: What a pulse stands for in the hidden matrix, in steps of the slow cells, above 0.
        Traced.
      forget: Share from 0 to 1 of a hidden value that stays once it has sent pulses; None takes off
        what they stand for. Traced.
      reference_error: Standard deviation of the reference about the symmetry point, in units of the
        weights, drawn once for each cell; at least 0. Traced.
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
      >>> optimizer = pulsed.chopped_tiki_taka(cells, cells, 0.1, key, gain=0.5, flip=1.0)
      >>> params = {"w": jnp.zeros((1, 1))}
      >>> _, state = optimizer.update(params, optimizer.init(params), params)
      >>> state.pairs["w"].memory.sign.tolist()
      [[-1.0]]

    Source: Rasch, Carta, Fagbohungbe and Gokmen (2024), Nature Communications 15:7133.
    """
    require_cells("slow", slow)
    check_range("flip", flip, 0, 1)
    check_range("reference_error", reference_error, 0)
    send = sender(slow, threshold, forget, max_transfer_pulses)

    def begin(symmetry: Matrix, key: Key[Array, ""]) -> tuple[Matrix, Buffer]:
        reference = _reference(symmetry, reference_error, key)
        sign = jnp.ones((len(symmetry), 1), symmetry.dtype)
        return symmetry, Buffer(jnp.zeros_like(symmetry), reference, sign)

    def read(memory: Buffer, row: Array, gain: Any, key: Key[Array, ""]) -> tuple[Array, Buffer]:
        added = gain * memory.sign * (row - memory.reference)
        pulses, hidden = send(memory.hidden + added)
        flipped = jax.random.bernoulli(key, flip)
        sign = jnp.where(flipped, -memory.sign, memory.sign)
        return pulses, Buffer(hidden, memory.reference, sign)

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


def sender(slow: Cells, threshold: Any, forget: Any, most: Any) -> Any:
    """Makes the function from a hidden value to the pulses that are due and what is left of it.

    Args:
      slow: Cells that get the pulses.
      threshold: What a pulse stands for, in steps of these cells.
      forget: Share of a value that stays once it has sent pulses; None takes off what was sent.
      most: Most pulses at once.

    Raises:
      ValueError: An argument out of range.
    """
    check_range("threshold", threshold, 0, above=True)
    if forget is not None:
        check_range("forget", forget, 0, 1)

    def send(hidden: Array) -> tuple[Array, Array]:
        step = threshold * slow.size
        pulses = jnp.clip(jnp.trunc(hidden / step), -most, most)
        left = hidden - pulses * step
        if forget is not None:
            left = jnp.where(pulses != 0, forget * hidden, hidden)
        return pulses, left

    return send


def _reference(symmetry: Matrix, error: Any, key: Key[Array, ""]) -> Matrix:
    return symmetry + (error * normal(key, symmetry.shape)).astype(symmetry.dtype)
