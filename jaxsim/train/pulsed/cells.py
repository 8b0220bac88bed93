"""Cells whose weights change by pulses: how far one pulse up or down moves each of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, Key

from jaxsim.cores.cells import normal
from jaxsim.numerics.checks import check_range

Weight = Float[Array, "..."]

LEAST = 0.05
"""No cell's step or bound is drawn below this share of the mean."""


class Cells(NamedTuple):
    """Cells that hold weights and are changed by pulses alone, as functions.

    Weights, steps and bounds are in the units of the parameters that the cells stand for.

    Attributes:
      draw: `(key, shape) -> parts`, what differs from cell to cell, drawn once: a pytree of arrays
        of that shape.
      steps: `(w, parts) -> (up, down)`, how far a pulse in each direction moves cells that hold w,
        both at least 0.
      bounds: `parts -> (low, high)`, what cells can hold.
      symmetry: `parts -> w`, the symmetry point of each cell, where a pulse up and a pulse down
        cancel.
      size: Mean step of a pulse, above 0; by this an update is divided to count its pulses.
      noise: Standard deviation of a pulse's step from cycle to cycle, relative to the step; None
        where pulses repeat.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from jaxsim.train import pulsed
      >>> cells = pulsed.Cells(
      ...     draw=lambda key, shape: (),
      ...     steps=lambda w, parts: (jnp.full_like(w, 0.01), jnp.full_like(w, 0.02)),
      ...     bounds=lambda parts: (-1.0, 1.0),
      ...     symmetry=lambda parts: 0.0,
      ...     size=0.01,
      ... )
      >>> optimizer = pulsed.sgd(cells, 0.1, jax.random.key(0))
      >>> params = {"w": jnp.zeros((1, 2))}
      >>> grads = {"w": jnp.array([[-0.1, 0.1]])}
      >>> updates, _ = optimizer.update(grads, optimizer.init(params), params)
      >>> [round(float(change), 2) for change in updates["w"][0]]
      [0.01, -0.02]
    """

    draw: Callable[[Key[Array, ""], tuple[int, ...]], Any]
    steps: Callable[[Weight, Any], tuple[Weight, Weight]]
    bounds: Callable[[Any], tuple[Any, Any]]
    symmetry: Callable[[Any], Any]
    size: float | Array
    noise: float | Array | None = None


class LinearParts(NamedTuple):
    """What differs between cells whose steps are linear in the weight.

    Attributes:
      up: Step of a pulse up at zero.
      down: Step of a pulse down at zero.
      up_slope: What a pulse up loses a unit of weight.
      down_slope: What a pulse down gains a unit of weight.
      low: Smallest weight.
      high: Largest weight.
    """

    up: Weight
    down: Weight
    up_slope: Weight
    down_slope: Weight
    low: Weight
    high: Weight


class PowerParts(NamedTuple):
    """What differs between cells whose steps are a power of the distance to a bound.

    Attributes:
      up: Step of a pulse up in the middle of the range.
      down: Step of a pulse down there.
      low: Smallest weight.
      high: Largest weight.
    """

    up: Weight
    down: Weight
    low: Weight
    high: Weight


