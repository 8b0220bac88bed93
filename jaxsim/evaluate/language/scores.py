"""What a language model says of each next token of a text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Key

from jaxsim.checkpoint.log import program_digest, run_digest
from jaxsim.checkpoint.resumable import resumable
from jaxsim.evaluate.language.window import (
    Reader,
    checked_rows,
    in_vocabulary,
    logits_and_cache,
    logits_of,
    vocabulary_of,
)
from jaxsim.network.network import Network
from jaxsim.network.operands import fix_text
from jaxsim.numerics.checks import checked_int

_EVERY = 8
"""Batches from one checkpoint to the next."""


class Scores(NamedTuple):
    """What a network says of the tokens of each window, from the second on.

    Attributes:
      losses: Negative logarithm of the probability that each token had, [W, n - 1].
      choices: The most probable token at each place, [W, n - 1].

    Examples:
      >>> import numpy as np
      >>> from jaxsim.evaluate.language import Scores
      >>> Scores(np.zeros((2, 3)), np.zeros((2, 3), int)).losses.shape
      (2, 3)
    """

    losses: Float[np.ndarray, "W m"]
    choices: Int[np.ndarray, "W m"]


def score(
    net: Network,
    windows: Any,
    *,
    key: Key[Array, ""] | None = None,
    batch_size: int = 4,
    output: Reader | None = None,
    cache: Callable[[int, int], Any] | None = None,
    checkpoints: str | Path | None = None,
    label: str = "scoring",
    quiet: bool = True,
) -> Scores:
    """Runs a network on windows of tokens and keeps what it says of each next one.

    Args:
      net: Network whose output is logits [B, n, V], or holds them.
      windows: Tokens, [W, n], n at least 2.
      key: Random key for cores that draw at every call; batch i uses `fold_in(key, i)`.
      batch_size: Number of windows per call, at least 1; their logits are in memory together.
      output: Function from what the network returns to its logits; None where it returns them.
      cache: Makes an empty cache of (rows, tokens), such as `model.cache`: windows are then read
        through it, a token a call, as they would be written, so that what a cache loses
        (`js.code_cache`) counts. None reads a window in one call.
      checkpoints: Folder to write to and to go on from where a run was stopped; of this network and
        these windows only, by their bits and by the program of a call. None for none.
      label: Text before the progress bar.
      quiet: Show no progress bar.

    Raises:
      ValueError: Tokens outside the vocabulary, windows that the network does not take, outputs
        that are not logits, losses that are not finite, or checkpoints of another run.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> from jaxsim.evaluate.language import perplexity, score
      >>> net = js.trace(lambda p, x: p["w"][x], {"w": jnp.zeros((4, 4))}, jnp.ones((1, 2), int))
      >>> round(perplexity(score(net, [[0, 1, 2], [3, 3, 1]])).value, 4)
      4.0
    """
    size = checked_int("batch_size", batch_size, 1)
    rows = checked_rows("windows", windows, 2)
    one = () if cache is None else (cache(1, rows.shape[1]),)
    reader = output if cache is None else output or logits_and_cache
    rows = in_vocabulary("windows", rows, vocabulary_of(net, rows[:1], key, reader, *one))
    count, run = -(-len(rows) // size), dict[str, Any]()

    def inputs(i: int) -> tuple[Any, ...]:
        of_batch = None if key is None else jax.random.fold_in(key, i)
        some = jnp.asarray(rows[i * size : (i + 1) * size])
        empty = None if cache is None else cache(*some.shape)
        return net, some, of_batch, empty, reader

    def batches(done: int) -> Iterator[int]:
        return iter(range(done, count))

    def step(found: Scores, i: int) -> tuple[Scores, Any]:
        of_batch = jax.device_get(_scores(*inputs(i)))
        for whole, part in zip(found, of_batch, strict=True):
            whole[i * size : (i + 1) * size] = part
        return found, found.losses[: (i + 1) * size].mean()

    if checkpoints is not None:
        program, _ = program_digest(_scores, *inputs(0))
        run = {
            "network": run_digest(net),
            "windows": run_digest(rows, size),
            "key": run_digest(key),
            "program": program,
            "version of JAX": jax.__version__,
        }
    shape = (len(rows), rows.shape[1] - 1)
    found = resumable(
        step,
        Scores(np.zeros(shape, np.float32), np.zeros(shape, np.int32)),
        batches,
        steps=count,
        folder=checkpoints,
        run=run,
        every=_EVERY,
        with_content=lambda _, kept: Scores(*(np.array(part) for part in kept)),
        label=label,
        quiet=quiet,
    )
    if not np.isfinite(found.losses).all():
        at = np.argwhere(~np.isfinite(found.losses))[0].tolist()
        raise ValueError(f"net: the loss of window {at[0]}, token {at[1] + 1} is not finite")
    return found


@partial(jax.jit, static_argnames=("output",))
def _scores(
    net: Network,
    rows: Int[Array, "B n"],
    key: Key[Array, ""] | None,
    cache: Any,
    output: Reader | None,
) -> tuple[Float[Array, "B m"], Int[Array, "B m"]]:
    net = fix_text(net, key)
    if cache is None:
        logits = logits_of(net, key, output, rows)[:, :-1]
        return of_next(logits, rows[:, 1:])

    def step(cache: Any, at: tuple[Array, Array, Array]) -> Any:
        i, ids, following = at
        of_step = None if key is None else jax.random.fold_in(key, i)
        outputs = net(ids[:, None], cache, key=of_step)
        _, cache = outputs
        return cache, of_next(read(outputs)[:, 0], following)

    read = output or logits_and_cache
    # The first call makes of a cache what the others take.
    cache, first = step(cache, (jnp.int32(0), rows[:, 0], rows[:, 1]))
    n = rows.shape[1]
    rest = jnp.arange(1, n - 1), rows[:, 1:-1].T, rows[:, 2:].T
    _, later = lax.scan(step, cache, rest)
    losses, choices = (
        jnp.concatenate([a[:, None], b.T], 1) for a, b in zip(first, later, strict=True)
    )
    return losses, choices


def of_next(logits: Array, following: Array) -> tuple[Array, Array]:
    """Losses of the tokens that follow, and the most probable ones.

    Args:
      logits: Logits, [..., V].
      following: The tokens, [...].
    """
    logits = logits.astype(jnp.float32)
    own = jnp.take_along_axis(logits, following[..., None], -1)[..., 0]
    return jax.nn.logsumexp(logits, -1) - own, jnp.argmax(logits, -1).astype(jnp.int32)
