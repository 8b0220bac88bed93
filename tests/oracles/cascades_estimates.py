"""The estimator and greedy cover, written out again with loops and float64."""

import numpy as np


def two_conditionals(s0, s1):
    """p from P(v active | u seed) and P(v active | u not), over cascades not started at v."""
    n = s0.shape[1]
    p = np.full((n, n), np.nan)
    for u in range(n):
        for v in range(n):
            rows = ~s0[:, v]
            on, off = rows & s0[:, u], rows & ~s0[:, u]
            if u == v or not on.any() or not off.any() or s1[off, v].mean() == 1:
                continue
            a1, a0 = s1[on, v].mean(), s1[off, v].mean()
            p[u, v] = (a1 - a0) / (1 - a0)
    return p


def with_seeding_rate(s0, s1):
    """p from (ap(v) - ap(v | u not)) / (q_u (1 - ap(v | u not))), q_u conditional on v no seed."""
    n = s0.shape[1]
    p = np.full((n, n), np.nan)
    for u in range(n):
        for v in range(n):
            rows = ~s0[:, v]
            q, off = s0[rows, u].mean(), rows & ~s0[:, u]
            if u == v or q in (0, 1) or s1[off, v].mean() == 1:
                continue
            a0 = s1[off, v].mean()
            p[u, v] = (s1[rows, v].mean() - a0) / (q * (1 - a0))
    return p


def greedy_cover(member, k):
    """Plain greedy maximum coverage; ties to the lowest index."""
    left = member.copy()
    seeds, gains = [], []
    for _ in range(k):
        gain = left.sum(1).astype(int)
        gain[seeds] = -1
        v = int(gain.argmax())
        seeds.append(v)
        gains.append(int(gain[v]))
        left &= ~left[v]
    return seeds, gains