def constant_step(
    size: float | Array,
    *,
    low: float | Array = -1.0,
    high: float | Array = 1.0,
    imbalance: float | Array = 0.0,
    spread: float | Array = 0.0,
    imbalance_spread: float | Array = 0.0,
    bound_spread: float | Array = 0.0,
    noise: float | Array | None = None,
) -> Cells:
    """Cells whose pulses move them by the same step wherever they are, up to hard bounds.

    Without an imbalance they are symmetric: a pulse up undoes a pulse down. With one they have no
    symmetry point (zero is taken for it) and pulses of random signs drive them to a bound.

    Args:
      size: Mean step of a pulse, in units of the weights, above 0. Traced.
      low: Smallest weight, below 0. Traced.
      high: Largest weight, above 0. Traced.
      imbalance: b from -1 to 1: a pulse up is 1 + b, one down 1 - b times as large. Traced.
      spread: Standard deviation of the size from cell to cell, relative to it. Traced.
      imbalance_spread: Standard deviation of b from cell to cell. Traced.
      bound_spread: Standard deviation of each bound from cell to cell, relative to it. Traced.
      noise: Standard deviation of a step from pulse to pulse, relative to it; None for none.
        Traced.

    Raises:
      ValueError: An argument out of range.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from jaxsim.train import pulsed
      >>> cells = pulsed.constant_step(0.01, imbalance=0.5)
      >>> up, down = cells.steps(jnp.zeros(1), cells.draw(jax.random.key(0), (1,)))
      >>> round(float(up[0]), 4), round(float(down[0]), 4)
      (0.015, 0.005)
    """
    shared = _checked(size, low, high, imbalance, spread, imbalance_spread, bound_spread, noise)
    return _linear(shared, Partial(_no_slopes), size, noise)


def linear_step(
    size: float | Array,
    up_slope: float | Array,
    down_slope: float | Array,
    *,
    low: float | Array = -1.0,
    high: float | Array = 1.0,
    imbalance: float | Array = 0.0,
    spread: float | Array = 0.0,
    imbalance_spread: float | Array = 0.0,
    bound_spread: float | Array = 0.0,
    noise: float | Array | None = None,
) -> Cells:
    """Cells whose steps change linearly with the weight, up to hard bounds.

    A pulse up moves a cell by up · (1 - up_slope · w), a pulse down by down · (1 + down_slope · w),
    where up and down are its steps at zero; neither falls below zero.

    Args:
      size: Mean step of a pulse at zero, in units of the weights, above 0. Traced.
      up_slope: Share that a pulse up loses a unit of weight, at least 0. Traced.
      down_slope: Share that a pulse down gains a unit of weight, at least 0. Traced.
      low: Smallest weight, below 0. Traced.
      high: Largest weight, above 0. Traced.
      imbalance: b from -1 to 1: at zero a pulse up is 1 + b, one down 1 - b times as large. Traced.
      spread: Standard deviation of the size from cell to cell, relative to it. Traced.
      imbalance_spread: Standard deviation of b from cell to cell. Traced.
      bound_spread: Standard deviation of each bound from cell to cell, relative to it. Traced.
      noise: Standard deviation of a step from pulse to pulse, relative to it; None for none.
        Traced.

    Raises:
      ValueError: An argument out of range.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from jaxsim.train import pulsed
      >>> cells = pulsed.linear_step(0.01, 0.5, 0.1)
      >>> up, down = cells.steps(jnp.ones(1), cells.draw(jax.random.key(0), (1,)))
      >>> round(float(up[0]), 4), round(float(down[0]), 4)
      (0.005, 0.011)

    Source: the linear-step model that IBM's aihwkit documents.
    """
    shared = _checked(size, low, high, imbalance, spread, imbalance_spread, bound_spread, noise)
    for name, value in {"up_slope": up_slope, "down_slope": down_slope}.items():
        check_range(name, value, 0)
    slopes = Partial(_given_slopes, up_slope=up_slope, down_slope=down_slope)
    return _linear(shared, slopes, size, noise)


