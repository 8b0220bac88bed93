"""Language models: perplexity and agreement over windows of text, and what they write."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Key

from jaxsim.network.network import Network
from jaxsim.numerics.checks import check_range, checked_int, checked_seed, is_traced

Reader = Callable[[Any], Array]
"""A function from what a network returns to its logits, [B, n, V]."""


class Scores(NamedTuple):
    """What a network says of the tokens of each window, from the second on.

    Attributes:
      losses: Negative logarithm of the probability that each token had, [W, n - 1].
      choices: The most probable token at each place, [W, n - 1].
    """

    losses: Float[np.ndarray, "W m"]
    choices: Int[np.ndarray, "W m"]


class Estimate(NamedTuple):
    """A number with its uncertainty from a bootstrap over windows, NaN where there is but one.

    Attributes:
      value: The number, over all windows.
      error: Its standard error.
      low: Lower end of the interval that holds 95 % of the resampled values.
      high: Upper end.
    """

    value: float
    error: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} ± {self.error:.2g}"


def windows(tokens: Any, size: int, count: int | None = None) -> Int[np.ndarray, "W n"]:
    """Cuts a text's tokens into windows that follow one another; what is left behind them goes.

    Args:
      tokens: Tokens of the text, [N].
      size: Number of tokens of a window, at least 2.
      count: Number of windows, spread evenly over the text; None for all.

    Raises:
      ValueError: `tokens` are not whole numbers in one row, or fewer than the windows hold.

    Examples:
      >>> from jaxsim.evaluate.language import windows
      >>> windows([5, 6, 7, 8, 9], 2).tolist()
      [[5, 6], [7, 8]]
    """
    row = np.asarray(tokens)
    if row.ndim != 1 or row.dtype.kind not in "iu":
        raise ValueError(
            f"tokens{list(row.shape)} of {row.dtype}: must be one row of whole numbers"
        )
    n = checked_int("size", size, 2)
    there = len(row) // n
    if there < (wanted := 1 if count is None else checked_int("count", count, 1)):
        raise ValueError(f"tokens[{len(row)}]: {wanted} windows of size={n} take {wanted * n}")
    cut = row[: there * n].reshape(there, n).astype(np.int32)
    return cut if count is None else cut[np.arange(count) * there // count]


def score(
    net: Network,
    windows: Any,
    *,
    key: Key[Array, ""] | None = None,
    batch_size: int = 4,
    output: Reader | None = None,
) -> Scores:
    """Runs a network on windows of tokens and keeps what it says of each next one.

    Args:
      net: Network whose output is logits [B, n, V], or holds them.
      windows: Tokens, [W, n], n at least 2.
      key: Random key for cores that draw at every call; batch i uses `fold_in(key, i)`.
      batch_size: Number of windows per call, at least 1; their logits are in memory together.
      output: Function from what the network returns to its logits; None where it returns them.

    Raises:
      ValueError: Tokens outside the vocabulary, windows that the network does not take, outputs
        that are not logits, or losses that are not finite.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> from jaxsim.evaluate.language import perplexity, score
      >>> net = js.trace(lambda p, x: p["w"][x], {"w": jnp.zeros((4, 4))}, jnp.ones((1, 2), int))
      >>> round(perplexity(score(net, [[0, 1, 2], [3, 3, 1]])).value, 4)
      4.0
    """
    size, found = checked_int("batch_size", batch_size, 1), list[tuple[Array, Array]]()
    rows = _checked_tokens("windows", windows, 2)
    rows = _in_vocabulary("windows", rows, _vocabulary(net, rows[:1], key, output))
    for i, start in enumerate(range(0, len(rows), size)):
        of_batch = None if key is None else jax.random.fold_in(key, i)
        found.append(_scores(net, jnp.asarray(rows[start : start + size]), of_batch, output))
    losses, choices = (np.concatenate(part) for part in zip(*found, strict=True))
    if not np.isfinite(losses).all():
        at = np.argwhere(~np.isfinite(losses))[0].tolist()
        raise ValueError(f"net: the loss of window {at[0]}, token {at[1] + 1} is not finite")
    return Scores(losses, choices)


def perplexity(
    scores: Scores, reference: Scores | None = None, *, draws: int = 1000, seed: int = 0
) -> Estimate:
    """Computes the perplexity, or its ratio to a reference's on the same windows.

    Windows differ far more from one another than two networks do on one of them: to tell networks
    apart take the ratio, whose error is paired.

    Args:
      scores: Scores of a network.
      reference: Scores of another network on the same windows; None for the perplexity itself.
      draws: Number of times that windows are resampled, at least 2.
      seed: Seed of the resampling, from 0 to 2**32 - 1.

    Raises:
      ValueError: Scores of other windows, or a number out of range.

    Source: Efron and Tibshirani (1993), An Introduction to the Bootstrap, chapters 6 and 13.
    """
    losses = scores.losses.mean(1, dtype=np.float64)
    if reference is not None:
        _check_same(scores, reference)
        losses = losses - reference.losses.mean(1, dtype=np.float64)
    return _bootstrap(losses, math.exp, draws, seed)


def agreement(scores: Scores, reference: Scores, *, draws: int = 1000, seed: int = 0) -> Estimate:
    """Computes the fraction of places at which two networks choose the same next token.

    Args:
      scores: Scores of a network.
      reference: Scores of another on the same windows.
      draws: Number of times that windows are resampled, at least 2.
      seed: Seed of the resampling, from 0 to 2**32 - 1.

    Raises:
      ValueError: Scores of other windows, or a number out of range.
    """
    _check_same(scores, reference)
    return _bootstrap((scores.choices == reference.choices).mean(1), float, draws, seed)


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
    rows = _checked_tokens("prompt", prompt, 1)
    vocabulary = _vocabulary(net, rows, key, _first, cache)
    rows = _in_vocabulary("prompt", rows, vocabulary)
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


def _first(outputs: Any) -> Array:
    if not isinstance(outputs, tuple) or len(outputs) != 2:
        raise ValueError(
            f"net: with a cache must return logits and the next cache, got {type(outputs).__name__}"
        )
    return outputs[0]


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
    B = len(prompt)

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


def _logits(net: Network, key: Any, output: Reader | None, *args: Any) -> Array:
    outputs = net(*args, key=key)
    logits = outputs if output is None else output(outputs)
    if not isinstance(logits, jax.Array) or logits.shape[:-1] != args[0].shape:
        shown = list(logits.shape) if isinstance(logits, jax.Array) else type(logits).__name__
        raise ValueError(f"net: outputs must be logits {[*args[0].shape, 'V']}, got {shown}")
    return logits


def _vocabulary(net: Network, rows: np.ndarray, key: Any, output: Reader | None, *more: Any) -> int:
    """Number of tokens that logits are of, found without computing any."""
    ids = jax.ShapeDtypeStruct(rows.shape, jnp.int32)
    return jax.eval_shape(partial(_logits, net, key, output), ids, *more).shape[-1]


@partial(jax.jit, static_argnames=("output",))
def _scores(
    net: Network, rows: Int[Array, "B n"], key: Key[Array, ""] | None, output: Reader | None
) -> tuple[Float[Array, "B m"], Int[Array, "B m"]]:
    logits = _logits(net, key, output, rows)[:, :-1].astype(jnp.float32)
    own = jnp.take_along_axis(logits, rows[:, 1:, None], -1)[..., 0]
    return jax.nn.logsumexp(logits, -1) - own, jnp.argmax(logits, -1).astype(jnp.int32)


def _checked_tokens(name: str, tokens: Any, shortest: int) -> np.ndarray:
    rows = np.asarray(tokens)
    if rows.ndim != 2 or rows.dtype.kind not in "iu" or not len(rows) or rows.shape[1] < shortest:
        raise ValueError(
            f"{name}{list(rows.shape)} of {rows.dtype}: must be rows of at least {shortest} tokens "
            "as whole numbers"
        )
    return rows


def _in_vocabulary(name: str, rows: np.ndarray, vocabulary: int) -> Int[np.ndarray, "B n"]:
    wrong = np.argwhere((rows < 0) | (rows >= vocabulary))
    if len(wrong):
        row, place = wrong[0].tolist()
        raise ValueError(
            f"{name}[{row}, {place}]={rows[row, place]}: must be a token from 0 to {vocabulary - 1}"
        )
    return rows.astype(np.int32)


def _check_same(scores: Scores, reference: Scores) -> None:
    if scores.losses.shape != reference.losses.shape:
        raise ValueError(
            f"reference: scores {list(reference.losses.shape)}; must be of the same windows, "
            f"{list(scores.losses.shape)}"
        )


def _bootstrap(
    values: Float[np.ndarray, " W"], of_mean: Callable[[float], float], draws: int, seed: int
) -> Estimate:
    """A function of the mean over windows, with what it becomes when windows are resampled."""
    times, W = checked_int("draws", draws, 2), len(values)
    generator, value = np.random.default_rng(checked_seed(seed)), of_mean(values.mean())
    if W < 2:
        return Estimate(value, math.nan, math.nan, math.nan)
    picked = generator.integers(W, size=(times, W))
    resampled = np.array([of_mean(mean) for mean in values[picked].mean(1)])
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Estimate(value, float(resampled.std(ddof=1)), float(low), float(high))
