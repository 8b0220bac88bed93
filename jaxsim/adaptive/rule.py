"""When a row has been computed far enough: one rule, for a masked and for a compacted run alike."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxsim.numerics.arrays import own_promotion
from jaxsim.numerics.checks import check_range


@own_promotion()
def normalized_entropy(logits: Float[Array, "... C"]) -> Float[Array, "..."]:
    """Entropy of a softmax over that of the uniform distribution, in [0, 1].

    Source: Liu et al. (2020), FastBERT, arXiv 2004.02178, where it is the uncertainty.
    """
    log_share = jax.nn.log_softmax(logits)
    # A class whose share underflows to zero has log share -inf times zero: it adds nothing.
    entropy = -jnp.sum(jnp.exp(log_share) * jnp.maximum(log_share, -1e30), axis=-1)
    return entropy / jnp.log(jnp.float32(logits.shape[-1]))


class Rule(NamedTuple):
    """When a row leaves. Hashable apart from `threshold`, which is traced.

    Attributes:
      threshold: [] a row leaves where its uncertainty, the normalised entropy, is below; 0 keeps
        every row to the end and above 1 lets each leave at `first`.
      patience: leave after this many exits that agree with the one before, whatever the
        uncertainty (Zhou et al. 2020, PABEE, arXiv 2006.04152); 0 goes by uncertainty.
      first: the earliest exit that a row may take, counted from 1.
    """

    threshold: Float[Array, ""] | float = 0.0
    patience: int = 0
    first: int = 1


class Exits(NamedTuple):
    """What a network with exits says of a batch.

    Attributes:
      logits: [B, C] of the exit each row took.
      layer: [B] int32, the exit each row took, counted from 1.
      uncertainty: [B, L] normalised entropy at every exit; NaN where a row was no longer computed.
      flops: [B] floating-point operations spent on each row, a multiply-accumulate counting 2.
      kept: [B, L] int32, tokens kept after each layer's decision; None where none are pruned.
    """

    logits: Float[Array, "B C"]
    layer: Int[Array, " B"]
    uncertainty: Float[Array, "B L"]
    flops: Float[Array, " B"]
    kept: Int[Array, "B L"] | None = None


class Streak(NamedTuple):
    """What patience remembers.

    Attributes:
      label: [B] int32, class that the exit before chose.
      length: [B] int32, how many exits in a row agreed with the one before them.
    """

    label: Int[Array, " B"]
    length: Int[Array, " B"]


class Buckets(NamedTuple):
    """Shapes that a compacted run compiles for.

    Attributes:
      batch: rows are padded to a multiple of it.
      token: tokens are padded to a multiple of it.
      max_batch: rows run at once.
    """

    batch: int = 8
    token: int = 16
    max_batch: int = 64


def no_streak(rows: int) -> Streak:
    """What patience remembers before the first exit."""
    return Streak(jnp.full(rows, -1, jnp.int32), jnp.zeros(rows, jnp.int32))


@own_promotion()
def leaves(
    rule: Rule, logits: Float[Array, "B C"], streak: Streak, layer: int | Int[Array, ""]
) -> tuple[Bool[Array, " B"], Float[Array, " B"], Streak]:
    """Decides at one exit.

    Args:
      rule: when a row leaves.
      logits: [B, C] of this exit.
      streak: what the exits before left.
      layer: this exit, counted from 1.

    Returns:
      which rows leave, their uncertainty, and what the next exit is to remember.
    """
    uncertainty = normalized_entropy(logits)
    label = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    length = jnp.where(label == streak.label, streak.length + 1, 0)
    leave = length >= rule.patience if rule.patience else uncertainty < rule.threshold
    return leave & (layer >= rule.first), uncertainty, Streak(label, length)


def check_rule(rule: Rule, exits: int) -> None:
    """Checks a rule against the number of exits.

    Raises:
      ValueError: the threshold is negative or not a number, the patience negative, or the first
        exit not one of them.
    """
    check_range("threshold", rule.threshold, 0)
    check_range("patience", rule.patience, 0)
    check_range("first", rule.first, 1, exits)


def check_buckets(buckets: Buckets) -> None:
    """Checks that the shapes are positive and that whole buckets fit a batch.

    Raises:
      ValueError: they are not.
    """
    check_range("batch", buckets.batch, 1)
    check_range("token", buckets.token, 1)
    check_range("max_batch", buckets.max_batch, buckets.batch)


def rounded_up(count: int, multiple: int) -> int:
    """The smallest multiple that holds a count, one at least."""
    return max(1, -(-count // multiple)) * multiple
