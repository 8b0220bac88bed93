"""Text whose tokens leave a decoder early, each after as many layers as it seems to need."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Key

from jaxsim.evaluate.language.layers import LayerStep, layer_step
from jaxsim.evaluate.language.scores import Scores, of_next
from jaxsim.evaluate.language.token_exit import (
    Confidence,
    Leaving,
    check_confidence,
    run_token,
    step_params,
)
from jaxsim.evaluate.language.window import (
    checked_rows,
    in_vocabulary,
    logits_and_cache,
    vocabulary_of,
)
from jaxsim.network.network import Network, held_alone, require_uncut
from jaxsim.network.operands import fix_text
from jaxsim.numerics.checks import checked_int


class EarlyText(NamedTuple):
    """Text whose tokens left early.

    Attributes:
      tokens: Tokens, [B, count].
      layers: Number of layers that each was made by, [B, count]; all for the first, which the
        prompt's call makes, and for the end that a row repeats.
      flops: Arithmetic operations of a token behind the first, its filled-in keys and values and
        heads of exits among them, as the mean of all.
      whole: Those of a token without exits.

    Examples:
      >>> import numpy as np
      >>> from jaxsim.evaluate.language import EarlyText
      >>> text = EarlyText(np.array([[5, 9, 1]]), np.array([[30, 6, 12]]), 1.4e8, 2.7e8)
      >>> float(text.layers[:, 1:].mean())
      9.0
    """

    tokens: Int[np.ndarray, "B count"]
    layers: Int[np.ndarray, "B count"]
    flops: float
    whole: float


class EarlyScores(NamedTuple):
    """What a decoder with exits says of a text's tokens behind a prompt.

    Attributes:
      scores: Losses and choices, [W, m].
      layers: Number of layers that each was made by, [W, m].
      flops: Arithmetic operations of a token, as the mean of all.
      whole: Those of a token without exits.

    Examples:
      >>> import numpy as np
      >>> from jaxsim.evaluate.language import EarlyScores, Scores
      >>> scores = Scores(np.zeros((2, 3)), np.zeros((2, 3), int))
      >>> float(EarlyScores(scores, np.full((2, 3), 6), 1.0e8, 2.7e8).layers.mean())
      6.0
    """

    scores: Scores
    layers: Int[np.ndarray, "W m"]
    flops: float
    whole: float


class ExitThreshold(NamedTuple):
    """A threshold that keeps a promise, and what it was found by.

    Attributes:
      threshold: Least confidence at which tokens may leave; infinity if none keeps the promise.
      agreement: Fraction of places at which it chose what the whole network chose.
      layers: Mean number of layers.
      tried: Thresholds from the highest on, with p-values of "it breaks the promise".

    Examples:
      >>> from jaxsim.evaluate.language import ExitThreshold
      >>> ExitThreshold(0.9, 0.97, 21.5, ((1.0, 0.001), (0.9, 0.04), (0.8, 0.3))).threshold
      0.9
    """

    threshold: float
    agreement: float
    layers: float
    tried: tuple[tuple[float, float], ...]


def write_early(
    net: Network,
    prompt: Any,
    cache: Any,
    *,
    count: int,
    after: Sequence[int],
    threshold: float | Array,
    confidence: Confidence = "gap",
    decay: float | Array | None = None,
    end: int | None = None,
    key: Key[Array, ""] | None = None,
) -> EarlyText:
    """Writes on from a prompt greedily; a token leaves at the first exit that is sure of it.

    The prompt is read by the whole network. Behind each of some layers an exit looks at a token: by
    "gap" at how much more probable its first choice is than its second, by the network's own last
    norm and head; by "similarity" at the cosine of its state with that at the exit before, or where
    layers begin. Where that reaches the threshold, its state stays what it is: the head makes its
    logits of it, and layers that follow compute its keys and values of it and nothing else, so that
    later tokens can attend to it. Where all rows have left, the rest of a layer is not run.

    Layers are found in the equations of any decoder that was traced, as what adds to its cache and
    hands on one state; they are stacked in a scan or follow one another. Stacks are held a second
    time while it writes, slice by slice.

    Args:
      net: Network of tokens and a cache, as `generate` takes it.
      prompt: Tokens, [B, n], n at least 1.
      cache: Cache to begin with, such as `model.cache(B, n + count)`.
      count: Number of tokens to write, at least 1. The program is compiled for it.
      after: Numbers of layers after which a token may leave, rising, from 1 to all but one.
      threshold: Confidence at which it does, at least 0, where all leave at the first exit;
        infinity, at which none does, writes what `generate` does. Traced.
      confidence: "gap" or "similarity".
      decay: τ of a threshold 0.9 λ + 0.1 exp(-τ t / count) at the t-th token, at least 0, since
        errors of late tokens harm less; None where it stays λ. Traced.
      end: Token that ends a row, which then repeats it; None for rows of full length.
      key: Random key for cores that draw at every call.

    Raises:
      ValueError: As `generate` raises; a number out of range, a network that is cut, or one in
        which no layers are found.

    Examples:
      >>> import jax
      >>> import jaxsim as js
      >>> from jaxsim.models.llama import tiny
      >>> model, ids = tiny(layers=3), jax.numpy.array([[1, 5, 9]])
      >>> net = js.trace(model, model.init(jax.random.key(0), ids), ids)
      >>> text = js.language.write_early(
      ...     net, ids, model.cache(1, 16), count=4, after=[1, 2], threshold=0.0
      ... )
      >>> text.layers.tolist(), text.flops < text.whole
      ([[3, 1, 1, 1]], True)

    Source: Schuster et al. (2022), CALM, arXiv 2207.07061, sections 3.3 and 3.4, eq. 5.
    """
    steps = checked_int("count", count, 1)
    leaving, places = _checked(net, "write_early", after, threshold, confidence, decay)
    rows = checked_rows("prompt", prompt, 1)
    vocabulary = vocabulary_of(net, rows, key, logits_and_cache, cache)
    rows = in_vocabulary("prompt", rows, vocabulary)
    last = -1 if end is None else checked_int("end", end, 0, vocabulary - 1)
    found = _write(
        *(net, jnp.asarray(rows), cache, leaving, key, last),
        count=steps,
        after=places,
        confidence=confidence,
    )
    written, layers, exits, finite, costs = jax.device_get(found)
    if not finite:
        raise ValueError(
            f"cache: must have room for {rows.shape[1] + steps - 1} tokens more, or the network's "
            "logits are not finite"
        )
    left = exits[:, 1:][exits[:, 1:] >= 0]
    flops = float(costs[left].mean()) if left.size else float(costs[-1])
    return EarlyText(written, layers, flops, float(costs[-1]))


def score_early(
    net: Network,
    windows: Any,
    *,
    cache: Callable[[int, int], Any],
    after: Sequence[int],
    threshold: float | Array,
    prompt: int = 1,
    confidence: Confidence = "gap",
    decay: float | Array | None = None,
    batch_size: int = 16,
    key: Key[Array, ""] | None = None,
) -> EarlyScores:
    """Reads windows through a cache, tokens leaving as `write_early` lets them.

    All rows of a batch run through all layers, and what each would have is chosen: what is said is
    what `write_early` says of the same text, computed for many rows at once.

    Args:
      net: Network of tokens and a cache, as `generate` takes it.
      windows: Tokens, [W, n], n at least prompt + 2.
      cache: Makes an empty cache of (rows, tokens), such as `model.cache`.
      after: Numbers of layers after which a token may leave.
      threshold: Confidence at which it does, at least 0. Traced.
      prompt: Number of first tokens that the whole network reads, at least 1.
      confidence: "gap" or "similarity".
      decay: Decay of the threshold over what follows the prompt; None where it stays. Traced.
      batch_size: Number of windows per call, at least 1.
      key: Random key for cores that draw at every call; batch i uses `fold_in(key, i)`.

    Raises:
      ValueError: As `score` and `write_early` raise.

    Examples:
      >>> import jax
      >>> import jaxsim as js
      >>> from jaxsim.models.llama import tiny
      >>> model, ids = tiny(layers=3), jax.random.randint(jax.random.key(1), (2, 8), 0, 96)
      >>> net = js.trace(model, model.init(jax.random.key(0), ids), ids)
      >>> found = js.language.score_early(net, ids, cache=model.cache, after=[1], threshold=0.0)
      >>> found.layers.shape, float(found.layers.mean())
      ((2, 6), 1.0)
    """
    size, first = checked_int("batch_size", batch_size, 1), checked_int("prompt", prompt, 1)
    leaving, places = _checked(net, "score_early", after, threshold, confidence, decay)
    rows = checked_rows("windows", windows, first + 2)
    vocabulary = vocabulary_of(net, rows[:1], key, logits_and_cache, cache(1, rows.shape[1]))
    rows = in_vocabulary("windows", rows, vocabulary)
    parts = list[Any]()
    for i in range(-(-len(rows) // size)):
        some = jnp.asarray(rows[i * size : (i + 1) * size])
        own = None if key is None else jax.random.fold_in(key, i)
        found = _score(
            *(net, some, cache(*some.shape), leaving, own),
            prompt=first,
            after=places,
            confidence=confidence,
        )
        parts.append(jax.device_get(found))
    *each, costs = zip(*parts, strict=True)
    losses, choices, layers, exits = map(np.concatenate, each)
    if not np.isfinite(losses).all():
        at = np.argwhere(~np.isfinite(losses))[0].tolist()
        raise ValueError(
            f"net: the loss of window {at[0]}, token {at[1] + first + 1} is not finite"
        )
    scores = Scores(losses, choices)
    return EarlyScores(scores, layers, float(costs[0][exits].mean()), float(costs[0][-1]))


def exit_threshold(
    net: Network,
    windows: Any,
    *,
    cache: Callable[[int, int], Any],
    after: Sequence[int],
    agreement: float = 0.9,
    risk: float = 0.05,
    steps: int = 20,
    prompt: int = 1,
    confidence: Confidence = "gap",
    decay: float | Array | None = None,
    batch_size: int = 16,
) -> ExitThreshold:
    """Finds the least threshold at which a decoder with exits mostly says what the whole one says.

    Learn then test: thresholds are tried from the highest down, each as the hypothesis that less
    than the promised fraction of places agrees, and the last one before the first that cannot be
    rejected is taken. With probability 1 - risk over the draw of the windows, the promise is kept
    on windows of their kind. Windows count as independent draws, each with one fraction: many of
    them are needed, and a text that is written is not one of them.

    Args:
      net: Network of tokens and a cache, as `generate` takes it.
      windows: Tokens of a text to choose on, [W, n].
      cache: Makes an empty cache of (rows, tokens), such as `model.cache`.
      after: Numbers of layers after which a token may leave.
      agreement: Promised fraction of places with the whole network's choice, in (0, 1).
      risk: Probability of a promise that is broken, in (0, 1).
      steps: Number of thresholds 1, 1 - 1 / steps, … above 0, at least 1; one program for all.
      prompt: Number of first tokens that the whole network reads, at least 1.
      confidence: "gap" or "similarity".
      decay: Decay of the threshold; None where it stays.
      batch_size: Number of windows per call, at least 1.

    Raises:
      ValueError: As `score_early` raises, or a number out of range.

    Examples:
      >>> import jax
      >>> import jaxsim as js
      >>> from jaxsim.models.llama import tiny
      >>> model, ids = tiny(layers=3), jax.random.randint(jax.random.key(1), (4, 8), 0, 96)
      >>> net = js.trace(model, model.init(jax.random.key(0), ids), ids)
      >>> found = js.language.exit_threshold(net, ids, cache=model.cache, after=[1], steps=2)
      >>> found.threshold  # four windows prove nothing
      inf

    Source: Angelopoulos et al. (2021), Learn then Test, arXiv 2110.01052, with the p-values of
    Hoeffding and Bentkus; Schuster et al. (2022), arXiv 2207.07061, section 4.
    """
    for name, value in (("agreement", agreement), ("risk", risk)):
        if not 0 < value < 1:
            raise ValueError(f"{name}={value}: must lie between 0 and 1, without these")
    count = checked_int("steps", steps, 1)

    def run(threshold: float) -> EarlyScores:
        return score_early(
            *(net, windows),
            cache=cache,
            after=after,
            threshold=threshold,
            prompt=prompt,
            confidence=confidence,
            decay=decay,
            batch_size=batch_size,
        )

    whole = run(math.inf)
    best = ExitThreshold(math.inf, 1.0, float(whole.layers.mean()), ())
    tried = list[tuple[float, float]]()
    for i in range(count):
        threshold = 1 - i / count
        found = run(threshold)
        same = (found.scores.choices == whole.scores.choices).mean(1)
        tried.append((threshold, _p_value(1 - same, 1 - agreement)))
        if tried[-1][1] > risk:
            break
        best = ExitThreshold(threshold, float(same.mean()), float(found.layers.mean()), ())
    return best._replace(tried=tuple(tried))


def _p_value(losses: Float[np.ndarray, " W"], most: float) -> float:
    """Of the hypothesis that the mean of losses in [0, 1] is above a number."""
    from scipy.stats import binom

    W, mean = len(losses), min(float(losses.mean()), most)
    parts = ((mean, most), (1 - mean, 1 - most))
    distance = sum(a * math.log(a / b) for a, b in parts if a > 0)
    bentkus = math.e * binom.cdf(math.ceil(W * float(losses.mean()) - 1e-9), W, most)
    return float(min(math.exp(-W * distance), bentkus, 1.0))


def _checked(
    net: Network,
    what: str,
    after: Sequence[int],
    threshold: Any,
    confidence: str,
    decay: Any,
) -> tuple[Leaving, tuple[int, ...]]:
    require_uncut(net, what, reason="it is cut already, and its stages pass on no cache")
    check_confidence(confidence)
    if not isinstance(after, Sequence) or isinstance(after, str) or not after:
        raise ValueError(f"after={after!r}: must be numbers of layers, one at least")
    places = tuple(checked_int("after", k, 1) for k in after)
    return Leaving(threshold, decay).checked(), places


def _costs(step: LayerStep, rows: int, confidence: Confidence) -> Array:
    """Arithmetic operations of a token by its exit, and those without exits."""
    count = len(step.exits)
    by_exit = confidence == "gap"
    heads = [i + 1 for i in range(count + 1)] if by_exit else [1] * (count + 1)
    costs = [f + h * step.head_flops for f, h in zip(step.flops, heads, strict=True)]
    return jnp.asarray([*costs, step.flops[-1] + step.head_flops], jnp.float32) / rows


@partial(jax.jit, static_argnames=("count", "after", "confidence"))
def _write(
    net: Network,
    prompt: Int[Array, "B n"],
    cache: Any,
    leaving: Leaving,
    key: Key[Array, ""] | None,
    end: Int[Array, ""],
    *,
    count: int,
    after: tuple[int, ...],
    confidence: Confidence,
) -> tuple[Array, Array, Array, Array, Array]:
    B, net = len(prompt), held_alone(fix_text(net, key))

    def noise(i: Any) -> Any:  # that of `generate`
        return None if key is None else jax.random.split(jax.random.fold_in(key, i))[0]

    logits, cache = net(prompt, cache, key=noise(0))
    logits = logits[:, -1].astype(jnp.float32)
    ids = jnp.argmax(logits, -1).astype(jnp.int32)
    step = layer_step(net, net.arguments((ids[:, None], cache), {}, key), B, after, "write_early")
    params, total = step_params(net, step), len(step.exits)

    def going(state: Any) -> Array:
        i, _, _, _, ended, finite, _ = state
        return (i < count) & finite & ~ended.all()

    def one(state: Any) -> Any:
        i, ids, written, exits, ended, finite, cache = state
        of_step = noise(i)
        said = run_token(
            *(net, step, params, net.arguments((ids[:, None], cache), {}, of_step), ended),
            *(leaving.at(i / count), of_step),
            confidence=confidence,
            skip=True,
        )
        fine = jnp.isfinite(said.logits).all()
        ids = jnp.where(ended, end, jnp.argmax(said.logits, -1).astype(jnp.int32))
        exits = exits.at[:, i].set(jnp.where(ended, -1, said.exit))
        return (
            *(i + 1, ids, written.at[:, i].set(ids), exits),
            *(ended | (ids == end), finite & fine, said.cache),
        )

    written = jnp.full((B, count), end, jnp.int32).at[:, 0].set(ids)
    exits = jnp.full((B, count), -1, jnp.int32)
    state = (jnp.int32(1), ids, written, exits, ids == end, jnp.isfinite(logits).all(), cache)
    _, _, written, exits, _, finite, _ = lax.while_loop(going, one, state)
    layers = jnp.asarray(step.layers, jnp.int32)[jnp.where(exits < 0, total, exits)]
    return written, layers, exits, finite, _costs(step, B, confidence)


@partial(jax.jit, static_argnames=("prompt", "after", "confidence"))
def _score(
    net: Network,
    rows: Int[Array, "B n"],
    cache: Any,
    leaving: Leaving,
    key: Key[Array, ""] | None,
    *,
    prompt: int,
    after: tuple[int, ...],
    confidence: Confidence,
) -> tuple[Array, Array, Array, Array, Array]:
    B, n = rows.shape
    net = fix_text(net, key)

    def noise(i: Any) -> Any:
        return None if key is None else jax.random.split(jax.random.fold_in(key, i))[0]

    _, cache = net(rows[:, :prompt], cache, key=noise(0))
    ids = rows[:, :1]
    step = layer_step(net, net.arguments((ids, cache), {}, key), B, after, "score_early")
    params, none = step_params(net, step), jnp.zeros(B, bool)

    def one(cache: Any, at: tuple[Array, Array, Array]) -> Any:
        i, ids, following = at
        of_step = noise(i)
        said = run_token(
            *(net, step, params, net.arguments((ids[:, None], cache), {}, of_step), none),
            *(leaving.at(i / (n - prompt)), of_step),
            confidence=confidence,
            skip=False,
        )
        return said.cache, (*of_next(said.logits, following), said.exit)

    places = jnp.arange(1, n - prompt), rows[:, prompt:-1].T, rows[:, prompt + 1 :].T
    _, found = lax.scan(one, cache, places)
    losses, choices, exits = (a.T for a in found)
    layers = jnp.asarray(step.layers, jnp.int32)[exits]
    return losses, choices, layers, exits, _costs(step, B, confidence)
