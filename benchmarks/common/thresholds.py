"""Early exits at many thresholds, their stages computed once."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

import jaxsim as js
from jaxsim.staged.network import Staged


def at_thresholds(
    net: Staged, inputs: tuple[np.ndarray, ...], thresholds: Any, *, rows: int = 1000
) -> js.Exits:
    """Runs a network at each threshold, thresholds in front, so many rows at a time."""
    thresholds = np.asarray(thresholds, np.float32)
    parts = [
        _at_thresholds(net, tuple(a[i : i + rows] for a in inputs), thresholds)
        for i in range(0, len(inputs[0]), rows)
    ]
    return jax.tree.map(lambda *columns: np.concatenate(columns, 1), *parts)


@jax.jit
def _at_thresholds(net: Staged, inputs: Any, thresholds: Any) -> js.Exits:
    """The stages do not depend on the threshold and are computed once for all."""

    def at(threshold: Any) -> js.Exits:
        return dataclasses.replace(net, threshold=threshold).simulate(*inputs)

    return jax.vmap(at)(thresholds)
