"""The Llama decoder: rotary positions, grouped keys and values, gated perceptrons."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxsim.models.llama.cache import Cache
from jaxsim.numerics.checks import check_range, checked_int, is_traced

_NO = -1e9  # added to scores of tokens that are not there; float32 only
_init = nn.initializers.normal(0.02)

Rotation = tuple[Float[Array, "n half"], Float[Array, "n half"]]
"""Cosines and sines of the angles by which pairs of each token are turned."""


class Attention(nn.Module):
    """Attention over the tokens before, heads in groups that share keys and values.

    Attributes:
      heads: Number of heads.
      groups: Number of heads of keys and values; divides `heads`.
      head_width: Width of a head.
    """

    heads: int
    groups: int
    head_width: int

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B n d"],
        rotation: Rotation,
        allowed: Bool[Array, "n S"],
        cached: tuple[Float[Array, "B S G k"], Float[Array, "B S G k"], Int[Array, ""]] | None,
    ) -> tuple[Float[Array, "B n d"], tuple[Array, Array] | None]:
        """The mixed tokens, and their keys and values where there is a cache to put them into."""
        B, n, width = x.shape
        k = self.head_width

        def project(name: str, heads: int) -> Array:
            dense = nn.Dense(heads * k, use_bias=False, kernel_init=_init, name=name)
            return dense(x)

        # As many heads as there are: a shrunk network has fewer, and narrower values.
        query = rotate(project("query", self.heads).reshape(B, n, -1, k), rotation)
        key = rotate(project("key", self.groups).reshape(B, n, -1, k), rotation)
        G = key.shape[2]
        value = project("value", self.groups).reshape(B, n, G, -1)
        query = query.reshape(B, n, G, -1, k)
        new = None if cached is None else (key, value)
        if cached is not None:
            keys, values, length = cached
            key = _updated("keys", keys, key, length)
            value = _updated("values", values, value, length)
        scores = jnp.einsum("bngrk,bsgk->bgrns", query, key) * k**-0.5
        shares = jax.nn.softmax(scores + jnp.where(allowed, 0, _NO))
        mixed = jnp.einsum("bgrns,bsgk->bngrk", shares, value).reshape(B, n, -1)
        return nn.Dense(width, use_bias=False, kernel_init=_init, name="mix")(mixed), new


def _updated(
    name: str, old: Float[Array, "B S G k"], new: Float[Array, "B n G k"], length: Int[Array, ""]
) -> Float[Array, "B S G k"]:
    """Keys or values of one layer, those of the new tokens put behind the old ones."""
    if old.shape[2:] != new.shape[2:]:
        raise ValueError(
            f"cache.{name}[…, {old.shape[2]}, {old.shape[3]}]: must be of {new.shape[2]} heads of "
            f"width {new.shape[3]}, as this decoder's are"
        )
    return lax.dynamic_update_slice(old, new.astype(old.dtype), (0, length, 0, 0))


class FeedForward(nn.Module):
    """A perceptron of each token whose hidden units are gated by swish (SwiGLU).

    Attributes:
      hidden: Width of the perceptron.
    """

    hidden: int

    @nn.compact
    def __call__(self, x: Float[Array, "B n d"]) -> Float[Array, "B n d"]:
        """The perceptron's output."""

        def dense(width: int, name: str) -> nn.Dense:
            return nn.Dense(width, use_bias=False, kernel_init=_init, name=name)

        gate = nn.silu(dense(self.hidden, "gate")(x))
        return dense(x.shape[-1], "down")(gate * dense(self.hidden, "up")(x))


class Layer(nn.Module):
    """Attention and a perceptron, each of normalized tokens and added to them.

    Attributes:
      heads: Number of heads.
      groups: Number of heads of keys and values.
      head_width: Width of a head.
      hidden: Width of the perceptron.
      epsilon: Number added to mean squares by the normalizations.
    """

    heads: int
    groups: int
    head_width: int
    hidden: int
    epsilon: float

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B n d"],
        rotation: Rotation,
        allowed: Bool[Array, "n S"],
        length: Int[Array, ""] | None,
        cached: tuple[Array, Array] | None,
    ) -> tuple[Float[Array, "B n d"], tuple[Array, Array] | None]:
        """The tokens, and their keys and values where there is a cache."""
        attention = Attention(self.heads, self.groups, self.head_width, name="attention")
        state = None if cached is None or length is None else (*cached, length)
        y = nn.RMSNorm(self.epsilon, name="attention_norm")(x)
        y, new = attention(y, rotation, allowed, state)
        x = x + y
        y = nn.RMSNorm(self.epsilon, name="feed_forward_norm")(x)
        return x + FeedForward(self.hidden, name="feed_forward")(y), new


