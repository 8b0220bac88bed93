"""Two arrays a parameter: a fast one that gradients are written to, a slow one with the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int, Key

from jaxsim.cores.cells import normal
from jaxsim.network.arguments import require_key
from jaxsim.numerics.arrays import own_promotion
from jaxsim.numerics.checks import check_range
from jaxsim.train.pulsed.arrays import Matrix, changes, gradients, matrices, require_cells
from jaxsim.train.pulsed.cells import Cells
from jaxsim.train.pulsed.pulses import deliver, round_pulses
from jaxsim.train.pulsed.sgd import check_rate, rate_at

Row = Float[Array, "..."]


class Rule(NamedTuple):
    """What becomes of a row that was read from the fast array, as functions.

    What it remembers is a pytree of arrays [rows, *], kept digitally; `read` sees a row of it.

    Attributes:
      begin: `(symmetry, key) -> (start, memory)` from the symmetry points of the fast cells, [rows,
        columns], to what they hold at first and what is remembered.
      sign: `memory -> s`, signs [rows, 1] with which gradients are written to the fast array.
      read: `(memory, row, gain, key) -> (pulses, memory)` for a row [columns] of the fast array:
        the pulses that the slow array should get there, not necessarily whole, and what is
        remembered of the row. `gain` is the learning rate of the transfer.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from jaxsim.train import pulsed
      >>> plain = pulsed.Rule(  # reads, and passes on
      ...     begin=lambda symmetry, key: (symmetry, ()),
      ...     sign=lambda memory: 1.0,
      ...     read=lambda memory, row, gain, key: (gain * row, memory),
      ... )
      >>> cells = pulsed.constant_step(0.1)
      >>> rates = {"learning_rate": 1.0, "gain": 10.0}
      >>> optimizer = pulsed.transfer(cells, cells, plain, jax.random.key(0), **rates)
      >>> params, grads = {"w": jnp.zeros((2, 1))}, {"w": jnp.full((2, 1), 0.1)}
      >>> updates, _ = optimizer.update(grads, optimizer.init(params), params)
      >>> [round(float(change), 2) for change in updates["w"][:, 0]]  # one row is read
      [-0.1, 0.0]
    """

    begin: Callable[[Matrix, Key[Array, ""]], tuple[Matrix, Any]]
    sign: Callable[[Any], Any]
    read: Callable[[Any, Row, Any, Key[Array, ""]], tuple[Row, Any]]


class Pair(NamedTuple):
    """The two arrays of a parameter.

    Attributes:
      fast: What the cells of the fast array hold, [rows, columns].
      fast_parts: What differs between them.
      slow_parts: What differs between the cells that hold the parameter.
      memory: What the rule remembers.
    """

    fast: Matrix
    fast_parts: Any
    slow_parts: Any
    memory: Any


class TransferState(NamedTuple):
    """State of an optimizer with two arrays a parameter.

    Attributes:
      step: Number of updates so far.
      key: Random key of all pulses and reads.
      pairs: The arrays, by path of the parameter.
    """

    step: Int[Array, ""]
    key: Key[Array, ""]
    pairs: dict[str, Pair]


def transfer(
    fast: Cells,
    slow: Cells,
    rule: Rule,
    key: Key[Array, ""],
    *,
    learning_rate: optax.ScalarOrSchedule,
    gain: optax.ScalarOrSchedule,
    every: int | Array = 1,
    read_noise: float | Array | None = None,
    max_pulses: int | Array = 31,
    max_transfer_pulses: int | Array = 31,
) -> optax.GradientTransformation:
    """Gradient descent through a second array: what `tiki_taka` and its successors have in common.

    Gradients go to the fast array by pulses, as `sgd` counts them. Every so many updates one of its
    rows is read, in turn, and a rule says what pulses the same row of the slow array gets.

    Args:
      fast: Cells of the array that gradients are written to.
      slow: Cells of the array that holds the parameter.
      rule: What becomes of a row that was read.
      key: Random key of what differs between cells, of pulses and of reads.
      learning_rate: Learning rate of the fast array: a number of at least 0, traced, or a schedule.
      gain: Learning rate of the transfer: a number of at least 0, traced, or a schedule.
      every: Updates from one read to the next, at least 1; all rows of an array of R rows are read
        in R · every updates. Traced.
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
      >>> optimizer = pulsed.tiki_taka(cells, cells, 0.1, key, gain=0.5)
      >>> optimizer.init({"w": jnp.zeros((2, 3))}).pairs["w"].fast.shape
      (2, 3)
    """
    require_cells("fast", fast)
    require_cells("slow", slow)
    require_key(key, "cells and pulses")
    check_rate("learning_rate", learning_rate)
    check_rate("gain", gain)
    check_range("every", every, 1, whole=True)
    if read_noise is not None:
        check_range("read_noise", read_noise, 0)
    check_range("max_pulses", max_pulses, 1, whole=True)
    check_range("max_transfer_pulses", max_transfer_pulses, 1, whole=True)

    def begin(w: Matrix, key: Key[Array, ""]) -> Pair:
        first, second, third = jax.random.split(key, 3)
        fast_parts, slow_parts = fast.draw(first, w.shape), slow.draw(second, w.shape)
        symmetry = jnp.broadcast_to(jnp.asarray(fast.symmetry(fast_parts), w.dtype), w.shape)
        start, memory = rule.begin(symmetry, third)
        return Pair(start, fast_parts, slow_parts, memory)

    def written(pair: Pair, grad: Matrix, rate: Any, keys: Key[Array, "2"]) -> Pair:
        wanted = -rate * rule.sign(pair.memory) * grad / fast.size
        pulses = round_pulses(wanted, max_pulses, keys[0])
        return pair._replace(fast=deliver(fast, pair.fast_parts, pair.fast, pulses, keys[1]))

    def transferred(
        pair: Pair, w: Matrix, row: Array, gain: Any, keys: Key[Array, "4"]
    ) -> tuple[Pair, Matrix]:
        def at_row(tree: Any) -> Any:
            return jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, row, keepdims=False), tree)

        read = at_row(pair.fast)
        if read_noise is not None:
            read = read + (read_noise * normal(keys[0], read.shape)).astype(read.dtype)
        wanted, memory = rule.read(at_row(pair.memory), read, gain, keys[1])
        pulses = round_pulses(wanted, max_transfer_pulses, keys[2])
        new = deliver(slow, at_row(pair.slow_parts), at_row(w), pulses, keys[3])
        kept = jax.tree.map(lambda a, b: a.at[row].set(b.astype(a.dtype)), pair.memory, memory)
        return pair._replace(memory=kept), w.at[row].set(new)

    @own_promotion()
    def init(params: Any) -> TransferState:
        keys = jax.random.fold_in(key, 1)
        pairs = {
            name: begin(w, jax.random.fold_in(keys, i))
            for i, (name, w) in enumerate(matrices(params, "pulsed.transfer").items())
        }
        return TransferState(jnp.zeros((), jnp.int32), jax.random.fold_in(key, 2), pairs)

    @own_promotion()
    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, TransferState]:
        weights, grads = matrices(params, "pulsed.transfer"), gradients(updates)
        rate, gain_now = rate_at(learning_rate, state.step), rate_at(gain, state.step)
        now, step = jax.random.fold_in(state.key, state.step), state.step + 1
        due, reads = step % every == 0, step // every - 1
        pairs: dict[str, Pair] = {}
        new: dict[str, Matrix] = {}
        for i, (name, w) in enumerate(weights.items()):
            keys = jax.random.split(jax.random.fold_in(now, i), 6)
            pair = written(state.pairs[name], grads[name], rate, keys[:2])
            low, high = slow.bounds(pair.slow_parts)
            pairs[name], new[name] = lax.cond(
                due,
                lambda pair, w, keys: transferred(pair, w, reads % len(w), gain_now, keys),
                lambda pair, w, keys: (pair, w),
                pair,
                jnp.clip(w, low, high).astype(w.dtype),
                keys[2:],
            )
        return changes(params, new), TransferState(step, state.key, pairs)

    return optax.GradientTransformation(init, update)
