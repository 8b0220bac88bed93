"""Which tokens of a sequence are computed further: one rule, masked or compacted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxsim.numerics import memory
from jaxsim.numerics.arrays import own_promotion
from jaxsim.numerics.checks import check_range, checked_int, is_traced

__all__ = [
    "token_importance",
    "above",
    "top",
    "soft_mask",
    "rising",
    "falling",
    "check_levels",
    "stays",
    "prefix",
]

Keeps = Callable[[Array, Array, Array], Array]
"""(level [], received [B, n], valid [B, n]) -> which tokens stay, [B, n]; at level 0 all do."""


@own_promotion()
def token_importance(
    attention: Float[Array, "B H n n"], valid: Bool[Array, "B n"]
) -> Float[Array, "B n"]:
    """Attention that each token receives: the mean over heads and over the tokens that give it.

    It sums to one over the valid tokens and does not depend on padding. Code of the paper divides
    by the padded length instead: its thresholds times that length over the true one are ours.

    Args:
      attention: shares over keys, of each query.
      valid: which tokens are not padding and not pruned.

    Source: Kim et al. (2022), Learned Token Pruning, arXiv 2107.00910.
    """
    giving = valid / jnp.sum(valid, -1, keepdims=True)
    # A product, not a sum: what is summed would be fused into the softmax and computed twice.
    received = jnp.einsum("bhqk,bq->bhk", attention, giving.astype(attention.dtype))
    return jnp.mean(received, 1) * valid


@own_promotion()
def above(
    level: Float[Array, ""], received: Float[Array, "B n"], valid: Bool[Array, "B n"]
) -> Bool[Array, "B n"]:
    """Tokens that receive at least `level`; one that receives just that stays."""
    return valid & (received >= level)


@own_promotion()
def top(
    level: Float[Array, ""], received: Float[Array, "B n"], valid: Bool[Array, "B n"]
) -> Bool[Array, "B n"]:
    """Tokens that receive most, all but the share `level` of them; the earlier of equals stays.

    Source: Wang, Zhang and Han (2021), SpAtten, arXiv 2012.09852.
    """
    score = jnp.where(valid, received, -jnp.inf)
    place = jnp.arange(score.shape[-1])
    mine, other = score[:, :, None], score[:, None, :]
    ahead = (other > mine) | ((other == mine) & (place < place[:, None]))
    rank = jnp.sum(ahead, -1)
    count = jnp.sum(valid, -1, keepdims=True)
    return valid & (rank < jnp.ceil((1 - level) * count))


@own_promotion()
def soft_mask(
    received: Float[Array, "B n"], level: Float[Array, ""], temperature: Float[Array, ""] | float
) -> Float[Array, "B n"]:
    """How much of each token stays while thresholds are learned: σ((s − θ) / T).

    Source: Kim et al. (2022), arXiv 2107.00910, equation 5.
    """
    return jax.nn.sigmoid((received - level) / temperature)


@own_promotion()
def rising(final: float, layers: int) -> Float[Array, " L"]:
    """Thresholds that rise evenly from layer to layer up to `final`.

    Raises:
      ValueError: `final` is negative, or there is no layer.
    """
    check_range("final", final, 0)
    layers = checked_int("layers", layers, 1)
    memory.check(f"layers={layers}", 4 * layers, "lower it")
    return jnp.float32(final) * jnp.arange(1, layers + 1) / layers


@own_promotion()
def falling(final: float, layers: int) -> Float[Array, " L"]:
    """Shares for `top` that each layer leaves out, so that `final` of the tokens are left at last.

    The first 15 % of the layers, three at least, leave out none; after them the tokens that are
    left fall evenly.

    Raises:
      ValueError: `final` is not in (0, 1], or there are fewer than four layers.

    Source: the schedule that the code of arXiv 2107.00910 gives SpAtten.
    """
    check_range("final", final, 0, 1, above=True)
    layers = checked_int("layers", layers, 4)
    memory.check(f"layers={layers}", 24 * layers, "lower it")
    whole = max(3, -(-15 * layers // 100))
    left = np.concatenate([np.ones(whole + 1), np.linspace(1, final, layers - whole + 1)[1:]])
    return jnp.float32(1 - left[1:] / left[:-1])


def check_levels(level: Any, layers: int) -> None:
    """Checks that there is a finite number, zero or more, for each layer; traced ones pass.

    Raises:
      ValueError: there is not.
    """
    if np.shape(level) != (layers,):
        raise ValueError(f"level{list(np.shape(level))}: must hold one number a layer, [{layers}]")
    if is_traced(level):
        return
    for number in np.asarray(level):
        check_range("level", number, 0)


@own_promotion()
def stays(
    keeps: Keeps,
    level: Float[Array, ""],
    received: Float[Array, "B n"],
    valid: Bool[Array, "B n"],
    protect: int,
) -> Bool[Array, "B n"]:
    """Decides after the attention of one layer.

    Args:
      keeps: the rule, `above` or `top`.
      level: of this layer.
      received: attention that each token receives.
      valid: tokens that are there.
      protect: so many first tokens stay whatever they receive.
    """
    first = jnp.arange(valid.shape[-1]) < protect
    return valid & (first | keeps(level, received, valid))


@own_promotion()
def prefix(count: Int[Array, " B"], length: int) -> Bool[Array, "B n"]:
    """Which of `length` tokens are there when the first `count` are."""
    return jnp.arange(length) < count[:, None]
