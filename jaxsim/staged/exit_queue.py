"""Queues of rows before stages: full batches of what is still to be computed.

Each device has one batch in flight, so that stages on several devices work at once; batches are
waited for in the order in which they were begun, whatever is done first.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
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
from jaxsim.staged.exit_layout import ExitLayout, exit_layout
from jaxsim.staged.exit_step import (
    ExitStep,
    Prepared,
    StageInputs,
    count_programs,
    live_steps,
    of_tokens,
    prepared,
)
from jaxsim.staged.exits import flops_and_kept, tokens_given
from jaxsim.staged.lengths import can_be_short, first_tokens, token_counts
from jaxsim.staged.rows import find_rows, with_batch_size
from jaxsim.staged.token_walk import TokenState
from jaxsim.staged.waiting import (
    Axes,
    Queue,
    filled_up,
    join,
    leave_out,
    rows_along,
    take_batch,
    waiting_axes,
)

if TYPE_CHECKING:
    from jaxsim.staged.network import Staged


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
      A function `(stage, rows, live, streak, tokens, count) -> ExitStep` of row indices; `tokens`
      is which tokens are there, if known, and `count` how many the rows hold.
    """
    _, batched = find_rows(arguments)
    pairs = zip(arguments.arrays, batched, strict=True)
    arrays = [np.asarray(a) if own else a for a, own in pairs]
    threshold, batches = jnp.float32(net.threshold), itertools.count()
    others = () if net.layout is None else net.layout.cuts
    plans: dict[tuple[int, int | None], Prepared] = {}
    owned: dict[int, tuple[StageParams, Any, Any]] = {}

    def planned(rows: int, count: int | None) -> Prepared:
        if (rows, count) not in plans:
            few = with_batch_size(arguments, batched, rows)
            if count is not None:
                few = cut_short(net, few, arguments, count)
            plans[rows, count] = prepared(net, few, batched, others, leaving(net))
        return plans[rows, count]

    def step(
        at: int,
        which: np.ndarray,
        live: Sequence[Any],
        streak: PatienceState,
        tokens: TokenState | None = None,
        count: int | None = None,
    ) -> ExitStep:
        plan = planned(len(which), count if at == 0 else None)
        if at > 0 and count is not None:
            plan = of_tokens(plan, count)
        where = stage_devices(net, plan.layout.places)[at]
        if at not in owned:
            number = (*plan.layout.exits, None)[at]
            head = None if number is None else net.heads[number]
            read = stage_params(net, plan.cut, plan.cut.stages[at])
            own = read, head, (threshold, key, net.tokens)
            owned[at] = own if where is None else jax.device_put(own, where.replicated)
        read = plan.cut.stages[at].arguments
        given: list[Any] = [arrays[i][which] if batched[i] else arrays[i] for i in read]
        if at == 0 and count is not None and plan.layout.tokens is not None:
            along = plan.layout.tokens.arguments
            given = [first_tokens(a, along[i], count) for a, i in zip(given, read, strict=True)]
        if where is not None:
            given, live = [*map(where.move, given)], [*map(where.move, live)]
            streak, tokens = jax.tree.map(where.move, (streak, tokens))
        own, head, (limit, seed, rule) = owned[at]
        read_by = StageInputs(own, given, live, seed, np.int32(next(batches)), rule, tokens)
        return plan.step(at, read_by, head, limit, streak)

    return step


def leaving(net: Staged) -> tuple[bool, ...] | None:
    """Tells for each attention if tokens may leave behind it; None where all stay.

    Args:
      net: Network in stages.
    """
    return None if net.tokens is None else tuple((np.asarray(net.tokens.level) > 0).tolist())