class Llama(nn.Module):
    """Decoder of tokens to logits of the next; defaults are those of SmolLM2-135M.

    Parameters of the layers are stacked along a first axis, which a scan runs over. A head's pairs
    of rotary positions are its first half and its second, as Hugging Face stores them; loaders put
    the rows of other files into that order.

    Attributes:
      vocabulary: Number of tokens that there are.
      width: Width of a token.
      layers: Number of layers.
      heads: Number of heads of each attention.
      groups: Number of heads of keys and values, each read by `heads / groups` heads.
      head_width: Width of a head, even; None for `width / heads`.
      hidden: Width of the perceptrons.
      context: Largest number of tokens that one sequence may have.
      base: Base of the rotary angles' wavelengths.
      epsilon: Number added to mean squares by the normalizations.
      tied: Whether the head multiplies with the embedding's table.

    Examples:
      >>> import jax
      >>> from jaxsim.models.llama import tiny
      >>> model = tiny()
      >>> ids = jax.numpy.array([[1, 5, 9]])
      >>> model.apply(model.init(jax.random.key(0), ids), ids).shape
      (1, 3, 96)

    Source: Touvron et al. (2023), arXiv 2302.13971, with grouped queries of Ainslie et al. (2023),
    arXiv 2305.13245.
    """

    vocabulary: int = 49152
    width: int = 576
    layers: int = 30
    heads: int = 9
    groups: int = 3
    head_width: int | None = None
    hidden: int = 1536
    context: int = 8192
    base: float = 1e5
    epsilon: float = 1e-5
    tied: bool = True

    @nn.compact
    def __call__(self, ids: Int[Array, "B n"], cache: Cache | None = None) -> Any:
        """The logits [B, n, vocabulary] of the token after each; with a cache, also the next cache.

        A compiled call cannot refuse what its numbers are: tokens outside the vocabulary make the
        logits of theirs and all after NaN, and tokens for which the cache has no room all logits.

        Args:
          ids: Tokens. With a cache, those that follow the ones it holds.
          cache: Keys and values of the tokens before; None where `ids` are the whole sequence.

        Raises:
          ValueError: A setting out of range, tokens outside the vocabulary, more tokens than the
            context or the cache has room for, or a cache of another model.
        """
        d = head_width(self)
        check_tokens(ids, self.vocabulary)
        n = ids.shape[1]
        if n > self.context:
            raise ValueError(f"ids[…, {n}]: must hold at most context={self.context} tokens")
        if cache is not None:
            self._check_cache(cache, ids.shape)
        table = self.param("embedding", _init, (self.vocabulary, self.width))
        x = jnp.take(table, ids, axis=0)
        places = jnp.arange(n)
        allowed = places[:, None] >= places
        slices = length = None
        if cache is not None:
            slices, length, size = (cache.keys, cache.values), cache.length, cache.keys.shape[2]
            places = length + places
            allowed = places[:, None] >= jnp.arange(size)
            x = jnp.where(length + n <= size, x, jnp.nan)  # an update would be moved to fit
        over_layers: Any = (nn.broadcast, nn.broadcast, nn.broadcast, 0)
        stack = nn.scan(
            Layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=over_layers,
            length=self.layers,
        )(self.heads, self.groups, d, self.hidden, self.epsilon, name="layers")
        x, new = stack(x, rotation_of(places, d, self.base), allowed, length, slices)
        x = nn.RMSNorm(self.epsilon, name="norm")(x)
        if self.tied:
            logits = x @ table.T
        else:
            logits = nn.Dense(self.vocabulary, use_bias=False, kernel_init=_init, name="head")(x)
        if cache is None or new is None:
            return logits
        keys, values = (
            lax.dynamic_update_slice(old, now.astype(old.dtype), (0, 0, cache.length, 0, 0))
            for old, now in zip(cache[:2], new, strict=True)
        )
        return logits, Cache(keys, values, cache.length + n)

    def cache(self, batch: int, size: int | None = None) -> Cache:
        """An empty cache.

        Args:
          batch: Number of rows.
          size: Number of tokens that it has room for, at most `context`; None for all of these.

        Raises:
          ValueError: A number out of range.
        """
        d = head_width(self)
        B = checked_int("batch", batch, 1)
        S = self.context if size is None else checked_int("size", size, 1, self.context)
        empty = jnp.zeros((self.layers, B, S, self.groups, d))
        return Cache(empty, empty, jnp.zeros((), jnp.int32))

    def _check_cache(self, cache: Cache, shape: tuple[int, ...]) -> None:
        (B, n), S = shape, np.shape(cache.keys)[2:3]
        for name in ("keys", "values"):
            found = np.shape(getattr(cache, name))
            if len(found) != 5 or found[:3] != (self.layers, B, *S):
                raise ValueError(
                    f"cache.{name}{list(found)}: must be [{self.layers}, {B}, S, G, d]; make one "
                    f"with model.cache({B})"
                )
        if not is_traced(cache.length) and int(cache.length) + n > S[0]:
            raise ValueError(
                f"ids[…, {n}]: the cache holds {int(cache.length)} tokens and has room for {S[0]}"
            )


