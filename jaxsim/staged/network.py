"""A network in stages: exits between them by which rows leave, devices that take over, or both."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxsim.adaptive.features import Feature, pooled
from jaxsim.adaptive.heads import Head
from jaxsim.adaptive.rule import Buckets, Exits, Rule
from jaxsim.adaptive.tokens import TokenRule
from jaxsim.network.network import DATA, META, Network
from jaxsim.network.portions import Portion
from jaxsim.network.tables import cuts_table
from jaxsim.numerics.arrays import own_promotion
from jaxsim.numerics.checks import is_traced
from jaxsim.pipeline.memory import MemoryTable, StageTable
from jaxsim.pipeline.microbatch import example_of
from jaxsim.staged import exit_queue, exits, pipeline, portions, soften
from jaxsim.staged.exits import attentions_of
from jaxsim.staged.plan import Layout
from jaxsim.staged.rows import cut_names
from jaxsim.staged.soften import Softened
from jaxsim.values.memo import Memo, Memoizing


@partial(
    jax.tree_util.register_dataclass,
    data_fields=[*DATA, "heads", "threshold", "tokens"],
    meta_fields=[*META, "exits", "feature", "patience", "first", "layout", "memo"],
)
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Staged(Memoizing, Network):
    """A network in stages; made by `exit_early`, by `pipeline_shard`, or by both in any order.

    It is a network in every other way: it is composed, deployed, trained, saved and counted like
    one, and its parameters keep their paths. A call gives what the network gives and, with exits,
    for each row the logits of the one it took. With a layout it runs micro-batch by micro-batch in
    stages on several devices; under `jit` and `grad` the same stages are part of the one program
    around it. `dataclasses.replace(net, threshold=…)` changes its speed without compiling anew.

    Attributes:
      heads: Classifiers of each exit but the last, which is the network's own.
      threshold, patience, first: Rule by which a row leaves, as in `Rule`; the threshold is traced,
        and None without exits.
      exits: Names of the sites before which a classifier stands.
      feature: Function from boundary activations to the features that a classifier reads.
      layout: Devices, micro-batches and the order in which they run; None for one device.
      tokens: When a token leaves behind an attention; None where all stay.
      memo: Reference to the stages and programs that were made for it.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> params, x = {"a": jnp.eye(3), "b": jnp.eye(3)}, jnp.ones((2, 3))
      >>> net = js.trace(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], params, x)
      >>> exits = js.exit_early(["b"], js.Rule(threshold=2.0))(net)
      >>> exits.simulate(x).layer.tolist()
      [1, 1]
      >>> both = js.pipeline_shard(2, 2, devices=jax.devices()[:1] * 2)(exits)
      >>> both.run(x).layer.tolist(), [row.params for row in both.stages.rows]
      ([1, 1], [21, 9])
    """

    heads: tuple[Head, ...] = ()
    threshold: Float[Array, ""] | float | None = None
    exits: tuple[str, ...] = ()
    feature: Feature = pooled
    patience: int = 0
    first: int = 1
    layout: Layout | None = None
    tokens: TokenRule | None = None
    memo: Memo = dataclasses.field(default_factory=Memo)

    def __call__(self, *args: Any, key: Key[Array, ""] | None = None, **kwargs: Any) -> Any:
        """Computes the outputs of the network, with exits those of the one that each row takes.

        Args:
          *args: Inputs of the network; the leading axis of the first array is the batch. A pipeline
            divides it in every array that has it. Arrays without it go to each micro-batch as they
            are, random keys folded with its number.
          key: Random key, needed where cores draw random numbers at every call.
          **kwargs: Keyword arguments of the network.

        Returns:
          What the network returns, of a pipeline on the last stage's devices; with exits logits
          [B, C].

        Raises:
          ValueError: The batch is not divisible, or what the network or `simulate` raises.
        """
        if self.layout is None:
            return self.simulate(*args, key=key, **kwargs).logits
        arguments = self.arguments(args, kwargs, key)
        if not self.exits and self.tokens is None:
            return pipeline.call(self, arguments, key)
        exits.require_exits(self)
        with own_promotion():
            logits = pipeline.exit_logits(self, arguments, key)
            return exits.taken_logits(self.threshold, logits, self.patience, self.first)

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
          ValueError: No exits, a rule out of range, outputs other than logits [B, C], classifiers
            that do not fit the features, or what the network raises.
        """
        exits.require_exits(self)
        return exits.simulate(self, self.arguments(args, kwargs, key), key)

    @own_promotion()
    def exit_logits(
        self, *args: Any, key: Key[Array, ""] | None = None, **kwargs: Any
    ) -> Float[Array, "B L C"]:
        """Computes what every exit says of every row: what a loss over all exits reads.

        Args:
          *args: Inputs of the model; the leading axis of the first array is the batch.
          key: Random key, needed where cores draw at every call.
          **kwargs: Keyword arguments of the model.

        Returns:
          Logits of each exit, the network's own last. A pipeline computes them in its stages.

        Raises:
          ValueError: As `simulate` raises.
        """
        exits.require_exits(self)
        arguments = self.arguments(args, kwargs, key)
        if self.layout is None:
            return exits.exit_logits(self, arguments, key)
        return jnp.stack(pipeline.exit_logits(self, arguments, key), 1)

    @own_promotion()
    def soften(
        self,
        *args: Any,
        temperature: Float[Array, ""] | float,
        key: Key[Array, ""] | None = None,
        **kwargs: Any,
    ) -> Softened:
        """Scales the tokens of each layer's output by a soft mask, to learn levels by its gradient.

        Nothing leaves, so attention sees all tokens: each layer's output is multiplied by
        σ((score − level) / temperature), of protected tokens by 1, where `simulate` lets a token
        leave that is below the level. Scores are about one over the length: temperatures have to
        be well below that.

        Args:
          *args: Inputs of the model; the leading axis of the first array is the batch.
          temperature: Temperature of the masks, above 0; traced.
          key: Random key, needed where cores draw at every call.
          **kwargs: Keyword arguments of the model.

        Returns:
          Logits of every exit, the network's own last, and the share of the tokens that each
          attention leaves.

        Raises:
          ValueError: All tokens stay, or leave by another rule than `tokens.above`; a temperature
            that is not above 0; tokens that lie along two axes where a layer ends; or what
            `simulate` raises.

        Source: Kim et al. (2022), Learned Token Pruning, arXiv 2107.00910, equation 5.
        """
        exits.require_exits(self)
        return soften.soften(self, self.arguments(args, kwargs, key), temperature, key)

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
        thrown away. Stages of a pipeline run on their devices, each as soon as it has a batch.

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
        exits.require_exits(self)
        arguments = self.arguments(args, kwargs, key)
        if any(map(is_traced, jax.tree.leaves((self, arguments, key)))):
            raise ValueError("run drops rows outside of any program; under jit, use simulate")
        return exit_queue.run(self, arguments, buckets, key)

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

        Raises:
          ValueError: As `run` raises.
        """
        exits.require_exits(self)
        return exit_queue.warm_up(self, self.arguments(args, kwargs, key), buckets, key)

    def placed(self) -> Staged:
        """Moves each parameter and state to the devices of the stage that reads it.

        Calls then move nothing but activations. A parameter that several stages read is on those
        of the first, and so is a stack that is cut between its slices, which calls go on to move.
        Programs of one device, such as a jitted optimizer step over all parameters at once, cannot
        take arrays of several.

        Raises:
          ValueError: The network is on one device.
        """
        return pipeline.placed(self)

    def portions(
        self, *args: Any, key: Key[Array, ""] | None = None, **kwargs: Any
    ) -> tuple[Portion, ...]:
        """Finds what a call runs of each stage, for the rows and tokens that reach it.

        Args:
          *args: Inputs; which rows and tokens leave depends on their values.
          key: Random key, needed where cores draw at every call.
          **kwargs: Keyword arguments of the network.

        Raises:
          ValueError: Inputs that are no values where something leaves, a batch that does not
            divide, or what `simulate` raises.
        """
        return portions.portions(self, args, kwargs, key)

    @property
    def stages(self) -> StageTable:
        """Parameters, FLOPs and boundary bytes of each device's stage, from shapes alone."""
        return pipeline.stage_table(self)

    def memory(self, *args: Any, **kwargs: Any) -> MemoryTable:
        """Counts the bytes of one training step by stage, from the compiled programs alone.

        Args:
          *args: Inputs of a mini-batch (only shapes count); without any, those of the traced
            example.
          **kwargs: Keyword arguments, as in a call.

        Raises:
          ValueError: A network on one device, a batch that is not divisible, or engine "spmd".
        """
        return pipeline.memory_table(self, args, kwargs)

    @property
    def rule(self) -> Rule:
        """Rule by which a row leaves."""
        return Rule(0.0 if self.threshold is None else self.threshold, self.patience, self.first)

    @property
    def cuts(self) -> tuple[str, ...]:
        """Names of the sites that the stages but the first begin with, in order of execution."""
        others = () if self.layout is None else self.layout.cuts
        return cut_names(self, example_of(self, 1), self.exits, others)

    @property
    def cut_by(self) -> tuple[str, ...]:
        """Names of the transforms that cut it."""
        made = (
            ("exit_early", bool(self.exits)),
            ("prune_tokens", self.tokens is not None),
            ("pipeline_shard", self.layout is not None),
        )
        return tuple(name for name, found in made if found)

    @property
    def cut_lines(self) -> tuple[str, ...]:
        """Lines that name the cuts at which this network holds arrays, for checkpoints."""
        exits = tuple(f"exit at {name}" for name in self.exits)
        if self.tokens is None:
            return exits
        return (*exits, f"tokens leave behind {len(self.tokens.level)} attentions")

    def __rich__(self) -> Any:
        from rich.console import Group

        tables = [super().__rich__()]
        if self.exits:
            tables.append(_exits_table(self))
        if self.tokens is not None:
            tables.append(_tokens_table(self))
        if self.layout is not None:
            tables.append(_layout_table(self.layout))
        return Group(*tables)


