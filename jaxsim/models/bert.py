"""BERT, a classifier of sequences of word pieces."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, Key

from jaxsim.adaptive.tokens import prefix_mask
from jaxsim.numerics.arrays import own_promotion
from jaxsim.numerics.checks import checked_int

Pool = Callable[[Array, Array], Array]
"""(tokens [B, n, d], which are there [B, n]) -> features [B, d]."""

_NO = -1e9  # added to scores of keys that are not there; float32 only


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


class Embedding(nn.Module):
    """Tokens of ids: word, position and the first of the two types, normalized.

    Attributes:
      vocabulary: Number of words.
      positions: Longest sequence.
      width: Width of a token.
      epsilon: Number added to variances by the normalization.
    """

    vocabulary: int
    positions: int
    width: int
    epsilon: float

    @nn.compact
    def __call__(self, ids: Int[Array, "B n"]) -> Float[Array, "B n d"]:
        """The tokens."""
        init = nn.initializers.normal(0.02)
        word = self.param("word", init, (self.vocabulary, self.width))
        position = self.param("position", init, (self.positions, self.width))
        type_ = self.param("type", init, (2, self.width))
        x = word[ids] + position[None, : ids.shape[1]] + type_[None, :1]
        return nn.LayerNorm(self.epsilon, name="norm")(x)


class Attention(nn.Module):
    """The first half of a layer: tokens mix, are added and normalized.

    Attributes:
      heads: Number of heads of the attention.
      epsilon: Number added to variances by the normalization.
    """

    heads: int
    epsilon: float

    @nn.compact
    def __call__(
        self, x: Float[Array, "B n d"], valid: Bool[Array, "B n"]
    ) -> Float[Array, "B n d"]:
        """The tokens."""
        B, n, width = x.shape
        H = self.heads
        q, k, v = (
            nn.Dense(width, kernel_init=nn.initializers.normal(0.02), name=name)(x).reshape(
                B, n, H, width // H
            )
            for name in ("query", "key", "value")
        )
        scores = jnp.einsum("bnhk,bmhk->bhnm", q, k) * (width // H) ** -0.5
        shares = jax.nn.softmax(scores + jnp.where(valid, 0, _NO)[:, None, None])
        mixed = jnp.einsum("bhnm,bmhk->bnhk", shares, v).reshape(B, n, width)
        mixed = nn.Dense(width, kernel_init=nn.initializers.normal(0.02), name="mix")(mixed)
        return nn.LayerNorm(self.epsilon, name="norm")(x + mixed)


class FeedForward(nn.Module):
    """The second half of a layer: a perceptron of each token, added and normalized.

    Attributes:
      hidden: Width of the perceptron.
      epsilon: Number added to variances by the normalization.
    """

    hidden: int
    epsilon: float

    @nn.compact
    def __call__(self, x: Float[Array, "B n d"]) -> Float[Array, "B n d"]:
        """The tokens."""
        init = nn.initializers.normal(0.02)
        h = nn.Dense(self.hidden, kernel_init=init, name="hidden")(x)
        h = nn.gelu(h, approximate=False)
        h = nn.Dense(x.shape[-1], kernel_init=init, name="output")(h)
        return nn.LayerNorm(self.epsilon, name="norm")(x + h)


class Bert(nn.Module):
    """Classifier of sequences of word pieces; defaults are those of the smallest BERT.

    Attributes:
      vocabulary: Number of word pieces.
      positions: Longest sequence.
      width: Width of a token.
      heads: Number of heads of each attention; divides the width.
      layers: Number of layers.
      hidden: Width of the perceptrons.
      classes: Number of logits.
      pool: Pooling that the classifier reads, `mean_token` or `first_token`.
      epsilon: Number added to variances by the normalizations.

    Source: Devlin et al. (2019), arXiv 1810.04805; gelu is the exact one.
    """

    vocabulary: int = 30522
    positions: int = 512
    width: int = 128
    heads: int = 2
    layers: int = 2
    hidden: int = 512
    classes: int = 2
    pool: Pool = mean_token
    epsilon: float = 1e-12

    def setup(self):
        """Checks the settings and names the pieces."""
        for name in ("vocabulary", "positions", "width", "heads", "layers", "hidden"):
            checked_int(name, getattr(self, name), 1)
        checked_int("classes", self.classes, 2)
        if self.width % self.heads:
            raise ValueError(f"width={self.width}: must be a multiple of heads={self.heads}")
        self.embedding = Embedding(self.vocabulary, self.positions, self.width, self.epsilon)
        self.attention = [Attention(self.heads, self.epsilon) for _ in range(self.layers)]
        self.feed_forward = [FeedForward(self.hidden, self.epsilon) for _ in range(self.layers)]
        self.head = nn.Dense(self.classes, kernel_init=nn.initializers.normal(0.02))

    def __call__(self, ids: Int[Array, "B n"], lengths: Int[Array, " B"]) -> Float[Array, "B C"]:
        """The logits.

        Args:
          ids: Word pieces, padded behind.
          lengths: How many of each row are there.
        """
        return self.head(
            self.pool(self.hidden_states(ids, lengths)[-1], prefix_mask(lengths, ids.shape[1]))
        )

    def hidden_states(
        self, ids: Int[Array, "B n"], lengths: Int[Array, " B"]
    ) -> list[Float[Array, "B n d"]]:
        """The tokens after the embedding and after each layer; those of padding mean nothing."""
        if ids.shape[1] > self.positions:
            raise ValueError(f"ids[…, {ids.shape[1]}]: must hold at most {self.positions} tokens")
        valid = prefix_mask(lengths, ids.shape[1])
        states = [self.embedding(ids)]
        for attention, feed_forward in zip(self.attention, self.feed_forward, strict=True):
            states.append(feed_forward(attention(states[-1], valid)))
        return states


def from_hugging_face(
    arrays: Mapping[str, np.ndarray],
    config: Mapping[str, Any],
    *,
    classes: int,
    key: Key[Array, ""],
    pool: Pool = mean_token,
) -> tuple[Bert, dict[str, Any]]:
    """Converts Hugging Face's arrays of a BERT to a model and parameters, with a new classifier.

    Args:
      arrays: Arrays by their names, with or without `bert.` in front.
      config: Configuration, as `config.json` has it.
      classes: Number of classes of the classifier, at least 2.
      key: Random key of the classifier's weights.
      pool: Pooling that the classifier reads.

    Returns:
      The model and its parameters.

    Raises:
      ValueError: An array is missing or of another shape, or the configuration is of a model that
        this one is not (another activation, relative positions).
    """
    model = _model_of(config, classes, pool)
    params = _params_from(arrays, model.layers)
    kernel = nn.initializers.normal(0.02)(key, (model.width, classes))
    params["head"] = {"kernel": kernel, "bias": jnp.zeros(classes)}
    ids, lengths = jnp.zeros((1, 1), jnp.int32), jnp.ones(1, jnp.int32)
    shapes = jax.eval_shape(model.init, key, ids, lengths)["params"]

    def check_shape(path: Any, shape: Any, value: Any) -> Array:
        if shape.shape != value.shape:
            name = jax.tree_util.keystr(path)
            raise ValueError(f"arrays: {name} is {list(value.shape)}, must be {list(shape.shape)}")
        return jnp.asarray(value)

    return model, jax.tree_util.tree_map_with_path(check_shape, shapes, params)


def _model_of(config: Mapping[str, Any], classes: int, pool: Pool) -> Bert:
    try:
        model = Bert(
            vocabulary=config["vocab_size"],
            positions=config["max_position_embeddings"],
            width=config["hidden_size"],
            heads=config["num_attention_heads"],
            layers=config["num_hidden_layers"],
            hidden=config["intermediate_size"],
            classes=classes,
            pool=pool,
            epsilon=config.get("layer_norm_eps", 1e-12),
        )
    except KeyError as error:
        raise ValueError(f"config: has no {error}") from error
    for name, only in (("hidden_act", "gelu"), ("position_embedding_type", "absolute")):
        if config.get(name, only) != only:
            raise ValueError(f"config: {name} is {config[name]!r}; must be {only!r}")
    return model


def _params_from(arrays: Mapping[str, np.ndarray], layers: int) -> dict[str, Any]:
    """Parameters of the embedding and of all layers."""

    def find(name: str) -> np.ndarray:
        for full in (name, f"bert.{name}"):
            if full in arrays:
                return np.asarray(arrays[full], np.float32)
        raise ValueError(f"arrays: no {name} among them")

    def dense(name: str) -> dict[str, Any]:
        return {"kernel": find(f"{name}.weight").T, "bias": find(f"{name}.bias")}

    def norm(name: str) -> dict[str, Any]:
        return {"scale": find(f"{name}.weight"), "bias": find(f"{name}.bias")}

    table = "embeddings.{}_embeddings.weight"
    params: dict[str, Any] = {
        "embedding": {
            "word": find(table.format("word")),
            "position": find(table.format("position")),
            "type": find(table.format("token_type")),
            "norm": norm("embeddings.LayerNorm"),
        }
    }
    for i in range(layers):
        layer = f"encoder.layer.{i}"
        params[f"attention_{i}"] = {
            **{n: dense(f"{layer}.attention.self.{n}") for n in ("query", "key", "value")},
            "mix": dense(f"{layer}.attention.output.dense"),
            "norm": norm(f"{layer}.attention.output.LayerNorm"),
        }
        params[f"feed_forward_{i}"] = {
            "hidden": dense(f"{layer}.intermediate.dense"),
            "output": dense(f"{layer}.output.dense"),
            "norm": norm(f"{layer}.output.LayerNorm"),
        }
    return params