def head_width(model: Llama) -> int:
    """Width of a head, all settings of a decoder checked.

    Args:
      model: The decoder.

    Raises:
      ValueError: A setting out of range.
    """
    for name in ("vocabulary", "width", "layers", "heads", "groups", "hidden", "context"):
        checked_int(name, getattr(model, name), 1)
    check_range("base", model.base, 0, above=True)
    check_range("epsilon", model.epsilon, 0)
    if model.heads % model.groups:
        raise ValueError(f"heads={model.heads}: must be a multiple of groups={model.groups}")
    if model.head_width is None and model.width % model.heads:
        raise ValueError(
            f"width={model.width}: must be a multiple of heads={model.heads}, or head_width given"
        )
    d = model.width // model.heads if model.head_width is None else model.head_width
    checked_int("head_width", d, 2)
    if d % 2:
        raise ValueError(f"head_width={d}: must be even, as positions turn pairs")
    return d


def tiny(**settings: Any) -> Llama:
    """A decoder of 96 tokens, two layers and four heads, for tests and examples.

    Args:
      **settings: Attributes of `Llama` that are to be others.
    """
    small = {"vocabulary": 96, "width": 32, "layers": 2, "heads": 4, "groups": 2, "hidden": 64}
    changed: dict[str, Any] = {**small, "context": 64, "base": 1e4, **settings}
    return Llama(**changed)


def check_tokens(ids: Any, vocabulary: int) -> None:
    """Checks that tokens are whole numbers in rows, and in the vocabulary unless traced.

    Args:
      ids: Tokens, [B, n].
      vocabulary: Number of tokens that there are.

    Raises:
      ValueError: They are not.
    """
    if np.ndim(ids) != 2 or not jnp.issubdtype(jnp.result_type(ids), jnp.integer):
        raise ValueError(
            f"ids{list(np.shape(ids))} of {jnp.result_type(ids)}: must be tokens [B, n] of a whole "
            "number type"
        )
    if np.size(ids) == 0:
        raise ValueError(f"ids{list(np.shape(ids))}: must hold at least one token")
    if is_traced(ids):
        return
    lowest, highest = int(np.min(np.asarray(ids))), int(np.max(np.asarray(ids)))
    if lowest < 0 or highest >= vocabulary:
        wrong = lowest if lowest < 0 else highest
        raise ValueError(f"ids: token {wrong}, must be from 0 to {vocabulary - 1}")


def rotation_of(places: Int[Array, " n"], head_width: int, base: float) -> Rotation:
    """Cosines and sines of rotary positions, in float32.

    Args:
      places: Places of the tokens in their sequence.
      head_width: Width of a head.
      base: Base of the wavelengths.

    Source: Su et al. (2021), arXiv 2104.09864, section 3.4.2.
    """
    frequencies = base ** -(np.arange(0, head_width, 2) / head_width)
    angles = places[:, None].astype(jnp.float32) * frequencies.astype(np.float32)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Float[Array, "B n H d"], rotation: Rotation) -> Float[Array, "B n H d"]:
    """Turns pairs of a head's first and second half by the angles of its token's place."""
    cos, sin = (a[:, None] for a in rotation)
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)
