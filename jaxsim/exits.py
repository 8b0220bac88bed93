"""A network whose rows leave as soon as they have been computed far enough.

One step (`_exit`) computes a stage and decides. `simulate` takes it over all rows and masks those
that have left; `run` takes it over batches of the rows that stay.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jaxsim.core import Parts
from jaxsim.cost import Cost
from jaxsim.decision import (
    Buckets,
    Exits,
    Rule,
    Streak,
    check_buckets,
    check_rule,
    leaves,
    no_streak,
    rounded_up,
)
from jaxsim.internals import compile_count
from jaxsim.network import DATA, META, Network, uncut
from jaxsim.numerics import is_traced, own_promotion
from jaxsim.stages import (
    Cut,
    Equations,
    Held,
    Stages,
    chosen,
    cuts,
    equations,
    held,
    run_stage,
    split,
)
from jaxsim.students import Head, classified
from jaxsim.table import cuts_table

Feature = Callable[[tuple[Array, ...]], Float[Array, "B d"]]
"""What a classifier reads of the activations that are live at a cut, [B, …] each."""


def pooled(live: tuple[Array, ...]) -> Float[Array, "B d"]:
    """The one float activation there is, its mean over places or tokens.

    Args:
      live: [B, d], [B, N, d], [B, H, W, d], …, features last; integers and masks are passed over.

    Raises:
      ValueError: none or several are floats of that rank.
    """
    x = _only(live)
    return jnp.mean(x, tuple(range(1, x.ndim - 1)))


def first_token(live: tuple[Array, ...]) -> Float[Array, "B d"]:
    """The first token, a class token, of the one float activation there is.

    Args:
      live: [B, N, d].

    Raises:
      ValueError: none or several are floats of that rank.
    """
    x = _only(live)
    if x.ndim != 3:
        raise ValueError(f"feature=first_token: an activation {list(x.shape)} has no tokens")
    return x[:, 0]


def _only(live: tuple[Array, ...]) -> Array:
    found = [x for x in live if x.ndim > 1 and jnp.issubdtype(x.dtype, jnp.floating)]
    if len(found) != 1:
        shapes = ", ".join(str(list(x.shape)) for x in found) or "no float [B, …, d]"
        raise ValueError(
            f"feature: {shapes} are live where the network is cut; give a function of them"
        )
    return found[0]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=[*DATA, "heads", "threshold"],
    meta_fields=[*META, "cuts", "feature", "patience", "first"],
)
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class EarlyExit(Network):
    """A network with classifiers between its stages; made by `exit_early`.

    It is a network in every other way: it is composed, deployed, trained and saved like one. A call
    gives each row the logits of the exit it took. `dataclasses.replace(net, threshold=…)` changes
    its speed without compiling anew.

    Attributes:
      heads: a classifier for each exit but the last, which is the network's own.
      threshold, patience, first: when a row leaves, as in `Rule`; the threshold is traced.
      cuts: sites that the stages but the first begin with.
      feature: what a classifier reads.
    """

    cut_by: ClassVar[str] = "exit_early"

    heads: tuple[Head, ...] = ()
    threshold: Float[Array, ""] | float = 0.0
    cuts: tuple[str, ...] = ()
    feature: Feature = pooled
    patience: int = 0
    first: int = 1

    def __call__(
        self, *args: Any, key: Key[Array, ""] | None = None, **kwargs: Any
    ) -> Float[Array, "B C"]:
        """The logits of the exit that each row takes.

        Args:
          *args: as of the network; the leading axis of the first array is the batch.
          key: as of the network.
          **kwargs: as of the network.

        Raises:
          ValueError: what `simulate` raises.
        """
        return self.simulate(*args, key=key, **kwargs).logits

    @property
    def cut_lines(self) -> tuple[str, ...]:
        """Lines for the cuts at which this network holds arrays; a checkpoint compares them."""
        return tuple(f"exit at {name}" for name in self.cuts)

    def __rich__(self) -> Any:
        from rich.console import Group

        places = [*(f"before {name}" for name in self.cuts), "the end"]
        read = [f"{head['kernel'].shape[0]} → {head['kernel'].shape[1]}" for head in self.heads]
        rows = zip(range(1, len(places) + 1), places, [*read, "the network's own"], strict=True)
        threshold = "traced" if is_traced(self.threshold) else f"{float(self.threshold):.3g}"
        rule = f"below uncertainty {threshold}, patience {self.patience}, first {self.first}"
        table = cuts_table(f"exits · {rule}", ("exit", "place", "classifier"), rows)
        return Group(super().__rich__(), table)

    @property
    def rule(self) -> Rule:
        """When a row leaves."""
        return Rule(self.threshold, self.patience, self.first)

    @own_promotion()
    def simulate(self, *args: Any, key: Key[Array, ""] | None = None, **kwargs: Any) -> Exits:
        """Every row computed to the end, and what it would have left with: a pure function.

        Args:
          *args: as of the network; the leading axis of the first array is the batch.
          key: as of the network.
          **kwargs: as of the network.

        Returns:
          Logits, exits and uncertainties, and the FLOPs that `run` would spend: those of the
          sites and classifiers, as `cost` counts them.

        Raises:
          ValueError: a rule out of range, outputs other than logits [B, C], classifiers that do
            not fit the features, or what the network raises.
        """
        check_rule(self.rule, len(self.heads) + 1)
        arguments = self.arguments(args, kwargs, key)
        return _simulated(_settled(self), arguments, key)

    @own_promotion()
    def run(
        self,
        *args: Any,
        buckets: Buckets = Buckets(),  # noqa: B008
        key: Key[Array, ""] | None = None,
        **kwargs: Any,
    ) -> Exits:
        """What `simulate` says, without computing what it does not need.

        Rows that leave are dropped, and those that stay wait before the next stage until they fill
        a batch. What is left at the end is padded with copies to the next bucket; what they give is
        thrown away.

        Args:
          *args: as of the network, with any number of rows.
          buckets: shapes to compile for; `token` is not used.
          key: as of the network. Noise at reads differs from that of `simulate`.
          **kwargs: as of the network.

        Returns:
          The rows in their order.

        Raises:
          ValueError: what `simulate` raises; traced arguments; ranges that are of a batch and so of
            the rows that happen to be in it; or a value between stages that no row has a part of.
        """
        check_rule(self.rule, len(self.heads) + 1)
        check_buckets(buckets)
        arguments = self.arguments(args, kwargs, key)
        if any(map(is_traced, jax.tree.leaves((self, arguments, key)))):
            raise ValueError("run drops rows outside of any programme; under jit, use simulate")
        check_rows(self, "js.deploy(net, calibrate=…)")
        return _run(self, arguments, buckets, key)

    def warm_up(
        self,
        *args: Any,
        buckets: Buckets = Buckets(),  # noqa: B008
        key: Key[Array, ""] | None = None,
        **kwargs: Any,
    ) -> int:
        """Compiles each stage for each number of rows that `run` can meet.

        Args:
          *args: as of `run`; only shapes and types count.
          buckets: as of `run`.
          key: as of `run`.
          **kwargs: as of `run`.

        Returns:
          How many programmes were compiled; none where they were known.
        """
        check_buckets(buckets)
        before = programmes()
        arguments = self.arguments(args, kwargs, key)
        step = _stepper(self, arguments, key)
        for rows in range(buckets.batch, buckets.max_batch + 1, buckets.batch):
            live: list[np.ndarray] = []
            streak = jax.tree.map(np.array, no_streak(rows))
            for at in range(len(self.heads) + 1):
                live = [*map(np.asarray, step(at, np.zeros(rows, int), live, streak).live)]
        return programmes() - before


def check_rows(net: Network, deploy: str) -> None:
    """Checks that what a network says of a row does not depend on the others in its batch.

    Args:
      net: a network, or a piece of one.
      deploy: the call that would deploy it.

    Raises:
      ValueError: a core that takes its ranges from a batch.
    """
    if net.cores and not net.deployed:
        raise ValueError(
            f"run: the core at {next(iter(net.cores))} is not deployed, and may take its ranges "
            f"from whatever is in a batch; {deploy} first"
        )
    for site in net.sites:
        if site.kind == "dynamic" and site.name in net.cores:
            raise ValueError(
                f"run: {site.name} contracts two inputs, and its core takes their ranges from "
                "whatever is in a batch; use simulate"
            )


class Outline(NamedTuple):
    """What of a cut network does not depend on the number of rows.

    Attributes:
      axes: for each cut and each value that crosses it, the axis that holds the rows; None where
        none does.
      widths: features that each classifier reads.
      classes: number of logits.
      flops: of one row up to each exit, at the sites and in the classifiers.
      dtype: of the network's own logits, which those of the classifiers take too.
    """

    axes: tuple[tuple[int | None, ...], ...]
    widths: tuple[int, ...]
    classes: int
    flops: tuple[float, ...]
    dtype: str


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
    """Stages for one number of rows; kept, and compared by identity.

    Attributes:
      cut: the stages.
      crossing: for each cut the values that cross it, each as a stage and a position among its
        outputs.
      outline: what holds for any number of rows.
      feature: what classifiers read.
      patience, first: of the rule.
      ranges: where cores take ranges from.
    """

    cut: Stages
    crossing: tuple[tuple[tuple[int, int], ...], ...]
    outline: Outline
    feature: Feature
    patience: int
    first: int
    ranges: Literal["batch", "stored", "missing"]


class Decided(NamedTuple):
    """What a step gives: values for the next one, and for each row whether it leaves with what."""

    live: list[Array]
    logits: Array
    leave: Array
    uncertainty: Array
    streak: Streak


def prepared(net: EarlyExit, arguments: Parts, rowed: tuple[bool, ...]) -> Prepared:
    """The stages of a call, kept for calls of the same shapes.

    Args:
      net: the network.
      arguments: of the call; they may be shapes.
      rowed: which of their arrays hold rows, from `with_rows`.

    Raises:
      ValueError: what `outline` raises, a cut that is no more, or classifiers that do not fit.
    """
    leaves_, treedef = jax.tree.flatten((net, arguments))
    return _prepared(treedef, _shapes(leaves_), rowed)


@functools.lru_cache(maxsize=256)
def _prepared(
    treedef: Any, shapes: tuple[jax.ShapeDtypeStruct, ...], rowed: tuple[bool, ...]
) -> Prepared:
    net, arguments = jax.tree.unflatten(treedef, shapes)
    found = outline(net, arguments, rowed, net.cuts, net.feature)
    for i, (head, width) in enumerate(zip(net.heads, found.widths, strict=True)):
        if head["kernel"].shape != (width, found.classes):
            raise ValueError(
                f"heads[{i}]: a kernel {list(head['kernel'].shape)} where "
                f"{[width, found.classes]} is needed; another transform has changed the features: "
                "exit_early and distill_exits after it"
            )
    line = equations(_plain(net), arguments)
    cut = split(line, chosen(cuts(line), net.cuts, argument="exits"))
    return Prepared(cut, crossing(cut), found, net.feature, net.patience, net.first, net.ranges)


class Lines(NamedTuple):
    """A network's equations for two rows and for three, and where they can be cut."""

    two: Equations
    three: Equations
    places: tuple[Cut, ...]


