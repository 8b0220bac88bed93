"""Portions of a call of a network in stages: each stage, for the rows and tokens that reach it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from jaxsim.adaptive.rule import Buckets, round_up
from jaxsim.cores.partition import Partitioned
from jaxsim.network.cuts import cuts, equations
from jaxsim.network.network import base_network
from jaxsim.network.plan import Plan
from jaxsim.network.portions import Portion
from jaxsim.network.stages import Stage, Stages, split
from jaxsim.numerics.checks import is_traced
from jaxsim.pipeline.microbatch import batch_split
from jaxsim.staged.exit_layout import ExitLayout
from jaxsim.staged.exit_queue import cut_short, leaving, run_layout, tokens_at_first
from jaxsim.staged.exit_step import Prepared, prepared, sized_stage
from jaxsim.staged.rows import find_rows, select_union, with_batch_size

if TYPE_CHECKING:
    from jaxsim.staged.network import Staged


def portions(
    net: Staged, args: Sequence[Any], kwargs: Mapping[str, Any], key: Any
) -> tuple[Portion, ...]:
    """Finds the rows and tokens that reach each stage of given inputs, and the equations for them.

    A pipeline runs a stage in batches of a micro-batch's rows. Numbers of tokens are rounded up as
    `run` does by default, and rows of as many tokens are computed together.

    Args:
      net: Network in stages.
      args: Inputs of a call; their values count where rows or tokens leave.
      kwargs: Keyword arguments of the call.
      key: Random key of the call, or None.

    Raises:
      ValueError: Inputs that are no values where these count; a batch that does not divide; or what
        `simulate` raises.
    """
    if not net.exits and net.tokens is None and not args and not kwargs:
        arguments = net.example
    else:
        arguments = net.arguments(args, kwargs, key)
    if not net.exits and net.tokens is None:
        return tuple(_Portions(net, arguments).all_rows())
    arrays = arguments.arrays
    if not arrays or any(is_traced(a) or isinstance(a, jax.ShapeDtypeStruct) for a in arrays):
        what = "rows" if net.exits else "tokens"
        raise ValueError(f"args: where {what} leave depends on values; give inputs, outside jit")
    exits = net.simulate(*args, key=key, **kwargs)
    return tuple(_Portions(net, arguments).leaving(exits))


class _Group(NamedTuple):
    """Rows of as many tokens: how many of them a device computes together, and how often."""

    rows: int
    batches: int = 1
    tokens: int = 0


class _Portions:
    """Makes portions of a call."""

    def __init__(self, net: Staged, arguments: Partitioned):
        self.net, self.arguments = net, arguments
        self.rows, self.batched = find_rows(arguments)
        layout = net.layout
        self.others = () if layout is None else layout.cuts
        self.count = 1 if layout is None else len(layout.devices) // layout.chunks
        self.replicas = 1 if layout is None else len(layout.devices[0].devices)
        self.batch = self.rows
        if layout is not None:
            split_up = batch_split(arguments, layout.microbatches, self.replicas)
            self.batch = split_up.microbatch_size

    def all_rows(self) -> Iterator[Portion]:
        """Stages that all rows reach."""
        cut = self.whole(self.batch // self.replicas)
        places = [stage.name for stage in cut.stages[1:]]
        group = _Group(self.batch // self.replicas, self.rows // self.batch)
        for at, stage in enumerate(cut.stages):
            yield self.portion(at, stage, stage.plan, group, places)

    def leaving(self, exits: Any) -> Iterator[Portion]:
        """Stages for what reaches them.

        Args:
          exits: What `simulate` says of all rows.
        """
        net, found = self.net, run_layout(self.net, self.arguments)
        layer, places = np.asarray(exits.layer), found.places
        counts = self.token_counts(found, exits)
        before = itertools.accumulate((n is not None for n in found.exits), initial=0)
        for at, passed in enumerate(before):
            reach = layer > passed
            groups = list(self.groups(reach, counts[at]))
            for i, group in enumerate(groups):
                stage, plan = self.stage(at, max(group.rows, 1), group.tokens)
                made = self.portion(at, stage, plan, group, places)
                number = (*found.exits, None)[at]
                if number is not None:
                    classifier = found.widths[number], found.classes
                    name = f"exit before {net.exits[number]}"
                    made = made._replace(classifier=classifier, exit=name)
                yield made._replace(again=i > 0)

    def token_counts(self, found: ExitLayout, exits: Any) -> list[np.ndarray]:
        """Numbers of tokens that each row is computed with, by stage; 0 where all stay."""
        if found.tokens is None:
            return [np.zeros(self.rows, int)] * (len(found.places) + 1)
        own, length = Buckets(), found.tokens.length
        first = tokens_at_first(self.net, self.arguments, found, own).counts
        kept = [[min(length, round_up(int(n), own.token)) for n in row] for row in exits.kept]
        return [first if n == 0 else np.array(kept)[:, n - 1] for n in found.tokens.layers]

    def groups(self, reach: np.ndarray, counts: np.ndarray) -> Iterator[_Group]:
        """Rows of as many tokens in full batches, and those that are left; most tokens first."""
        if not reach.any():
            yield _Group(0, tokens=int(counts.max(initial=0)))
        for count in np.unique(counts[reach])[::-1]:
            full, left = divmod(int(np.sum(reach & (counts == count))), self.batch)
            if full:
                yield _Group(self.batch // self.replicas, full, int(count))
            if left:
                yield _Group(-(-left // self.replicas), 1, int(count))

    def stage(self, at: int, rows: int, tokens: int) -> tuple[Stage, Plan]:
        """A stage of some rows, and its equations for some tokens."""
        if not tokens:
            stage = self.whole(rows).stages[at]
            return stage, stage.plan
        few = with_batch_size(self.arguments, self.batched, rows)
        if at == 0:
            few = cut_short(self.net, few, self.arguments, tokens)
        plan = self.planned(few)
        if at == 0:
            return plan.cut.stages[0], plan.cut.stages[0].plan
        return plan.cut.stages[at], sized_stage(plan, at, tokens, together=True).plan

    def planned(self, few: Partitioned) -> Prepared:
        """Stages in which tokens leave."""
        return prepared(self.net, few, self.batched, self.others, leaving(self.net))

    def whole(self, rows: int) -> Stages:
        """Stages in which all tokens stay."""
        few = with_batch_size(self.arguments, self.batched, rows)
        line = equations(base_network(self.net), few)
        return split(line, select_union(cuts(line), self.net.exits, self.others))

    def portion(
        self, at: int, stage: Stage, plan: Plan, group: _Group, places: Sequence[str]
    ) -> Portion:
        """A stage's equations for a group of rows."""
        shares = zip(stage.sites, stage.site_rows, strict=True)
        return Portion(
            plan,
            len(stage.params) + len(stage.buffers),
            group.rows,
            {name: some.share for name, some in shares if some is not None},
            batches=group.batches,
            devices=self.replicas,
            stage=at,
            device=sum(name in self.others for name in places[:at]) % self.count,
        )
