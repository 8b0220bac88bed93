"""A transformer encoder as the pieces that a pyramid runs, each of its layers in two halves."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jaxsim.adaptive.heads import Head, classified
from jaxsim.adaptive.tokens import prefix
from jaxsim.network.deployment import deploy
from jaxsim.network.network import Network
from jaxsim.numerics.arrays import own_promotion
from jaxsim.numerics.checks import is_traced
from jaxsim.values.calls import shown_as_called
from jaxsim.values.value import PytreeValue

Pool = Callable[[Array, Array], Array]
"""(tokens [B, n, d], which are there [B, n]) -> features [B, d]."""


@own_promotion()
def first_token(x: Float[Array, "B n d"], valid: Bool[Array, "B n"]) -> Float[Array, "B d"]:
    """The first token, a class token."""
    return x[:, 0]


@own_promotion()
def mean_token(x: Float[Array, "B n d"], valid: Bool[Array, "B n"]) -> Float[Array, "B d"]:
    """The mean of the tokens that are there."""
    share = valid / jnp.sum(valid, -1, keepdims=True)
    return jnp.einsum("bnd,bn->bd", x, share.astype(x.dtype))


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["embed", "attention", "feed_forward", "head"],
    meta_fields=["pool", "vocabulary", "positions", "width", "hidden"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class Encoder(PytreeValue):
    """The pieces of an encoder; `js.models.bert.encoder` makes one.

    Attributes:
      embed: ids [B, n] to tokens [B, n, d].
      attention: of each layer, (tokens, which are there) to tokens and the attention each receives,
        [B, n]. They are one network with other weights.
      feed_forward: of each layer, tokens to tokens; one network likewise.
      head: the classifier.
      pool: what the classifier reads.
      vocabulary: ids are below it.
      positions: the longest sequence.
      width: of a token, d.
      hidden: width of the feed-forward halves.
    """

    embed: jax.tree_util.Partial
    attention: tuple[Network, ...]
    feed_forward: tuple[Network, ...]
    head: Head
    pool: Pool
    vocabulary: int
    positions: int
    width: int
    hidden: int

    def __call__(self, ids: Int[Array, "B n"], lengths: Int[Array, " B"]) -> Float[Array, "B C"]:
        """Logits of the whole encoder, nothing left out.

        Args:
          ids: of the tokens, padded behind.
          lengths: how many of each row are there.

        Raises:
          ValueError: what `check_ids` raises.
        """
        check_ids(self, ids, lengths)
        valid = prefix(lengths, ids.shape[1])
        x = self.embed(ids)
        for attention, feed_forward in zip(self.attention, self.feed_forward, strict=True):
            x = feed_forward(attention(x, valid)[0])
        return classified(self.head, self.pool(x, valid))


@shown_as_called
def over_layers(
    transform: Callable[[Network], Network],
) -> Callable[[Encoder], Encoder]:
    """A transform of networks as one of encoders: both halves of every layer go through it.

    Embedding and classifier stay as they are.

    Args:
      transform: for instance `js.quantize(8, 8)`.
    """

    def transformed(encoder: Encoder) -> Encoder:
        return dataclasses.replace(
            encoder,
            attention=tuple(map(transform, encoder.attention)),
            feed_forward=tuple(map(transform, encoder.feed_forward)),
        )

    return transformed


def deploy_layers(
    encoder: Encoder,
    ids: Int[Array, "B n"],
    lengths: Int[Array, " B"],
    *,
    key: Key[Array, ""] | None = None,
) -> Encoder:
    """Writes the weights of every layer and sets its ranges by what reaches it.

    Args:
      encoder: composed by `over_layers`.
      ids: sequences to calibrate with.
      lengths: how many tokens of each are there.
      key: for cores that draw random numbers when they write.

    Raises:
      ValueError: what `js.deploy` or `check_ids` raises.
    """
    check_ids(encoder, ids, lengths)
    valid = prefix(jnp.asarray(lengths), ids.shape[1])
    x = encoder.embed(ids)
    halves: tuple[list[Network], list[Network]] = ([], [])
    for i, (attention, feed_forward) in enumerate(
        zip(encoder.attention, encoder.feed_forward, strict=True)
    ):
        keys = [None, None] if key is None else jax.random.split(jax.random.fold_in(key, i))
        halves[0].append(deploy(attention, key=keys[0], calibrate=(x, valid)))
        y = halves[0][-1](x, valid)[0]
        halves[1].append(deploy(feed_forward, key=keys[1], calibrate=y))
        x = halves[1][-1](y)
    return dataclasses.replace(encoder, attention=tuple(halves[0]), feed_forward=tuple(halves[1]))


def flops_layer(n_in: Any, n_out: Any, width: int, hidden: int) -> Any:
    """Floating-point operations of one layer's matrix products, a multiply-accumulate counting 2.

    Args:
      n_in: tokens that its attention half sees.
      n_out: tokens that its feed-forward half sees.
      width: of a token, d.
      hidden: of the feed-forward half.

    Returns:
      2 · n_in · 4d² + 2 · 2 · n_in² · d + n_out · 2 · 2 · d · hidden: the projections, scores and
      mixtures, and the two products of the feed-forward half.
    """
    return 8 * n_in * width**2 + 4 * n_in**2 * width + 4 * n_out * width * hidden


def check_ids(encoder: Encoder, ids: Any, lengths: Any) -> None:
    """Checks sequences against what an encoder takes; of traced ones the shapes.

    Raises:
      ValueError: ids are no int matrix, longer than the positions or not below the vocabulary;
        lengths are not one a row, zero, or longer than the ids.
    """
    if np.ndim(ids) != 2 or np.shape(lengths) != np.shape(ids)[:1]:
        raise ValueError(
            f"ids{list(np.shape(ids))}, lengths{list(np.shape(lengths))}: must be [B, n] and [B]"
        )
    for name, value in (("ids", ids), ("lengths", lengths)):
        if not jnp.issubdtype(jnp.result_type(value), jnp.integer):
            raise ValueError(f"{name}: of type {jnp.result_type(value)}; must be ints")
    n = np.shape(ids)[1]
    if not 1 <= n <= encoder.positions:
        raise ValueError(f"ids[…, {n}]: must hold from 1 to {encoder.positions} tokens a row")
    if is_traced(ids) or is_traced(lengths):
        return
    found = np.asarray(lengths)
    if np.any((found < 1) | (found > n)):
        wrong = found[(found < 1) | (found > n)][0]
        raise ValueError(f"lengths: {wrong} among them; each must be from 1 to {n}")
    found = np.asarray(ids)
    if np.any((found < 0) | (found >= encoder.vocabulary)):
        wrong = found[(found < 0) | (found >= encoder.vocabulary)][0]
        raise ValueError(f"ids: {wrong} among them; each must be below {encoder.vocabulary}")