def lines(net: Network, arguments: Parts, rowed: tuple[bool, ...]) -> Lines:
    """The equations of a network for two rows and for three: what differs holds the rows.

    Args:
      net: its arrays may be shapes.
      arguments: of a call; they may be shapes.
      rowed: which of their arrays hold rows.
    """
    two, three = (equations(_plain(net), _resized(arguments, rowed, n)) for n in (2, 3))
    return Lines(two, three, cuts(two))


def reading(
    found: Lines, places: Sequence[Cut], feature: Feature
) -> tuple[tuple[tuple[int | None, ...], ...], tuple[int, ...]]:
    """Where rows lie in what crosses each cut, and how many features a classifier there reads.

    Args:
      found: the equations.
      places: the cuts.
      feature: what a classifier reads.

    Raises:
      ValueError: features other than [B, d], a row that has parts of a value on several axes, or
        what `feature` raises.
    """
    cut, wider = split(found.two, places), split(found.three, places)
    along: list[tuple[int | None, ...]] = []
    widths: list[int] = []
    for place, crossed in zip(places, crossing(cut), strict=True):
        live = [cut.stages[s].outputs[i] for s, i in crossed]
        more = [wider.stages[s].outputs[i] for s, i in crossed]
        axes = tuple(_axis(a.shape, b.shape) for a, b in zip(live, more, strict=True))
        read = jax.eval_shape(lambda live, axes=axes: feature(_leading(live, axes)), live)
        if read.ndim != 2 or read.shape[0] != 2:
            raise ValueError(
                f"feature: gives {list(read.shape)} for 2 rows at {place.name}, not [B, d]"
            )
        along.append(axes)
        widths.append(read.shape[1])
    return tuple(along), tuple(widths)