def soft_bounds(
    size: float | Array,
    *,
    low: float | Array = -1.0,
    high: float | Array = 1.0,
    imbalance: float | Array = 0.0,
    spread: float | Array = 0.0,
    imbalance_spread: float | Array = 0.0,
    bound_spread: float | Array = 0.0,
    noise: float | Array | None = None,
) -> Cells:
    """Cells whose steps shrink linearly to nothing at their bounds, as in resistive memory.

    A pulse up moves a cell by up · (1 - w / high), a pulse down by down · (1 - w / low). They are
    asymmetric everywhere but at (up - down) / (up / high - down / low), to which pulses of random
    signs drive them.

    Args:
      size: Mean step of a pulse at zero, in units of the weights, above 0. Traced.
      low: Weight where pulses down no longer move a cell, below 0. Traced.
      high: Weight where pulses up no longer move a cell, above 0. Traced.
      imbalance: b from -1 to 1: at zero a pulse up is 1 + b, one down 1 - b times as large. Traced.
      spread: Standard deviation of the size from cell to cell, relative to it. Traced.
      imbalance_spread: Standard deviation of b from cell to cell. Traced.
      bound_spread: Standard deviation of each bound from cell to cell, relative to it. Traced.
      noise: Standard deviation of a step from pulse to pulse, relative to it; None for none.
        Traced.

    Raises:
      ValueError: An argument out of range.

    Examples:
      >>> import jax
      >>> from jaxsim.train import pulsed
      >>> cells = pulsed.soft_bounds(0.01, imbalance=0.2)
      >>> round(float(cells.symmetry(cells.draw(jax.random.key(0), (1,)))[0]), 4)
      0.2

    Source: the soft-bounds model that IBM's aihwkit documents.
    """
    shared = _checked(size, low, high, imbalance, spread, imbalance_spread, bound_spread, noise)
    return _linear(shared, Partial(_slopes_to_bounds), size, noise)


def power_step(
    size: float | Array,
    exponent: float | Array,
    *,
    low: float | Array = -1.0,
    high: float | Array = 1.0,
    imbalance: float | Array = 0.0,
    spread: float | Array = 0.0,
    imbalance_spread: float | Array = 0.0,
    bound_spread: float | Array = 0.0,
    noise: float | Array | None = None,
) -> Cells:
    """Cells whose steps are a power of the distance to the bound that they move to.

    A pulse up moves a cell by up · (2 (high - w) / (high - low))^exponent, a pulse down by the same
    of w - low: up and down are its steps in the middle of the range. With an exponent of 1 and
    bounds that are opposite these are soft bounds.

    Args:
      size: Mean step of a pulse in the middle, in units of the weights, above 0. Traced.
      exponent: The power, above 0. Traced.
      low: Weight where pulses down no longer move a cell, below 0. Traced.
      high: Weight where pulses up no longer move a cell, above 0. Traced.
      imbalance: b from -1 to 1: in the middle a pulse up is 1 + b, one down 1 - b times as large.
        Traced.
      spread: Standard deviation of the size from cell to cell, relative to it. Traced.
      imbalance_spread: Standard deviation of b from cell to cell. Traced.
      bound_spread: Standard deviation of each bound from cell to cell, relative to it. Traced.
      noise: Standard deviation of a step from pulse to pulse, relative to it; None for none.
        Traced.

    Raises:
      ValueError: An argument out of range.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from jaxsim.train import pulsed
      >>> cells = pulsed.power_step(0.01, 2.0)
      >>> up, down = cells.steps(jnp.full(1, 0.5), cells.draw(jax.random.key(0), (1,)))
      >>> round(float(up[0]), 4), round(float(down[0]), 4)
      (0.0025, 0.0225)

    Source: the power-step model that IBM's aihwkit documents, whose step at a bound, 2^exponent
      times this one, is its size.
    """
    shared = _checked(size, low, high, imbalance, spread, imbalance_spread, bound_spread, noise)
    check_range("exponent", exponent, 0, above=True)
    return Cells(
        draw=Partial(_draw_power, **shared),
        steps=Partial(_power_steps, exponent=exponent),
        bounds=Partial(_bounds),
        symmetry=Partial(_power_symmetry, exponent=exponent),
        size=size,
        noise=noise,
    )