def _exits_table(net: Staged) -> Any:
    places = [*(f"before {name}" for name in net.exits), "the end"]
    read = [f"{head['kernel'].shape[0]} → {head['kernel'].shape[1]}" for head in net.heads]
    rows = zip(range(1, len(places) + 1), places, [*read, "the network's own"], strict=True)
    threshold = net.rule.threshold
    said = "traced" if is_traced(threshold) else f"{float(threshold):.3g}"
    rule = f"below uncertainty {said}, patience {net.patience}, first {net.first}"
    return cuts_table(f"exits · {rule}", ("exit", "place", "classifier"), rows)


def _tokens_table(net: Staged) -> Any:
    rule, found = net.tokens, attentions_of(net)
    assert rule is not None
    held = [None] * len(found.cuts) if is_traced(rule.level) else rule.level.tolist()
    levels = ["traced" if level is None else f"{level:.3g}" for level in held]
    rows = zip(
        found.attention.names, [name or "no cut" for name in found.cuts], levels, strict=True
    )
    kept = f"first {rule.protect} and last {rule.protect_last} always stay"
    title = f"tokens · {rule.keeps.__name__}, {kept}"
    return cuts_table(title, ("attention", "they leave before", "level"), rows)


def _layout_table(layout: Layout) -> Any:
    begins = ("the start", *layout.cuts)
    devices = (", ".join(map(str, stage.devices)) for stage in layout.devices)
    rows = zip(range(1, len(begins) + 1), begins, devices, strict=True)
    title = f"stages · {layout.microbatches} micro-batches, {layout.schedule}, {layout.engine}"
    return cuts_table(title, ("stage", "begins at", "devices"), rows)
