"""Exit rule: decides when a row has been computed far enough, masked and compacted alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxsim.numerics.arrays import own_promotion
from jaxsim.numerics.checks import check_range


@own_promotion()
def normalized_entropy(logits: Float[Array, "... C"]) -> Float[Array, "..."]:
    """Computes the entropy of a softmax over that of the uniform distribution, in [0, 1].

    Args:
      logits: Logits [..., C].

    Source: Liu et al. (2020), FastBERT, arXiv 2004.02178, where it is the uncertainty.
    """
    log_share = jax.nn.log_softmax(logits)
    # A class whose share underflows to zero has log share -inf times zero: it adds nothing.
    entropy = -jnp.sum(jnp.exp(log_share) * jnp.maximum(log_share, -1e30), axis=-1)
    return entropy / jnp.log(jnp.float32(logits.shape[-1]))


class Rule(NamedTuple):
    """Exit rule. Hashable apart from `threshold`, which is traced.

    Attributes:
      threshold: Uncertainty (normalized entropy), below which a row leaves; 0 keeps every row to
        the end and above 1 lets each leave at `first`.
      patience: Number of consecutive exits that must agree with the one before for a row to leave,
        whatever the uncertainty (Zhou et al. 2020, PABEE, arXiv 2006.04152); 0 goes by uncertainty.
      first: Earliest exit that a row may take, counted from 1.

    Examples:
      >>> import jaxsim as js
      >>> js.Rule(threshold=0.5)
      Rule(threshold=0.5, patience=0, first=1)
      >>> js.Rule(patience=2).patience
      2
    """

    threshold: Float[Array, ""] | float = 0.0
    patience: int = 0
    first: int = 1


class Exits(NamedTuple):
    """Outputs of a network with exits for a batch.

    Attributes:
      logits: Logits [B, C] of the exit each row took.
      layer: Exit that each row took, counted from 1, [B] int32.
      uncertainty: Normalized entropy at every exit, [B, L]; NaN where a row was not computed any
        more.
      flops: Floating-point operations spent on each row, [B], a multiply-accumulate counting 2.
      kept: Number of tokens kept after each layer's decision, [B, L] int32; None where none are
        pruned.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> params, x = {"a": jnp.eye(3), "b": jnp.eye(3)}, jnp.ones((2, 3))
      >>> net = js.trace(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], params, x)
      >>> out = js.exit_early(["b"], js.Rule(threshold=0.0))(net).simulate(x)
      >>> out.layer.tolist(), out.logits.shape
      ([2, 2], (2, 3))
    """

    logits: Float[Array, "B C"]
    layer: Int[Array, " B"]
    uncertainty: Float[Array, "B L"]
    flops: Float[Array, " B"]
    kept: Int[Array, "B L"] | None = None


class PatienceState(NamedTuple):
    """State of patience between exits.

    Attributes:
      label: Class that the exit before chose, [B] int32.
      length: Number of consecutive exits that agreed with the one before them, [B] int32.
    """

    label: Int[Array, " B"]
    length: Int[Array, " B"]


class Buckets(NamedTuple):
    """Shapes that a compacted run compiles for.

    Attributes:
      batch: Step between numbers of rows; rows are padded to a multiple of it.
      token: Step between numbers of tokens; tokens are padded to a multiple of it.
      max_batch: Largest number of rows run at once.

    Examples:
      >>> import jaxsim as js
      >>> js.Buckets(batch=4, max_batch=16)
      Buckets(batch=4, token=16, max_batch=16)
    """

    batch: int = 8
    token: int = 16
    max_batch: int = 64


def initial_patience(rows: int) -> PatienceState:
    """Makes the state of patience before the first exit.

    Args:
      rows: Number of rows B.
    """
    return PatienceState(jnp.full(rows, -1, jnp.int32), jnp.zeros(rows, jnp.int32))


@own_promotion()
def should_exit(
    rule: Rule, logits: Float[Array, "B C"], streak: PatienceState, layer: int | Int[Array, ""]
) -> tuple[Bool[Array, " B"], Float[Array, " B"], PatienceState]:
    """Decides at one exit which rows leave.

    Args:
      rule: Exit rule.
      logits: Logits [B, C] of this exit.
      streak: State of patience after the exits before.
      layer: Number of this exit, counted from 1.

    Returns:
      which rows leave, their uncertainty, and what the next exit is to remember.
    """
    uncertainty = normalized_entropy(logits)
    label = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    length = jnp.where(label == streak.label, streak.length + 1, 0)
    leave = length >= rule.patience if rule.patience else uncertainty < rule.threshold
    return leave & (layer >= rule.first), uncertainty, PatienceState(label, length)


@own_promotion()
def pick_exits(
    rule: Rule, logits: Sequence[Float[Array, "B C"]]
) -> tuple[Float[Array, "B C"], Int[Array, " B"], Float[Array, "B L"]]:
    """Finds the exit that each row takes from what all of them say.

    Args:
      rule: Exit rule.
      logits: Logits of each of L exits.

    Returns:
      logits of the exits taken, the exits, counted from 1, and the uncertainty at every exit, NaN
      behind the one that was taken.
    """
    (B, _), last = logits[-1].shape, len(logits)
    streak, here = initial_patience(B), jnp.ones(B, bool)
    taken, layer = logits[-1], jnp.full(B, last, jnp.int32)
    uncertainty: list[Array] = []
    for number, found in enumerate(logits, 1):
        leave, doubt, streak = should_exit(rule, found, streak, number)
        uncertainty.append(jnp.where(here, doubt, jnp.nan))
        if number < last:
            leave = here & leave
            taken = jnp.where(leave[:, None], found, taken)
            layer = jnp.where(leave, number, layer)
            here = here & ~leave
    return taken, layer, jnp.stack(uncertainty, 1)


def check_rule(rule: Rule, exits: int) -> None:
    """Checks a rule against the number of exits.

    Args:
      rule: Exit rule.
      exits: Number of exits, the last one included.

    Raises:
      ValueError: The threshold is negative or not a number, the patience negative or no int, or the
        first exit not one of them.
    """
    check_range("threshold", rule.threshold, 0)
    check_range("patience", rule.patience, 0, whole=True)
    check_range("first", rule.first, 1, exits, whole=True)


def check_buckets(buckets: Buckets) -> None:
    """Checks that the shapes are positive ints and that whole buckets fit a batch.

    Args:
      buckets: Shapes to compile for.

    Raises:
      ValueError: They are not, or do not.
    """
    check_range("batch", buckets.batch, 1, whole=True)
    check_range("token", buckets.token, 1, whole=True)
    check_range("max_batch", buckets.max_batch, buckets.batch, whole=True)


def round_up(count: int, multiple: int) -> int:
    """Rounds a count up to a multiple, one multiple at least.

    Args:
      count: Number of rows or tokens.
      multiple: Bucket size, at least 1.
    """
    return max(1, -(-count // multiple)) * multiple


def pad_rows(rows: np.ndarray, size: int) -> np.ndarray:
    """Pads indices of rows with copies of the first.

    Args:
      rows: Indices [n], at least one.
      size: Length of the result, at least n.
    """
    return np.concatenate([rows, np.full(size - len(rows), rows[0])]).astype(np.int32)
