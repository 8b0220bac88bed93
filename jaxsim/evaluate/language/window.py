"""Windows of tokens, and checks of tokens against a network."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxsim.network.network import Network
from jaxsim.numerics.checks import checked_int

Reader = Callable[[Any], Array]
"""A function from what a network returns to its logits, [B, n, V]."""


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


def logits_of(net: Network, key: Any, output: Reader | None, *args: Any) -> Array:
    """Calls a network on rows of tokens and checks that its logits are one vector a token.

    Args:
      net: Network of tokens.
      key: Random key of the call, or None.
      output: Function from what it returns to its logits; None where it returns them.
      *args: Tokens [B, n], and what else the network takes.

    Raises:
      ValueError: Outputs of another form.
    """
    outputs = net(*args, key=key)
    logits = outputs if output is None else output(outputs)
    if not isinstance(logits, jax.Array) or logits.shape[:-1] != args[0].shape:
        shown = list(logits.shape) if isinstance(logits, jax.Array) else type(logits).__name__
        raise ValueError(f"net: outputs must be logits {[*args[0].shape, 'V']}, got {shown}")
    return logits


def logits_and_cache(outputs: Any) -> Array:
    """Logits of a call with a cache, which returns them and the next cache.

    Args:
      outputs: What the network returned.

    Raises:
      ValueError: Something else.
    """
    if not isinstance(outputs, tuple) or len(outputs) != 2:
        raise ValueError(
            f"net: with a cache must return logits and the next cache, got {type(outputs).__name__}"
        )
    return outputs[0]


def vocabulary_of(
    net: Network, rows: np.ndarray, key: Any, output: Reader | None, *more: Any
) -> int:
    """Finds the number of tokens that logits are of, without computing any.

    Args:
      net: Network of tokens.
      rows: Tokens [B, n].
      key: Random key of the call, or None.
      output: Function from what it returns to its logits; None where it returns them.
      *more: What else the network takes.

    Raises:
      ValueError: Outputs that are no logits.
    """
    ids = jax.ShapeDtypeStruct(rows.shape, jnp.int32)
    return jax.eval_shape(partial(logits_of, net, key, output), ids, *more).shape[-1]


def checked_rows(name: str, tokens: Any, shortest: int) -> np.ndarray:
    """Checks that tokens are rows of whole numbers.

    Args:
      name: Name of the argument, for the error.
      tokens: Tokens, [B, n].
      shortest: Least n.

    Raises:
      ValueError: They are something else.
    """
    rows = np.asarray(tokens)
    if rows.ndim != 2 or rows.dtype.kind not in "iu" or not len(rows) or rows.shape[1] < shortest:
        raise ValueError(
            f"{name}{list(rows.shape)} of {rows.dtype}: must be rows of at least {shortest} tokens "
            "as whole numbers"
        )
    return rows


def in_vocabulary(name: str, rows: np.ndarray, vocabulary: int) -> Int[np.ndarray, "B n"]:
    """Checks that a network knows all tokens.

    Args:
      name: Name of the argument, for the error.
      rows: Tokens, [B, n].
      vocabulary: Number of tokens that there are.

    Raises:
      ValueError: It does not; the message has the first one.
    """
    wrong = np.argwhere((rows < 0) | (rows >= vocabulary))
    if len(wrong):
        row, place = wrong[0].tolist()
        raise ValueError(
            f"{name}[{row}, {place}]={rows[row, place]}: must be a token from 0 to {vocabulary - 1}"
        )
    return rows.astype(np.int32)
