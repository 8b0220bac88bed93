"""Sequence-form games by brute force: linear programs, and histories one by one."""

import numpy as np
from scipy.optimize import linprog


def dense_payoffs(game):
    """Payoff to player 0 of each pair of sequences, times chance: mostly zeros."""
    seat = game.first
    out = np.zeros((len(seat.values), len(game.second.values)))
    rows = np.broadcast_to(np.arange(len(out))[:, None], seat.opposite.shape)
    np.add.at(out, (rows, np.asarray(seat.opposite)), np.asarray(seat.values, float))
    return out


def constraints(seat):
    """E and e of E·plan = e, which with plan ≥ 0 says what a plan is; illegal sequences are 0.

    Returns:
      E and e; one row for the first sequence, one an infoset, one an illegal sequence.
    """
    legal = np.concatenate([np.asarray(a) for a in seat.legal])
    infosets, width = legal.shape
    E = np.zeros((1 + infosets, 1 + legal.size))
    E[0, 0] = 1
    i, above = 0, 0
    for level, parents in enumerate(seat.parents):
        for parent in np.asarray(parents):
            E[1 + i, 0 if level == 0 else above + int(parent)] = -1
            E[1 + i, 1 + i * width : 1 + (i + 1) * width] = 1
            i += 1
        above = 1 + (i - len(parents)) * width
    unplayed = np.eye(1 + legal.size)[1 + np.flatnonzero(~legal)]
    e = np.zeros(len(E) + len(unplayed))
    e[0] = 1
    return np.concatenate([E, unplayed]), e


def equilibrium(game):
    """Value to player 0 and a plan of each player that no other plan improves on.

    Source: Koller, Megiddo and von Stengel (1996), doi 10.1006/game.1996.0051.
    """
    A = dense_payoffs(game)
    (E, e), (F, f) = map(constraints, game)
    plans, values = [], []
    for payoff, mine, own, theirs, other in ((A, E, e, F, f), (-A.T, F, f, E, e)):
        # max other.y  with  theirs.T y <= payoff.T x,  mine x = own,  x >= 0
        n = payoff.shape[0]
        found = linprog(
            np.append(np.zeros(n), -other),
            A_ub=np.concatenate([-payoff.T, theirs.T], 1),
            b_ub=np.zeros(payoff.shape[1]),
            A_eq=np.concatenate([mine, np.zeros((len(mine), len(other)))], 1),
            b_eq=own,
            bounds=[(0, None)] * n + [(None, None)] * len(other),
            method="highs",
        )
        assert found.status == 0, found.message
        plans.append(found.x[:n])
        values.append(-found.fun)
    assert abs(sum(values)) < 1e-8
    return values[0], plans