def cut_short(
    net: Staged,
    few: Partitioned,
    arguments: Partitioned,
    count: int,
) -> Partitioned:
    """Replaces arguments by shapes with fewer tokens.

    Args:
      net: Network whose tokens leave.
      few: Shapes of the arguments.
      arguments: Arguments of the call, with all rows.
      count: Number of tokens.
    """
    found = run_layout(net, arguments).tokens
    assert found is not None
    arrays = [
        jax.ShapeDtypeStruct(
            tuple(count if i in along else n for i, n in enumerate(a.shape)), a.dtype
        )
        for a, along in zip(few.arrays, found.arguments, strict=True)
    ]
    return dataclasses.replace(few, arrays=tuple(arrays))


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
      net: Network with exits, or whose tokens leave.
      arguments: Arguments of the call, with all rows.
      buckets: Numbers of rows and tokens to compile for.
      key: Random key of the call, or None.

    Raises:
      ValueError: Buckets out of range, a network that is not deployed, a value between stages that
        is not split by rows, or a stage that cannot run with fewer tokens.
    """
    check_buckets(buckets)
    check_rows(net)
    rows, _ = find_rows(arguments)
    found = run_layout(net, arguments)
    axes, last = waiting_axes(found, sized=_are_merged(net)), len(found.places)
    devices = stage_devices(net, found.places)
    exits: list[Any] = [*found.exits, len(net.heads)]
    step = stepper(net, arguments, key)
    most = buckets.max_batch // buckets.batch * buckets.batch
    logits = np.zeros((rows, found.classes), found.dtype)
    layer = np.full(rows, len(net.heads) + 1, np.int32)
    uncertainty = np.full((rows, len(net.heads) + 1), np.nan, np.float32)
    streak = jax.tree.map(np.array, initial_patience(rows))
    tokens = tokens_at_first(net, arguments, found, buckets)
    queues: dict[tuple[int, int], list[Queue]] = {}
    for count in np.unique(tokens.counts):
        queues[0, int(count)] = [Queue(np.flatnonzero(tokens.counts == count), [])]
    flying: deque[_Flight] = deque()

    def begin(at: int, count: int, queue: Queue) -> None:
        ids, n = queue.ids, len(queue.ids)
        rows_of = pad_rows(np.arange(n), round_up(n, buckets.batch))
        brought = [
            rows_along(a, rows_of, axis) for a, axis in zip(queue.live, axes[at].rows, strict=True)
        ]
        which, state = ids[rows_of], None
        if found.tokens is not None:
            if at:
                brought, state = _state_before(net, found, at, brought)
            else:
                state = tokens.of(which, count)
        early = jax.tree.map(lambda a: a[which], streak)
        held = None if found.tokens is None else count
        flying.append(_Flight(at, ids, step(at, which, brought, early, state, held)))

    def finish(flight: _Flight) -> None:
        (at, ids, out), n = flight, len(flight.ids)
        stay = np.arange(n)
        if out.answer is not None:
            number = exits[at]
            logits[ids] = np.asarray(out.answer.logits)[:n]
            uncertainty[ids, number] = np.asarray(out.answer.uncertainty)[:n]
            streak.label[ids], streak.length[ids] = (np.asarray(a)[:n] for a in out.streak)
            if at < last:
                leave = np.asarray(out.answer.leave)[:n]
                layer[ids[leave]] = number + 1
                stay = np.flatnonzero(~leave)
        if found.tokens is not None and out.tokens is not None:
            tokens.there[ids] = np.asarray(out.tokens.there)[:n]
            first = found.tokens.layers[at]
            for i, kept in enumerate(out.kept, first):
                tokens.kept[ids, i] = np.asarray(kept)[:n]
        if at == last or not len(stay):
            return
        own = axes[at + 1]
        waiting = _behind(at, out, ids, stay, own, found)
        for count, some in _by_tokens(waiting, buckets.token, own, found.tokens is not None):
            queues.setdefault((at + 1, count), []).append(some)

    while True:
        busy = [devices[flight.at] for flight in flying]
        waiting = sorted(queues)
        ready = [place for place in waiting if devices[place[0]] not in busy]
        # The latest stage that has a full batch, so that few rows wait; if none has, the first,
        # once no more rows can come.
        full = [p for p in ready if sum(len(queue.ids) for queue in queues[p]) >= most]
        if full:
            at, count = full[-1]
        elif ready and ready[0][0] == waiting[0][0] and all(f.at >= ready[0][0] for f in flying):
            at = ready[0][0]
            count = max(c for a, c in waiting if a == at)
        elif flying:
            finish(flying.popleft())
            continue
        else:
            break
        # A batch that is not full takes rows of fewer tokens too, those of most first.
        taken, wanted = list[Queue](), most
        for own in sorted((c for a, c in queues if a == at and c <= count), reverse=True):
            first, rest = take_batch(join(queues.pop((at, own)), axes[at]), wanted, axes[at])
            if rest is not None:
                queues[at, own] = [rest]
            held = at > 0 and found.tokens is not None
            taken.append(filled_up(first, count, axes[at]) if held else first)
            wanted -= len(first.ids)
            if not wanted:
                break
        begin(at, count, join(taken, axes[at]))
    flops, kept = jnp.asarray(np.asarray(found.flops, np.float32)[layer - 1]), None
    if found.tokens is not None:
        each = [*map(jnp.asarray, tokens.kept.T)]
        flops, kept = flops_and_kept(found, jnp.asarray(layer), jnp.asarray(tokens.there), each)
    return Exits(jnp.asarray(logits), jnp.asarray(layer), jnp.asarray(uncertainty), flops, kept)


class RowTokens(NamedTuple):
    """Tokens of the rows of a call.

    Attributes:
      counts: How many each row is computed with at first, [N].
      present: Which of them are there, [N, n], if it is known.
      there: How many there were, [N].
      kept: How many each attention has kept, [N, A].
    """

    counts: np.ndarray
    present: np.ndarray | None
    there: np.ndarray
    kept: np.ndarray

    def of(self, rows: np.ndarray, count: int) -> TokenState | None:
        """Which are there at first, of some rows."""
        if self.present is None:
            return None
        present = self.present[rows, :count]
        return TokenState(jnp.asarray(present), jnp.asarray(present.sum(1, dtype=np.int32)))


def tokens_at_first(
    net: Staged, arguments: Partitioned, found: ExitLayout, buckets: Buckets
) -> RowTokens:
    """Finds the tokens that there are before any has left; those of short rows alone are computed.

    Rows can be cut short where their tokens stand in front and arguments hold them.

    Args:
      net: Network with exits, or whose tokens leave.
      arguments: Arguments of the call, with all rows.
      found: Batch axes and tokens of its stages.
      buckets: What numbers of tokens are rounded up to.
    """
    rows, _ = find_rows(arguments)
    if found.tokens is None:
        return RowTokens(np.zeros(rows, int), None, np.zeros(0), np.zeros(0))
    n, attentions = found.tokens.length, len(found.tokens.attention.names)
    counts, none = np.full(rows, n), np.zeros(rows, np.int32)
    kept, state = np.zeros((rows, attentions), np.int32), tokens_given(net, arguments)
    if state is None:
        return RowTokens(counts, None, none, kept)
    present = np.asarray(state.present)
    if can_be_short(net, found.tokens):
        short = token_counts(present, buckets.token)
        counts = counts if short is None else short
    return RowTokens(counts, present, none, kept)


def _by_tokens(queue: Queue, multiple: int, axes: Axes, leaving: bool) -> list[tuple[int, Queue]]:
    """Rows by the number of tokens that they are to hold, those that have left left out."""
    if not leaving:
        return [(0, queue)]
    present = queue.live[-2]
    counts = np.asarray([min(present.shape[1], round_up(int(k), multiple)) for k in present.sum(1)])
    found: list[tuple[int, Queue]] = []
    for count in np.unique(counts):
        which = np.flatnonzero(counts == count)
        own = [rows_along(a, which, axis) for a, axis in zip(queue.live, axes.rows, strict=True)]
        found.append((int(count), leave_out(Queue(queue.ids[which], own), int(count), axes)))
    return found


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
    for rows in range(buckets.batch, buckets.max_batch + 1, buckets.batch):
        for _ in stage_calls(net, arguments, buckets, key, rows):
            pass
    return count_programs() - before


class StageCall(NamedTuple):
    """A stage for a batch, as `run` calls it.

    Attributes:
      at: Index of the stage.
      tokens: Number of tokens that the rows hold; 0 where all stay.
      again: Computes the stage, and what waits behind it.
    """

    at: int
    tokens: int
    again: Callable[[], Any]


def stage_calls(
    net: Staged, arguments: Partitioned, buckets: Buckets, key: Any, rows: int
) -> Iterator[StageCall]:
    """Calls each stage for each number of tokens that `run` can meet, with some number of rows.

    Args:
      net: Network with exits, or whose tokens leave.
      arguments: Arguments of a call; their first row is taken for all.
      buckets: Numbers of tokens.
      key: Random key of the call, or None.
      rows: Number of rows.
    """
    found = run_layout(net, arguments)
    step, last = stepper(net, arguments, key), len(found.places)
    axes = waiting_axes(found, sized=_are_merged(net))
    same, streak = np.zeros(rows, int), jax.tree.map(np.array, initial_patience(rows))

    def wait_behind(at: int, out: ExitStep) -> Queue | None:
        if at == last:
            return None
        return _behind(at, out, same, np.arange(rows), axes[at + 1], found)

    for count in run_tokens(found, buckets):
        queue: Queue | None = None
        for at in range(last + 1):
            live, state, own = list[Any](), None, None
            if found.tokens is not None:
                short = can_be_short(net, found.tokens) if at == 0 else _are_known(net, found, at)
                own = count if short else found.tokens.length
                if at == 0 and _are_known(net, found, 0):
                    state = _all_there(rows, own)
            if queue is not None:
                live = queue.live if own is None else leave_out(queue, own, axes[at]).live
                if own is not None:
                    live, state = _state_before(net, found, at, live)
            call = partial(step, at, same, live, streak, state, own)
            queue = wait_behind(at, call())

            def again(at: int = at, call: Any = call, own: int | None = own) -> None:
                waiting = wait_behind(at, jax.block_until_ready(call()))
                if waiting is not None:
                    _by_tokens(waiting, buckets.token, axes[at + 1], own is not None)

            yield StageCall(at, own or 0, again)


def run_layout(net: Staged, arguments: Partitioned) -> ExitLayout:
    """Finds the batch axes, widths and costs of the stages that `run` computes.

    Args:
      net: Network with exits, or whose tokens leave.
      arguments: Arguments of a call.
    """
    _, batched = find_rows(arguments)
    others = () if net.layout is None else net.layout.cuts
    return exit_layout(net, arguments, batched, net.exits, net.feature, others, leaving(net))


def run_tokens(found: ExitLayout, buckets: Buckets) -> tuple[int, ...]:
    """Lists the numbers of tokens that stages are computed for; (0,) where all stay.

    Args:
      found: Stages of a network.
      buckets: What numbers are rounded up to.
    """
    if found.tokens is None:
        return (0,)
    length = found.tokens.length
    return (*range(buckets.token, length, buckets.token), length)


def _behind(
    at: int, out: ExitStep, ids: np.ndarray, stay: np.ndarray, axes: Axes, found: ExitLayout
) -> Queue:
    """Rows that wait behind a stage, of those it computed."""
    tokens, sizes = out.tokens, list[Any]()
    if found.tokens is not None and tokens is None:  # nothing has attended yet
        tokens = _all_there(int(stay.max()) + 1, found.tokens.length)
    counted = [] if tokens is None else [tokens.present, tokens.there]
    if tokens is not None and len(axes.rows) > len(out.live) + len(counted):
        sizes = [np.ones(tokens.present.shape, np.float32) if tokens.size is None else tokens.size]
    pairs = zip([*out.live, *sizes, *counted], axes.rows, axes.tables, strict=True)
    live: list[np.ndarray] = []
    for a, axis, table in pairs:
        held = np.asarray(a)
        if table and at == 0:
            live.append(np.broadcast_to(held, (len(stay), *held.shape)))
        else:
            live.append(rows_along(held, stay, axis))
    return Queue(ids[stay], live)


def _are_known(net: Staged, found: ExitLayout, at: int) -> bool:
    """Whether a rule or an attention before a stage says which tokens are there."""
    assert found.tokens is not None
    assert net.tokens is not None
    return net.tokens.present is not None or found.tokens.layers[at] > 0


def _are_merged(net: Staged) -> bool:
    """Whether tokens that leave are merged into others."""
    return net.tokens is not None and net.tokens.merges


def _state_before(
    net: Staged, found: ExitLayout, at: int, waiting: list[Any]
) -> tuple[list[Any], TokenState | None]:
    """What waits before a stage: activations, and which tokens are there, if it is known."""
    *live, present, there = waiting
    size = jnp.asarray(live.pop()) if _are_merged(net) else None
    if not _are_known(net, found, at):
        return live, None
    return live, TokenState(jnp.asarray(present), jnp.asarray(there), size)


def _all_there(rows: int, count: int) -> TokenState:
    return TokenState(jnp.ones((rows, count), bool), jnp.full(rows, count, jnp.int32))
