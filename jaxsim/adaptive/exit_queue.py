"""Queues of rows before stages: full batches of what is still to be computed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsim.adaptive.exit_step import ExitStep, Prepared, prepared
from jaxsim.adaptive.rows import exit_layout, find_rows, with_batch_size
from jaxsim.adaptive.rule import Buckets, Exits, PatienceState, initial_patience, pad_rows, round_up
from jaxsim.cores.partition import Partitioned
from jaxsim.network.stages import StageParams, stage_params

if TYPE_CHECKING:
    from jaxsim.adaptive.exits import EarlyExit


class _Queue(NamedTuple):
    """Rows that wait before a stage.

    Attributes:
      ids: Indices [n] of the rows.
      live: Their boundary activations, n along an axis of each.
    """

    ids: np.ndarray
    live: list[np.ndarray]


def stepper(net: EarlyExit, arguments: Partitioned, key: Any) -> Callable[..., ExitStep]:
    """Makes a function that runs a stage and its exit for some rows of a call.

    Args:
      net: Network with exits.
      arguments: Arguments of the call, with all rows.
      key: Random key of the call, or None.

    Returns:
      A function `(stage, rows, live, streak) -> ExitStep` of row indices.
    """
    _, batched = find_rows(arguments)
    pairs = zip(arguments.arrays, batched, strict=True)
    arrays = [np.asarray(a) if own else a for a, own in pairs]
    threshold, batches = jnp.float32(net.threshold), itertools.count()
    plans: dict[int, Prepared] = {}
    owned: dict[int, StageParams] = {}

    def step(at: int, which: np.ndarray, live: Sequence[Any], streak: PatienceState) -> ExitStep:
        n = len(which)
        if n not in plans:
            plans[n] = prepared(net, with_batch_size(arguments, batched, n), batched)
        if at not in owned:
            owned[at] = stage_params(net, plans[n].cut, plans[n].cut.stages[at])
        read = plans[n].cut.stages[at].arguments
        given = [arrays[i][which] if batched[i] else arrays[i] for i in read]
        head = net.heads[at] if at < len(net.heads) else None
        part = np.int32(next(batches))
        return plans[n].step(at, owned[at], head, threshold, given, live, streak, key, part)

    return step


def run_in_queues(net: EarlyExit, arguments: Partitioned, buckets: Buckets, key: Any) -> Exits:
    """Computes the exits of all rows, each stage only for those that have not left.

    Args:
      net: Network with exits.
      arguments: Arguments of the call, with all rows.
      buckets: Numbers of rows to compile for.
      key: Random key of the call, or None.
    """
    (rows, batched), last = find_rows(arguments), len(net.heads)
    found = exit_layout(net, arguments, batched, net.cuts, net.feature)
    axes = ((), *map(_all_rows, net.cuts, found.axes))
    step = stepper(net, arguments, key)
    most = buckets.max_batch // buckets.batch * buckets.batch
    logits = np.zeros((rows, found.classes), found.dtype)
    layer = np.full(rows, last + 1, np.int32)
    uncertainty = np.full((rows, last + 1), np.nan, np.float32)
    streak = jax.tree.map(np.array, initial_patience(rows))
    queues: list[_Queue | None] = [_Queue(np.arange(rows), []), *[None] * last]
    # The latest stage that has a full batch, so that few rows wait; if none has, the first.
    while waiting := [(at, queue) for at, queue in enumerate(queues) if queue is not None]:
        full = [pair for pair in waiting if len(pair[1].ids) >= most]
        at, queue = full[-1] if full else waiting[0]
        ids, live, queues[at] = _take_batch(queue, most, axes[at])
        n = len(ids)
        rows_of = pad_rows(np.arange(n), round_up(n, buckets.batch))
        brought = [_rows_along(a, rows_of, axis) for a, axis in zip(live, axes[at], strict=True)]
        which = ids[rows_of]
        out = step(at, which, brought, jax.tree.map(lambda a, which=which: a[which], streak))
        logits[ids], uncertainty[ids, at] = out.logits[:n], out.uncertainty[:n]
        streak.label[ids], streak.length[ids] = out.streak.label[:n], out.streak.length[:n]
        leave = np.asarray(out.leave)[:n]
        if at < last:
            layer[ids[leave]] = at + 1
        if at < last and not leave.all():
            stay, after = np.flatnonzero(~leave), zip(out.live, axes[at + 1], strict=True)
            more = [_rows_along(np.asarray(a), stay, axis) for a, axis in after]
            queues[at + 1] = _join_queues(queues[at + 1], _Queue(ids[stay], more), axes[at + 1])
    flops = np.asarray(found.flops, np.float32)[layer - 1]
    return Exits(*map(jnp.asarray, (logits, layer, uncertainty, flops)))


def _take_batch(
    queue: _Queue, most: int, axes: Sequence[int]
) -> tuple[np.ndarray, list[np.ndarray], _Queue | None]:
    """Takes the first rows of a queue, and the queue without them."""
    if len(queue.ids) <= most:
        return queue.ids, queue.live, None
    first, rest = (
        _Queue(
            queue.ids[rows],
            [a[(slice(None),) * axis + (rows,)] for a, axis in zip(queue.live, axes, strict=True)],
        )
        for rows in (slice(most), slice(most, None))
    )
    return first.ids, first.live, rest


def _join_queues(queue: _Queue | None, more: _Queue, axes: Sequence[int]) -> _Queue:
    if queue is None:
        return more
    pairs = zip(queue.live, more.live, axes, strict=True)
    return _Queue(
        np.concatenate([queue.ids, more.ids]),
        [np.concatenate([a, b], axis) for a, b, axis in pairs],
    )


def _rows_along(a: np.ndarray, rows: np.ndarray, axis: int) -> np.ndarray:
    """Takes rows of an array; the array itself where they are all there in order."""
    everything = len(rows) == a.shape[axis] and np.array_equal(rows, np.arange(len(rows)))
    return a if everything else np.take(a, rows, axis)


def _all_rows(name: str, axes: Sequence[int | None]) -> tuple[int, ...]:
    found = tuple(axis for axis in axes if axis is not None)
    if len(found) < len(axes):
        raise ValueError(f"run: a value that no row has a part of crosses the cut at {name}")
    return found
