"""How many pulses a change takes, and what they do to cells."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Key

from jaxsim.cores.cells import normal
from jaxsim.train.pulsed.cells import Cells


def round_pulses(
    wanted: Float[Array, "..."], most: Any, key: Key[Array, ""]
) -> Float[Array, "..."]:
    """Rounds numbers of pulses up or down at random, so that their mean is what was wanted.

    Args:
      wanted: Pulses that each cell should get, negative for pulses down; not whole.
      most: Largest number that a cell gets, at least 1.
      key: Random key of the rounding.

    Returns:
      Whole numbers of pulses; NaN where that was wanted.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from jaxsim.train.pulsed.pulses import round_pulses
      >>> round_pulses(jnp.array([2.0, -9.0]), 4, jax.random.key(0)).tolist()
      [2.0, -4.0]
    """
    bounded = jnp.clip(wanted, -most, most)
    whole = jnp.floor(bounded)
    # flat, as `normal` says; compared with what is left, as a sum could be rounded up to the next
    chance = jax.random.uniform(key, (math.prod(wanted.shape),), wanted.dtype).reshape(wanted.shape)
    return whole + (chance < bounded - whole)


def deliver(
    cells: Cells, parts: Any, w: Float[Array, "..."], pulses: Float[Array, "..."], key: Any
) -> Float[Array, "..."]:
    """Gives cells their pulses one after the other, each step by where the last one led.

    Args:
      cells: What the cells are.
      parts: What differs between them, as `cells.draw` made it.
      w: Weights that they hold.
      pulses: Whole numbers of pulses, negative for pulses down; NaN makes a weight NaN.
      key: Random key of the noise from cycle to cycle.

    Returns:
      Weights after the pulses, within the bounds of the cells.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from jaxsim.train import pulsed
      >>> from jaxsim.train.pulsed.pulses import deliver
      >>> cells, key = pulsed.soft_bounds(0.1), jax.random.key(0)
      >>> w = deliver(cells, cells.draw(key, (2,)), jnp.zeros(2), jnp.array([1.0, 2.0]), key)
      >>> [round(float(x), 2) for x in w]
      [0.1, 0.19]
    """
    low, high = cells.bounds(parts)
    counts = jnp.abs(pulses)
    most = jnp.max(jnp.where(jnp.isnan(counts), 0, counts), initial=0)

    def pulse(at: tuple[Any, Array]) -> tuple[Any, Array]:
        i, w = at
        up, down = cells.steps(w, parts)
        step = jnp.where(pulses > 0, up, -down)
        if cells.noise is not None:
            drawn = normal(jax.random.fold_in(key, i), w.shape)
            step = step * (1 + cells.noise * drawn)
        moved = jnp.clip(w + step, low, high).astype(w.dtype)
        return i + 1, jnp.where(i < counts, moved, w)

    start = jnp.clip(w, low, high).astype(w.dtype)
    _, end = lax.while_loop(lambda at: at[0] < most, pulse, (jnp.zeros((), jnp.int32), start))
    return jnp.where(jnp.isnan(pulses), jnp.nan, end)
