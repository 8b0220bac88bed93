"""Codes as conductances of memory cells, which are never exactly what was asked for."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxsim.cores.cells.device import Device, deviation_of, normal
from jaxsim.cores.core import Core, State, over_taps
from jaxsim.cores.op import Op
from jaxsim.cores.product import Subtraction, subtraction_of, subtracts
from jaxsim.cores.role import role
from jaxsim.numerics.checks import MissingKeyError
from jaxsim.numerics.digits import broadcast_planes


class ConductanceState(NamedTuple):
    """State of cells whose reads are noisy.

    Attributes:
      inner: what the inner core wrote of the conductances.
      variance: of one read of each cell, or of each pair that is read as one.
    """

    inner: State
    variance: Float[Array, "..."]


class RedrawnState(NamedTuple):
    """State of cells that act on one another and whose reads are noisy.

    Attributes:
      inner: what the inner core wrote of the conductances.
      cells: the conductances.
    """

    inner: State
    cells: Float[Array, "..."]


class AgingState(NamedTuple):
    """State of cells that change after they were programmed.

    Attributes:
      inner: what the inner core wrote of the conductances at the first read.
      cells: the conductances that programming reached.
      fate: what `Aging.draw` decided about each cell.
      time: seconds since the first read.
    """

    inner: State
    cells: Float[Array, "..."]
    fate: Any
    time: Float[Array, ""]


class ProgrammedState(NamedTuple):
    """State of cells whose programming counts its pulses.

    Attributes:
      written: the state of the cells.
      pulses: their total number.
    """

    written: State
    pulses: Float[Array, ""]


@role("cells", at_rest="held")
def conductance(core: Core, *, device: Device, redraw: bool = False, placed: bool = False) -> Core:
    """Holds each code as a conductance, from 1 / on_off for zero to 1 for the largest code.

    A read is in units of codes, so a cell that holds zero adds g_min / (1 - g_min) of the largest
    code: the difference of two columns, or `grounded`, takes that off.

    Read noise is drawn anew for every product of an input vector with an array. Its sum over a
    column is Gaussian with variance Σ x² sigma(g)², so it is drawn at the outputs: the same
    distribution, without a copy of the array for each vector. The noise of a pair of columns that
    is read as one is drawn once, with the sum of their variances.

    Cells that age are read as they are at the time in their state, which `js.age` sets.

    Args:
      core: contracts inputs with conductances.
      device: what programming a conductance yields, and what reading it adds.
      redraw: add read noise to the cells instead, one draw a call, and let `core` write them anew:
        for a core in which cells act on one another.
      placed: let the error of a cell depend on its row and column and not on how many there are,
        for operands [B, K, N] or, in tiles, [B, tiles, rows, N] that grow from call to call.
    """

    def full(op: Op, w: Array, key: Any) -> Array:
        """Codes in units of a full cell."""
        if key is None:
            raise MissingKeyError("cells with programming error need a key")
        rank = op.planes + len(op.geometry.w_shape)
        return w.astype(jnp.float32) / broadcast_planes(largest(op), rank)

    def write(op: Op, w: Array, key: Any) -> State:
        g, low = full(op, w, key), smallest(device)
        if low is not None:
            g = low + (1 - low) * g
        written = programmed(op, g, key)
        if device.pulses is None:
            return written
        return ProgrammedState(written, jnp.sum(device.pulses.taken(g, key)))

    def programmed(op: Op, g: Array, key: Any) -> State:
        cells = _program_placed(device, op, g, key) if placed else device.program(g, key)
        if device.aging is not None:
            fate, time = device.aging.draw(g, key), jnp.zeros(())
            inner = core.write(op, device.aging.at(cells, fate, time), key)
            return AgingState(inner, cells, fate, time)
        inner = core.write(op, cells, key)
        if device.noise is None:
            return inner
        return RedrawnState(inner, cells) if redraw else ConductanceState(inner, spread(cells))

    def spread(cells: Array) -> Array:
        """The variance of one read of cells."""
        return jnp.square(cast(Any, device.noise)(cells))

    def calibrate(op: Op, state: State, x: Array) -> State:
        x = x.astype(jnp.float32)
        if isinstance(state, ProgrammedState):
            return state._replace(written=calibrate(op, state.written, x))
        if device.noise is None and device.aging is None:
            return core.calibrate(op, state, x)
        return state._replace(inner=core.calibrate(op, state.inner, x))

    def redrawn(op: Op, cells: Array, x: Array, key: Any) -> Array:
        cells = cells + cast(Any, device.noise)(cells) * normal(key, cells.shape)
        silent = dataclasses.replace(op, meter=None)
        return core.read(op, core.write(silent, cells, key), x, key)

    def noisy(op: Op, inner: State, variance: Array, x: Array, key: Any) -> Array:
        y = core.read(op, inner, x, key)
        silent = dataclasses.replace(op, meter=None)
        summed = over_taps(silent).contract(jnp.square(x), variance)
        return y + _root(summed) * normal(key, y.shape)

    def current(op: Op, state: State, x: Array, key: Any) -> Array:
        """What cells yield now."""
        random = device.noise is not None and not op.deterministic
        if random and key is None:
            raise MissingKeyError("cells with read noise need a key at every call")
        if device.aging is None:
            inner = state if device.noise is None else state.inner
            if not random:
                return core.read(op, inner, x, key)
            if redraw:
                return redrawn(op, state.cells, x, key)
            return noisy(op, inner, state.variance, x, key)
        cells = device.aging.at(state.cells, state.fate, state.time)
        if random and redraw:
            return redrawn(op, cells, x, key)
        inner = core.write(dataclasses.replace(op, meter=None), cells, key)
        if random:
            return noisy(op, inner, spread(cells), x, key)
        return core.read(op, inner, x, key)

    of = subtraction_of(core)

    def difference(state: State) -> State:
        assert of is not None
        if isinstance(state, ProgrammedState):
            return state._replace(written=difference(state.written))
        if not isinstance(state, ConductanceState):
            return of.of(state)
        return ConductanceState(of.of(state.inner), jnp.sum(state.variance, 0))

    deviation = deviation_of(device)

    def write_difference(op: Op, w: Array, key: Any) -> State:
        assert deviation is not None
        low = smallest(device)
        empty = jnp.zeros(()) if low is None else low
        difference = (1 - empty) * full(op, w, key)
        variance = jnp.square(deviation(empty + jnp.abs(difference)))
        error = _root(variance + jnp.square(deviation(empty)))
        return core.write(op, difference + error * normal(key, w.shape), key)

    apart = of is None or redraw or device.aging is not None
    simple = not placed and device.noise is None and device.pulses is None
    at_once = write_difference if simple and deviation is not None else None

    @subtracts(None if apart else Subtraction(write, difference, at_once))
    def read(op: Op, state: State, x: Array, key: Any) -> Array:
        if isinstance(state, ProgrammedState):
            return read(op, state.written, x, key)
        low = smallest(device)
        top = largest(op) if low is None else largest(op) / (1 - low)
        y = current(op, state, x.astype(jnp.float32), key)
        return y * broadcast_planes(top, y.ndim - op.x_planes(x))

    return Core(write, calibrate, read)


@role("cells", at_rest="grounded")
def offset_current(core: Core, *, device: Device) -> Core:
    """Takes off, digitally, what cells of the smallest conductance add to a single column.

    Args:
      core: reads cells in units of codes.
      device: of those cells.
    """
    low = smallest(device)

    def read(op: Op, state: State, x: Array, key: Any) -> Array:
        y = core.read(op, state, x, key)
        if low is None:
            return y
        ground = broadcast_planes(largest(op) * low / (1 - low), y.ndim - op.x_planes(x))
        return y - ground * op.row_sum(x.astype(jnp.float32))

    return Core(core.write, core.calibrate, read)


def smallest(device: Device) -> Float[Array, ""] | None:
    """The conductance of an empty cell, in units of the largest; None for zero."""
    return None if device.on_off is None else 1.0 / jnp.asarray(device.on_off, jnp.float32)


def largest(op: Op) -> np.ndarray:
    """The largest code of each plane, at least 1: a plane may hold nothing.

    Raises:
      ValueError: the weight is a float, or has a sign.
    """
    if op.w_lo is None or op.w_hi is None or op.w_lo.min() < 0:
        raise ValueError("conductance: a cell holds no sign; wrap it in differential or offset")
    return np.maximum(op.w_hi, 1).astype(np.float32)


def _program_placed(device: Device, op: Op, g: Array, key: Any) -> Array:
    """Programs the cells of each row and column by a key of that place."""
    columns, whole = g.shape[-1], g.shape
    rows = op.geometry.w_shape[1:-1]
    at = g.ndim - 1 - len(rows)
    lead = g.shape[:at]  # planes, and matrices apart
    g = jnp.moveaxis(g.reshape(*lead, math.prod(rows), columns), (-2, -1), (0, 1))

    def row(i: Array, g: Array) -> Array:
        of_row = jax.random.fold_in(key, i)
        each = jax.vmap(lambda j, g: device.program(g, jax.random.fold_in(of_row, j)))
        return each(jnp.arange(columns), g)

    g = jax.vmap(row)(jnp.arange(math.prod(rows)), g)
    return jnp.moveaxis(g, (0, 1), (-2, -1)).reshape(whole)


def _root(variance: Float[Array, "..."]) -> Float[Array, "..."]:
    """The square root, with derivative zero at zero."""
    some = variance > 0
    return jnp.where(some, jnp.sqrt(jnp.where(some, variance, 1)), 0)
