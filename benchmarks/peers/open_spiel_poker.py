"""Policies of poker for OpenSpiel's C++."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Array


def tabular_policy(named: Any, policies: Sequence[Array]) -> Any:
    """OpenSpiel's policy of both players.

    Args:
      named: a sequence game and the names of its information sets.
      policies: probabilities of actions, [information sets, actions] for each player.
    """
    import pyspiel

    table = {}
    for seat, names, policy in zip(named.game, named.infosets, policies, strict=True):
        legal = np.concatenate([np.asarray(a) for a in seat.legal])
        for n, row, can in zip(names, np.asarray(policy, float), legal, strict=True):
            table[n] = [(a, p) for a, p in enumerate(row) if can[a]]
    return pyspiel.TabularPolicy(table)
