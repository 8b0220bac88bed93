"""Converters at the ends of the columns of an array, as cores."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxsim.cores.adc.converter import ADC, Column, RangeRule, equal_steps_adc
from jaxsim.cores.cells.device import normal
from jaxsim.cores.core import Core, State
from jaxsim.cores.op import Op
from jaxsim.cores.role import role
from jaxsim.formats.grid import Range, no_range, update_range
from jaxsim.numerics.checks import MissingKeyError, is_traced
from jaxsim.numerics.digits import broadcast_planes
from jaxsim.numerics.scaling import divide

OWN = 0xADC
"""What the key of a site is folded with for its converters."""


class AdcState(NamedTuple):
    """State behind an ADC.

    Attributes:
      inner: State of the array.
      outputs: Range of the values seen at calibration, one for each weight plane.
    """

    inner: State
    outputs: Range


class ConverterState(NamedTuple):
    """State behind converters that differ from chip to chip.

    Attributes:
      array: State behind the converter's range.
      parts: What `ADC.parts` drew, [..., *y's last axes].
    """

    array: AdcState
    parts: Any


@role("adc")
def column_adc(core: Core, *, adc: ADC, signed: bool) -> Core:
    """Converts what an array yields, with one range for each weight plane.

    What differs from converter to converter is drawn from the key of the write, and the noise of
    a conversion from that of the read, each by a key of its own: cells are those of another
    converter.

    Args:
      core: Computes the analog value.
      adc: The converter.
      signed: Whether the value is the difference of a pair of columns.
    """

    def observed(op: Op, x: Array, y: Float[Array, "..."]) -> Range:
        first = op.x_planes(x)
        axes = [a for a in range(y.ndim) if not first <= a < first + op.planes]
        r = adc.observe(y, axes, signed)
        return Range(*(jnp.squeeze(end, axes) for end in r))

    def range_of(op: Op, state: AdcState, x: Array, y: Array) -> Range:
        if adc.span is None:
            r = op.range("analog(adc=…)", state.outputs, lambda: observed(op, x, y))
            return _shifted_apart(r)
        lo, hi = adc.span(_column(op), adc.bits, signed)
        return Range(jnp.asarray(lo, jnp.float32), jnp.asarray(hi, jnp.float32))

    def write(op: Op, w: Array, key: Any) -> Any:
        array = AdcState(core.write(op, w, key), no_range(op.w_planes(w)))
        if adc.parts is None:
            return array
        if key is None:
            raise MissingKeyError("converters that differ from chip to chip need a key")
        return ConverterState(array, _parts(adc, op, op.w_planes(w), jax.random.fold_in(key, OWN)))

    def calibrate(op: Op, state: Any, x: Array) -> Any:
        array = _array(state)
        inner = core.calibrate(op, array.inner, x)
        y = core.read(dataclasses.replace(op, deterministic=True), inner, x, None).astype(
            jnp.float32
        )
        seen = AdcState(inner, update_range(array.outputs, observed(op, x, y)))
        return seen if adc.parts is None else state._replace(array=seen)

    def read(op: Op, state: Any, x: Array, key: Any) -> Array:
        array = _array(state)
        y = core.read(op, array.inner, x, key).astype(jnp.float32)
        op.count("conversions", y.size)
        if not is_traced(adc.bits):
            op.count("conversion_steps", y.size * float(2 ** np.asarray(adc.bits)))
        rank = y.ndim - op.x_planes(x)
        lo, hi = (broadcast_planes(end, rank) for end in range_of(op, array, x, y))
        if adc.noise is not None and not op.deterministic:
            if key is None:
                raise MissingKeyError("converters with noise need a key at every call")
            y = y + adc.noise * (hi - lo) * normal(jax.random.fold_in(key, OWN), y.shape)
        parts = () if adc.parts is None else (state.parts,)
        return adc.convert(y, lo, hi, signed, *parts)

    return Core(write, calibrate, read)


@role("adc", at_rest="converted")
def uniform_adc(
    core: Core,
    *,
    bits: float | Array,
    percentile: float | Array,
    signed: bool,
    rule: RangeRule = "calibrated",
) -> Core:
    """Converts by equal steps: `column_adc` with the converter of `uniform`, by its numbers.

    Args:
      core: Computes the analog value.
      bits: Resolution. Traced.
      percentile: Share of the calibration values, in percent, inside a calibrated range. Traced.
      signed: Whether the value is the difference of a pair of columns.
      rule: `span` of `uniform`.
    """
    return column_adc(core, adc=equal_steps_adc(bits, percentile, rule), signed=signed)


def _array(state: Any) -> AdcState:
    return state.array if isinstance(state, ConverterState) else state


def _parts(adc: ADC, op: Op, planes: tuple[int, ...], key: Any) -> Any:
    """What differs between converters, as it broadcasts to outputs."""
    geometry = op.geometry
    batch = getattr(geometry, "w_batch", ())
    shape = geometry.w_shape
    free = tuple(a for a in range(len(shape)) if a not in (*batch, *geometry.contracted))
    each, columns = ([shape[a] for a in axes] for axes in (batch, free))
    arrays = math.prod(planes) * math.prod(each)
    # [arrays, columns] in the order of the axes of the weight, which `to_output` knows
    order = sorted(range(len(batch) + len(free)), key=(*batch, *free).__getitem__)

    def to_outputs(a: Array) -> Array:
        *own, some, width = a.shape
        there = [*each] if some == arrays else [1] * len(each)
        lead = (*own, *(planes if some == arrays else (1,) * len(planes)))
        across = [*columns] if width == math.prod(columns) else [1] * len(free)
        a = a.reshape(-1, *there, *across)
        a = jnp.transpose(a, (0, *(1 + i for i in order)))
        a = jnp.expand_dims(a, [1 + i for i in geometry.contracted])
        a = jax.vmap(geometry.to_output)(a)
        return a.reshape(*lead, *a.shape[1:])

    assert adc.parts is not None
    return jax.tree.map(to_outputs, adc.parts(key, arrays, math.prod(columns)))


def _column(op: Op) -> Column:
    if op.x_lo is None or op.x_hi is None or op.w_lo is None or op.w_hi is None:
        raise ValueError("adc: a range without calibration needs inputs and weights as codes")
    w_hi = np.maximum(-op.w_lo, op.w_hi).astype(np.float32)
    return Column(op.depth, op.x_lo, op.x_hi, w_hi)


def _shifted_apart(r: Range) -> Range:
    """Ranges widened until their widths are the widest divided by powers of two."""
    if r.lo.ndim == 0:
        return r
    width = r.hi - r.lo
    some = width > 0
    widest = jnp.max(width)
    ratio = jnp.where(some, divide(widest, jnp.where(some, width, 1)), 1)
    ratio = jnp.clip(ratio, 1, 2.0**100)
    wider = jnp.where(some, widest / 2.0 ** jnp.floor(jnp.log2(ratio)), width)
    lo = jnp.where(r.lo == -r.hi, -wider / 2, r.lo)
    return Range(lo, lo + wider)
