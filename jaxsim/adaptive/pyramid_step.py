"""One layer of a pyramid and the decision at its end, for `simulate` and `run` alike.

Tokens that are there stand in front of those that are not.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from jaxsim.adaptive.encoder import Pool
from jaxsim.adaptive.heads import Head, apply_head
from jaxsim.adaptive.rule import PatienceState, Rule, should_exit
from jaxsim.adaptive.tokens import Keeps, keep_tokens, prefix_mask
from jaxsim.internals import compile_count
from jaxsim.network.network import Network


def attend(
    attention: Network, level: Any, x: Array, valid: Bool[Array, "B n"], keeps: Keeps, protect: int
) -> tuple[Array, Array]:
    """Runs the first half of a layer and decides which tokens stay.

    Args:
      attention: First half of the layer.
      level: Amount that it leaves out.
      x: Tokens [B, n, d].
      valid: True where a token is present, [B, n].
      keeps: Rule by which tokens stay.
      protect: Number of first tokens that always stay.

    Returns:
      The tokens, and a mask of those that stay.
    """
    y, received = attention(x, valid)
    return y, keep_tokens(keeps, level, received, valid, protect)


def classify_layer(
    feed_forward: Network, head: Head, y: Array, valid: Bool[Array, "B n"], pool: Pool
) -> tuple[Array, Array, Array]:
    """Runs the second half of a layer and classifies.

    Args:
      feed_forward: Second half of the layer.
      head: Classifier of its exit.
      y: Tokens [B, n, d].
      valid: True where a token is present, [B, n].
      pool: Function from tokens to features.

    Returns:
      The tokens, the features and the logits.
    """
    x = feed_forward(y)
    feature = pool(x, valid)
    return x, feature, apply_head(head, feature)


@jax.jit
def embed_ids(embed: Any, ids: Any) -> Array:
    """Embeds ids [B, n] into tokens [B, n, d].

    Args:
      embed: Function that does so.
      ids: Token ids.
    """
    return embed(ids)


@partial(jax.jit, static_argnames=("keeps", "protect"))
def jitted_attend(attention: Network, level: Any, x: Any, count: Any, keeps: Keeps, protect: int):
    """Compiled `attend`, tokens present in front.

    Args:
      attention: First half of the layer.
      level: Amount that it leaves out.
      x: Tokens [B, n, d].
      count: Number of tokens present in each row, [B].
      keeps: Rule by which tokens stay.
      protect: Number of first tokens that always stay.
    """
    return attend(attention, level, x, prefix_mask(count, x.shape[1]), keeps, protect)


class LayerOutputs(NamedTuple):
    """Outputs of one exit for a batch, [B, …] on the device.

    Attributes:
      logits: Logits [B, C].
      leave: True for the rows that leave, [B].
      uncertainty: Normalized entropy, [B].
    """

    logits: Array
    leave: Array
    uncertainty: Array


def decide_layer(
    feed_forward: Network,
    head: Head,
    y: Array,
    count: Array,
    streak: PatienceState,
    threshold: Any,
    layer: Any,
    pool: Pool,
    patience: int,
    first: int,
) -> tuple[Array, PatienceState, LayerOutputs]:
    """Runs the second half of a layer and decides which rows leave.

    Args:
      feed_forward: Second half of the layer.
      head: Classifier of its exit.
      y: Tokens [B, n, d].
      count: Number of tokens present in each row, [B].
      streak: State of patience.
      threshold: Uncertainty below which rows leave.
      layer: Number of the exit, from 1.
      pool: Function from tokens to features.
      patience: Number of exits that must agree; 0 goes by uncertainty.
      first: Earliest exit, from 1.
    """
    x, _, logits = classify_layer(feed_forward, head, y, prefix_mask(count, y.shape[1]), pool)
    rule = Rule(threshold, patience, first)
    leave, uncertainty, streak = should_exit(rule, logits, streak, layer)
    return x, streak, LayerOutputs(logits, leave, uncertainty)


jitted_decide = partial(jax.jit, static_argnames=("pool", "patience", "first"))(decide_layer)


@partial(jax.jit, static_argnames=("pool", "patience", "first"))
def jitted_layers(
    layers: tuple[tuple[Network, Network, Head], ...],
    x: Array,
    count: Array,
    streak: PatienceState,
    threshold: Any,
    layer: Any,
    **rule: Any,
) -> tuple[Array, PatienceState, list[LayerOutputs]]:
    """Runs layers that leave out no token, one after the other.

    Args:
      layers: Both halves and the classifier of each.
      x: Tokens [B, n, d].
      count: Number of tokens present in each row, [B].
      streak: State of patience.
      threshold: Uncertainty below which rows leave.
      layer: Number of the first exit, from 1.
      **rule: Static settings of `decide_layer`.
    """
    answers: list[LayerOutputs] = []
    for i, (attention, feed_forward, head) in enumerate(layers):
        y, _ = attention(x, prefix_mask(count, x.shape[1]))
        x, streak, answer = decide_layer(
            feed_forward, head, y, count, streak, threshold, layer + i, **rule
        )
        answers.append(answer)
    return x, streak, answers


@jax.jit
def take_rows(x: Any, rows: Any) -> Array:
    """Selects rows of a batch on the device.

    Args:
      x: Tokens [B, n, d].
      rows: Indices [b].
    """
    return x[rows]


@jax.jit
def take_tokens(x: Any, tokens: Any) -> Array:
    """Selects tokens of each row on the device.

    Args:
      x: Tokens [B, n, d].
      tokens: Indices [B, m].
    """
    return jnp.take_along_axis(x, tokens[..., None], 1, mode="clip")


def count_programs() -> int:
    """Counts the programs that `run` and `warm_up` of pyramids have compiled in this process."""
    return compile_count(
        *(embed_ids, jitted_attend, jitted_decide, jitted_layers), *(take_rows, take_tokens)
    )
