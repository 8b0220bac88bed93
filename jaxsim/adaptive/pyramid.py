"""Pyramid: an encoder that prunes tokens as it goes up and lets rows leave before the top.

`simulate` computes whole batches and masks what is left out; `run` computes what remains.
"""

from __future__ import annotations

import dataclasses
import warnings
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxsim.adaptive.encoder import Encoder, check_ids, flops_of_rows
from jaxsim.adaptive.heads import Head, apply_head
from jaxsim.adaptive.pyramid_queue import precompile, run_in_batches
from jaxsim.adaptive.pyramid_step import attend, classify_layer, count_programs
from jaxsim.adaptive.rows import check_rows
from jaxsim.adaptive.rule import (
    Buckets,
    Exits,
    Rule,
    check_buckets,
    check_rule,
    pick_exits,
)
from jaxsim.adaptive.tokens import Keeps, above, check_levels, prefix_mask, soft_mask
from jaxsim.numerics.arrays import own_promotion
from jaxsim.numerics.checks import check_range, checked_int, is_traced
from jaxsim.values.value import PytreeValue


class ExitOutputs(NamedTuple):
    """Outputs of every exit, no row leaving.

    Attributes:
      features: Features [B, L, d] that each classifier reads.
      logits: Logits [B, L, C] of each classifier.
      kept: Number of tokens left after each layer's decision, [B, L] int32.
    """

    features: Float[Array, "B L d"]
    logits: Float[Array, "B L C"]
    kept: Int[Array, "B L"]


