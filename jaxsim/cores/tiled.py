"""Arrays of bounded size: a long contraction split over several."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxsim.cores.core import Core, State
from jaxsim.cores.geometry import Dot, Matmul
from jaxsim.cores.op import Op
from jaxsim.cores.product import operands_of
from jaxsim.cores.role import role


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
        inner, matmul = _split(op, rows, full)
        return core.write(inner, _cut(matmul.w(w), -2, *inner.geometry.w_shape[1:3]), key)

    def calibrate(op: Op, state: State, x: Array) -> State:
        if op.depth <= rows:
            return core.calibrate(op, state, x)
        inner, matmul = _split(op, rows, full)
        return core.calibrate(inner, state, _x_tiles(inner, matmul, x))

    def read(op: Op, state: State, x: Array, key: Any) -> Array:
        if op.depth <= rows:
            return core.read(op, state, x, key)
        inner, matmul = _split(op, rows, full)
        y = core.read(inner, state, _x_tiles(inner, matmul, x), key)
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


@role("groups")
def grouped(core: Core, *, rows: int) -> Core:
    """Gives each group of products of an output a core of its own: a scale, where it quantizes.

    Where the core says what floats it multiplies, a read makes them for all groups and multiplies
    once: a product a group is thin, and a batch of thin products takes 8 to 15 times as long as
    one. Sums over groups are then those of one product, in another order. Any other core (arrays,
    slices, blocks) reads each group, and the reads are added.

    Args:
      core: of one group.
      rows: products of a group, at least 1.
    """
    operands, apart = operands_of(core), tiled(core, rows=rows)

    def write(op: Op, w: Array, key: Any) -> State:
        paired = op.layout == "lean" and operands is not None and op.depth > rows
        return apart.write(dataclasses.replace(op, layout="paired") if paired else op, w, key)

    def read(op: Op, state: State, x: Array, key: Any) -> Array:
        if operands is None or op.depth <= rows:
            return apart.read(op, state, x, key)
        inner, matmul = _split(op, rows)
        x_tiles = _x_tiles(inner, matmul, x)
        whole = dataclasses.replace(op, geometry=matmul.geometry)
        values = operands.inputs(inner, state, x_tiles, key)
        y = whole.contract(
            _joined(jnp.moveaxis(values, -3, -2), -2, op.depth),
            _joined(operands.weight(inner, state), -3, op.depth),
        )
        return matmul.y(y, x.shape[op.x_planes(x) :])

    return Core(write, apart.calibrate, read)


def real(op: Op, x: Array) -> Array:
    """Which numbers of an input [..., tiles, M, rows] of tiles are no filling."""
    _, tiles, rows, _ = op.geometry.w_shape
    place = jnp.arange(tiles * rows).reshape(tiles, 1, rows)
    place = place.reshape((1,) * (x.ndim - 3) + place.shape)
    return jnp.broadcast_to(place < tiles * rows - op.filled, x.shape)


def _split(op: Op, rows: int, full: bool = False) -> tuple[Op, Matmul]:
    """The op on tiles of at most `rows` products, and the site as a matrix product."""
    matmul = op.geometry.as_matmul()
    B, K, N = matmul.geometry.w_shape
    tiles = -(-K // rows)
    size = rows if full else -(-K // tiles)
    geometry = Dot(
        x_contract=(3,),
        x_batch=(0, 1),
        w_contract=(2,),
        w_batch=(0, 1),
        x_ndim=4,
        w_shape=(B, tiles, size, N),
        precision=matmul.geometry.precision,
        dtype=matmul.geometry.dtype,
    )
    return dataclasses.replace(op, geometry=geometry, filled=tiles * size - K), matmul


def _x_tiles(inner: Op, matmul: Matmul, x: Array) -> Array:
    """An input [..., B, tiles, M, rows] cut as the weight is."""
    cut = _cut(matmul.x(x), -1, *inner.geometry.w_shape[1:3])
    return jnp.moveaxis(cut, -2, -3)


def _joined(a: Array, axis: int, depth: int) -> Array:
    """Tiles and their rows, an axis and the next, as one axis without its filling."""
    axis += a.ndim
    size = math.prod(a.shape[axis : axis + 2])
    whole = a.reshape(*a.shape[:axis], size, *a.shape[axis + 2 :])
    return lax.slice_in_dim(whole, 0, depth, axis=axis)


def _cut(a: Array, axis: int, tiles: int, size: int) -> Array:
    """One axis, filled up with zeros, as two: tiles and their rows."""
    axis += a.ndim
    fill = [(0, 0)] * a.ndim
    fill[axis] = (0, tiles * size - a.shape[axis])
    return jnp.pad(a, fill).reshape(*a.shape[:axis], tiles, size, *a.shape[axis + 1 :])
