"""Uniform quantization by its formula, in numpy; the division is in float32, as in the package."""

import numpy as np

from tests.oracles import contraction


def code_range(grid):
    top = 2 ** (grid.bits - 1) - 1
    return (-top if grid.symmetric else -top - 1), top


def observed(x, *, axes=None, percentile=None, symmetric=False):
    """The lower and upper end of what `x` takes."""
    x = np.asarray(x, np.float32)
    keep = axes is not None
    if symmetric:
        x = np.abs(x)
    if percentile is None:
        lo, hi = x.min(axes, keepdims=keep), x.max(axes, keepdims=keep)
    else:
        tail = (100 - percentile) / 2
        top = percentile if symmetric else 100 - tail
        lo, hi = (np.percentile(x, p, axis=axes, keepdims=keep) for p in (tail, top))
    return (-hi, hi) if symmetric else (lo, hi)


def grid_of(grid, lo, hi):
    """Step and code of zero."""
    qmin, qmax = code_range(grid)
    if grid.symmetric:
        width = np.maximum(np.abs(lo), np.abs(hi)).astype(np.float32)
        return np.where(width > 0, width / np.float32(qmax), 1).astype(np.float32), 0
    lo, hi = np.minimum(lo, 0).astype(np.float32), np.maximum(hi, 0).astype(np.float32)
    step = np.where(hi > lo, (hi - lo) / np.float32(qmax - qmin), 1).astype(np.float32)
    return step, np.clip(np.rint(qmin - lo / step), qmin, qmax).astype(np.int64)


def codes(grid, x, step, zero):
    """Integer codes."""
    return np.clip(np.rint(np.asarray(x, np.float32) / step) + zero, *code_range(grid)).astype(
        np.int64
    )


def quantise(grid, x, axes=None):
    """Codes, step and zero point of an array, its range taken from itself."""
    share = None if grid.clip is None else float(grid.clip.args[0])
    lo, hi = observed(x, axes=axes, percentile=share, symmetric=grid.symmetric)
    step, zero = grid_of(grid, lo, hi)
    return codes(grid, x, step, zero), step, zero


def product(geometry, x, w, *, weights, inputs):
    """A contraction of quantized operands, its sums exact: float64, rounded nowhere else."""
    axes = geometry.contracted if weights.per == "channel" else None
    qw, sw, zw = quantise(weights, w, axes)
    qx, sx, zx = quantise(inputs, x)
    # padding adds real zeros: in codes less their zero point it does so too
    return contraction.contract(geometry, qx - zx, (qw - zw) * sw.astype(np.float64)) * sx
