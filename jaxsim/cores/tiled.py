"""Arrays of bounded size: a long contraction split over several."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxsim.cores.core import Core, State
from jaxsim.cores.op import Op
from jaxsim.cores.role import role
from jaxsim.cores.tiles import cut, input_tiles, tiles_of


@role("array")
def tiled(core: Core, *, rows: int, full: bool = False) -> Core:
    """Splits the contraction into tiles of at most `rows` products and adds their reads.

    Where one array is enough the site stays as it is. Otherwise it becomes a matrix product with a
    batch axis of tiles; the last tile is filled with zero weights.

    Args:
      core: stores and reads the tiles.
      rows: rows of one array, at least 1.
      full: whether all tiles but the last have `rows` products, so that a product's tile does not
        depend on how many follow; otherwise tiles are as equal as can be.
    """

    def write(op: Op, w: Array, key: Any) -> State:
        if op.depth <= rows:
            return core.write(op, w, key)
        inner, matmul = tiles_of(op, rows, full)
        return core.write(inner, cut(matmul.w(w), -2, *inner.geometry.w_shape[1:3]), key)

    def calibrate(op: Op, state: State, x: Array) -> State:
        if op.depth <= rows:
            return core.calibrate(op, state, x)
        inner, matmul = tiles_of(op, rows, full)
        return core.calibrate(inner, state, input_tiles(inner, matmul, x))

    def read(op: Op, state: State, x: Array, key: Any) -> Array:
        if op.depth <= rows:
            return core.read(op, state, x, key)
        inner, matmul = tiles_of(op, rows, full)
        y = core.read(inner, state, input_tiles(inner, matmul, x), key)
        return matmul.y(_summed(y), x.shape[op.x_planes(x) :])

    return Core(write, calibrate, read)


@jax.custom_jvp
def _summed(y: Array) -> Array:
    """The sum over tiles of [..., tiles, M, N].

    Up to 64 are added one by one: XLA then computes what converters make of each on the way, where
    for a reduction it writes that down first.
    """
    if y.shape[-3] > 64:
        return jnp.sum(y, -3)
    total = y[..., 0, :, :]
    for i in range(1, y.shape[-3]):
        total = total + y[..., i, :, :]
    return total


@_summed.defjvp
def _summed_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """A reduction, whose transpose is one broadcast and not a sum of one for each tile."""
    return _summed(*primals), jnp.sum(tangents[0], -3)
