"""Text that a language model writes on from a prompt."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Key

from jaxsim.evaluate.language.window import (
    checked_rows,
    in_vocabulary,
    logits_and_cache,
    vocabulary_of,
)
from jaxsim.network.network import Network
from jaxsim.network.operands import fix_text
from jaxsim.numerics.checks import check_range, checked_int, is_traced


def generate(
    net: Network,
    prompt: Any,
    cache: Any,
    *,
    count: int,
    temperature: float | Array = 0.0,
    key: Key[Array, ""] | None = None,
    end: int | None = None,
) -> Int[np.ndarray, "B count"]:
    """Writes on from a prompt with a cache, in one compiled program.

    Args:
      net: Network of tokens [B, n] and a cache, that returns logits [B, n, V] and the next cache,
        such as a trace of `jaxsim.models.llama.Llama`.
      prompt: Tokens, [B, n], n at least 1, of as many in each row.
      cache: Cache to begin with, such as `model.cache(B, n + count)`.
      count: Number of tokens to write, at least 1. The program is compiled for it.
      temperature: Divides the logits before a token is drawn; 0 takes the most probable one.
      key: Random key, needed above a temperature of 0 and by cores that draw at every call.
      end: Token that ends a row, which then repeats it; None for rows of full length.

    Raises:
      ValueError: Tokens outside the vocabulary, a number out of range, no key where one is needed,
        or a cache without room for the tokens.

    Examples:
      >>> import jax
      >>> import jaxsim as js
      >>> from jaxsim.evaluate.language import generate
      >>> from jaxsim.models.llama import tiny
      >>> model, ids = tiny(), jax.numpy.array([[1, 5, 9]])
      >>> net = js.trace(model, model.init(jax.random.key(0), ids), ids)
      >>> generate(net, ids, model.cache(1, 16), count=4).shape
      (1, 4)
    """
    steps = checked_int("count", count, 1)
    check_range("temperature", temperature, 0)
    rows = checked_rows("prompt", prompt, 1)
    vocabulary = vocabulary_of(net, rows, key, logits_and_cache, cache)
    rows = in_vocabulary("prompt", rows, vocabulary)
    last = -1 if end is None else checked_int("end", end, 0, vocabulary - 1)
    if key is None and (is_traced(temperature) or float(temperature) > 0):
        raise ValueError(f"temperature={temperature}: to draw tokens takes a key")
    drawn, finite = _generate(
        net, jnp.asarray(rows), cache, jnp.asarray(temperature, jnp.float32), key, last, count=steps
    )
    if not finite:
        raise ValueError(
            f"cache: must have room for {rows.shape[1] + steps - 1} tokens more, or the network's "
            "logits are not finite"
        )
    return np.asarray(drawn)


@partial(jax.jit, static_argnames=("count",))
def _generate(
    net: Network,
    prompt: Int[Array, "B n"],
    cache: Any,
    temperature: Float[Array, ""],
    key: Key[Array, ""] | None,
    end: Int[Array, ""],
    *,
    count: int,
) -> tuple[Int[Array, "B count"], Array]:
    B, net = len(prompt), fix_text(net, key)

    def call(i: Any, ids: Array, cache: Any) -> tuple[Array, Any, Array]:
        """The tokens after `ids`, the cache behind these, and whether their logits are finite."""
        noise = draw = None
        if key is not None:
            noise, draw = jax.random.split(jax.random.fold_in(key, i))
        logits, cache = net(ids, cache, key=noise)
        logits = logits[:, -1].astype(jnp.float32)
        chosen = jnp.argmax(logits, -1)
        if draw is not None:
            warm = jnp.where(temperature > 0, temperature, 1.0)
            drawn = jax.random.categorical(draw, logits / warm)
            chosen = jnp.where(temperature > 0, drawn, chosen)
        return chosen.astype(jnp.int32), cache, jnp.isfinite(logits).all()

    def going(state: Any) -> Array:
        i, _, _, ended, finite, _ = state
        return (i < count) & finite & ~ended.all()

    def step(state: Any) -> Any:
        i, ids, written, ended, finite, cache = state
        ids, cache, fine = call(i, ids[:, None], cache)
        ids = jnp.where(ended, end, ids)
        return i + 1, ids, written.at[:, i].set(ids), ended | (ids == end), finite & fine, cache

    ids, cache, finite = call(0, prompt, cache)
    written = jnp.full((B, count), end, jnp.int32).at[:, 0].set(ids)
    state = (jnp.int32(1), ids, written, ids == end, finite, cache)
    _, _, written, _, finite, _ = lax.while_loop(going, step, state)
    return written, finite
