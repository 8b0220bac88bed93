"""Arrays of bounded size: a long contraction split over several."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from jaxsim.cores.core import Core, State
from jaxsim.cores.geometry import Dot, Matmul
from jaxsim.cores.op import Op
from jaxsim.cores.role import role


@role("array")
def tiled(core: Core, *, rows: int) -> Core:
    """Splits the contraction into equal tiles of at most `rows` products and adds their reads.

    Where one array is enough the site stays as it is. Otherwise it becomes a matrix product with a
    batch axis of tiles; the last tile is filled with zero weights.

    Args:
      core: stores and reads the tiles.
      rows: rows of one array, at least 1.
    """

    def split(op: Op) -> tuple[Op, Matmul]:
        """The op on tiles, and the site as a matrix product."""
        matmul = op.geometry.as_matmul()
        B, K, N = matmul.geometry.w_shape
        tiles = -(-K // rows)
        geometry = Dot(
            x_contract=(3,),
            x_batch=(0, 1),
            w_contract=(2,),
            w_batch=(0, 1),
            x_ndim=4,
            w_shape=(B, tiles, -(-K // tiles), N),
            precision=matmul.geometry.precision,
            dtype=matmul.geometry.dtype,
        )
        filled = -K % tiles
        return dataclasses.replace(op, geometry=geometry, filled=filled), matmul

    def x_tiles(op: Op, x: Array) -> tuple[Op, Array]:
        inner, matmul = split(op)
        x = _cut(matmul.x(x), -1, *inner.geometry.w_shape[1:3])
        return inner, jnp.moveaxis(x, -2, -3)

    def write(op: Op, w: Array, key: Any) -> State:
        if op.depth <= rows:
            return core.write(op, w, key)
        inner, matmul = split(op)
        return core.write(inner, _cut(matmul.w(w), -2, *inner.geometry.w_shape[1:3]), key)

    def calibrate(op: Op, state: State, x: Array) -> State:
        if op.depth <= rows:
            return core.calibrate(op, state, x)
        inner, tiles = x_tiles(op, x)
        return core.calibrate(inner, state, tiles)

    def read(op: Op, state: State, x: Array, key: Any) -> Array:
        if op.depth <= rows:
            return core.read(op, state, x, key)
        inner, tiles = x_tiles(op, x)
        y = jnp.sum(core.read(inner, state, tiles, key), -3)
        return op.geometry.as_matmul().y(y, x.shape[op.x_planes(x) :])

    return Core(write, calibrate, read)


@role("groups")
def grouped(core: Core, *, rows: int) -> Core:
    """Gives each group of products of an output a core of its own: a scale, where it quantizes.

    Args:
      core: of one group.
      rows: products of a group, at least 1.
    """
    return tiled(core, rows=rows)


def real(op: Op, x: Array) -> Array:
    """Which numbers of an input [..., tiles, M, rows] of tiles are no filling."""
    _, tiles, rows, _ = op.geometry.w_shape
    place = jnp.arange(tiles * rows).reshape(tiles, 1, rows)
    place = place.reshape((1,) * (x.ndim - 3) + place.shape)
    return jnp.broadcast_to(place < tiles * rows - op.filled, x.shape)


def _cut(a: Array, axis: int, tiles: int, size: int) -> Array:
    """One axis, filled up with zeros, as two: tiles and their rows."""
    axis += a.ndim
    fill = [(0, 0)] * a.ndim
    fill[axis] = (0, tiles * size - a.shape[axis])
    return jnp.pad(a, fill).reshape(*a.shape[:axis], tiles, size, *a.shape[axis + 1 :])
