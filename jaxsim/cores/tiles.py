"""Tiles of a contraction: an axis of products cut into equal parts, and put together again."""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool

from jaxsim.cores.geometry import Dot, Matmul
from jaxsim.cores.op import Op


def real(op: Op, x: Array) -> Bool[Array, "..."]:
    """Tells which numbers of an input of tiles are no filling.

    Args:
      op: Contraction of the tiles.
      x: Input [..., tiles, M, rows].
    """
    _, tiles, rows, _ = op.geometry.w_shape
    place = jnp.arange(tiles * rows).reshape(tiles, 1, rows)
    place = place.reshape((1,) * (x.ndim - 3) + place.shape)
    return jnp.broadcast_to(place < tiles * rows - op.filled, x.shape)


def tiles_of(op: Op, rows: int, full: bool = False) -> tuple[Op, Matmul]:
    """The op on tiles of at most `rows` products, and the site as a matrix product.

    Args:
      op: Contraction of a site.
      rows: Products of a tile, at least 1.
      full: Whether all tiles but the last have as many; otherwise they are as equal as can be.
    """
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


def input_tiles(inner: Op, matmul: Matmul, x: Array) -> Array:
    """An input cut as the weight is, [..., B, tiles, M, rows].

    Args:
      inner: Contraction of the tiles, from `tiles_of`.
      matmul: The site as a matrix product.
      x: Input of the site.
    """
    return jnp.moveaxis(cut(matmul.x(x), -1, *inner.geometry.w_shape[1:3]), -2, -3)


def joined(a: Array, axis: int, depth: int) -> Array:
    """Tiles and their rows as one axis without its filling.

    Args:
      a: Array with an axis of tiles, and one of their rows behind it.
      axis: That of the tiles, below zero.
      depth: Rows that are no filling.
    """
    axis += a.ndim
    size = math.prod(a.shape[axis : axis + 2])
    whole = a.reshape(*a.shape[:axis], size, *a.shape[axis + 2 :])
    return lax.slice_in_dim(whole, 0, depth, axis=axis)


def cut(a: Array, axis: int, tiles: int, size: int) -> Array:
    """One axis, filled up with zeros, as two: tiles and their rows.

    Args:
      a: Array.
      axis: Axis to cut, below zero.
      tiles: How many.
      size: Rows of each.
    """
    axis += a.ndim
    fill = [(0, 0)] * a.ndim
    fill[axis] = (0, tiles * size - a.shape[axis])
    return jnp.pad(a, fill).reshape(*a.shape[:axis], tiles, size, *a.shape[axis + 1 :])
