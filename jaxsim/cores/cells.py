"""Codes as conductances of memory cells, which are never exactly what was asked for.

Conductances are relative to the largest one: a cell holds g in [1 / on_off, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jaxsim.core import Core, Op, State
from jaxsim.numerics import check_range


class Device(NamedTuple):
    """A memory device.

    Attributes:
      programme: `(g, key) -> g`, the conductances reached when [*] cells are programmed to g, with
        g and result in units of the largest conductance.
      on_off: ratio of the largest to the smallest conductance; None for infinity.
    """

    programme: Callable[[Float[Array, "..."], Key[Array, ""]], Float[Array, "..."]]
    on_off: float | Array | None = None

    def __str__(self) -> str:
        function = self.programme.func if isinstance(self.programme, partial) else self.programme
        name = getattr(function, "__name__", "device").lstrip("_")
        return name if self.on_off is None else f"{name}, on/off {self.on_off:.4g}"


def independent(sigma: float | Array, *, on_off: float | Array | None = None) -> Device:
    """Errors that do not depend on the state: N(0, sigma) in units of the largest conductance.

    Args:
      sigma: standard deviation, at least 0. Traced.
      on_off: ratio of the largest to the smallest conductance, above 1; None for infinity. Traced.

    Raises:
      ValueError: sigma or on_off out of range.

    Source: Xiao et al. (2022), arXiv 2109.01262, §5.
    """
    return _gaussian(_independent, sigma, on_off)


def proportional(sigma: float | Array, *, on_off: float | Array | None = None) -> Device:
    """Errors proportional to the state: N(0, sigma · g).

    Args:
      sigma: relative standard deviation, at least 0. Traced.
      on_off: ratio of the largest to the smallest conductance, above 1; None for infinity. Traced.

    Raises:
      ValueError: sigma or on_off out of range.

    Source: Xiao et al. (2022), arXiv 2109.01262, §5.
    """
    return _gaussian(_proportional, sigma, on_off)


def held(core: Core, *, device: Device) -> Core:
    """Holds each code as a conductance, from 1 / on_off for zero to 1 for the largest code.

    Args:
      core: contracts inputs with conductances.
      device: what programming a conductance yields.
    """

    def gmin() -> Float[Array, ""] | None:
        return None if device.on_off is None else 1.0 / jnp.asarray(device.on_off, jnp.float32)

    def largest(op: Op) -> np.ndarray:
        """The largest code of each plane, at least 1: a plane may hold nothing."""
        if op.w_lo is None or op.w_hi is None or op.w_lo.min() < 0:
            raise ValueError("held: a cell holds no sign; wrap it in differential or offset")
        return np.maximum(op.w_hi, 1).astype(np.float32)

    def write(op: Op, w: Array, key: Any) -> State:
        if key is None:
            raise ValueError("key=None: cells with programming error need a key")
        top = largest(op)
        g = w.astype(jnp.float32) / top.reshape(*top.shape, *(1,) * (w.ndim - top.ndim))
        low = gmin()
        if low is not None:
            g = low + (1 - low) * g
        return core.write(op, device.programme(g, key), key)

    def calibrate(op: Op, state: State, x: Array) -> State:
        return core.calibrate(op, state, x.astype(jnp.float32))

    def read(op: Op, state: State, x: Array, key: Any) -> Array:
        x = x.astype(jnp.float32)
        y = core.read(op, state, x, key)
        top, low, planes = largest(op), gmin(), op.x_planes(x)
        ones = (1,) * (y.ndim - planes - top.ndim)
        if low is None:
            return y * top.reshape(*top.shape, *ones)
        ground = jnp.expand_dims(op.row_sum(x), tuple(range(planes, planes + top.ndim)))
        return (y - low * ground) * (top.reshape(*top.shape, *ones) / (1 - low))

    return Core(write, calibrate, read)


def _gaussian(
    kind: Callable[..., Array], sigma: float | Array, on_off: float | Array | None
) -> Device:
    check_range("sigma", sigma, 0)
    if on_off is not None:
        check_range("on_off", on_off, 1, above=True)
    programme = jax.tree_util.Partial(kind, sigma=jnp.asarray(sigma, jnp.float32))
    return Device(programme, None if on_off is None else jnp.asarray(on_off, jnp.float32))


def _independent(g: Array, key: Key[Array, ""], *, sigma: Array) -> Array:
    return g + sigma * _normal(key, g.shape)


def _proportional(g: Array, key: Key[Array, ""], *, sigma: Array) -> Array:
    return g * (1 + sigma * _normal(key, g.shape))


def _normal(key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "..."]:
    # Drawn flat: XLA's CPU backend takes ten times as long to compile a draw of several axes.
    return jax.random.normal(key, (math.prod(shape),)).reshape(shape)
