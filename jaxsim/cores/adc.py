"""Analog-to-digital converters at the ends of columns (`js.adc`)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float

from jaxsim.cores.core import Core, State
from jaxsim.cores.op import Op
from jaxsim.cores.role import role
from jaxsim.formats.clipping import percentile as covering
from jaxsim.formats.grid import Range, no_range, observe_range, update_range
from jaxsim.numerics.checks import check_range, checked_int, is_traced
from jaxsim.numerics.digits import broadcast_planes
from jaxsim.numerics.gradients import clip_ste, round_ste
from jaxsim.numerics.scaling import divide, step_of

__all__ = ["ADC", "Column", "fpg_bits", "uniform"]

RangeRule = Literal["calibrated", "max", "granular"]


class Column(NamedTuple):
    """Codes that meet in one column of an array, from which its largest output follows.

    Attributes:
      depth: Number of products summed in the column.
      x_lo, x_hi: Smallest and largest input code.
      w_hi: Largest magnitude of a weight code, one for each weight plane.

    Examples:
      >>> import numpy as np
      >>> import jaxsim as js
      >>> column = js.adc.Column(depth=4, x_lo=0, x_hi=15, w_hi=np.array([3.0]))
      >>> js.adc.uniform(8, span="max").span(column, 8, signed=False)[1].tolist()
      [180.0]
    """

    depth: int
    x_lo: int
    x_hi: int
    w_hi: np.ndarray


class ADC(NamedTuple):
    """An analog-to-digital converter at the end of a column, as functions.

    Numbers of a function that are to be traced are bound by `jax.tree_util.Partial`, as `uniform`
    does. `signed` is True behind a differential pair, whose outputs lie around zero.

    Attributes:
      convert: `(y, lo, hi, signed) -> y`, the digital values of analog ones [*] for a converter
        that spans [lo, hi], both broadcastable to `y`; in the units of `y`.
      observe: `(y, axes, signed) -> Range`, the range of a converter that has seen `y`, over all
        axes but those of the weight planes, which stay as axes of size 1.
      span: `(column, bits, signed) -> (lo, hi)`, the range that follows from codes alone, one for
        each weight plane; None for a converter whose range is calibrated.
      bits: Resolution, above 0, by which conversions are charged.

    Examples:
      >>> import jaxsim as js
      >>> print(js.adc.uniform(8, span="max"))
      equal_steps, 8 bits, largest
    """

    convert: Callable[..., Float[Array, "*"]]
    observe: Callable[..., Range]
    span: Callable[..., tuple[Any, Any]] | None
    bits: float | Array

    def __str__(self) -> str:
        name = _name_of(self.convert)
        bits = "traced" if is_traced(self.bits) else f"{np.asarray(self.bits):.4g}"
        span = "" if self.span is None else f", {_name_of(self.span)}"
        return f"{name}, {bits} bits{span}"


def _name_of(function: Callable[..., Any]) -> str:
    return getattr(getattr(function, "func", function), "__name__", "adc").lstrip("_")


def uniform(
    bits: float | Array,
    *,
    span: RangeRule = "calibrated",
    percentile: float | Array = 99.98,
) -> ADC:
    """A converter of equal steps.

    Behind a differential pair it is symmetric with an exact zero and has 2^bits - 2 steps,
    otherwise 2^bits - 1 steps from the lower to the upper end.

    Args:
      bits: Resolution, 1 to 16. Traced, so that a sweep over it compiles once.
      span: "calibrated" covers what was seen at calibration, the ranges of slices widened until
        they differ by powers of two, so that shifts add them; "max" covers all that the array
        could yield; "granular" makes a step one unit of input and weight codes and clips what
        lies beyond.
      percentile: Share of the calibration values, in percent, that a calibrated range covers, in
        (0, 100]. Traced.

    Raises:
      ValueError: An argument out of range.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> adc = js.adc.uniform(2)
      >>> adc.convert(jnp.array([0.1, 1.4, 9.0]), 0.0, 3.0, signed=False).tolist()
      [0.0, 1.0, 3.0]

    Source: Xiao et al. (2022), arXiv 2109.01262, p. 39 (calibrated range).
    """
    check_range("bits", bits, 1, 16)
    check_range("percentile", percentile, 0, 100, above=True)
    if span not in _SPANS:
        raise ValueError(f"span={span!r}: must be 'calibrated', 'max' or 'granular'")
    return _uniform(jnp.asarray(bits, jnp.float32), jnp.asarray(percentile, jnp.float32), span)


def _uniform(bits: float | Array, percentile: float | Array, span: RangeRule) -> ADC:
    return ADC(Partial(_equal_steps, bits), Partial(_percentile, percentile), _SPANS[span], bits)


def _steps(bits: float | Array, signed: bool) -> Float[Array, ""]:
    levels = 2.0 ** jnp.asarray(bits, jnp.float32)
    return levels - 2 if signed else levels - 1


def _equal_steps(bits: float | Array, y: Array, lo: Array, hi: Array, signed: bool) -> Array:
    steps = _steps(bits, signed)
    lsb = step_of(hi - lo, steps, empty=1.0)
    if signed:
        return clip_ste(round_ste(divide(y, lsb)), -steps / 2, steps / 2) * lsb
    return lo + clip_ste(round_ste(divide(y - lo, lsb)), 0, steps) * lsb


def _percentile(percentile: float | Array, y: Array, axes: Sequence[int], signed: bool) -> Range:
    return observe_range(y, axes=list(axes), clip=covering(percentile), symmetric=signed)


def _largest(column: Column, bits: float | Array, signed: bool) -> tuple[Any, Any]:
    lo, hi = (column.depth * end * column.w_hi for end in (column.x_lo, column.x_hi))
    return (-np.maximum(-lo, hi), np.maximum(-lo, hi)) if signed else (lo, hi)


def _unit_step(column: Column, bits: float | Array, signed: bool) -> tuple[Any, Any]:
    steps = _steps(bits, signed)
    below = jnp.floor(steps / 2 + 0.5) if signed or column.x_lo < 0 else 0.0
    return -below + 0 * column.w_hi, steps - below + 0 * column.w_hi


_SPANS: dict[str, Callable[..., tuple[Any, Any]] | None] = {
    "calibrated": None,
    "max": _largest,
    "granular": _unit_step,
}


class AdcState(NamedTuple):
    """State behind an ADC.

    Attributes:
      inner: State of the array.
      outputs: Range of the values seen at calibration, one for each weight plane.
    """

    inner: State
    outputs: Range


@role("adc")
def column_adc(core: Core, *, adc: ADC, signed: bool) -> Core:
    """Converts what an array yields, with one range for each weight plane.

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

    def write(op: Op, w: Array, key: Any) -> AdcState:
        return AdcState(core.write(op, w, key), no_range(op.w_planes(w)))

    def calibrate(op: Op, state: AdcState, x: Array) -> AdcState:
        inner = core.calibrate(op, state.inner, x)
        y = core.read(dataclasses.replace(op, deterministic=True), inner, x, None).astype(
            jnp.float32
        )
        return AdcState(inner, update_range(state.outputs, observed(op, x, y)))

    def read(op: Op, state: AdcState, x: Array, key: Any) -> Array:
        y = core.read(op, state.inner, x, key).astype(jnp.float32)
        op.count("conversions", y.size)
        if not is_traced(adc.bits):
            op.count("conversion_steps", y.size * float(2 ** np.asarray(adc.bits)))
        rank = y.ndim - op.x_planes(x)
        lo, hi = (broadcast_planes(end, rank) for end in range_of(op, state, x, y))
        return adc.convert(y, lo, hi, signed)

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
    return column_adc(core, adc=_uniform(bits, percentile, rule), signed=signed)


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

    Examples:
      >>> import jaxsim as js
      >>> js.fpg_bits(weight_bits=2, input_bits=1, rows=1024)
      12

    Source: Xiao et al. (2022), arXiv 2109.01262, eq. 2 and 3 (full-precision guarantee).
    """
    weight_bits = checked_int("weight_bits", weight_bits, 1)
    input_bits = checked_int("input_bits", input_bits, 1)
    rows = checked_int("rows", rows, 1)
    both = weight_bits > 1 and input_bits > 1
    return weight_bits + input_bits + math.ceil(math.log2(rows)) - (0 if both else 1)


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
