"""Passes of many rows through a network in stages, in batches of like lengths."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxsim.adaptive.rule import Buckets, check_buckets
from jaxsim.cores.partition import Partitioned
from jaxsim.staged.exits import features_and_logits, with_array_threshold
from jaxsim.staged.lengths import short_rows
from jaxsim.staged.rows import find_rows

if TYPE_CHECKING:
    from jaxsim.staged.network import Staged


def pass_all(
    net: Staged,
    arguments: Partitioned,
    read: Callable[[Staged, Partitioned, Any], Any],
    buckets: Buckets,
    key: Any,
) -> Any:
    """Computes something of all rows, a batch at a time, each a program for a number of tokens.

    Args:
      net: Network in stages.
      arguments: Arguments of a call, with any number of rows.
      read: `(net, arguments, key) -> tree`, compiled, of arrays with an entry a row in front.
      buckets: Its `max_batch` is the rows computed at once, or all where there are fewer, and its
        `token` what numbers of tokens are rounded up to.
      key: Random key for cores that draw, or None.

    Returns:
      The tree, its arrays with all rows in their order, on the host.

    Raises:
      ValueError: Buckets out of range, or what the network raises.
    """
    check_buckets(buckets)
    rows, batched = find_rows(arguments)
    lengths = short_rows(net, arguments, buckets.token)
    order = np.arange(rows)
    if lengths is not None:
        order = np.argsort(lengths.counts, kind="stable")
    net, size, parts = with_array_threshold(net), min(buckets.max_batch, rows), list[Any]()
    for start in range(0, rows, size):
        which = order[np.arange(start, start + size) % rows]  # as many in the last as in any
        pairs = zip(arguments.arrays, batched, strict=True)
        few = dataclasses.replace(
            arguments, arrays=tuple(a[which] if own else a for a, own in pairs)
        )
        few = few if lengths is None else lengths.cut(few, which)
        own_key = None if key is None else jax.random.fold_in(key, start)
        found = read(net, few, own_key)
        parts.append(jax.tree.map(lambda a, end=rows - start: np.asarray(a)[:end], found))
    back = np.argsort(order)
    return jax.tree.map(lambda *column: np.concatenate(column)[back], *parts)


def at_exits(net: Staged, arguments: Partitioned, batch_size: int, key: Any) -> list[Array]:
    """Computes what each classifier reads, [N, d], and the network's logits, [N, C].

    Args:
      net: Network with exits.
      arguments: Arguments of a call, with any number of rows.
      batch_size: Number of rows computed at once.
      key: Random key for cores that draw.
    """
    buckets = Buckets(batch=1, max_batch=batch_size)
    found = pass_all(net, arguments, features_and_logits, buckets, key)
    return [*map(jnp.asarray, found)]
