"""Tokens a second of language models on this machine, several timed in turn."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

from jaxtyping import Array, Key

from jaxsim.console.timing import alternate
from jaxsim.evaluate.language.window import checked_rows
from jaxsim.evaluate.language.writing import generate
from jaxsim.network.network import Network
from jaxsim.numerics.checks import checked_int


class Speed(NamedTuple):
    """Tokens a second of one network.

    Attributes:
      read: Tokens of the prompt a second, with the first token written.
      written: Tokens a second that are written one after the other behind it, in all rows.
      first: Seconds of the first call that reads the prompt and writes all, compilation included.

    Examples:
      >>> from jaxsim.evaluate.language import Speed
      >>> Speed(read=900.0, written=25.0, first=3.1).written
      25.0
    """

    read: float
    written: float
    first: float


def speed(
    networks: Mapping[str, Network],
    prompt: Any,
    cache: Any,
    *,
    count: int = 32,
    key: Key[Array, ""] | None = None,
    runs: int = 5,
) -> dict[str, Speed]:
    """Times how fast networks read a prompt and write on from it greedily, all of them in turn.

    Args:
      networks: Networks that `generate` takes, by name.
      prompt: Tokens, [B, n].
      cache: Cache to begin with, which has room for n + count tokens.
      count: Number of tokens to write, at least 2.
      key: Random key for cores that draw at every call.
      runs: Number of warm rounds, at least 5; medians count.

    Raises:
      ValueError: As `generate` raises, or a number out of range.

    Examples:
      >>> import jax
      >>> import jaxsim as js
      >>> from jaxsim.evaluate.language import speed
      >>> from jaxsim.models.llama import tiny
      >>> model, ids = tiny(), jax.numpy.array([[1, 5, 9]])
      >>> net = js.trace(model, model.init(jax.random.key(0), ids), ids)
      >>> speed({"float": net}, ids, model.cache(1, 16), count=8)["float"].written > 0
      True
    """
    steps, size = checked_int("count", count, 2), checked_rows("prompt", prompt, 1).size
    calls = {
        (name, n): partial(generate, net, prompt, cache, count=n, key=key)
        for name, net in networks.items()
        for n in (1, steps)
    }
    times = alternate({str(i): call for i, call in enumerate(calls.values())}, runs=runs)
    taken = dict(zip(calls, times.values(), strict=True))
    found: dict[str, Speed] = {}
    for name in networks:
        one, all_ = taken[name, 1], taken[name, steps]
        later = len(prompt) * (steps - 1) / max(all_.median - one.median, 1e-9)
        found[name] = Speed(size / one.median, later, all_.first)
    return found
