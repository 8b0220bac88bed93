"""Queues of rows before stages: full batches of what is still to be computed.

Each device has one batch in flight, so that stages on several devices work at once; batches are
waited for in the order in which they were begun, whatever is done first.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsim.adaptive.rows import check_rows
from jaxsim.adaptive.rule import (
    Buckets,
    Exits,
    PatienceState,
    check_buckets,
    initial_patience,
    pad_rows,
    round_up,
)
from jaxsim.cores.partition import Partitioned
from jaxsim.internals import compile_count
from jaxsim.network.stages import StageParams, stage_params
from jaxsim.pipeline.devices import StageDevices
from jaxsim.staged.exit_step import ExitStep, Prepared, count_programs, live_steps, prepared
from jaxsim.staged.rows import exit_layout, find_rows, with_batch_size

if TYPE_CHECKING:
    from jaxsim.staged.network import Staged


class _Queue(NamedTuple):
    """Rows that wait before a stage.

    Attributes:
      ids: Indices [n] of the rows.
      live: Their boundary activations, n along an axis of each.
    """

    ids: np.ndarray
    live: list[Any]


class _Flight(NamedTuple):
    """A batch that a device computes.

    Attributes:
      at: Index of the stage.
      ids: Indices [n] of its rows, without those it was padded with.
      out: What will have been computed.
    """

    at: int
    ids: np.ndarray
    out: ExitStep


def stepper(net: Staged, arguments: Partitioned, key: Any) -> Callable[..., ExitStep]:
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
    others = () if net.layout is None else net.layout.cuts
    plans: dict[int, Prepared] = {}
    owned: dict[int, tuple[StageParams, Any, Any]] = {}

    def step(at: int, which: np.ndarray, live: Sequence[Any], streak: PatienceState) -> ExitStep:
        n = len(which)
        if n not in plans:
            plans[n] = prepared(net, with_batch_size(arguments, batched, n), batched, others)
        plan = plans[n]
        where = stage_devices(net, plan.layout.places)[at]
        if at not in owned:
            number = (*plan.layout.exits, None)[at]
            head = None if number is None else net.heads[number]
            own = stage_params(net, plan.cut, plan.cut.stages[at]), head, (threshold, key)
            owned[at] = own if where is None else jax.device_put(own, where.replicated)
        read = plan.cut.stages[at].arguments
        given: list[Any] = [arrays[i][which] if batched[i] else arrays[i] for i in read]
        if where is not None:
            given, live = [*map(where.move, given)], [*map(where.move, live)]
            streak = jax.tree.map(where.move, streak)
        own, head, (limit, seed) = owned[at]
        return plan.step(at, own, head, limit, given, live, streak, seed, np.int32(next(batches)))

    return step


def stage_devices(net: Staged, places: Sequence[str]) -> list[StageDevices | None]:
    """Finds the devices of each stage; None where the network is on one device.

    Args:
      net: Network in stages.
      places: Names of the sites that the stages but the first begin with.
    """
    if net.layout is None:
        return [None] * (len(places) + 1)
    taken = itertools.accumulate((name in net.layout.cuts for name in places), initial=0)
    return [net.layout.devices[k] for k in taken]


def run(net: Staged, arguments: Partitioned, buckets: Buckets, key: Any) -> Exits:
    """Computes the exits of all rows, each stage only for those that have not left.

    Args:
      net: Network with exits.
      arguments: Arguments of the call, with all rows.
      buckets: Numbers of rows to compile for.
      key: Random key of the call, or None.

    Raises:
      ValueError: Buckets out of range, a network that is not deployed, or a value between stages
        that is not split by rows.
    """
    check_buckets(buckets)
    check_rows(net, "js.deploy(net, calibrate=…)")
    rows, batched = find_rows(arguments)
    others = () if net.layout is None else net.layout.cuts
    found = exit_layout(net, arguments, batched, net.exits, net.feature, others)
    axes = ((), *map(_all_rows, found.places, found.axes))
    devices = stage_devices(net, found.places)
    exits: list[Any] = [*found.exits, len(net.heads)]
    step = stepper(net, arguments, key)
    most = buckets.max_batch // buckets.batch * buckets.batch
    logits = np.zeros((rows, found.classes), found.dtype)
    layer = np.full(rows, len(net.heads) + 1, np.int32)
    uncertainty = np.full((rows, len(net.heads) + 1), np.nan, np.float32)
    streak = jax.tree.map(np.array, initial_patience(rows))
    queues: list[_Queue | None] = [_Queue(np.arange(rows), []), *[None] * len(found.places)]
    flying: deque[_Flight] = deque()

    def begin(at: int, queue: _Queue) -> None:
        ids, live, queues[at] = _take_batch(queue, most, axes[at])
        n = len(ids)
        rows_of = pad_rows(np.arange(n), round_up(n, buckets.batch))
        brought = [_rows_along(a, rows_of, axis) for a, axis in zip(live, axes[at], strict=True)]
        which = ids[rows_of]
        out = step(at, which, brought, jax.tree.map(lambda a: a[which], streak))
        flying.append(_Flight(at, ids, out))

    def finish(flight: _Flight) -> None:
        (at, ids, out), n = flight, len(flight.ids)
        stay = np.arange(n)
        if out.answer is not None:
            number = exits[at]
            logits[ids] = np.asarray(out.answer.logits)[:n]
            uncertainty[ids, number] = np.asarray(out.answer.uncertainty)[:n]
            streak.label[ids], streak.length[ids] = (np.asarray(a)[:n] for a in out.streak)
            if at < len(found.places):
                leave = np.asarray(out.answer.leave)[:n]
                layer[ids[leave]] = number + 1
                stay = np.flatnonzero(~leave)
        if at < len(found.places) and len(stay):
            after = zip(out.live, axes[at + 1], strict=True)
            more = [_rows_along(np.asarray(a), stay, axis) for a, axis in after]
            queues[at + 1] = _join_queues(queues[at + 1], _Queue(ids[stay], more), axes[at + 1])

    while True:
        busy = [devices[flight.at] for flight in flying]
        waiting = [(at, queue) for at, queue in enumerate(queues) if queue is not None]
        ready = [pair for pair in waiting if devices[pair[0]] not in busy]
        # The latest stage that has a full batch, so that few rows wait; if none has, the first,
        # once no more rows can come.
        full = [(at, queue) for at, queue in ready if len(queue.ids) >= most]
        if not full and ready and ready[0] == waiting[0]:
            at, _ = ready[0]
            full = ready[:1] if all(flight.at >= at for flight in flying) else []
        if full:
            begin(*full[-1])
        elif flying:
            finish(flying.popleft())
        else:
            break
    flops = np.asarray(found.flops, np.float32)[layer - 1]
    return Exits(*map(jnp.asarray, (logits, layer, uncertainty, flops)))


def warm_up(net: Staged, arguments: Partitioned, buckets: Buckets, key: Any) -> int:
    """Compiles each stage for each number of rows that `run` can meet.

    Args:
      net: Network with exits.
      arguments: Arguments of a call; only shapes and dtypes count.
      buckets: Numbers of rows to compile for.
      key: Random key of the call, or None.

    Returns:
      How many programs were compiled.
    """
    check_buckets(buckets)
    steps = live_steps()
    before = compile_count(*steps)
    step = stepper(net, arguments, key)
    stages = len(net.cuts) + 1
    for rows in range(buckets.batch, buckets.max_batch + 1, buckets.batch):
        live: list[np.ndarray] = []
        streak = jax.tree.map(np.array, initial_patience(rows))
        for at in range(stages):
            live = [*map(np.asarray, step(at, np.zeros(rows, int), live, streak).live)]
    return count_programs() - before


def _take_batch(
    queue: _Queue, most: int, axes: Sequence[int]
) -> tuple[np.ndarray, list[Any], _Queue | None]:
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