class Softened(NamedTuple):
    """Outputs of an encoder whose tokens are scaled rather than left out.

    Attributes:
      logits: Logits [B, C] of the last classifier.
      shares: Mean, over the tokens present, of the fraction of each that a layer leaves, [L]; 1
        leaves all.
    """

    logits: Float[Array, "B C"]
    shares: Float[Array, " L"]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["encoder", "heads", "level", "threshold"],
    meta_fields=["keeps", "protect", "patience", "first"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class Pyramid(PytreeValue):
    """Encoder with a classifier after each layer; made by `magic_pyramid` and `prune_tokens`.

    `dataclasses.replace(net, level=…, threshold=…)` changes its speed without compiling anew.

    Attributes:
      encoder: Encoder in pieces.
      heads: Classifiers after each layer but the last, whose is the encoder's own.
      level: Amount that each layer leaves out, [L], as `keeps` understands it; 0 is nothing.
      threshold: Uncertainty below which rows leave.
      keeps: Rule by which tokens stay: `tokens.above` or `tokens.top`.
      protect: Number of first tokens that always stay.
      patience, first: Static part of the rule by which rows leave, as in `Rule`.

    Source: He et al. (2021), Magic Pyramid, arXiv 2111.00230.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> import jaxsim as js
      >>> from jaxsim.models.bert import Bert, encoder
      >>> model = Bert(vocabulary=8, positions=4, width=4, heads=1, layers=2, hidden=4)
      >>> ids, lengths = jnp.array([[1, 2, 3], [1, 2, 0]]), jnp.array([3, 2])
      >>> pieces = encoder(model, jax.jit(model.init)(jax.random.key(0), ids, lengths)["params"])
      >>> net = js.prune_tokens(js.tokens.linear_thresholds(0.0, layers=2))(pieces)
      >>> net.simulate(ids, lengths).kept.tolist()
      [[3, 3], [2, 2]]
    """

    encoder: Encoder
    heads: tuple[Head, ...]
    level: Float[Array, " L"]
    threshold: Float[Array, ""]
    keeps: Keeps = above
    protect: int = 1
    patience: int = 0
    first: int = 1

    @property
    def rule(self) -> Rule:
        """Rule by which a row leaves."""
        return Rule(self.threshold, self.patience, self.first)

    @property
    def all_heads(self) -> tuple[Head, ...]:
        """Classifiers of all layers, the encoder's last."""
        return (*self.heads, self.encoder.head)

    def __call__(self, ids: Int[Array, "B n"], lengths: Int[Array, " B"]) -> Float[Array, "B C"]:
        """Computes the logits of the exit that each row takes.

        Args:
          ids: Token ids [B, n], padded at the end.
          lengths: Number of tokens of each row, [B].

        Raises:
          ValueError: As `simulate` raises.
        """
        return self.simulate(ids, lengths).logits

    @own_promotion()
    def exit_outputs(self, ids: Int[Array, "B n"], lengths: Int[Array, " B"]) -> ExitOutputs:
        """Computes what every exit returns: a pure function, for `take_exits` and distillation.

        Args:
          ids: Token ids [B, n], padded at the end.
          lengths: Number of tokens of each row, [B].

        Raises:
          ValueError: As `simulate` raises.
        """
        _check(self, ids, lengths)
        encoder, L = self.encoder, len(self.encoder.attention)
        valid = prefix_mask(jnp.asarray(lengths), ids.shape[1])
        x, found = encoder.embed(ids), []
        for i in range(L):
            y, valid = attend(
                encoder.attention[i], self.level[i], x, valid, self.keeps, self.protect
            )
            x, feature, logits = classify_layer(
                encoder.feed_forward[i], self.all_heads[i], y, valid, encoder.pool
            )
            found.append((feature, logits, jnp.sum(valid, -1)))
        return ExitOutputs(*(jnp.stack(column, 1) for column in zip(*found, strict=True)))

    def passed(self, ids: Int[Array, "B n"], lengths: Int[Array, " B"]) -> ExitOutputs:
        """Old name of `exit_outputs`, for one release.

        Args:
          ids: Tokens, as `exit_outputs` takes them.
          lengths: Numbers of tokens, as `exit_outputs` takes them.
        """
        warnings.warn(
            "Pyramid.passed is now called exit_outputs; the old name goes in the next release",
            DeprecationWarning,
            stacklevel=2,
        )
        return self.exit_outputs(ids, lengths)

    @own_promotion()
    def simulate(self, ids: Int[Array, "B n"], lengths: Int[Array, " B"]) -> Exits:
        """Computes everything, and the exit each row would have taken: a pure function.

        Args:
          ids: Token ids [B, n], padded at the end.
          lengths: Number of tokens of each row, [B].

        Returns:
          Logits, exits, uncertainties, tokens kept, and the FLOPs that true counts of tokens spend
          by `flops_layer`.

        Raises:
          ValueError: Levels or a rule out of range, a number of classifiers other than that of the
            layers, or ids and lengths that the encoder does not take.
        """
        return take_exits(self, self.exit_outputs(ids, lengths), lengths)

    @own_promotion()
    def soften(
        self,
        ids: Int[Array, "B n"],
        lengths: Int[Array, " B"],
        temperature: Float[Array, ""] | float,
    ) -> Softened:
        """Scales the output of each layer by a soft mask instead of pruning, to learn levels by.

        Attention sees all tokens, as in the paper's training. The scores are of the order of one
        over the length: temperatures have to be well below that.

        Args:
          ids: Token ids [B, n], padded at the end.
          lengths: Number of tokens of each row, [B].
          temperature: Temperature of the mask, above 0.

        Raises:
          ValueError: As `simulate` raises; a temperature that is not above 0; or `keeps` other than
            `above`, whose levels alone are thresholds.
        """
        _check(self, ids, lengths)
        check_range("temperature", temperature, 0, above=True)
        if self.keeps is not above:
            raise ValueError(f"keeps={self.keeps!r}: soft masks are of thresholds, tokens.above")
        encoder, valid = self.encoder, prefix_mask(jnp.asarray(lengths), ids.shape[1])
        x, shares = encoder.embed(ids), []
        first = jnp.arange(ids.shape[1]) < self.protect
        for i, (attention, feed_forward) in enumerate(
            zip(encoder.attention, encoder.feed_forward, strict=True)
        ):
            y, received = attention(x, valid)
            mask = jnp.where(first, 1.0, soft_mask(received, self.level[i], temperature))
            y = feed_forward(y)
            x = mask[..., None].astype(y.dtype) * y
            shares.append(jnp.sum(mask * valid) / jnp.sum(valid))
        logits = apply_head(encoder.head, encoder.pool(x, valid))
        return Softened(logits, jnp.stack(shares))

    @own_promotion()
    def run(
        self,
        ids: Int[Array, "B n"],
        lengths: Int[Array, " B"],
        *,
        buckets: Buckets = Buckets(),  # noqa: B008
    ) -> Exits:
        """Computes what `simulate` returns, without what is left out.

        Rows are sorted by length and run in batches. Tokens that are left out and rows that have
        left are dropped as soon as that saves a bucket; copies that fill one change nothing. Layers
        that decide nothing are one program, for which nothing waits.

        Args:
          ids: Token ids [N, n], padded at the end, any number of rows.
          lengths: Number of tokens of each row, [N].
          buckets: Shapes to compile for.

        Returns:
          The rows in their order. Scores within rounding of a level may fall on the other side of
          it than in `simulate`.

        Raises:
          ValueError: As `simulate` raises; traced arguments; or layers whose cores take ranges from
            the tokens that happen to be in a batch.
        """
        _check(self, ids, lengths)
        check_buckets(buckets)
        if any(map(is_traced, jax.tree.leaves((self, ids, lengths)))):
            raise ValueError("run drops tokens outside of any program; under jit, use simulate")
        for net in (*self.encoder.attention, *self.encoder.feed_forward):
            check_rows(net, "js.deploy_layers(encoder, …)")
        return run_in_batches(self, np.asarray(ids), np.asarray(lengths), buckets)

    def warm_up(self, longest: int, *, buckets: Buckets = Buckets()) -> int:  # noqa: B008
        """Compiles what `run` can meet for sequences of up to `longest` tokens.

        Other levels and thresholds compile nothing more, unless other layers are then at level 0.

        Args:
          longest: Number of tokens of the longest sequence.
          buckets: Shapes to compile for, as given to `run`.

        Returns:
          How many programs were compiled; none where all were known.

        Raises:
          ValueError: More tokens than the encoder has positions, or buckets out of range.
        """
        check_buckets(buckets)
        longest = checked_int("longest", longest, 1, self.encoder.positions)
        before = count_programs()
        precompile(self, longest, buckets)
        return count_programs() - before


def take_exits(net: Pyramid, outputs: ExitOutputs, lengths: Int[Array, " B"]) -> Exits:
    """Finds the exits that rows take from the outputs of every exit; cheap, to sweep `threshold`.

    Args:
      net: Pyramid; only its rule and the sizes of its encoder count.
      outputs: Outputs of its exits, from `Pyramid.exit_outputs`.
      lengths: Number of tokens that each row had, [B].
    """
    logits, layer, uncertainty = pick_exits(net.rule, [*jnp.moveaxis(outputs.logits, 1, 0)])
    logits = logits.astype(net.encoder.head["bias"].dtype)
    computed = jnp.arange(outputs.kept.shape[1]) < layer[:, None]
    kept = jnp.where(computed, outputs.kept, 0).astype(jnp.int32)
    n_in = jnp.concatenate([jnp.asarray(lengths)[:, None], kept[:, :-1]], 1)
    flops = flops_of_rows(net.encoder, n_in, kept)
    return Exits(logits, layer, uncertainty, flops, kept)


def _check(net: Pyramid, ids: Any, lengths: Any) -> None:
    L = len(net.encoder.attention)
    check_levels(net.level, L)
    check_rule(net.rule, L)
    checked_int("protect", net.protect, 1)
    if len(net.heads) != L - 1:
        raise ValueError(f"heads: {len(net.heads)} of them; must be {L - 1}, of all layers but one")
    check_ids(net.encoder, ids, lengths)