def outline(
    net: Network,
    arguments: Parts,
    rowed: tuple[bool, ...],
    names: Sequence[str],
    feature: Feature,
) -> Outline:
    """What a network looks like at its cuts.

    Args:
      net: its arrays may be shapes.
      arguments: of a call; they may be shapes.
      rowed: which of their arrays hold rows.
      names: sites that the stages but the first begin with.
      feature: what a classifier reads.

    Raises:
      ValueError: a cut that does not exist, outputs other than logits [B, C], or what `reading`
        raises.
    """
    few = _resized(arguments, rowed, 2)
    leaves_, treedef = jax.tree.flatten((_plain(net), few))
    return _outline(treedef, _shapes(leaves_), rowed, tuple(names), feature)


@functools.lru_cache(maxsize=64)
def _outline(
    treedef: Any,
    shapes: tuple[jax.ShapeDtypeStruct, ...],
    rowed: tuple[bool, ...],
    names: tuple[str, ...],
    feature: Feature,
) -> Outline:
    net, few = jax.tree.unflatten(treedef, shapes)
    found = lines(net, few, rowed)
    places = chosen(found.places, names, argument="exits")
    cut = split(found.two, places)
    outputs = [list(cut.stages[s].outputs[i].shape) for s, i in cut.outputs]
    if len(outputs) != 1 or len(outputs[0]) != 2 or outputs[0][0] != 2 or outputs[0][1] < 2:
        raise ValueError(f"exits: the network returns {outputs} for 2 rows, not logits [B, C]")
    classes = outputs[0][1]
    axes, widths = reading(found, places, feature)
    counted: list[Cost] = []

    def count(net: Network) -> None:
        args, kwargs = few.whole()
        counted.append(net.cost(*args, **kwargs))

    jax.eval_shape(count, net)  # settings of wrappers are numbers there, and only shapes here
    macs = {site.name: site.spent["macs"] / 2 for site in counted[0].sites}
    stages = [sum(2 * macs[name] for name in stage.sites) for stage in cut.stages]
    read = itertools.accumulate((2 * d * classes for d in widths), initial=0)
    heads = [*read][1:]
    flops = [a + b for a, b in zip(itertools.accumulate(stages), [*heads, heads[-1]], strict=True)]
    ((at, i),) = cut.outputs
    return Outline(axes, widths, classes, tuple(flops), str(cut.stages[at].outputs[i].dtype))


