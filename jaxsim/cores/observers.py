"""What flows through a site, measured: the second moments of its inputs, the peaks, the outputs."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxsim.cores.core import Core, State, float_core
from jaxsim.cores.op import Op
from jaxsim.cores.quantized import Quantized, quantized
from jaxsim.cores.role import role
from jaxsim.cores.tiled import tiled
from jaxsim.formats.grid import Grid
from jaxsim.formats.microscaling import Microscaled, micro_scales
from jaxsim.numerics import memory
from jaxsim.numerics.packed import unpacked


class Moments(NamedTuple):
    """State of a site whose inputs are measured, as a batch of matrix products.

    Attributes:
      inner: what the inner core wrote.
      w: weights [B, K, N].
      scale: step of the grid at each weight, [B, K, N].
      zero: code of zero at each weight, [B, K, N].
      ends: values of the smallest and the largest code, for each output or one for all; of short
        elements the scales of blocks and of the tensor.
      gram: sum of the outer products of the inputs, [B, K, K]; of an expert those of its rows.
        Where they are sketched, rows whose outer products sum up to that in the mean, [B, m, K].
      size: sum of the magnitudes of the inputs, [B, K].
      seen: how many inputs that were, [B].
    """

    inner: State
    w: Float[Array, "B K N"]
    scale: Float[Array, "B K N"]
    zero: Float[Array, "B K N"]
    ends: tuple[Float[Array, "..."], Float[Array, "..."]]
    gram: Float[Array, "B _ K"]
    size: Float[Array, "B K"]
    seen: Float[Array, " B"]

    @property
    def mean(self) -> Float[Array, "... B K K"]:
        """Mean of the outer products, zero where nothing was seen."""
        return self.gram / jnp.maximum(self.seen, 1)[..., None, None]


def row_counts(op: Op, x: Array) -> Float[Array, "B M"]:
    """Counts how often each row of the inputs is multiplied, as rows of a matrix product.

    Args:
      op: contraction, as the site's outermost core sees it.
      x: input.
    """
    matmul = op.geometry.as_matmul()
    if op.rows is None:
        return jnp.ones(jax.eval_shape(matmul.x, x).shape[:-1])
    return matmul.x(jnp.broadcast_to(op.rows, x.shape))[..., 0]


def rows_seen(op: Op, x: Array) -> Float[Array, "B M K"]:
    """The rows of the inputs, zero where an expert multiplies them not at all.

    Args:
      op: contraction, as the site's outermost core sees it.
      x: input.
    """
    rows = op.geometry.as_matmul().x(x.astype(jnp.float32))
    return rows if op.rows is None else jnp.where(row_counts(op, x)[..., None] > 0, rows, 0)


@role("observer")
def moments(
    core: Core, *, weights: Grid | Microscaled, rows: int | None = None, sketch: int | None = None
) -> Core:
    """Sums the outer products of what flows in at calibration, and notes the weights' grid.

    Args:
      core: contracts.
      weights: grid or short elements that the weights are to be rounded to.
      rows: products of a group, each of which has a grid of its own; None where a site has one.
      sketch: number of rows, each the sum of all inputs by random signs, to hold in place of the
        moments of more inputs than these; None for the moments.

    Raises:
      MemoryError: when written, a site with too many inputs for their moments to be held.
    """

    def write(op: Op, w: Array, key: Any) -> Moments:
        matmul = op.geometry.as_matmul()
        B, K, _ = matmul.geometry.w_shape
        what = f"second moments of {K} inputs" + (f", {B} times" if B > 1 else "")
        height = K if sketch is None else min(K, sketch)
        memory.check(what, 4 * B * height * K, "leave such a site out with sites=")
        w = w.astype(jnp.float32)
        plain = dataclasses.replace(op, layout="plain")
        grid = Core(partial(_note_grid, weights), float_core.calibrate, float_core.read)
        on = (grid if rows is None else tiled(grid, rows=rows)).write(plain, w, None)

        def spread(s: Array) -> Array:
            if s.shape == w.shape:
                return matmul.w(s)
            return s.reshape(B, -1, s.shape[-1])[:, :K]  # tiles, the last one filled up

        return Moments(
            inner=core.write(op, w, key),
            w=matmul.w(w),
            scale=spread(on.scale),
            zero=spread(on.zero),
            ends=on.ends,
            gram=jnp.zeros((B, height, K)),
            size=jnp.zeros((B, K)),
            seen=jnp.zeros(B),
        )

    def calibrate(op: Op, state: Moments, x: Array) -> Moments:
        rows, counts = rows_seen(op, x), row_counts(op, x)
        often = rows if op.rows is None else rows * counts[..., None]
        left, height = often, state.gram.shape[1]
        if height < rows.shape[-1]:
            key = jax.random.fold_in(jax.random.key(0), jnp.sum(state.seen).astype(jnp.int32))
            signs = jax.random.rademacher(key, (*rows.shape[:2], height), jnp.float32)
            left, rows = signs * height**-0.5, rows * jnp.sqrt(counts)[..., None]
        gram = jnp.einsum("bmk,bml->bkl", left, rows, precision=lax.Precision.HIGHEST)
        return state._replace(
            inner=core.calibrate(op, state.inner, x),
            gram=state.gram + gram,
            size=state.size + jnp.abs(often).sum(-2),
            seen=state.seen + counts.sum(-1),
        )

    def read(op: Op, state: Moments, x: Array, key: Any) -> Array:
        return core.read(op, state.inner, x.astype(jnp.float32), key)

    return Core(write, calibrate, read)


class _Noted(NamedTuple):
    """Grid of a weight, or of its groups: step and code of zero at each entry, and the ends."""

    scale: Array
    zero: Array
    ends: tuple[Array, Array]


def _note_grid(weights: Grid | Microscaled, op: Op, w: Array, key: Any) -> _Noted:
    if isinstance(weights, Microscaled):
        scale, tensor = micro_scales(weights, w, op.geometry.contracted)
        tensor = jnp.ones(()) if tensor is None else tensor
        step = jnp.broadcast_to(scale * tensor, w.shape)
        return _Noted(step, jnp.zeros(w.shape), (scale, tensor))
    on = quantized(float_core, weights=weights, inputs=None).write(op, w, key)
    scale, zero = (jnp.broadcast_to(a, w.shape) for a in (on.scale, on.zero))
    return _Noted(scale, zero, _ends_of(op, weights, on))


class CodeEnds(NamedTuple):
    """State of a quantized site, and what its weights' grid reaches.

    Attributes:
      inner: what the quantized core wrote.
      ends: values of the smallest and the largest code, for each output or one for all.
    """

    inner: Quantized
    ends: tuple[Float[Array, "..."], Float[Array, "..."]]


@role("observer")
def code_ends(core: Core, *, weights: Grid) -> Core:
    """Notes the values of the first and the last code of a quantized site's weights.

    Args:
      core: quantizes, by `quantized`.
      weights: grid that it rounds weights to.
    """

    def write(op: Op, w: Array, key: Any) -> CodeEnds:
        inner = core.write(op, w, key)
        return CodeEnds(inner, _ends_of(op, weights, inner))

    def calibrate(op: Op, state: CodeEnds, x: Array) -> CodeEnds:
        return state._replace(inner=core.calibrate(op, state.inner, x))

    def read(op: Op, state: CodeEnds, x: Array, key: Any) -> Array:
        return core.read(op, state.inner, x, key)

    return Core(write, calibrate, read)


def _ends_of(op: Op, weights: Grid, on: Quantized) -> tuple[Array, Array]:
    """Values of the first and the last code, contracted axes left out."""
    zero = jnp.zeros_like(on.scale) if on.zero is None else unpacked(on.zero)
    scale, zero = (jnp.squeeze(a, op.geometry.contracted) for a in (on.scale, zero))
    if weights.per == "tensor":
        scale, zero = (a.reshape(-1)[0] for a in (scale, zero))
    lo, hi = ((code - zero) * scale for code in weights.code_range)
    return lo, hi


class Peaks(NamedTuple):
    """State of a site whose input channels are measured.

    Attributes:
      inner: what the inner core wrote.
      w: largest magnitude of the weights of each input channel, [B, C].
      x: largest magnitude of each input channel, [B, C].
      seen: how many calls that is of, without those in which an expert multiplies nothing.
    """

    inner: State
    w: Float[Array, "B C"]
    x: Float[Array, "B C"]
    seen: Float[Array, ""]


@role("observer")
def peaks(core: Core) -> Core:
    """Notes the largest magnitude of each input channel at calibration, and of its weights.

    Args:
      core: contracts.
    """

    def write(op: Op, w: Array, key: Any) -> Peaks:
        most = _by_channel(op, jnp.abs(op.geometry.as_matmul().w(w)).max(-1))
        return Peaks(core.write(op, w, key), most, jnp.zeros_like(most), jnp.zeros(()))

    def calibrate(op: Op, state: Peaks, x: Array) -> Peaks:
        most = _by_channel(op, jnp.abs(rows_seen(op, x)).max(-2, initial=0))
        inner, most = core.calibrate(op, state.inner, x), jnp.maximum(state.x, most)
        return Peaks(inner, state.w, most, state.seen + 1.0 * row_counts(op, x).any())

    def read(op: Op, state: Peaks, x: Array, key: Any) -> Array:
        return core.read(op, state.inner, x, key)

    return Core(write, calibrate, read)


def _by_channel(op: Op, most: Float[Array, "B K"]) -> Float[Array, "B C"]:
    """The largest over a kernel's taps, which come before its channels."""
    most = most.astype(jnp.float32)
    return most.reshape(len(most), -1, op.geometry.channels).max(1)


