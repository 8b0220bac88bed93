"""Folded tables: a table of more axes than two, seen as rows of one of its axes.

Codebooks [heads, entries, d], stacked embeddings [tables, entries, d] and positions [1, length, d]
are read at integers along some axes and whole along another. Folded to a matrix whose rows run
along that one they are tables like any other, whatever the axes that integers choose along.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.extend.core as jex
import jax.extend.core.primitives as prims
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int

from jaxsim.internals import parameters, shape_of


class Taken(NamedTuple):
    """What an equation takes out of a table, axis by axis.

    Attributes:
      shape: Shape of the table.
      sizes: How much is taken along each of its axes.
      starts: For each axis the column of the integers that it begins at, None where it begins at 0.
      offsets: For each axis the axis of the result that runs along what is taken, None if dropped.
      along: For each axis that goes hand in hand with one of the integers, that axis of the result.
      rank: Number of axes of the result.
      batch: Axes of the result that run over the integers, in order.
      fill: What is read outside of the table; None where starts are moved into it.
    """

    shape: tuple[int, ...]
    sizes: tuple[int, ...]
    starts: tuple[int | None, ...]
    offsets: tuple[int | None, ...]
    along: dict[int, int]
    rank: int
    batch: tuple[int, ...]
    fill: float | None


def fold_table(eqn: jex.JaxprEqn) -> Callable[..., Array] | None:
    """Says an equation that takes a part of a table as a lookup of rows of a matrix.

    Args:
      eqn: Equation whose first operand is a parameter.

    Returns:
      The function of its operands; None where no axis of the table is taken whole.
    """
    if eqn.primitive is prims.dynamic_slice_p:
        taken = _sliced(eqn)
    elif eqn.primitive is prims.gather_p:
        taken = _gathered(eqn)
    else:
        return None
    whole = [
        axis
        for axis, (n, size) in enumerate(zip(taken.shape, taken.sizes, strict=True))
        if n == size
        and taken.offsets[axis] is not None
        and not (taken.fill is not None and taken.starts[axis] is not None)
    ]
    if len(taken.shape) < 2 or not whole:
        return None
    row = whole[-1]

    def run(table: Array, *integers: Array) -> Array:
        rows = table if row == table.ndim - 1 else jnp.moveaxis(table, row, -1)
        rows = rows.reshape(-1, rows.shape[-1])
        starts = jnp.stack(integers) if eqn.primitive is prims.dynamic_slice_p else integers[0]
        ids, inside = _rows(taken, row, starts)
        found = jnp.take(rows, ids, axis=0, mode="clip")
        if taken.fill is not None:
            found = jnp.where(inside[..., None], found, jnp.asarray(taken.fill, found.dtype))
        place: Any = taken.offsets[row]
        return jnp.moveaxis(found, -1, place)

    return run


def _rows(taken: Taken, row: int, starts: Array) -> tuple[Int[Array, "..."], Bool[Array, "..."]]:
    """Computes which rows of the matrix make up the result, and which of them are in the table."""
    place: Any = taken.offsets[row]

    def spread(a: Array, axes: tuple[int, ...]) -> Array:
        return lax.expand_dims(a, [i for i in range(taken.rank) if i not in axes])

    flat, inside = jnp.zeros((), jnp.int32), jnp.ones((), bool)
    for axis, n in enumerate(taken.shape):
        if axis == row:
            continue
        at, column, offset = jnp.zeros((), jnp.int32), taken.starts[axis], taken.offsets[axis]
        if column is not None:
            first, last = starts[..., column], n - taken.sizes[axis]
            within = (first >= 0) & (first <= last)
            inside = inside & spread(within, taken.batch)
            at = spread(jnp.clip(first, 0, last).astype(jnp.int32), taken.batch)
        if axis in taken.along:
            at = at + spread(jnp.arange(n, dtype=jnp.int32), (taken.along[axis],))
        elif offset is not None:
            at = at + spread(jnp.arange(taken.sizes[axis], dtype=jnp.int32), (offset,))
        flat = flat * n + at
    shape = _result(taken, starts.shape[:-1], row)
    ids = jnp.broadcast_to(flat, shape).squeeze(place)
    return ids, jnp.broadcast_to(inside, shape).squeeze(place)


def _result(taken: Taken, batch: tuple[int, ...], row: int) -> tuple[int, ...]:
    """Computes the shape of the result, with one entry along the axis of the rows."""
    shape = dict(zip(taken.batch, batch, strict=True))
    for axis, offset in enumerate(taken.offsets):
        if offset is not None:
            shape[offset] = 1 if axis == row else taken.sizes[axis]
    return tuple(shape[i] for i in range(taken.rank))


def _sliced(eqn: jex.JaxprEqn) -> Taken:
    shape = shape_of(eqn.invars[0]).shape
    every = tuple(range(len(shape)))
    return Taken(shape, parameters(eqn)["slice_sizes"], every, every, {}, len(shape), (), None)


def _gathered(eqn: jex.JaxprEqn) -> Taken:
    params, shape = parameters(eqn), shape_of(eqn.invars[0]).shape
    numbers, fill = params["dimension_numbers"], params["fill_value"]
    rank = len(shape_of(eqn.outvars[0]).shape)
    batch = tuple(axis for axis in range(rank) if axis not in numbers.offset_dims)
    columns = {axis: i for i, axis in enumerate(numbers.start_index_map)}
    dropped = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    offsets = iter(numbers.offset_dims)
    pairs = zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True)
    fills = params["mode"] == lax.GatherScatterMode.FILL_OR_DROP
    return Taken(
        shape,
        params["slice_sizes"],
        tuple(columns.get(axis) for axis in range(len(shape))),
        tuple(None if axis in dropped else next(offsets) for axis in range(len(shape))),
        {axis: batch[place] for axis, place in pairs},
        rank,
        batch,
        (math.nan if fill is None else fill) if fills else None,
    )