def crossing(cut: Stages) -> tuple[tuple[tuple[int, int], ...], ...]:
    """For each cut the values computed before it and read after it."""
    last = {source: at for at, stage in enumerate(cut.stages) for source in stage.sources}
    last.update(dict.fromkeys(cut.outputs, len(cut.stages) - 1))
    return tuple(
        tuple(sorted(source for source, end in last.items() if source[0] <= at < end))
        for at in range(len(cut.stages) - 1)
    )


def at_exits(net: EarlyExit, arguments: Parts, batch_size: int, key: Any) -> list[Array]:
    """What each classifier reads [n, d], and the network's own logits [n, C].

    Args:
      net: the network.
      arguments: of a call, with any number of rows.
      batch_size: rows at once.
      key: for cores that draw random numbers.
    """
    rows, rowed = with_rows(arguments)
    parts: list[list[np.ndarray]] = []
    for start in range(0, rows, batch_size):
        which = np.arange(start, start + min(batch_size, rows)) % rows
        few = dataclasses.replace(
            arguments,
            arrays=tuple(
                a[which] if own else a for a, own in zip(arguments.arrays, rowed, strict=True)
            ),
        )
        found = _read(_settled(net), few, jax.random.fold_in(key, start))
        parts.append([np.asarray(a)[: rows - start] for a in found])
    return [jnp.asarray(np.concatenate(column)) for column in zip(*parts, strict=True)]


@jax.jit
def _read(net: EarlyExit, arguments: Parts, key: Any) -> list[Array]:
    plan = prepared(net, arguments, with_rows(arguments)[1])
    live, found = list[Array](), list[Array]()
    for at, stage in enumerate(plan.cut.stages):
        own = held(net, plan.cut, stage)
        given = [arguments.arrays[i] for i in stage.arguments]
        live = _advance(plan, at, own, given, live, key, None)
        last = at == len(net.heads)
        found += live if last else [plan.feature(_leading(live, plan.outline.axes[at]))]
    return found


