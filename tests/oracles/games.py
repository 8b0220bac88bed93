"""Games by definition: loops, chains and grids in numpy."""

import numpy as np


def blotto(coins, fields):
    """Payoffs by enumeration of every split."""

    def splits(left, places):
        if places == 1:
            return [(left,)]
        return [(k, *rest) for k in range(left + 1) for rest in splits(left - k, places - 1)]

    every = splits(coins, fields)
    return np.array(
        [
            [np.sign(sum(np.sign(a - b) for a, b in zip(x, y, strict=True))) for y in every]
            for x in every
        ]
    )


def pennies(p, q, rounds):
    """Mean payoff to who wants equal pennies, by the tree of all histories of a round's four."""
    chances, total = {0: 1.0}, 0.0
    swapped = {0: 0, 1: 1, 2: 3, 3: 2, 4: 4}
    for _ in range(rounds):
        after = {}
        for state, chance in chances.items():
            for up in (1, 0):
                for their in (1, 0):
                    a = p[state] if up else 1 - p[state]
                    b = q[swapped[state]] if their else 1 - q[swapped[state]]
                    to = 1 + 2 * (1 - up) + (1 - their)
                    after[to] = after.get(to, 0) + chance * a * b
                    total += chance * a * b * (1 if up == their else -1)
        chances = after
    return total / rounds


def lotto(customers, mine, theirs):
    """Payoff with one softmax a customer over all servers."""
    (v, p), (w, q) = mine, theirs
    total = 0.0
    for c in customers:
        pull = np.exp([-np.hypot(*(c - s)) for s in (*v, *w)])
        pull /= pull.sum()
        total += pull[: len(v)] @ p - pull[len(v) :] @ q
    return total


def rps(means, sharpness, x, y):
    """Payoff of a point against another: cycle, and half of how much more it is felt."""
    K = len(means)
    p, q = (np.exp(-0.5 * sharpness * ((z - means) ** 2).sum(1)) for z in (x, y))
    total = 0.5 * (p.sum() - q.sum())
    for i in range(K):
        for step in range(1, K // 2 + 1):
            total -= p[i] * q[(i + step) % K]
            total += p[i] * q[(i - step) % K]
    return total
