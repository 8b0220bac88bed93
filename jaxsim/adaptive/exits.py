"""Early exits: a network whose rows leave as soon as they have been computed far enough.

One step computes a stage and decides. `simulate` takes it over all rows and masks those that have
left; `run` takes it over batches of the rows that stay.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jaxsim.adaptive.exit_queue import run_in_queues, stepper
from jaxsim.adaptive.exit_step import (
    advance,
    count_programs,
    live_steps,
    prepared,
    stage_and_exit,
)
from jaxsim.adaptive.features import Feature, pooled
from jaxsim.adaptive.heads import Head
from jaxsim.adaptive.rows import batch_first, check_rows, find_rows
from jaxsim.adaptive.rule import Buckets, Exits, Rule, check_buckets, check_rule, initial_patience
from jaxsim.cores.partition import Partitioned
from jaxsim.internals import compile_count
from jaxsim.network.network import DATA, META, Network
from jaxsim.network.stages import stage_params
from jaxsim.network.tables import cuts_table
from jaxsim.numerics.arrays import own_promotion
from jaxsim.numerics.checks import is_traced
from jaxsim.values.memo import Memo, Memoizing


@partial(
    jax.tree_util.register_dataclass,
    data_fields=[*DATA, "heads", "threshold"],
    meta_fields=[*META, "cuts", "feature", "patience", "first", "memo"],
)
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class EarlyExit(Memoizing, Network):
    """Network with classifiers between its stages; made by `exit_early`.

    It is a network in every other way: it is composed, deployed, trained and saved like one. A call
    gives each row the logits of the exit it took. `dataclasses.replace(net, threshold=…)` changes
    its speed without compiling anew.

    Attributes:
      heads: Classifiers of each exit but the last, which is the network's own.
      threshold, patience, first: Rule by which a row leaves, as in `Rule`; the threshold is traced.
      cuts: Names of the sites that the stages but the first begin with.
      feature: Function from boundary activations to the features that a classifier reads.
      memo: Reference to the stages and programs that were made for it.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> params, x = {"a": jnp.eye(3), "b": jnp.eye(3)}, jnp.ones((2, 3))
      >>> net = js.trace(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], params, x)
      >>> exits = js.exit_early(["b"], js.Rule(threshold=2.0))(net)
      >>> exits.simulate(x).layer.tolist()
      [1, 1]
    """

    cut_by: ClassVar[str] = "exit_early"

    heads: tuple[Head, ...] = ()
    threshold: Float[Array, ""] | float = 0.0
    cuts: tuple[str, ...] = ()
    feature: Feature = pooled
    patience: int = 0
    first: int = 1
    memo: Memo = dataclasses.field(default_factory=Memo)

    def __call__(
        self, *args: Any, key: Key[Array, ""] | None = None, **kwargs: Any
    ) -> Float[Array, "B C"]:
        """Computes the logits of the exit that each row takes.

        Args:
          *args: Inputs of the model; the leading axis of the first array is the batch.
          key: Random key, needed where cores draw at every call.
          **kwargs: Keyword arguments of the model.

        Raises:
          ValueError: As `simulate` raises.
        """
        return self.simulate(*args, key=key, **kwargs).logits

    @property
    def cut_lines(self) -> tuple[str, ...]:
        """Lines that name the cuts at which this network holds arrays, for checkpoints."""
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
        """Rule by which a row leaves."""
        return Rule(self.threshold, self.patience, self.first)

    @own_promotion()
    def simulate(self, *args: Any, key: Key[Array, ""] | None = None, **kwargs: Any) -> Exits:
        """Computes every row to the end, and the exit it would have taken: a pure function.

        Args:
          *args: Inputs of the model; the leading axis of the first array is the batch.
          key: Random key, needed where cores draw at every call.
          **kwargs: Keyword arguments of the model.

        Returns:
          Logits, exits and uncertainties, and the FLOPs that `run` would spend: those of the
          sites and classifiers, as `cost` counts them.

        Raises:
          ValueError: A rule out of range, outputs other than logits [B, C], classifiers that do not
            fit the features, or what the network raises.
        """
        check_rule(self.rule, len(self.heads) + 1)
        arguments = self.arguments(args, kwargs, key)
        return _simulate(_with_array_threshold(self), arguments, key)

    @own_promotion()
    def run(
        self,
        *args: Any,
        buckets: Buckets = Buckets(),  # noqa: B008
        key: Key[Array, ""] | None = None,
        **kwargs: Any,
    ) -> Exits:
        """Computes what `simulate` returns, without what no row needs.

        Rows that leave are dropped, and those that stay wait before the next stage until they fill
        a batch. What is left at the end is padded with copies to the next bucket; what they give is
        thrown away.

        Args:
          *args: Inputs of the model, with any number of rows.
          buckets: Numbers of rows to compile for; `token` is not used.
          key: Random key, needed where cores draw at every call. Noise at reads differs from that
            of `simulate`.
          **kwargs: Keyword arguments of the model.

        Returns:
          The rows in their order.

        Raises:
          ValueError: As `simulate` raises; traced arguments; ranges that are of a batch and so of
            the rows that happen to be in it; or a value between stages that is not split by rows.
        """
        check_rule(self.rule, len(self.heads) + 1)
        check_buckets(buckets)
        arguments = self.arguments(args, kwargs, key)
        if any(map(is_traced, jax.tree.leaves((self, arguments, key)))):
            raise ValueError("run drops rows outside of any program; under jit, use simulate")
        check_rows(self, "js.deploy(net, calibrate=…)")
        return run_in_queues(self, arguments, buckets, key)

    def warm_up(
        self,
        *args: Any,
        buckets: Buckets = Buckets(),  # noqa: B008
        key: Key[Array, ""] | None = None,
        **kwargs: Any,
    ) -> int:
        """Compiles each stage for each number of rows that `run` can meet.

        Args:
          *args: Inputs of the model; only shapes and dtypes count.
          buckets: Numbers of rows to compile for, as given to `run`.
          key: Random key, where `run` is given one.
          **kwargs: Keyword arguments of the model.

        Returns:
          How many programs were compiled; none where they were known.
        """
        check_buckets(buckets)
        steps = live_steps()
        before = compile_count(*steps)
        arguments = self.arguments(args, kwargs, key)
        step = stepper(self, arguments, key)
        for rows in range(buckets.batch, buckets.max_batch + 1, buckets.batch):
            live: list[np.ndarray] = []
            streak = jax.tree.map(np.array, initial_patience(rows))
            for at in range(len(self.heads) + 1):
                live = [*map(np.asarray, step(at, np.zeros(rows, int), live, streak).live)]
        return count_programs() - before


def at_exits(net: EarlyExit, arguments: Partitioned, batch_size: int, key: Any) -> list[Array]:
    """Computes what each classifier reads, [n, d], and the network's logits, [n, C].

    Args:
      net: Network with exits.
      arguments: Arguments of a call, with any number of rows.
      batch_size: Number of rows computed at once.
      key: Random key for cores that draw.
    """
    rows, batched = find_rows(arguments)
    parts: list[list[np.ndarray]] = []
    for start in range(0, rows, batch_size):
        which = np.arange(start, start + min(batch_size, rows)) % rows
        few = dataclasses.replace(
            arguments,
            arrays=tuple(
                a[which] if own else a for a, own in zip(arguments.arrays, batched, strict=True)
            ),
        )
        found = _read(_with_array_threshold(net), few, jax.random.fold_in(key, start))
        parts.append([np.asarray(a)[: rows - start] for a in found])
    return [jnp.asarray(np.concatenate(column)) for column in zip(*parts, strict=True)]


@jax.jit
def _read(net: EarlyExit, arguments: Partitioned, key: Any) -> list[Array]:
    plan = prepared(net, arguments, find_rows(arguments)[1])
    live, found = list[Array](), list[Array]()
    for at, stage in enumerate(plan.cut.stages):
        own = stage_params(net, plan.cut, stage)
        given = [arguments.arrays[i] for i in stage.arguments]
        live = advance(plan, at, own, given, live, key, None)
        last = at == len(net.heads)
        found += live if last else [plan.feature(batch_first(live, plan.layout.axes[at]))]
    return found


@jax.jit
def _simulate(net: EarlyExit, arguments: Partitioned, key: Any) -> Exits:
    rows, batched = find_rows(arguments)
    plan, last = prepared(net, arguments, batched), len(net.heads)
    live, uncertainty = list[Array](), list[Array]()
    streak, staying = initial_patience(rows), jnp.ones(rows, bool)
    dtype = jnp.dtype(plan.layout.dtype)
    logits = jnp.zeros((rows, plan.layout.classes), dtype)
    layer = jnp.full(rows, last + 1, jnp.int32)
    for at, stage in enumerate(plan.cut.stages):
        own = stage_params(net, plan.cut, stage)
        head = net.heads[at] if at < last else None
        given = [arguments.arrays[i] for i in stage.arguments]
        live, found, leave, doubt, streak = stage_and_exit(
            plan, at, own, head, net.threshold, given, live, streak, key, None
        )
        uncertainty.append(jnp.where(staying, doubt, jnp.nan))
        logits = jnp.where(staying[:, None], found.astype(dtype), logits)
        if at < last:
            layer = jnp.where(staying & leave, at + 1, layer)
            staying = staying & ~leave
    flops = jnp.asarray(plan.layout.flops, jnp.float32)[layer - 1]
    return Exits(logits, layer, jnp.stack(uncertainty, 1), flops)


def _with_array_threshold(net: EarlyExit) -> EarlyExit:
    """Makes the threshold an array, so that numbers and arrays share a program."""
    return dataclasses.replace(net, threshold=jnp.asarray(net.threshold, jnp.float32))