@jax.jit
def _simulated(net: EarlyExit, arguments: Parts, key: Any) -> Exits:
    rows, rowed = with_rows(arguments)
    plan, last = prepared(net, arguments, rowed), len(net.heads)
    live, uncertainty = list[Array](), list[Array]()
    streak, staying = no_streak(rows), jnp.ones(rows, bool)
    dtype = jnp.dtype(plan.outline.dtype)
    logits = jnp.zeros((rows, plan.outline.classes), dtype)
    layer = jnp.full(rows, last + 1, jnp.int32)
    for at, stage in enumerate(plan.cut.stages):
        own = held(net, plan.cut, stage)
        head = net.heads[at] if at < last else None
        given = [arguments.arrays[i] for i in stage.arguments]
        live, found, leave, doubt, streak = _exit(
            plan, at, own, head, net.threshold, given, live, streak, key, None
        )
        uncertainty.append(jnp.where(staying, doubt, jnp.nan))
        logits = jnp.where(staying[:, None], found.astype(dtype), logits)
        if at < last:
            layer = jnp.where(staying & leave, at + 1, layer)
            staying = staying & ~leave
    flops = jnp.asarray(plan.outline.flops, jnp.float32)[layer - 1]
    return Exits(logits, layer, jnp.stack(uncertainty, 1), flops)


def _advance(
    plan: Prepared,
    at: int,
    own: Held,
    arguments: Sequence[Any],
    live: Sequence[Array],
    key: Any,
    part: Any,
) -> list[Array]:
    """One stage: what crosses the cut behind it, or the logits."""
    stage, last = plan.cut.stages[at], len(plan.crossing)
    known = dict(zip(plan.crossing[at - 1] if at else (), live, strict=True))
    outputs = run_stage(
        stage,
        own,
        [jnp.asarray(a) for a in arguments],
        [known[source] for source in stage.sources],
        ranges=plan.ranges,
        key=key,
        part=part,
    )
    known.update({(at, i): y for i, y in enumerate(outputs)})
    return [known[source] for source in (plan.crossing[at] if at < last else plan.cut.outputs)]


def _exit(
    plan: Prepared,
    at: int,
    own: Held,
    head: Head | None,
    threshold: Any,
    arguments: Sequence[Any],
    live: Sequence[Array],
    streak: Streak,
    key: Any,
    part: Any,
) -> Decided:
    """One stage, and at its end the decision."""
    after = _advance(plan, at, own, arguments, live, key, part)
    if head is None:
        (logits,), after = after, []
    else:
        logits = classified(head, plan.feature(_leading(after, plan.outline.axes[at])))
    rule = Rule(threshold, plan.patience, plan.first)
    return Decided(after, logits, *leaves(rule, logits, streak, at + 1))


_step: Any = partial(jax.jit, static_argnames=("plan", "at"))(_exit)


def programmes() -> int:
    """How many programmes `run` and `warm_up` have compiled, each for a stage and a batch."""
    return compile_count(_step)


class _Queue(NamedTuple):
    """Rows that wait before a stage.

    Attributes:
      ids: [n] which rows.
      live: what they bring, n along an axis of each.
    """

    ids: np.ndarray
    live: list[np.ndarray]


def _stepper(net: EarlyExit, arguments: Parts, key: Any) -> Callable[..., Decided]:
    """A step of these arguments: `(stage, rows, live, streak) -> Decided`, rows by number."""
    _, rowed = with_rows(arguments)
    pairs = zip(arguments.arrays, rowed, strict=True)
    arrays = [np.asarray(a) if own else a for a, own in pairs]
    threshold, batches = jnp.float32(net.threshold), itertools.count()
    plans: dict[int, Prepared] = {}
    owned: dict[int, Held] = {}

    def step(at: int, which: np.ndarray, live: Sequence[Any], streak: Streak) -> Decided:
        n = len(which)
        if n not in plans:
            plans[n] = prepared(net, _resized(arguments, rowed, n), rowed)
        if at not in owned:
            owned[at] = held(net, plans[n].cut, plans[n].cut.stages[at])
        read = plans[n].cut.stages[at].arguments
        given = [arrays[i][which] if rowed[i] else arrays[i] for i in read]
        head = net.heads[at] if at < len(net.heads) else None
        part = np.int32(next(batches))
        return _step(plans[n], at, owned[at], head, threshold, given, live, streak, key, part)

    return step


