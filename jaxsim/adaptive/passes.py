"""Passes of many rows through a pyramid, in batches of like lengths."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from jaxsim.adaptive.pyramid import ExitOutputs, Pyramid
from jaxsim.adaptive.rule import Buckets, check_buckets, round_up


def pass_all(
    net: Pyramid,
    ids: Int[np.ndarray, "N n"],
    lengths: Int[np.ndarray, " N"],
    *,
    buckets: Buckets = Buckets(),  # noqa: B008
) -> ExitOutputs:
    """Computes what every exit returns for many rows, in batches of like lengths.

    Args:
      net: Pyramid.
      ids: Token ids [N, n], padded at the end.
      lengths: Number of tokens of each row, [N].
      buckets: Shapes to compile for.

    Raises:
      ValueError: Buckets out of range, or what `Pyramid.simulate` raises.
    """
    check_buckets(buckets)
    order, parts = np.argsort(lengths, kind="stable"), []
    for start in range(0, len(order), buckets.max_batch):
        rows = order[start : start + buckets.max_batch]
        filled = np.resize(rows, buckets.max_batch)
        n = bucket_length(lengths[filled], buckets, net)
        found = _forward(net, padded_ids(ids[filled], n), lengths[filled])
        parts.append([np.asarray(part)[: len(rows)] for part in found])
    back = np.argsort(order)
    return ExitOutputs(*(jnp.asarray(np.concatenate(c)[back]) for c in zip(*parts, strict=True)))


@jax.jit
def _forward(net: Pyramid, ids: Any, lengths: Any) -> ExitOutputs:
    return net.exit_outputs(ids, lengths)


def bucket_length(lengths: np.ndarray, buckets: Buckets, net: Pyramid) -> int:
    """Rounds the number of tokens of the longest row up to a bucket.

    Args:
      lengths: Number of tokens of each row.
      buckets: Shapes to compile for.
      net: Pyramid, whose positions bound the result.
    """
    return min(round_up(int(lengths.max()), buckets.token), net.encoder.positions)


def padded_ids(ids: np.ndarray, n: int) -> np.ndarray:
    """Cuts or pads rows to n tokens.

    Args:
      ids: Token ids [N, m].
      n: Number of tokens of the result.
    """
    return np.pad(ids, ((0, 0), (0, max(0, n - ids.shape[1]))))[:, :n]


def class_count(net: Pyramid) -> int:
    """Returns the number of classes of a pyramid's last layer.

    Args:
      net: Pyramid.
    """
    return net.encoder.head["bias"].shape[-1]
