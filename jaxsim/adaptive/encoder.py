"""Transformer encoder as the pieces that a pyramid runs, each layer in two halves."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jaxsim.adaptive.heads import Head, apply_head
from jaxsim.adaptive.tokens import prefix_mask
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
    """Selects the first token, a class token.

    Args:
      x: Tokens [B, n, d].
      valid: True where a token is present, [B, n]; not used.
    """
    return x[:, 0]


@own_promotion()
def mean_token(x: Float[Array, "B n d"], valid: Bool[Array, "B n"]) -> Float[Array, "B d"]:
    """Averages the tokens that are present.

    Args:
      x: Tokens [B, n, d].
      valid: True where a token is present, [B, n].
    """
    share = valid / jnp.sum(valid, -1, keepdims=True)
    return jnp.einsum("bnd,bn->bd", x, share.astype(x.dtype))


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["embed", "attention", "feed_forward", "head"],
    meta_fields=["pool", "vocabulary", "positions", "width", "hidden"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class Encoder(PytreeValue):
    """Transformer encoder in pieces; `jaxsim.models.bert.encoder` makes one.

    Attributes:
      embed: Function from ids [B, n] to tokens [B, n, d].
      attention: First half of each layer, from tokens and a mask of those present to tokens and the
        attention that each receives, [B, n]. All layers are one network with other weights.
      feed_forward: Second half of each layer, from tokens to tokens; one network likewise.
      head: Classifier, kernel [d, C] and bias [C].
      pool: Function from tokens to the features that the classifier reads.
      vocabulary: Number of token ids; each is below it.
      positions: Length of the longest sequence.
      width: Width d of a token.
      hidden: Width of the feed-forward halves.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> import jaxsim as js
      >>> from jaxsim.models.bert import Bert, encoder
      >>> model = Bert(vocabulary=8, positions=4, width=4, heads=1, layers=2, hidden=4)
      >>> ids, lengths = jnp.array([[1, 2, 0]]), jnp.array([2])
      >>> pieces = encoder(model, jax.jit(model.init)(jax.random.key(0), ids, lengths)["params"])
      >>> len(pieces.attention), pieces(ids, lengths).shape
      (2, (1, 2))
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
        """Computes the logits of the whole encoder, nothing left out.

        Args:
          ids: Token ids [B, n], padded at the end.
          lengths: Number of tokens of each row, [B].

        Raises:
          ValueError: As `check_ids` raises.
        """
        check_ids(self, ids, lengths)
        valid = prefix_mask(lengths, ids.shape[1])
        x = self.embed(ids)
        for attention, feed_forward in zip(self.attention, self.feed_forward, strict=True):
            x = feed_forward(attention(x, valid)[0])
        return apply_head(self.head, self.pool(x, valid))


def require_encoder(encoder: Any, transform: str) -> None:
    """Checks that a transform of encoders is given one.

    Args:
      encoder: Value given as an encoder.
      transform: Name of the transform.

    Raises:
      ValueError: It is something else, such as a network, whose layers are not known apart.
    """
    if not isinstance(encoder, Encoder):
        raise ValueError(
            f"{transform} takes an Encoder, not {type(encoder).__name__}: "
            "jaxsim.models.bert.encoder(…) makes one"
        )


@shown_as_called
def over_layers(
    transform: Callable[[Network], Network],
) -> Callable[[Encoder], Encoder]:
    """Makes a transform of encoders from one of networks: both halves of every layer go through it.

    Embedding and classifier stay as they are.

    Args:
      transform: Function from a network to a network, such as `js.quantize(8, 8)`.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> import jaxsim as js
      >>> from jaxsim.models.bert import Bert, encoder
      >>> model = Bert(vocabulary=8, positions=4, width=4, heads=1, layers=2, hidden=4)
      >>> ids, lengths = jnp.array([[1, 2, 0]]), jnp.array([2])
      >>> pieces = encoder(model, jax.jit(model.init)(jax.random.key(0), ids, lengths)["params"])
      >>> coded = js.over_layers(js.quantize(8, 8))(pieces)
      >>> [len(half.cores) for half in (coded.attention[0], coded.feed_forward[1])]
      [4, 2]
    """

    def transform_layers(encoder: Encoder) -> Encoder:
        require_encoder(encoder, "over_layers")
        return dataclasses.replace(
            encoder,
            attention=tuple(map(transform, encoder.attention)),
            feed_forward=tuple(map(transform, encoder.feed_forward)),
        )

    return transform_layers


def deploy_layers(
    encoder: Encoder,
    ids: Int[Array, "B n"],
    lengths: Int[Array, " B"],
    *,
    key: Key[Array, ""] | None = None,
) -> Encoder:
    """Writes the weights of every layer and sets its ranges by what reaches it.

    Args:
      encoder: Encoder transformed by `over_layers`.
      ids: Token ids [B, n] of sequences to calibrate with, padded at the end.
      lengths: Number of tokens of each sequence, [B].
      key: Random key for cores that draw when they write.

    Raises:
      ValueError: As `js.deploy` or `check_ids` raises.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> import jaxsim as js
      >>> from jaxsim.models.bert import Bert, encoder
      >>> model = Bert(vocabulary=8, positions=4, width=4, heads=1, layers=1, hidden=4)
      >>> ids, lengths = jnp.array([[1, 2, 0]]), jnp.array([2])
      >>> pieces = encoder(model, jax.jit(model.init)(jax.random.key(0), ids, lengths)["params"])
      >>> chip = js.deploy_layers(js.over_layers(js.quantize(8, 8))(pieces), ids, lengths)
      >>> chip.feed_forward[0].calibrated
      True
    """
    require_encoder(encoder, "deploy_layers")
    check_ids(encoder, ids, lengths)
    valid = prefix_mask(jnp.asarray(lengths), ids.shape[1])
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
    """Counts the floating-point operations of one layer's products, a multiply-accumulate as 2.

    Args:
      n_in: Number of tokens that its attention half reads.
      n_out: Number of tokens that its feed-forward half reads.
      width: Width d of a token.
      hidden: Width of the feed-forward half.

    Returns:
      2 · n_in · 4d² + 2 · 2 · n_in² · d + n_out · 2 · 2 · d · hidden: the projections, scores and
      mixtures, and the two products of the feed-forward half.
    """
    return 8 * n_in * width**2 + 4 * n_in**2 * width + 4 * n_out * width * hidden


def flops_of_rows(encoder: Encoder, n_in: Any, n_out: Any) -> Any:
    """Counts the floating-point operations of each row, [B].

    Args:
      encoder: Encoder; only its sizes count.
      n_in: Tokens that the attention half of each layer reads, [B, L].
      n_out: Tokens that the feed-forward half reads, [B, L]; 0 where a layer did not run.
    """
    sizes = encoder.width, encoder.hidden
    return (flops_layer(1.0 * n_in, 1.0 * n_out, *sizes) * (n_out > 0)).sum(1)


def check_ids(encoder: Encoder, ids: Any, lengths: Any) -> None:
    """Checks sequences against what an encoder takes; of traced ones the shapes.

    Args:
      encoder: Encoder.
      ids: Token ids [B, n].
      lengths: Number of tokens of each row, [B].

    Raises:
      ValueError: Ids are not an int matrix, longer than the positions or not below the vocabulary;
        lengths are not one per row, zero, or longer than the ids.
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
