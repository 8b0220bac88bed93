"""Token pruning: importance of tokens and rules by which they stay, masked or compacted."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxsim.numerics import memory
from jaxsim.numerics.arrays import own_promotion
from jaxsim.numerics.checks import check_range, checked_int, is_traced
from jaxsim.numerics.renamed import old_names
from jaxsim.values.value import PytreeValue

__all__ = [
    "token_importance",
    "above",
    "top",
    "merge",
    "soft_mask",
    "linear_thresholds",
    "pruning_ratios",
    "check_levels",
    "keep_tokens",
    "prefix_mask",
    "TokenRule",
]

Keeps = Callable[..., Array]
"""(level [], received [B, n], valid [B, n]) -> which tokens stay, [B, n]; at level 0 all do. Or
`merge`."""


@own_promotion()
def token_importance(
    attention: Float[Array, "B H n n"], valid: Bool[Array, "B n"]
) -> Float[Array, "B n"]:
    """Computes the attention that each token receives, averaged over heads and over valid queries.

    It sums to one over the valid tokens and does not depend on padding. Code of the paper divides
    by the padded length instead: its thresholds times that length over the true one are ours.

    Args:
      attention: Attention [B, H, n, n], summing to 1 over keys.
      valid: True for tokens that are neither padding nor pruned, [B, n].

    Source: Kim et al. (2022), Learned Token Pruning, arXiv 2107.00910.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> attention = jnp.full((1, 1, 2, 2), 0.5)
      >>> js.tokens.token_importance(attention, jnp.ones((1, 2), bool)).tolist()
      [[0.5, 0.5]]
    """
    giving = valid / jnp.sum(valid, -1, keepdims=True)
    # A product, not a sum: what is summed would be fused into the softmax and computed twice.
    received = jnp.einsum("bhqk,bq->bhk", attention, giving.astype(attention.dtype))
    return jnp.mean(received, 1) * valid


@own_promotion()
def above(
    level: Float[Array, ""] | float, received: Float[Array, "B n"], valid: Bool[Array, "B n"]
) -> Bool[Array, "B n"]:
    """Keeps tokens that receive at least `level`.

    Args:
      level: Least importance of a token that stays, at least 0.
      received: Importance of each token, [B, n].
      valid: True where a token is present, [B, n].

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> js.tokens.above(0.3, jnp.array([[0.5, 0.2]]), jnp.ones((1, 2), bool)).tolist()
      [[True, False]]
    """
    return valid & (received >= level)


@own_promotion()
def top(
    level: Float[Array, ""] | float, received: Float[Array, "B n"], valid: Bool[Array, "B n"]
) -> Bool[Array, "B n"]:
    """Keeps the tokens that receive most, all but the fraction `level`; earlier ones win ties.

    Args:
      level: Fraction of the tokens that is left out, in [0, 1).
      received: Importance of each token, [B, n].
      valid: True where a token is present, [B, n].

    Source: Wang, Zhang and Han (2021), SpAtten, arXiv 2012.09852.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> js.tokens.top(0.5, jnp.array([[0.5, 0.2]]), jnp.ones((1, 2), bool)).tolist()
      [[True, False]]
    """
    score = jnp.where(valid, received, -jnp.inf)
    count = jnp.sum(valid, -1, keepdims=True)
    return valid & (_rank(score) < jnp.ceil((1 - level) * count))


def _rank(score: Float[Array, "B n"]) -> Int[Array, "B n"]:
    """How many of a row come before each; earlier ones win ties."""
    place = jnp.arange(score.shape[-1])
    mine, other = score[:, :, None], score[:, None, :]
    return jnp.sum((other > mine) | ((other == mine) & (place < place[:, None])), -1)


@own_promotion()
def merge(
    level: Float[Array, ""] | float,
    keys: Float[Array, "B n d"],
    valid: Bool[Array, "B n"],
    fixed: Bool[Array, "B n"] | Bool[Array, " n"],
) -> Int[Array, "B n"]:
    """Matches tokens with others that are alike, which they are merged into.

    Of the tokens that are present every second one may be merged into one of the rest, that whose
    key is most alike by the cosine. The most alike pairs are; earlier tokens win ties.

    Args:
      level: Number of tokens that are merged into others at most, rounded down.
      keys: Keys of each token, averaged over heads, [B, n, d].
      valid: True where a token is present, [B, n].
      fixed: True for tokens that neither merge nor are merged into, [B, n] or [n].

    Returns:
      For each token the one that it is merged into, or itself, [B, n].

    Source: Bolya et al. (2023), Token Merging: Your ViT But Faster, arXiv 2210.09461, section 3.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> keys = jnp.array([[[1.0, 0.0], [0.0, 1.0], [0.1, 1.0], [1.0, 0.2]]])
      >>> there = jnp.ones((1, 4), bool)
      >>> js.tokens.merge(1, keys, there, jnp.arange(4) < 0).tolist()
      [[0, 1, 1, 3]]
      >>> js.tokens.merge(2, keys, there, jnp.arange(4) < 0).tolist()
      [[3, 1, 1, 3]]
    """
    place, free = jnp.arange(keys.shape[1]), valid & ~fixed
    second = jnp.cumsum(valid, -1) % 2 == 0
    length = jnp.linalg.norm(keys, axis=-1, keepdims=True)
    unit = keys / jnp.where(length > 0, length, 1)
    alike = jnp.einsum("bnd,bmd->bnm", unit, unit)
    alike = jnp.where((free & second)[:, None, :], alike, -jnp.inf)
    score = jnp.where(free & ~second, jnp.max(alike, -1), -jnp.inf)
    gone = (score > -jnp.inf) & (_rank(score) < jnp.floor(level))
    return jnp.where(gone, jnp.argmax(alike, -1), place)


@own_promotion()
def soft_mask(
    received: Float[Array, "B n"],
    level: Float[Array, ""] | float,
    temperature: Float[Array, ""] | float,
) -> Float[Array, "B n"]:
    """Computes how much of each token stays while thresholds are learned: σ((s − θ) / T).

    Args:
      received: Importance s of each token, [B, n].
      level: Threshold θ.
      temperature: Temperature T, above 0.

    Source: Kim et al. (2022), arXiv 2107.00910, equation 5.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> js.tokens.soft_mask(jnp.array([[0.3]]), 0.3, 0.1).tolist()
      [[0.5]]
    """
    return jax.nn.sigmoid((received - level) / temperature)


@own_promotion()
def linear_thresholds(final: float, layers: int) -> Float[Array, " L"]:
    """Makes thresholds that rise linearly from layer to layer up to `final`.

    Args:
      final: Threshold of the last layer, at least 0.
      layers: Number of layers L, at least 1.

    Raises:
      ValueError: `final` is negative, or there is no layer.

    Examples:
      >>> import jaxsim as js
      >>> js.tokens.linear_thresholds(1.0, layers=4).tolist()
      [0.25, 0.5, 0.75, 1.0]
    """
    check_range("final", final, 0)
    layers = checked_int("layers", layers, 1)
    memory.check(f"layers={layers}", 4 * layers, "lower it")
    return jnp.float32(final) * jnp.arange(1, layers + 1) / layers


@own_promotion()
def pruning_ratios(final: float, layers: int) -> Float[Array, " L"]:
    """Makes ratios for `top` by which each layer prunes, so that `final` of the tokens are left.

    The first 15 % of the layers, three at least, leave out none; after them the number of tokens
    left falls linearly.

    Args:
      final: Fraction of the tokens left at last, in (0, 1].
      layers: Number of layers L, at least 4.

    Raises:
      ValueError: `final` is not in (0, 1], or there are fewer than four layers.

    Source: the schedule that the code of arXiv 2107.00910 gives SpAtten.

    Examples:
      >>> import jaxsim as js
      >>> js.tokens.pruning_ratios(0.5, layers=4).tolist()
      [0.0, 0.0, 0.0, 0.5]
    """
    check_range("final", final, 0, 1, above=True)
    layers = checked_int("layers", layers, 4)
    memory.check(f"layers={layers}", 24 * layers, "lower it")
    whole = max(3, -(-15 * layers // 100))
    left = np.concatenate([np.ones(whole + 1), np.linspace(1, final, layers - whole + 1)[1:]])
    return jnp.float32(1 - left[1:] / left[:-1])


def check_levels(level: Any, layers: int) -> None:
    """Checks that there is a finite number, zero or more, for each layer; traced ones pass.

    Args:
      level: Levels, [L].
      layers: Number of layers L.

    Raises:
      ValueError: There is not.

    Examples:
      >>> import jaxsim as js
      >>> js.tokens.check_levels(js.tokens.linear_thresholds(0.1, 3), 3)
    """
    check_level_count(level, layers)
    if is_traced(level):
        return
    for number in np.asarray(level):
        check_range("level", number, 0)


def check_level_count(level: Any, layers: int) -> None:
    """Checks that there is a number for each layer; an index behind the last would be the last.

    Args:
      level: Levels, [L], or their shape and dtype.
      layers: Number of layers L.

    Raises:
      ValueError: There is not.
    """
    if np.shape(level) != (layers,):
        raise ValueError(f"level{list(np.shape(level))}: must hold one number a layer, [{layers}]")


@own_promotion()
def keep_tokens(
    keeps: Keeps,
    level: Float[Array, ""] | float,
    received: Float[Array, "B n"],
    valid: Bool[Array, "B n"],
    protect: int,
    protect_last: int = 0,
) -> Bool[Array, "B n"]:
    """Decides after the attention of one layer which tokens stay.

    Args:
      keeps: Rule by which tokens stay, `above` or `top`.
      level: Level of this layer.
      received: Importance of each token, [B, n].
      valid: True where a token is present, [B, n].
      protect: Number of first tokens that always stay.
      protect_last: Number of last tokens, of those present, that always stay.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> received, valid = jnp.array([[0.1, 0.2, 0.7]]), jnp.ones((1, 3), bool)
      >>> js.tokens.keep_tokens(js.tokens.above, 0.3, received, valid, protect=1).tolist()
      [[True, False, True]]
    """
    fixed = always_kept(valid, protect, protect_last)
    return valid & (fixed | keeps(level, received, valid))


def always_kept(
    valid: Bool[Array, "B n"], protect: int, protect_last: int = 0
) -> Bool[Array, "B n"] | Bool[Array, " n"]:
    """Marks the tokens that stay whatever they receive.

    Args:
      valid: True where a token is present, [B, n].
      protect: Number of first tokens that always stay.
      protect_last: Number of last tokens, of those present, that always stay.
    """
    fixed = jnp.arange(valid.shape[-1]) < protect
    if protect_last:
        fixed |= jnp.cumsum(valid[..., ::-1], -1)[..., ::-1] <= protect_last
    return fixed


@own_promotion()
def prefix_mask(count: Int[Array, " B"], length: int) -> Bool[Array, "B n"]:
    """Makes a mask of tokens from the number of them that are present.

    Args:
      count: Number of tokens of each row, [B].
      length: Number of columns n.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> js.tokens.prefix_mask(jnp.array([1, 3]), 3).tolist()
      [[True, False, False], [True, True, True]]
    """
    return jnp.arange(length) < count[:, None]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["level"],
    meta_fields=["keeps", "protect", "protect_last", "present"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class TokenRule(PytreeValue):
    """When a token leaves.

    Attributes:
      level: Amount that each attention leaves out, [L], as `keeps` understands it; traced.
      keeps: Rule by which tokens stay; `merge` for tokens that are merged into others.
      protect: Number of first tokens that always stay.
      protect_last: Number of last tokens, of those present, that always stay.
      present: Function from the arguments of the model to which tokens there are, [B, n]; None
        where padding is what no token attends to.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> rule = js.tokens.TokenRule(jnp.array([0.3]))
      >>> rule.keep(0, jnp.array([[0.1, 0.2, 0.7]]), jnp.ones((1, 3), bool)).tolist()
      [[True, False, True]]
    """

    level: Float[Array, " L"]
    keeps: Keeps = above
    protect: int = 1
    protect_last: int = 0
    present: Callable[..., Array] | None = None

    @property
    def merges(self) -> bool:
        """True if tokens that leave are merged into others."""
        return self.keeps is merge

    def match(
        self, layer: int, keys: Float[Array, "B n d"], valid: Bool[Array, "B n"]
    ) -> Int[Array, "B n"]:
        """Decides after one attention which token each is merged into; itself if it stays.

        Args:
          layer: Number of the attention, from 0.
          keys: Keys of each token, averaged over heads, [B, n, d].
          valid: True where a token is present, [B, n].
        """
        fixed = always_kept(valid, self.protect, self.protect_last)
        return merge(self.level[layer], keys, valid, fixed)

    def keep(
        self, layer: int, received: Float[Array, "B n"], valid: Bool[Array, "B n"]
    ) -> Bool[Array, "B n"]:
        """Decides after one attention which tokens stay.

        Args:
          layer: Number of the attention, from 0.
          received: Importance of each token, [B, n].
          valid: True where a token is present, [B, n].
        """
        return keep_tokens(
            self.keeps, self.level[layer], received, valid, self.protect, self.protect_last
        )


__getattr__ = old_names(
    __name__,
    {
        "rising": linear_thresholds,
        "falling": pruning_ratios,
        "stays": keep_tokens,
        "prefix": prefix_mask,
    },
)
