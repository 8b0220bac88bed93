"""Many rows through a pyramid, in batches of like lengths."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from jaxsim.adaptive.pyramid import Passed, Pyramid
from jaxsim.adaptive.rule import Buckets, check_buckets, rounded_up


def pass_all(
    net: Pyramid,
    ids: Int[np.ndarray, "N n"],
    lengths: Int[np.ndarray, " N"],
    *,
    buckets: Buckets = Buckets(),  # noqa: B008
) -> Passed:
    """What every exit says of many rows, in batches of like lengths.

    Args:
      net: the pyramid.
      ids: of the tokens, padded behind.
      lengths: how many of each row are there.
      buckets: shapes to compile for.

    Raises:
      ValueError: labels that are no classes or of another number, or what `Pyramid.simulate`
        raises.
    """
    check_buckets(buckets)
    order, parts = np.argsort(lengths, kind="stable"), []
    for start in range(0, len(order), buckets.max_batch):
        rows = order[start : start + buckets.max_batch]
        filled = np.resize(rows, buckets.max_batch)
        n = bucket_length(lengths[filled], buckets, net)
        found = _passed(net, padded_ids(ids[filled], n), lengths[filled])
        parts.append([np.asarray(part)[: len(rows)] for part in found])
    back = np.argsort(order)
    return Passed(*(jnp.asarray(np.concatenate(c)[back]) for c in zip(*parts, strict=True)))


@jax.jit
def _passed(net: Pyramid, ids: Any, lengths: Any) -> Passed:
    return net.passed(ids, lengths)


def bucket_length(lengths: np.ndarray, buckets: Buckets, net: Pyramid) -> int:
    """Tokens of a batch of rows, as many as the longest has, rounded up to a bucket."""
    return min(rounded_up(int(lengths.max()), buckets.token), net.encoder.positions)


def padded_ids(ids: np.ndarray, n: int) -> np.ndarray:
    """Rows cut or padded to n tokens."""
    return np.pad(ids, ((0, 0), (0, max(0, n - ids.shape[1]))))[:, :n]


def class_count(net: Pyramid) -> int:
    """Number of classes of a pyramid's last layer."""
    return net.encoder.head["bias"].shape[-1]
