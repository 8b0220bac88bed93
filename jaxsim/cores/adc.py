"""The analog-to-digital converter at the foot of each column."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxsim.cores.core import Core, State
from jaxsim.cores.op import Op
from jaxsim.cores.role import role
from jaxsim.formats.clipping import percentile as covering
from jaxsim.formats.grid import Range, no_range, observe, widen
from jaxsim.numerics.checks import checked_int, is_traced
from jaxsim.numerics.digits import over_planes
from jaxsim.numerics.gradients import clip_through, round_through
from jaxsim.numerics.scaling import divide, step_of

RangeRule = Literal["calibrated", "max", "granular"]


class AdcState(NamedTuple):
    """State behind an ADC.

    Attributes:
      inner: what the array holds.
      outputs: range of the values seen at calibration, one for each weight plane.
    """

    inner: State
    outputs: Range


@role("adc", at_rest="converted")
def uniform_adc(
    core: Core,
    *,
    bits: float | Array,
    percentile: float | Array,
    signed: bool,
    rule: RangeRule = "calibrated",
) -> Core:
    """Clips and rounds what `core` reads, as an ADC does, with one range a weight plane.

    Args:
      core: computes the analog value.
      bits: resolution. Traced, so that a sweep over it compiles once.
      percentile: share of the calibration values, in percent, inside a calibrated range. Traced.
      signed: sign and magnitude, symmetric with an exact zero, 2^bits - 2 steps; otherwise
        2^bits - 1 steps from the lower to the upper end.
      rule: "calibrated" covers what was seen, the ranges of slices widened until they differ by
        powers of two, so that shifts add them; "max" covers all that the array could yield;
        "granular" makes a step one unit of input and weight codes and clips what lies beyond.

    Source: Xiao et al. (2022), arXiv 2109.01262, p. 39 (calibrated range).
    """

    def observed(op: Op, x: Array, y: Float[Array, "..."]) -> Range:
        first = op.x_planes(x)
        axes = [a for a in range(y.ndim) if not first <= a < first + op.planes]
        r = observe(y, axes=axes, clip=covering(percentile), symmetric=signed)
        return Range(*(jnp.squeeze(end, axes) for end in r))

    def steps() -> Float[Array, ""]:
        levels = 2.0 ** jnp.asarray(bits, jnp.float32)
        return levels - 2 if signed else levels - 1

    def range_of(op: Op, state: AdcState, x: Array, y: Array) -> Range:
        if rule == "calibrated":
            r = op.range("analog(adc=…)", state.outputs, lambda: observed(op, x, y))
            return _shifted_apart(r)
        x_lo, x_hi, w_hi = _extremes(op)
        if rule == "max":
            lo, hi = op.depth * x_lo * w_hi, op.depth * x_hi * w_hi
            if signed:
                lo, hi = -np.maximum(-lo, hi), np.maximum(-lo, hi)
        else:
            below = jnp.floor(steps() / 2 + 0.5) if signed or x_lo < 0 else 0.0
            lo, hi = -below + 0 * w_hi, steps() - below + 0 * w_hi
        return Range(jnp.asarray(lo, jnp.float32), jnp.asarray(hi, jnp.float32))

    def write(op: Op, w: Array, key: Any) -> AdcState:
        return AdcState(core.write(op, w, key), no_range(op.w_planes(w)))

    def calibrate(op: Op, state: AdcState, x: Array) -> AdcState:
        inner = core.calibrate(op, state.inner, x)
        y = core.read(dataclasses.replace(op, quiet=True), inner, x, None).astype(jnp.float32)
        return AdcState(inner, widen(state.outputs, observed(op, x, y)))

    def read(op: Op, state: AdcState, x: Array, key: Any) -> Array:
        y = core.read(op, state.inner, x, key).astype(jnp.float32)
        op.count("conversions", y.size)
        if not is_traced(bits):
            op.count("conversion_steps", y.size * float(2 ** np.asarray(bits)))
        rank = y.ndim - op.x_planes(x)
        lo, hi = (over_planes(end, rank) for end in range_of(op, state, x, y))
        lsb = step_of(hi - lo, steps(), empty=1.0)
        if signed:
            return clip_through(round_through(divide(y, lsb)), -steps() / 2, steps() / 2) * lsb
        return lo + clip_through(round_through(divide(y - lo, lsb)), 0, steps()) * lsb

    return Core(write, calibrate, read)


def fpg_bits(weight_bits: int, input_bits: int, rows: int) -> int:
    """Bits that an unsigned column can need: with them a converter loses nothing.

    The difference of a pair of columns needs one more, for its sign.

    Args:
      weight_bits: of one cell, at least 1.
      input_bits: applied in one conversion, at least 1: of one digit, or of the whole input where
        the digits are added before the converter.
      rows: of the array, at least 1.

    Raises:
      ValueError: an argument out of range.

    Source: Xiao et al. (2022), arXiv 2109.01262, eq. 2 and 3 (full-precision guarantee).
    """
    weight_bits = checked_int("weight_bits", weight_bits, 1)
    input_bits = checked_int("input_bits", input_bits, 1)
    rows = checked_int("rows", rows, 1)
    both = weight_bits > 1 and input_bits > 1
    return weight_bits + input_bits + math.ceil(math.log2(rows)) - (0 if both else 1)


def _extremes(op: Op) -> tuple[int, int, np.ndarray]:
    """Smallest and largest input code, and the largest weight code of each plane."""
    if op.x_lo is None or op.x_hi is None or op.w_lo is None or op.w_hi is None:
        raise ValueError("uniform_adc: a range without calibration needs inputs and weights as codes")
    return op.x_lo, op.x_hi, np.maximum(np.abs(op.w_lo), np.abs(op.w_hi)).astype(np.float32)


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
