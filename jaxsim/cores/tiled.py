"""Arrays of bounded size: a long contraction split over several."""

from __future__ import annotations

import dataclasses
import itertools
import math
from functools import partial
from typing import Any, NamedTuple, TypeGuard

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxsim.cores.core import Core, State
from jaxsim.cores.geometry import Dot, Matmul
from jaxsim.cores.op import Op
from jaxsim.cores.product import operands_of
from jaxsim.cores.role import role
from jaxsim.numerics.awaited import awaited
from jaxsim.numerics.packed import Packed


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
        state = jax.tree.map(partial(_awaited, x), state, is_leaf=_is_packed)
        values = operands.inputs(inner, state, x_tiles, key)
        values, y = jnp.moveaxis(values, -3, -2), None
        for piece in _pieces(inner, state, values) if operands.divides else [_whole(inner)]:
            depth = _depth(inner, piece)
            w = _joined(operands.weight(*_of(piece, inner, state)), -3, depth)
            geometry = dataclasses.replace(matmul.geometry, w_shape=w.shape[-3:])
            part = dataclasses.replace(op, geometry=geometry)
            more = part.contract(_joined(values[..., piece.groups, piece.rows], -2, depth), w)
            y = more if y is None else y + more
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


_CACHED = 2**18
"""Floats of a weight that stay in the cache of a CPU until they are multiplied."""


class _Piece(NamedTuple):
    """Some groups, and some products of each."""

    groups: slice
    rows: slice


def _whole(op: Op) -> _Piece:
    _, tiles, size, _ = op.geometry.w_shape
    return _Piece(slice(0, tiles), slice(0, size))


def _pieces(op: Op, state: State, x: Array) -> list[_Piece]:
    """What is multiplied at a time, of an input [..., M, tiles, rows].

    A CPU writes down the floats of a weight before it multiplies. Numbers that share bytes are put
    together for that one by one, and for few rows the floats come back from memory: so numbers of
    one place in their bytes are multiplied together, and of few rows as many as its cache holds.
    """
    if jax.default_backend() != "cpu":
        return [_whole(op)]
    batch, tiles, size, outputs = op.geometry.w_shape
    groups, rows = (list(_whole(op)[i : i + 1]) for i in range(2))
    for held in jax.tree.leaves(state, is_leaf=_is_packed):
        if _is_packed(held) and held.axis == -2 and not op.filled:
            rows = held.parts()
        if _is_packed(held) and held.axis == -3:
            groups = held.parts()
    if x.size <= 32 * batch * tiles * size:
        each = max(1, _CACHED // (batch * size * outputs))
        groups = [
            slice(at, min(at + each, part.stop))
            for part in groups
            for at in range(part.start, part.stop, each)
        ]
    return [_Piece(*both) for both in itertools.product(groups, rows)]


def _depth(op: Op, piece: _Piece) -> int:
    """Products of a piece without filling, which stands behind the last."""
    _, tiles, _, _ = op.geometry.w_shape
    groups, rows = (part.stop - part.start for part in piece)
    return groups * rows - (op.filled if piece.groups.stop == tiles else 0)


def _of(piece: _Piece, op: Op, state: State) -> tuple[Op, State]:
    """The op and the state of a piece."""
    whole, (batch, tiles, size, outputs) = _whole(op), op.geometry.w_shape
    if piece == whole:
        return op, state
    counts = (part.stop - part.start for part in piece)
    geometry = dataclasses.replace(op.geometry, w_shape=(batch, *counts, outputs))

    def cut(a: Any) -> Any:
        if _is_packed(a):
            if a.axis == -2:
                packs = a.packs[..., piece.groups, :, :]
                return dataclasses.replace(a, packs=packs).between(*_ends(piece.rows))
            return a.between(*_ends(piece.groups))
        if a.ndim > 3 and a.shape[-3] == tiles:
            a = a[..., piece.groups, :, :]
        return a[..., piece.rows, :] if a.ndim > 3 and a.shape[-2] == size else a

    return dataclasses.replace(op, geometry=geometry), jax.tree.map(cut, state, is_leaf=_is_packed)


def _ends(part: slice) -> tuple[int, int]:
    return part.start, part.stop


def _awaited(x: Array, a: Any) -> Any:
    """A leaf that is to be known after an input, if it is a number of each group."""
    return awaited(a, x) if not _is_packed(a) and a.ndim > 3 and a.shape[-2] == 1 else a


def _is_packed(a: Any) -> TypeGuard[Packed]:
    return isinstance(a, Packed)


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
