"""Numbers stored and multiplied as integer codes."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from jaxsim.cores.core import Core, State, float_core
from jaxsim.cores.op import Op
from jaxsim.cores.product import Operands, multiplies, operands_of
from jaxsim.cores.role import role
from jaxsim.cores.tiles import real
from jaxsim.formats.clipping import cut, over_kept
from jaxsim.formats.grid import (
    Grid,
    Range,
    encode,
    no_range,
    observe_range,
    scale_and_zero,
    update_range,
)
from jaxsim.numerics.checks import MissingKeyError
from jaxsim.numerics.digits import code_dtype
from jaxsim.numerics.packed import Packed, bits_to_pack, unpacked
from jaxsim.numerics.scaling import scale_product, unit_of


class Quantized(NamedTuple):
    """State of a quantized site.

    Attributes:
      inner: what the inner core wrote of the codes.
      scale: step of the weights, of the weight's rank, contracted axes of size 1; of floats a
        power of two.
      zero: code of a zero weight, of the same shape, as whole numbers; None where it is read by
        nothing: at deployment, of a symmetric grid and of floats.
      total: sum of the codes of each output, broadcastable to the output; None likewise, for
        inputs on a symmetric grid and floats.
      inputs: range of the inputs; None where none is stored.
    """

    inner: State
    scale: Float[Array, "..."]
    zero: Num[Array, "..."] | Packed | None
    total: Num[Array, "..."] | None
    inputs: Range | None


@role("codes")
def quantized(core: Core, *, weights: Grid | None, inputs: Grid | None) -> Core:
    """Rounds weights and inputs to grids and lets `core` multiply the codes.

    With scales s, zero points z and codes q: Σ x w ≈ s_x s_w Σ (q_x - z_x)(q_w - z_w); the inner
    core computes Σ q_x q_w, and the zero points are corrected by digital sums.

    Args:
      core: multiplies the codes.
      weights: grid of the weights; None leaves them floats.
      inputs: grid of the inputs; None leaves them floats.

    Source: Jacob et al. (2018), arXiv 1712.05877, eq. 4–7.
    """
    multiplied = operands_of(core)

    def inner_op(op: Op) -> Op:
        layout = "paired" if op.layout == "lean" and inputs is None else op.layout
        if weights is not None:
            op = op.codes(*map(np.asarray, weights.code_range))
            bits = 2 if weights.bits == 1 and op.masked else weights.bits  # a sign, or nothing
            op = dataclasses.replace(op, code_bits=bits, layout=layout)
        return op if inputs is None else op.inputs(*inputs.code_range)

    def write(op: Op, w: Array, key: Any) -> Quantized:
        outputs = op.channel_shape()
        unseen = no_range() if inputs is not None and stored(inputs) else None
        w = w.astype(jnp.float32)
        if weights is None:
            # near one, so that products with codes do not leave the floats' range
            unit = unit_of(w, tuple(range(w.ndim)))
            w, scale = w / unit, jnp.broadcast_to(unit, outputs)
            state, zero = core.write(op, w, key), jnp.zeros(outputs)
            return lean(op, Quantized(state, scale, zero, op.column_sum(w), unseen))
        axes = op.scale_axes(weights.per)
        clip = _clip_of_slice(op, weights, w.ndim - len(axes))
        kept = op.masked or op.filled > 0
        rule = dataclasses.replace(weights, clip=over_kept(clip) if kept else clip)
        seen = op.w_range
        if seen is None:
            seen = _observed(rule, w, axes, w != 0 if kept else None)
        w, r = cut(clip, w, seen)
        scale, zero = scale_and_zero(weights, r)
        draw = _rounding_key(weights, key, "weights")
        codes = encode(weights, w, scale, zero, draw, kept=kept)
        if op.integer:
            codes = codes.astype(code_dtype(*weights.code_range))
        state = core.write(inner_op(op), codes, key)
        scale, zero = jnp.broadcast_to(scale, outputs), jnp.broadcast_to(zero, outputs)
        return lean(op, Quantized(state, scale, zero, op.column_sum(codes), unseen))

    def lean(op: Op, state: Quantized) -> Quantized:
        """A state without what its reads do not need, where it is deployed."""
        if op.layout == "plain" or state.zero is None:
            return state
        zero, total = None, state.total
        if weights is not None and not weights.symmetric:
            zero = _short_zero(op, weights, unpacked(state.zero)) if op.integer else state.zero
        if inputs is None or inputs.symmetric:
            total = None
        return state._replace(zero=zero, total=total)

    def input_grid(op: Op, state: Quantized, x: Array) -> tuple[Array, Array, Array]:
        """The inputs within their range, and step and zero point of the grid over it."""
        assert inputs is not None
        axes = op.geometry.x_summed if inputs.per == "token" else None
        grid = dataclasses.replace(inputs, clip=_clip_of_slice(op, inputs, 0))
        batch = partial(_observed, grid, x, axes, real(op, x) if op.filled else None)
        held = state.inputs
        r = batch() if held is None else op.range("quantize(inputs=…)", held, batch)
        x, r = cut(grid.clip, x, r)
        return (x, *scale_and_zero(inputs, r))

    def drawn(op: Op, key: Any) -> Any:
        return None if inputs is None or op.deterministic else _rounding_key(inputs, key, "inputs")

    def to_codes(op: Op, state: Quantized, x: Array, key: Any) -> tuple[Op, Array, Any, Any]:
        """The op on codes, the codes, and scale and zero point as they broadcast to the output.

        The zero point is None where the codes have none.
        """
        op = inner_op(op)
        if inputs is None:
            return op, x.astype(jnp.float32), 1.0, None
        x = x.astype(jnp.float32)
        per_token = inputs.per == "token"
        x, scale, zero = input_grid(op, state, x)
        scales, zeros = (op.geometry.x_to_output(a) if per_token else a for a in (scale, zero))
        if core is float_core and not op.integer:
            # Nothing holds the codes: less their zero point, padding is zero and needs no sums.
            return op, encode(inputs, x, scale, zero, key) - zero, scales, None
        if not inputs.symmetric:  # a padded zero is a code like any other
            x, op = op.pad(x)
        codes = encode(inputs, x, scale, zero, key)
        if op.integer:
            codes, zeros = codes.astype(code_dtype(*inputs.code_range)), zeros.astype(jnp.int32)
        return op, codes, scales, None if inputs.symmetric else zeros

    def calibrate(op: Op, state: Quantized, x: Array) -> Quantized:
        if inputs is not None and state.inputs is not None:
            among = real(op, x) if op.filled else None
            grid = dataclasses.replace(inputs, clip=_clip_of_slice(op, inputs, 0))
            seen = _observed(grid, x.astype(jnp.float32), None, among)
            state = state._replace(inputs=update_range(state.inputs, seen, inputs.average))
        op, codes, _, _ = to_codes(op, state, x, None)
        return state._replace(inner=core.calibrate(op, state.inner, codes))

    def dense(op: Op, state: Quantized) -> Array:
        """The floats that weights are stored as."""
        assert multiplied is not None
        w = multiplied.weight(inner_op(op), state.inner).astype(jnp.float32)
        if weights is not None and not weights.symmetric:
            assert state.zero is not None
            w = w - unpacked(state.zero)
        return w * state.scale

    def rounded(op: Op, state: Quantized, x: Array, key: Any) -> Array:
        """The floats that inputs are rounded to."""
        assert multiplied is not None
        inner, x = inner_op(op), x.astype(jnp.float32)
        if inputs is None:
            return multiplied.inputs(inner, state.inner, x, key)
        x, scale, zero = input_grid(op, state, x)
        codes = encode(inputs, x, scale, zero, drawn(op, key))
        return (multiplied.inputs(inner, state.inner, codes, key) - zero) * scale

    @multiplies(multiplied and Operands(dense, rounded, multiplied.divides))
    def read(op: Op, state: Quantized, x: Array, key: Any) -> Array:
        op, codes, x_scale, x_zero = to_codes(op, state, x, drawn(op, key))
        y = core.read(op, state.inner, codes, key)
        if x_zero is not None:
            y = y - x_zero * state.total
        if weights is not None and not weights.symmetric:
            assert state.zero is not None
            w_zero = op.to_output(unpacked(state.zero))
            if jnp.issubdtype(y.dtype, jnp.integer):
                w_zero = w_zero.astype(jnp.int32)
            inside = op.row_sum(codes)
            y = y - w_zero * (inside if x_zero is None else inside - x_zero * op.depth)
        y, scale = y.astype(jnp.float32), op.to_output(state.scale)
        return y * scale if inputs is None else scale_product(y, x_scale, scale)

    return Core(write, calibrate, read)


def _short_zero(op: Op, weights: Grid, zero: Array) -> Array | Packed:
    """Codes of zero in as many bits as a code takes, where groups have one each."""
    zero = zero.astype(code_dtype(*weights.code_range))
    groups = getattr(op.geometry, "w_batch", ())
    packed = bits_to_pack(*weights.code_range)
    if not groups or packed is None:
        return zero
    return Packed.of(zero, groups[-1] - zero.ndim, packed)


def stored(inputs: Grid) -> bool:
    """Whether calibration stores a range of the inputs."""
    return not inputs.dynamic and inputs.per != "token"


def _observed(
    grid: Grid, x: Array, axes: Sequence[int] | None, among: Array | None = None
) -> Range:
    bits, symmetric = grid.bits, grid.symmetric
    return observe_range(x, axes=axes, clip=grid.clip, bits=bits, symmetric=symmetric, among=among)


def _clip_of_slice(op: Op, grid: Grid, axes: int) -> Any:
    """The range rule of a slice: arrays with more axes than its ranges have those of the stack."""
    return jax.tree.map(lambda a: op.slice_for_layer(a) if jnp.ndim(a) > axes else a, grid.clip)


def _rounding_key(grid: Grid, key: Any, name: str) -> Any:
    """A key of its own for stochastic rounding; None where nothing is random.

    Raises:
      ValueError: it needs one and the caller gave none.
    """
    if grid.rounding == "nearest":
        return None
    if key is None:
        raise MissingKeyError(f"stochastic rounding of {name} needs a key")
    return jax.random.fold_in(key, zlib.crc32(name.encode()))