def _checked(
    size: Any,
    low: Any,
    high: Any,
    imbalance: Any,
    spread: Any,
    imbalance_spread: Any,
    bound_spread: Any,
    noise: Any,
) -> dict[str, Any]:
    """What is drawn from, by name, once it is in range."""
    check_range("size", size, 0, above=True)
    check_range("high", high, 0, above=True)
    if not _is_below_zero(low):
        raise ValueError(f"low={low}: must be a number below 0")
    check_range("imbalance", imbalance, -1, 1)
    spreads = {"spread": spread, "imbalance_spread": imbalance_spread, "bound_spread": bound_spread}
    for name, value in spreads.items():
        check_range(name, value, 0)
    if noise is not None:
        check_range("noise", noise, 0)
    return {"size": size, "low": low, "high": high, "imbalance": imbalance, **spreads}


def _is_below_zero(value: Any) -> bool:
    try:
        check_range("low", value, -jnp.inf, -1e-38)
    except ValueError:
        return False
    return True


def _linear(
    shared: dict[str, Any], slopes: Partial, size: float | Array, noise: float | Array | None
) -> Cells:
    return Cells(
        draw=Partial(_draw_linear, slopes=slopes, **shared),
        steps=Partial(_linear_steps),
        bounds=Partial(_bounds),
        symmetry=Partial(_linear_symmetry),
        size=size,
        noise=noise,
    )


def _draw_power(
    key: Key[Array, ""],
    shape: tuple[int, ...],
    *,
    size: Any,
    low: Any,
    high: Any,
    imbalance: Any,
    spread: Any,
    imbalance_spread: Any,
    bound_spread: Any,
) -> PowerParts:
    first, second, third, fourth = (normal(k, shape) for k in jax.random.split(key, 4))
    step = size * jnp.maximum(1 + spread * first, LEAST)
    b = jnp.clip(imbalance + imbalance_spread * second, -1, 1)
    return PowerParts(
        step * (1 + b),
        step * (1 - b),
        low * jnp.maximum(1 + bound_spread * third, LEAST),
        high * jnp.maximum(1 + bound_spread * fourth, LEAST),
    )


def _draw_linear(
    key: Key[Array, ""], shape: tuple[int, ...], *, slopes: Partial, **shared: Any
) -> LinearParts:
    up, down, low, high = _draw_power(key, shape, **shared)
    up_slope, down_slope = slopes(up, down, low, high)
    return LinearParts(up, down, up_slope, down_slope, low, high)


def _no_slopes(up: Array, down: Array, low: Array, high: Array) -> tuple[Array, Array]:
    del low, high
    return jnp.zeros_like(up), jnp.zeros_like(down)


def _given_slopes(
    up: Array, down: Array, low: Array, high: Array, *, up_slope: Any, down_slope: Any
) -> tuple[Array, Array]:
    del low, high
    return up * up_slope, down * down_slope


def _slopes_to_bounds(up: Array, down: Array, low: Array, high: Array) -> tuple[Array, Array]:
    return up / high, -down / low


def _linear_steps(w: Array, parts: LinearParts) -> tuple[Array, Array]:
    up = parts.up - parts.up_slope * w
    down = parts.down + parts.down_slope * w
    return jnp.maximum(up, 0), jnp.maximum(down, 0)


def _linear_symmetry(parts: LinearParts) -> Array:
    slope = parts.up_slope + parts.down_slope
    found = (parts.up - parts.down) / jnp.where(slope > 0, slope, 1)
    return jnp.clip(jnp.where(slope > 0, found, 0), parts.low, parts.high)


def _bounds(parts: LinearParts | PowerParts) -> tuple[Array, Array]:
    return parts.low, parts.high


def _power_steps(w: Array, parts: PowerParts, *, exponent: Any) -> tuple[Array, Array]:
    half = (parts.high - parts.low) / 2

    def power(distance: Array) -> Array:
        return jnp.maximum(distance / half, 0) ** exponent

    return parts.up * power(parts.high - w), parts.down * power(w - parts.low)


def _power_symmetry(parts: PowerParts, *, exponent: Any) -> Array:
    """Where up · (high - w)^e is down · (w - low)^e."""
    up, down = parts.up ** (1 / exponent), parts.down ** (1 / exponent)
    return (up * parts.high + down * parts.low) / (up + down)
