"""Cells in blocks, and what their currents lose along wires."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxsim.cores.nodal.dense import times

BLOCK = 32
"""Largest number of cells along one side of a block, where that makes few enough blocks."""
MOST = 16
"""Largest number of blocks along one side of an array: each wire has a system that wide."""


def column_currents(
    current: Float[Array, "M N s arrays b t"], n: int
) -> Float[Array, "arrays b n"]:
    """The currents of columns, from those of cells in blocks."""
    total = jnp.moveaxis(jnp.sum(current, (0, 2)), 0, 2)
    return total.reshape(*total.shape[:2], -1)[..., :n]


def into_blocks(x: Float[Array, "arrays b m n"]) -> Float[Array, "M N s arrays b t"]:
    """Cells in M × N blocks of s × t, padded with zeros at the bottom and the right."""
    A, b, m, n = x.shape
    (M, s), (N, t) = _cut(m), _cut(n)
    x = jnp.pad(x, [(0, 0), (0, 0), (0, M * s - m), (0, N * t - n)])
    return jnp.transpose(x.reshape(A, b, M, s, N, t), (2, 4, 3, 0, 1, 5))


def out_of_blocks(x: Float[Array, "M N s arrays b t"]) -> Float[Array, "arrays b m n"]:
    """What `into_blocks` put there, with its padding."""
    M, N, s, A, b, t = x.shape
    return jnp.transpose(x, (3, 4, 0, 2, 1, 5)).reshape(A, b, M * s, N * t)


def _cut(size: int) -> tuple[int, int]:
    """How many blocks an axis is cut into, and how long they are."""
    count = min(-(-size // BLOCK), MOST)
    return count, -(-size // count)


class Wires(NamedTuple):
    """The wires of both kinds, cut into blocks as their cells are.

    Two cells of a wire share the resistance from its end to the nearer one.

    Attributes:
      to_row: resistance of a row wire from its driven end to each cell.
      to_column: resistance of a column wire from its grounded end to each cell.
    """

    to_row: Float[Array, "N t"]
    to_column: Float[Array, "M s"]

    @classmethod
    def of(cls, row: Float[Array, " n"], column: Float[Array, " m"]) -> Wires:
        """The wires with resistances from cell to cell."""
        (M, s), (N, t) = _cut(column.size), _cut(row.size)
        to_row = jnp.cumsum(jnp.pad(row, (0, N * t - row.size))).reshape(N, t)
        to_column = jnp.pad(column, (0, M * s - column.size))[::-1]
        return cls(to_row, jnp.cumsum(to_column)[::-1].reshape(M, s))

    def drops(self) -> Callable[[Array], Array]:
        """The voltages that currents of cells, in blocks, lose along their wires: Z, as a function.

        Within a block that is a small product; of another block nearer the end only its sum
        weighted by resistance matters, and of one farther away its sum.
        """
        (N, t), (M, s) = self.to_row.shape, self.to_column.shape
        in_rows = jnp.tile(_shared(self.to_row), (M, 1, 1))
        in_columns = jnp.repeat(jnp.swapaxes(_shared(self.to_column), 1, 2), N, 0)
        dtype = self.to_row.dtype
        upper_rows, upper_columns = (jnp.triu(jnp.ones((k, k), dtype), 1) for k in (N, M))

        def lost(current: Float[Array, "M N s arrays b t"]) -> Float[Array, "M N s arrays b t"]:
            arrays, b = current.shape[3:5]
            in_row = times(current.reshape(M * N, -1, t), in_rows)
            in_row = in_row.reshape(M, N, s, arrays, b, t + 2)
            in_column = times(in_columns, current.reshape(M * N, s, -1))
            in_column = in_column.reshape(M, N, s + 2, arrays, b, t)
            weighted, plain = (in_row[..., t + i].reshape(M, N, -1) for i in (1, 0))
            nearer = times(upper_rows.T, weighted).reshape(M, N, s, arrays, b, 1)
            farther = times(upper_rows, plain).reshape(M, N, s, arrays, b, 1)
            along_row = in_row[..., :t] + nearer + farther * self.to_row[:, None, None, None]
            weighted, plain = (in_column[:, :, s + i].reshape(M, -1) for i in (1, 0))
            nearer = times(upper_columns, weighted).reshape(M, N, 1, arrays, b, t)
            farther = times(upper_columns.T, plain).reshape(M, N, 1, arrays, b, t)
            down = self.to_column[:, None, :, None, None, None]
            return along_row + in_column[:, :, :s] + nearer + farther * down

        return lost


def _shared(to: Float[Array, "blocks cells"]) -> Float[Array, "blocks cells cells+2"]:
    """What cells of a block share, and two more columns that sum currents for other blocks."""
    shared = jnp.minimum(to[:, :, None], to[:, None, :])
    return jnp.concatenate([shared, jnp.ones_like(to)[:, :, None], to[:, :, None]], 2)
