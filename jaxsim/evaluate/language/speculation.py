"""Text that a small model drafts and a larger one checks: what the larger alone would write."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int, Key

from jaxsim.evaluate.language.window import (
    checked_rows,
    in_vocabulary,
    logits_and_cache,
    vocabulary_of,
)
from jaxsim.network.leaves import is_whole_number
from jaxsim.network.network import Network
from jaxsim.network.operands import fix_text
from jaxsim.numerics.checks import checked_int


class Speculation(NamedTuple):
    """What was written, and how much of it had been drafted.

    Attributes:
      tokens: Tokens, [B, count].
      checks: Number of calls of the network behind the prompt.
      accepted: Mean number of drafted tokens that a check let stand.

    Examples:
      >>> import numpy as np
      >>> from jaxsim.evaluate.language import Speculation
      >>> Speculation(np.array([[5, 9, 1, 2]]), checks=1, accepted=2.0).tokens.shape
      (1, 4)
    """

    tokens: Int[np.ndarray, "B count"]
    checks: int
    accepted: float


def speculate(
    net: Network,
    draft: Network,
    prompt: Any,
    cache: Any,
    draft_cache: Any,
    *,
    count: int,
    ahead: int = 4,
    end: int | None = None,
    key: Key[Array, ""] | None = None,
) -> Speculation:
    """Writes on from a prompt greedily: another network drafts tokens, and one call checks them.

    The tokens are those of `generate` with the network alone, up to rounding: products of several
    rows are summed in another order than those of one. All rows go as far as the one with the
    fewest right drafts. A draft of the network's own first layers
    (`jaxsim.models.llama.with_layers`) makes it self-speculation.

    Args:
      net: Network of tokens and a cache, as `generate` takes it.
      draft: Network of the same vocabulary that drafts.
      prompt: Tokens, [B, n], n at least 1.
      cache: Cache of the network, with room for n + count + ahead tokens. One whole number in it is
        its length, which goes back where drafts were wrong.
      draft_cache: Cache of the other, likewise.
      count: Number of tokens to write, at least 1.
      ahead: Number of tokens to draft for a check, at least 1.
      end: Token that ends a row, which then repeats it; None for rows of full length.
      key: Random key for cores that draw at every call.

    Raises:
      ValueError: As `generate` raises; networks of different vocabularies, or one that returns a
        cache without one whole number, such as that of `js.code_cache`.

    Examples:
      >>> import jax
      >>> import jaxsim as js
      >>> from jaxsim.models.llama import tiny, with_layers
      >>> model, ids = tiny(), jax.numpy.array([[1, 5, 9]])
      >>> params = model.init(jax.random.key(0), ids)["params"]
      >>> net = js.trace(model, {"params": params}, ids)
      >>> small, some = with_layers(model, params, [0])
      >>> draft = js.trace(small, {"params": some}, ids)
      >>> caches = model.cache(1, 16), small.cache(1, 16)
      >>> found = js.language.speculate(net, draft, ids, *caches, count=8)
      >>> bool((found.tokens == js.language.generate(net, ids, caches[0], count=8)).all())
      True

    Source: Leviathan et al. (2023), arXiv 2211.17192; Elhoushi et al. (2024), LayerSkip,
    arXiv 2404.16710.
    """
    steps, k = checked_int("count", count, 1), checked_int("ahead", ahead, 1)
    rows = checked_rows("prompt", prompt, 1)
    V = vocabulary_of(net, rows, key, logits_and_cache, cache)
    other = vocabulary_of(draft, rows, key, logits_and_cache, draft_cache)
    if other != V:
        raise ValueError(f"draft: logits of {other} tokens; must be of the network's {V}")
    rows = in_vocabulary("prompt", rows, V)
    last = -1 if end is None else checked_int("end", end, 0, V - 1)
    written, made, checks, finite = _speculate(
        net, draft, jnp.asarray(rows), cache, draft_cache, last, key, count=steps, ahead=k
    )
    if not finite:
        raise ValueError(
            f"cache, draft_cache: must have room for {rows.shape[1] + steps + k} tokens, or logits "
            "are not finite"
        )
    # The first token is of the prompt's call, and every check adds one of its own.
    accepted = (int(made) - 1 - int(checks)) / max(int(checks), 1)
    return Speculation(np.asarray(written), int(checks), accepted)


@partial(jax.jit, static_argnames=("count", "ahead"))
def _speculate(
    net: Network,
    draft: Network,
    prompt: Int[Array, "B n"],
    cache: Any,
    draft_cache: Any,
    end: Int[Array, ""],
    key: Key[Array, ""] | None,
    *,
    count: int,
    ahead: int,
) -> tuple[Int[Array, "B count"], Array, Array, Array]:
    B = len(prompt)
    net, draft = fix_text(net, key), fix_text(draft, key)

    def call(which: Network, i: Any, ids: Array, cache: Any) -> tuple[Array, Any, Array]:
        """The token behind each of `ids`, the cache behind them, and whether logits are finite."""
        of_call = None if key is None else jax.random.fold_in(key, i)
        logits, cache = which(ids, cache, key=of_call)
        return jnp.argmax(logits, -1).astype(jnp.int32), cache, jnp.isfinite(logits).all()

    def going(state: Any) -> Array:
        i, _, _, ended, finite, *_ = state
        return (i < count) & finite & ~ended.all()

    def step(state: Any) -> Any:
        i, last, written, ended, finite, checks, cache, draft_cache = state

        def drafted(state: Any, j: Array) -> Any:
            token, held = state
            token, held, fine = call(draft, 2 * (i * (ahead + 1) + j) + 1, token, held)
            return (token, held), (token[:, 0], fine)

        # One more than is checked: its call puts the last draft into the cache.
        (_, after), (drafts, fine) = lax.scan(
            drafted, (last[:, None], draft_cache), jnp.arange(ahead + 1)
        )
        drafts = drafts[:ahead].T
        said, checked, good = call(net, 2 * i, jnp.concatenate([last[:, None], drafts], 1), cache)
        said, ended_at = _with_end(said, ended, end)
        right = (drafts == said[:, :-1]) | ended_at[:, :-1]
        stand = jnp.min(jnp.sum(jnp.cumprod(right, 1), 1))
        written = lax.dynamic_update_slice(written, said, (0, i))
        more = stand + 1
        return (
            i + more,
            jnp.take(said, stand, axis=1),
            written,
            jnp.take(ended_at, stand, axis=1),
            finite & fine.all() & good,
            checks + 1,
            _set_back(checked, ahead - stand),
            _set_back(after, ahead - stand),
        )

    first, cache, finite = call(net, 2 * count, prompt, cache)
    _, draft_cache, fine = call(draft, 2 * count + 1, prompt, draft_cache)
    # A network may return another form of cache than it was given, such as one in codes.
    _check_length("cache", cache)
    _check_length("draft_cache", draft_cache)
    first = first[:, -1:]
    written = jnp.full((B, count + ahead + 1), end, jnp.int32).at[:, :1].set(first)
    state = (
        *(jnp.int32(1), first[:, 0], written, first[:, 0] == end, finite & fine),
        *(jnp.int32(0), cache, draft_cache),
    )
    i, _, written, ended, finite, checks, *_ = lax.while_loop(going, step, state)
    # What was written behind the last token that stands was a draft's.
    beyond = jnp.arange(count) >= i
    written = jnp.where(beyond & ended[:, None], end, written[:, :count])
    return written, i, checks, finite


def _with_end(said: Array, ended: Array, end: Array) -> tuple[Array, Array]:
    """Tokens of rows that repeat their end, and where rows have ended."""
    ends = jnp.cumsum(said == end, 1) > 0
    ended_at = ends | ended[:, None]
    return jnp.where(ended_at, end, said), ended_at


def _set_back(cache: Any, by: Array) -> Any:
    """A cache of fewer tokens; what lies behind them is written over."""
    return jax.tree.map(lambda leaf: leaf - by if is_whole_number(leaf) else leaf, cache)


def _check_length(name: str, cache: Any) -> None:
    found = sum(map(is_whole_number, jax.tree.leaves(cache)))
    if found != 1:
        raise ValueError(f"{name}: has {found} whole numbers; must have one, its length")