def _run(net: EarlyExit, arguments: Parts, buckets: Buckets, key: Any) -> Exits:
    (rows, rowed), last = with_rows(arguments), len(net.heads)
    found = outline(net, arguments, rowed, net.cuts, net.feature)
    axes = ((), *map(_all_rows, net.cuts, found.axes))
    step = _stepper(net, arguments, key)
    most = buckets.max_batch // buckets.batch * buckets.batch
    logits = np.zeros((rows, found.classes), found.dtype)
    layer = np.full(rows, last + 1, np.int32)
    uncertainty = np.full((rows, last + 1), np.nan, np.float32)
    streak = jax.tree.map(np.array, no_streak(rows))
    queues: list[_Queue | None] = [_Queue(np.arange(rows), []), *[None] * last]
    # The latest stage that has a full batch, so that few rows wait; if none has, the first.
    while waiting := [(at, queue) for at, queue in enumerate(queues) if queue is not None]:
        full = [pair for pair in waiting if len(pair[1].ids) >= most]
        at, queue = full[-1] if full else waiting[0]
        ids, live, queues[at] = _taken(queue, most, axes[at])
        n = len(ids)
        rows_of = np.append(np.arange(n), np.zeros(rounded_up(n, buckets.batch) - n, int))
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
            queues[at + 1] = _joined(queues[at + 1], _Queue(ids[stay], more), axes[at + 1])
    flops = np.asarray(found.flops, np.float32)[layer - 1]
    return Exits(*map(jnp.asarray, (logits, layer, uncertainty, flops)))


def _taken(
    queue: _Queue, most: int, axes: Sequence[int]
) -> tuple[np.ndarray, list[np.ndarray], _Queue | None]:
    """The first rows of a queue, and the queue without them."""
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


def _joined(queue: _Queue | None, more: _Queue, axes: Sequence[int]) -> _Queue:
    if queue is None:
        return more
    pairs = zip(queue.live, more.live, axes, strict=True)
    return _Queue(
        np.concatenate([queue.ids, more.ids]),
        [np.concatenate([a, b], axis) for a, b, axis in pairs],
    )


def _rows_along(a: np.ndarray, rows: np.ndarray, axis: int) -> np.ndarray:
    """Rows of an array; the array itself where they are all there in order."""
    everything = len(rows) == a.shape[axis] and np.array_equal(rows, np.arange(len(rows)))
    return a if everything else np.take(a, rows, axis)


def _settled(net: EarlyExit) -> EarlyExit:
    """The network with its threshold an array, so that numbers and arrays share a programme."""
    return dataclasses.replace(net, threshold=jnp.asarray(net.threshold, jnp.float32))


def _all_rows(name: str, axes: Sequence[int | None]) -> tuple[int, ...]:
    found = tuple(axis for axis in axes if axis is not None)
    if len(found) < len(axes):
        raise ValueError(f"run: a value that no row has a part of crosses the cut at {name}")
    return found


def _plain(net: Network) -> Network:
    """The network without exits or masks, which change nothing in its equations."""
    return dataclasses.replace(uncut(net), masks={})


def _leading(live: Sequence[Array], axes: Sequence[int | None]) -> tuple[Array, ...]:
    """The values that hold rows, those first."""
    return tuple(jnp.moveaxis(a, i, 0) for a, i in zip(live, axes, strict=True) if i is not None)


def _axis(two: tuple[int, ...], three: tuple[int, ...]) -> int | None:
    """The axis along which a value of two rows and one of three differ."""
    changed = [i for i, (a, b) in enumerate(zip(two, three, strict=True)) if a != b]
    if len(changed) > 1 or (changed and (two[changed[0]], three[changed[0]]) != (2, 3)):
        raise ValueError(
            f"exits: a value between stages is {list(two)} for 2 rows and {list(three)} for 3; "
            "rows are to be entries of one axis"
        )
    return changed[0] if changed else None


def with_rows(arguments: Parts) -> tuple[int, tuple[bool, ...]]:
    """Number of rows, the leading axis of the first array that has one, and which arrays have it.

    Raises:
      ValueError: no array has an axis, or there is no row.
    """
    shapes = [np.shape(a) for a in arguments.arrays]
    rows = next((shape[0] for shape in shapes if shape), 0)
    if rows == 0:
        raise ValueError("args: the first array with an axis must have a row at least")
    return rows, tuple(shape[:1] == (rows,) for shape in shapes)


def _resized(arguments: Parts, rowed: tuple[bool, ...], rows: int) -> Parts:
    """Shapes of the arguments with another number of rows."""
    return dataclasses.replace(
        arguments,
        arrays=tuple(
            jax.ShapeDtypeStruct(
                (rows, *np.shape(a)[1:]) if own else np.shape(a), jnp.result_type(a)
            )
            for a, own in zip(arguments.arrays, rowed, strict=True)
        ),
    )


def _shapes(leaves_: Sequence[Any]) -> tuple[jax.ShapeDtypeStruct, ...]:
    return tuple(jax.ShapeDtypeStruct(np.shape(a), jnp.result_type(a)) for a in leaves_)