class Outputs(NamedTuple):
    """State of a site whose outputs are measured.

    Attributes:
      inner: what the inner core wrote.
      seen: number of values of each output channel, of the weight's rank, contracted axes of size
        1; of an expert, of the rows that it multiplies.
      total: their sum, of the same shape.
      squares: the sum of their squares, of the same shape.
    """

    inner: State
    seen: Float[Array, "..."]
    total: Float[Array, "..."]
    squares: Float[Array, "..."]

    @property
    def mean(self) -> Float[Array, "..."]:
        """Mean of each output channel."""
        return self.total / jnp.maximum(self.seen, 1)

    @property
    def variance(self) -> Float[Array, "..."]:
        """Variance of each output channel."""
        return self.squares / jnp.maximum(self.seen, 1) - self.mean**2


@role("observer")
def outputs(core: Core, *, target: Array | None = None) -> Core:
    """Measures the outputs at calibration, and moves their mean.

    Args:
      core: what is measured.
      target: mean that each output channel is moved to by what was measured so far, of the weight's
        rank, contracted axes of size 1, behind the axes of the weight's stack; NaN, or None for
        all, moves nothing, and neither does an expert that multiplied nothing so far.
    """

    def write(op: Op, w: Array, key: Any) -> Outputs:
        none = jnp.zeros(op.channel_shape())
        return Outputs(core.write(op, w, key), none, none, none)

    def calibrate(op: Op, state: Outputs, x: Array) -> Outputs:
        inner = core.calibrate(op, state.inner, x)
        y = core.read(op, inner, x, None).astype(jnp.float32)

        def spread(s: Array) -> Array:
            return jnp.broadcast_to(op.to_output(s), y.shape)

        summed = jax.linear_transpose(spread, state.total)
        if op.rows is None:
            (total,), (squares,) = summed(y), summed(y * y)
            seen = y.size / total.size
        else:
            counts = _output_counts(op, x)
            y = jnp.where(counts > 0, y, 0)
            (seen,), (total,), (squares,) = map(summed, (counts, counts * y, counts * y * y))
        return Outputs(inner, state.seen + seen, state.total + total, state.squares + squares)

    def read(op: Op, state: Outputs, x: Array, key: Any) -> Array:
        y = core.read(op, state.inner, x, key)
        if target is None:
            return y
        move = op.slice_for_layer(target) - state.mean
        return y + op.to_output(jnp.where((state.seen > 0) & ~jnp.isnan(move), move, 0))

    return Core(write, calibrate, read)


def _output_counts(op: Op, x: Array) -> Array:
    """How often an expert computes each output for a row that is its own."""
    matmul, counts = op.geometry.as_matmul(), row_counts(op, x)
    columns = matmul.geometry.w_shape[-1]
    return matmul.y(jnp.broadcast_to(counts[..., None], (*counts.shape, columns)), x.shape)
