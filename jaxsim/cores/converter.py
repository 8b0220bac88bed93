"""The analog-to-digital converter at the foot of each column."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxsim.core import Core, Op, State
from jaxsim.numerics import Range, clip_through, no_range, observe, round_through, widen


class Converter(NamedTuple):
    """State behind an ADC.

    Attributes:
      inner: what the array holds.
      outputs: range of the ADC, one for each weight plane.
    """

    inner: State
    outputs: Range


def converted(core: Core, *, bits: float | Array, percentile: float | Array, signed: bool) -> Core:
    """Clips and rounds what `core` reads, as an ADC does, with one calibrated range a plane.

    Args:
      core: computes the analog value.
      bits: resolution. Traced, so that a sweep over it compiles once.
      percentile: share of the calibration values, in percent, inside the range. Traced.
      signed: sign and magnitude, symmetric with an exact zero, 2^bits - 2 steps; otherwise
        2^bits - 1 steps from the lower to the upper end.

    Source: Xiao et al. (2022), arXiv 2109.01262, p. 39 (calibrated range).
    """

    def observed(op: Op, x: Array, y: Float[Array, "..."]) -> Range:
        planes, first = _planes(op), op.x_planes(x)
        axes = [a for a in range(y.ndim) if not first <= a < first + planes]
        r = observe(y, axes=axes, percentile=percentile, symmetric=signed)
        return Range(*(jnp.squeeze(end, axes) for end in r))

    def write(op: Op, w: Array, key: Any) -> Converter:
        return Converter(core.write(op, w, key), no_range(op.w_planes(w)))

    def calibrate(op: Op, state: Converter, x: Array) -> Converter:
        inner = core.calibrate(op, state.inner, x)
        y = core.read(op, inner, x, None).astype(jnp.float32)
        return Converter(inner, widen(state.outputs, observed(op, x, y)))

    def read(op: Op, state: Converter, x: Array, key: Any) -> Array:
        y = core.read(op, state.inner, x, key).astype(jnp.float32)
        op.count("conversions", y.size)
        r = op.range("analog(adc=…)", state.outputs, lambda: observed(op, x, y))
        outputs = (1,) * (y.ndim - op.x_planes(x) - _planes(op))
        lo, hi = (end.reshape(*end.shape, *outputs) for end in r)
        levels = 2.0 ** jnp.asarray(bits, jnp.float32)
        if signed:
            lsb = jnp.where(hi > 0, hi / (levels / 2 - 1), 1.0)
            return clip_through(round_through(y / lsb), 1 - levels / 2, levels / 2 - 1) * lsb
        lsb = jnp.where(hi > lo, (hi - lo) / (levels - 1), 1.0)
        return lo + clip_through(round_through((y - lo) / lsb), 0, levels - 1) * lsb

    return Core(write, calibrate, read)


def _planes(op: Op) -> int:
    return 0 if op.w_hi is None else op.w_hi.ndim
