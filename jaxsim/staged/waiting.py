"""Rows that wait before a stage: arrays with an entry a row, taken apart and joined by row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxsim.staged.exit_layout import ExitLayout


class Axes(NamedTuple):
    """Axes of the arrays that wait before a stage.

    Attributes:
      rows: For each array the axis that holds rows.
      tokens: For each array those that hold tokens.
      tables: For each array, True if the stages give it without rows, as it is known before
        anything is computed; here each row has its own, since tokens leave it row by row.
    """

    rows: tuple[int, ...] = ()
    tokens: tuple[tuple[int, ...], ...] = ()
    tables: tuple[bool, ...] = ()


class Queue(NamedTuple):
    """Rows that wait before a stage.

    Attributes:
      ids: Indices [n] of the rows.
      live: Their boundary activations, n along an axis of each; where tokens leave, which tokens
        are there and how many there were, behind; where they are merged, how many each stands for
        before these.
    """

    ids: np.ndarray
    live: list[np.ndarray]


def waiting_axes(found: ExitLayout, *, sized: bool = False) -> tuple[Axes, ...]:
    """Finds the axes of what waits before each stage.

    Args:
      found: Axes of what crosses each cut.
      sized: True if how many tokens each stands for waits too.

    Raises:
      ValueError: A value between stages is not split by rows.
    """
    axes = [Axes()]
    for at, (name, rows) in enumerate(zip(found.places, found.axes, strict=True)):
        along = found.tokens.axes[at] if found.tokens is not None else ((),) * len(rows)
        if any(r is None and not t for r, t in zip(rows, along, strict=True)):
            raise ValueError(f"run: a value that no row has a part of crosses the cut at {name}")
        tables = tuple(r is None for r in rows)
        along = tuple(
            tuple(t + 1 for t in ts) if table else ts
            for ts, table in zip(along, tables, strict=True)
        )
        held = tuple(0 if r is None else r for r in rows)
        if sized:
            held, along, tables = (*held, 0), (*along, (1,)), (*tables, False)
        if found.tokens is not None:
            held, along, tables = (*held, 0, 0), (*along, (1,), ()), (*tables, False, False)
        axes.append(Axes(held, along, tables))
    return tuple(axes)


def take_batch(queue: Queue, most: int, axes: Axes) -> tuple[Queue, Queue | None]:
    """Takes the first rows of a queue, and the queue without them.

    Args:
      queue: Rows that wait.
      most: Number of rows to take at most.
      axes: Axes of its arrays.
    """
    if len(queue.ids) <= most:
        return queue, None
    first, rest = (
        Queue(
            queue.ids[rows],
            [a[(slice(None),) * i + (rows,)] for a, i in zip(queue.live, axes.rows, strict=True)],
        )
        for rows in (slice(most), slice(most, None))
    )
    return first, rest


def join(queues: Sequence[Queue], axes: Axes) -> Queue:
    """Joins queues before one stage.

    Args:
      queues: Rows that wait, of equal numbers of tokens, one queue at least.
      axes: Axes of their arrays.
    """
    if len(queues) == 1:
        return queues[0]
    columns = zip(*(queue.live for queue in queues), strict=True)
    return Queue(
        np.concatenate([queue.ids for queue in queues]),
        [np.concatenate(column, axis) for column, axis in zip(columns, axes.rows, strict=True)],
    )


def rows_along(a: np.ndarray, rows: np.ndarray, axis: int) -> np.ndarray:
    """Takes rows of an array; the array itself where they are all there in order.

    Args:
      a: Array.
      rows: Indices of rows.
      axis: Axis that holds them.
    """
    everything = len(rows) == a.shape[axis] and np.array_equal(rows, np.arange(len(rows)))
    return a if everything else np.take(a, rows, axis)


def with_tokens(queue: Queue, tokens: np.ndarray, axes: Axes) -> Queue:
    """Takes tokens of each row.

    Args:
      queue: Rows that wait.
      tokens: Indices [n, m] of tokens of each row; a negative one is a place that no token fills.
      axes: Axes of its arrays.
    """
    filled, index, each = tokens >= 0, np.maximum(tokens, 0), np.arange(len(tokens))[:, None]
    live: list[np.ndarray] = []
    for a, rows, along in zip(queue.live, axes.rows, axes.tokens, strict=True):
        if not along:
            live.append(a)
            continue
        moved = np.moveaxis(a, rows, 0)
        for axis in along:
            axis += axis < rows
            moved = np.moveaxis(np.moveaxis(moved, axis, 1)[each, index], 1, axis)
        live.append(np.moveaxis(moved, 0, rows))
    live[-2] = live[-2] & filled
    return Queue(queue.ids, live)


def leave_out(queue: Queue, count: int, axes: Axes) -> Queue:
    """Leaves out tokens that are not there; those that are keep their order.

    Args:
      queue: Rows that wait, none with more tokens than that.
      count: Number of tokens to hold.
      axes: Axes of its arrays.
    """
    present = queue.live[-2]
    if present.shape[1] == count:
        return queue
    return with_tokens(queue, np.argsort(~present, 1, kind="stable")[:, :count], axes)


def filled_up(queue: Queue, count: int, axes: Axes) -> Queue:
    """Adds places that no token fills.

    Args:
      queue: Rows that wait.
      count: Number of tokens to hold, as many as it does or more.
      axes: Axes of its arrays.
    """
    rows, own = queue.live[-2].shape
    if own == count:
        return queue
    places = np.concatenate([np.arange(own), np.full(count - own, -1)])
    return with_tokens(queue, np.tile(places, (rows, 1)), axes)
