"""Rows of like lengths computed together, in the shapes that `run` has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxsim.adaptive.rule import round_up


def like_lengths(
    call: Callable[[np.ndarray, np.ndarray], Any], ids: np.ndarray, lengths: np.ndarray
) -> np.ndarray:
    """What a function of ids and lengths gives for all rows, in their order.

    Up to 64 rows at a time in a multiple of 8, padded to a multiple of 16 tokens.
    """
    order, parts = np.argsort(lengths, kind="stable"), list[np.ndarray]()
    for start in range(0, len(order), 64):
        rows = order[start : start + 64]
        filled = np.resize(rows, round_up(len(rows), 8))
        n = round_up(int(lengths[filled].max()), 16)
        padded = np.pad(ids[filled], ((0, 0), (0, max(0, n - ids.shape[1]))))[:, :n]
        parts.append(np.asarray(call(padded, lengths[filled]))[: len(rows)])
    return np.concatenate(parts)[np.argsort(order)]
