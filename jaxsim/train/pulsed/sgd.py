"""Stochastic gradient descent by pulses on the cells that hold the weights."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key

from jaxsim.network.arguments import require_key
from jaxsim.numerics.arrays import own_promotion
from jaxsim.numerics.checks import check_range
from jaxsim.train.pulsed.arrays import changes, gradients, matrices, require_cells
from jaxsim.train.pulsed.cells import Cells
from jaxsim.train.pulsed.pulses import deliver, round_pulses


class SgdState(NamedTuple):
    """State of pulsed gradient descent.

    Attributes:
      step: Number of updates so far.
      key: Random key of all pulses.
      parts: What differs from cell to cell, by path of the parameter.
    """

    step: Int[Array, ""]
    key: Key[Array, ""]
    parts: dict[str, Any]


def rate_at(rate: Any, step: Any) -> Any:
    """A learning rate at a step.

    Args:
      rate: A number, or a schedule of optax.
      step: Number of updates before.
    """
    return rate(step) if callable(rate) else rate


def check_rate(name: str, rate: Any) -> None:
    """Checks that a learning rate is a schedule or a number of at least 0.

    Args:
      name: Name of the argument.
      rate: What was given.

    Raises:
      ValueError: It is neither.
    """
    if not callable(rate):
        check_range(name, rate, 0)


def sgd(
    cells: Cells,
    learning_rate: optax.ScalarOrSchedule,
    key: Key[Array, ""],
    *,
    max_pulses: int | Array = 31,
) -> optax.GradientTransformation:
    """Gradient descent that changes weights by pulses: what arrays do when they learn in place.

    Hardware multiplies two trains of random pulses, one along the rows by the input and one along
    the columns by the error; where they coincide a cell gets a pulse. An optimizer sees the
    gradient of a batch alone, so this is simulated: each cell should get learning rate · |gradient|
    / size pulses, rounded up or down at random and bounded by the length of the train, all at once
    for the batch. That is the mean number of coincidences; their number varies more with real
    trains, and the cells of a row or column share their pulses.

    Weights start within the bounds of their cells: the first update clips what lies outside.

    Args:
      cells: What the cells are, as `soft_bounds(…)`.
      learning_rate: A number of at least 0, traced, or a schedule of optax.
      key: Random key of what differs between cells, of rounding and of noise.
      max_pulses: Most pulses of a cell in one update, at least 1. Traced.

    Returns:
      An optax transformation from gradients to what the weights really change by. Every parameter
      that it sees is an array of at least two axes, the last its columns; leave biases, norms and
      what else is digital to another optimizer, by `optax.multi_transform`.

    Raises:
      ValueError: An argument out of range; when it begins and in `update`, parameters that are no
        such arrays, by their paths.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from jaxsim.train import pulsed
      >>> optimizer = pulsed.sgd(pulsed.constant_step(0.25), 1.0, jax.random.key(0))
      >>> params, grads = {"w": jnp.zeros((1, 2))}, {"w": jnp.array([[0.5, -0.25]])}
      >>> updates, state = optimizer.update(grads, optimizer.init(params), params)
      >>> updates["w"].tolist()
      [[-0.5, 0.25]]

    Source: Gokmen and Vlasov (2016), Frontiers in Neuroscience 10:333.
    """
    require_cells("cells", cells)
    require_key(key, "cells and pulses")
    check_rate("learning_rate", learning_rate)
    check_range("max_pulses", max_pulses, 1, whole=True)

    @own_promotion()
    def init(params: Any) -> SgdState:
        keys = jax.random.fold_in(key, 1)
        parts = {
            name: cells.draw(jax.random.fold_in(keys, i), w.shape)
            for i, (name, w) in enumerate(matrices(params, "pulsed.sgd").items())
        }
        return SgdState(jnp.zeros((), jnp.int32), jax.random.fold_in(key, 2), parts)

    @own_promotion()
    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, SgdState]:
        weights, grads = matrices(params, "pulsed.sgd"), gradients(updates)
        rate = rate_at(learning_rate, state.step)
        now, new = jax.random.fold_in(state.key, state.step), {}
        for i, (name, w) in enumerate(weights.items()):
            first, second = jax.random.split(jax.random.fold_in(now, i))
            pulses = round_pulses(-rate * grads[name] / cells.size, max_pulses, first)
            new[name] = deliver(cells, state.parts[name], w, pulses, second)
        return changes(params, new), state._replace(step=state.step + 1)

    return optax.GradientTransformation(init, update)
