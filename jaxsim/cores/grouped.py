"""Groups of products with a core of their own each, multiplied together where that is known."""

from __future__ import annotations

import dataclasses
import itertools
import operator
from functools import partial, reduce
from typing import Any, NamedTuple, TypeGuard, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxsim.cores.core import Core, State
from jaxsim.cores.geometry import Dot
from jaxsim.cores.op import Op
from jaxsim.cores.product import operands_of
from jaxsim.cores.role import role
from jaxsim.cores.tiled import tiled
from jaxsim.cores.tiles import input_tiles, joined, tiles_of
from jaxsim.numerics.awaited import awaited
from jaxsim.numerics.packed import Packed


@role("groups")
def grouped(core: Core, *, rows: int) -> Core:
    """Gives each group of products of an output a core of its own: a scale, where it quantizes.

    Where the core says what floats it multiplies, a read makes them for all groups, or on a CPU for
    large pieces, and multiplies those: a product a group is thin, and a batch of thin products
    takes 8 to 15 times as long as one. Sums over groups are then made in another order. Any other
    core (arrays, slices, blocks) reads each group, and the reads are added.

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
        inner, matmul = tiles_of(op, rows)
        x_tiles = input_tiles(inner, matmul, x)
        state = jax.tree.map(partial(_awaited, x), state, is_leaf=_is_packed)
        values = operands.inputs(inner, state, x_tiles, key)
        values, products = jnp.moveaxis(values, -3, -2), list[Array]()
        for piece in _pieces(inner, state, values) if operands.divides else [_whole(inner)]:
            depth = _depth(inner, piece)
            w = joined(operands.weight(*_of(piece, inner, state)), -3, depth)
            geometry = dataclasses.replace(matmul.geometry, w_shape=w.shape[-3:])
            part = dataclasses.replace(op, geometry=geometry)
            x_part = joined(values[..., piece.groups, piece.rows], -2, depth)
            products.append(part.contract(x_part, w))
        y = reduce(operator.add, products)
        return matmul.y(y, x.shape[op.x_planes(x) :])

    return Core(write, apart.calibrate, read)


_AT_ONCE = 2**20
"""Floats of a weight that a CPU makes at a time; half as many take twice as long to compile."""


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
    one place in their bytes are multiplied together, and for few rows so many as `_AT_ONCE` says.
    """
    if jax.default_backend() != "cpu":
        return [_whole(op)]
    batch, tiles, size, outputs = op.geometry.w_shape
    groups, rows = [slice(0, tiles)], [slice(0, size)]
    for held in jax.tree.leaves(state, is_leaf=_is_packed):
        if _is_packed(held) and held.axis == -2 and not op.filled:
            rows = held.parts()
        if _is_packed(held) and held.axis == -3:
            groups = held.parts()
    if x.size <= 32 * batch * tiles * size:
        each = max(1, _AT_ONCE // (batch * size * outputs))
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
    if piece == _whole(op):
        return op, state
    batch, tiles, size, outputs = op.geometry.w_shape
    counts = (part.stop - part.start for part in piece)
    geometry = dataclasses.replace(cast("Dot", op.geometry), w_shape=(batch, *counts, outputs))

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
