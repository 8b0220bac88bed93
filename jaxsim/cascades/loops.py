"""Loops over lists of unequal lengths, compiled for the host by numba: imported where they run.

Words are cut to 32 bits after each step: numba's own are of 64.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from jaxsim.cascades import skips
from jaxsim.cascades.bits import PLANES

STEPS, UNIT = skips.STEPS, skips.UNIT
REST = 23 - STEPS
FAR, GOLDEN, TURN = np.float32(skips.FAR), skips.GOLDEN, skips.TURN
FINE, HALF = np.float32(2.0**-24), np.float32(2.0**-25)
FULL = np.uint32(0xFFFFFFFF)
BLOCK = 256  # nodes whose largest gain is known together
TURNS = 4096  # turns whose words are worked out once for all sets


def _compiled(function: Callable[..., Any]) -> Any:
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # neither the package's folder nor the user's can be written to
        return numba.njit(nogil=True)(function)


@_compiled
def _mix(h: Any) -> Any:
    h = np.uint32(h ^ (h >> 16))
    h = np.uint32(h * 0x85EBCA6B)
    h = np.uint32(h ^ (h >> 13))
    h = np.uint32(h * 0xC2B2AE35)
    return np.uint32(h ^ (h >> 16))


@_compiled
def _turn_word(turn: Any, seed: Any) -> Any:
    return _mix(np.uint32(turn * TURN + seed))


@_compiled
def _skip(h: Any, rate: Any, table: Any) -> Any:
    """As `skips.skip`."""
    x = np.float32(np.int32(((h >> 9) << 1) | 1))
    word = np.uint32(x.view(np.int32))
    at = np.uint32((word >> REST) & ((1 << STEPS) - 1))  # a signed index would be one that may wrap
    rest = np.int32(word & ((1 << REST) - 1))
    low = table[at]
    rise = np.int32(table[np.uint32(at + 1)] - low)
    log = np.int32(((151 - np.int32(word >> 23)) << UNIT) - low - ((rise * rest) >> REST))
    return np.int64(min(np.float32(log) * rate, FAR))


@_compiled
def sample(
    start: Any,
    src: Any,
    rate: Any,
    share: Any,
    even: Any,
    table: Any,
    seed: Any,
    theta: int,
    most: int,
) -> Any:
    """Samples sets one after another.

    Args:
      start: In-edges of node v are `start[v]:start[v + 1]`.
      src: Tail of each edge.
      rate: Rate of each node's skips.
      share: An edge's probability over the largest of its head's.
      even: Nodes whose in-edges have one probability.
      table: Logarithms.
      seed: Random words.
      theta: Number of sets.
      most: Largest number of members in all.

    Returns:
      Members of all sets with room after them, where each set begins, and how many were made:
      fewer than `theta` where the members are too many.
    """
    n = len(start) - 1
    seen = np.empty(n, np.int32)
    for v in range(n):
        seen[v] = -1
    nodes = np.empty(4 * theta + n, np.int32)
    begins = np.empty(theta + 1, np.int64)
    begins[0] = 0
    first = np.empty(TURNS, np.uint32)
    second = np.empty(TURNS, np.uint32)
    for t in range(TURNS):
        first[t], second[t] = _turn_word(t, seed[1]), _turn_word(t, seed[2])
    used = 0
    for i in range(theta):
        if used > most:
            return nodes, begins, i
        if used + n > len(nodes):
            grown = np.empty(2 * len(nodes) + n, np.int32)
            for j in range(used):
                grown[j] = nodes[j]
            nodes = grown
        stream = _mix(np.uint32(i * GOLDEN) ^ seed[0])
        root = np.uint32((np.int64(_mix(stream ^ seed[3])) * n) >> 32)
        seen[root] = i
        nodes[used] = root
        head, used = used, used + 1
        turn = 0
        while head < used:
            v = np.uint32(nodes[head])
            head += 1
            edge, end = np.int64(start[v]), np.int64(start[np.uint32(v + 1)])
            pace, alike = rate[v], even[v]
            while True:
                word = first[turn] if turn < TURNS else _turn_word(turn, seed[1])
                edge += _skip(_mix(stream ^ word), pace, table)
                if edge >= end:
                    turn += 1
                    break
                live = True
                if not alike:
                    word = second[turn] if turn < TURNS else _turn_word(turn, seed[2])
                    h = _mix(stream ^ word)
                    live = np.float32(h >> 8) * FINE + HALF <= share[edge]
                turn += 1
                if live:
                    u = np.uint32(src[edge])
                    if seen[u] != i:
                        seen[u] = i
                        nodes[used] = u
                        used += 1
                edge += 1
        begins[i + 1] = used
    return nodes, begins, theta


@_compiled
def cover(nodes: Any, start: Any, n: int, k: int) -> Any:
    """Picks k nodes greedily; ties go to the lowest.

    Args:
      nodes: Members of all sets.
      start: Set i holds `nodes[start[i]:start[i + 1]]`.
      n: Number of nodes.
      k: Number of nodes to pick.

    Returns:
      Seeds, gains, and the most sets that any k nodes cover.
    """
    theta = len(start) - 1
    gain = np.zeros(n, np.int32)
    for j in range(start[theta]):
        gain[nodes[j]] += 1
    at_first = _largest(gain, k)
    at = np.empty(n + 1, np.int64)
    fill = np.empty(n, np.int64)
    at[0] = 0
    for v in range(n):
        fill[v] = at[v]
        at[v + 1] = at[v] + gain[v]
    inside = np.empty(start[theta], np.int32)
    for i in range(theta):
        for j in range(start[i], start[i + 1]):
            v = nodes[j]
            inside[fill[v]] = i
            fill[v] += 1

    # Gains only shrink, so that what a block's largest one was bounds what it is.
    blocks = (n + BLOCK - 1) // BLOCK
    bound = np.empty(blocks, np.int32)
    for b in range(blocks):
        bound[b] = _at_largest(gain, b * BLOCK, min((b + 1) * BLOCK, n))[1]
    covered = np.zeros(theta, np.bool_)
    seeds = np.empty(k, np.int32)
    gains = np.empty(k, np.int32)
    total = 0
    for pick in range(k):
        while True:
            b, hoped = _at_largest(bound, 0, blocks)
            v, most = _at_largest(gain, b * BLOCK, min((b + 1) * BLOCK, n))
            if most == hoped:
                break
            bound[b] = most
        seeds[pick], gains[pick] = v, most
        total += most
        for j in range(at[v], at[v + 1]):
            i = inside[j]
            if not covered[i]:
                covered[i] = True
                for m in range(start[i], start[i + 1]):
                    gain[nodes[m]] -= 1
        gain[v] = -1  # is not picked again
    return seeds, gains, min(total + _largest(gain, k), at_first, theta)


@_compiled
def _at_largest(counts: Any, first: int, last: int) -> Any:
    """The first place of the largest count there is in a range, and the count."""
    most = counts[first]
    for i in range(first + 1, last):
        most = max(most, counts[i])  # apart from the place, so that it is vectorized
    at = first
    while counts[at] != most:
        at += 1
    return at, most


@_compiled
def _largest(counts: Any, k: int) -> Any:
    """The sum of the k largest of the counts above zero."""
    most = max(_at_largest(counts, 0, len(counts))[1], 0)
    number = np.zeros(most + 1, np.int64)
    for c in counts:
        number[max(c, 0)] += 1
    total, left = 0, k
    for c in range(most, 0, -1):
        taken = min(left, number[c])
        total += taken * c
        left -= taken
    return total


@_compiled
def count_hit(nodes: Any, start: Any, chosen: Any) -> Any:
    """Counts the sets that hold a chosen node.

    Args:
      nodes: Members of all sets.
      start: Set i holds `nodes[start[i]:start[i + 1]]`.
      chosen: A flag for each node.

    Returns:
      Their number.
    """
    total = 0
    for i in range(len(start) - 1):
        for j in range(start[i], start[i + 1]):
            if chosen[nodes[j]]:
                total += 1
                break
    return total


@_compiled
def cascade(
    start: Any, head: Any, base: Any, high: Any, low: Any, seeds: Any, salts: Any, sizes: Any
) -> Any:
    """Runs cascades to their end, 32 at a time, flipping the coins of those that need them.

    Args:
      start: Out-edges of node v are `start[v]:start[v + 1]`.
      head: Head of each edge.
      base: Hash of each edge, as in `bits.bernoulli`.
      high: Upper 16 bits of each edge's threshold.
      low: Bits below these.
      seeds: Distinct nodes.
      salts: A row of random words for each 32 simulations.
      sizes: Rows of 32 zeros, to which the final sizes are written.

    Returns:
      Visits of edges, and the most rounds that any 32 simulations took.
    """
    n = len(start) - 1
    active = np.zeros(n, np.uint32)
    news = np.zeros(n, np.uint32)  # active there since the node was last visited
    queue = np.empty(n, np.int32)  # nodes that have news, in a ring
    touched = np.empty(n, np.int32)
    salt = np.empty(PLANES + 1, np.uint32)
    visits, most = 0, 0
    for w in range(len(salts)):
        for i in range(PLANES + 1):
            salt[i] = salts[w, i]
        first, waiting, reached = 0, len(seeds), len(seeds)
        for j in range(len(seeds)):
            active[seeds[j]] = news[seeds[j]] = FULL
            queue[j] = touched[j] = seeds[j]
        rounds, left = 0, 0
        while waiting > 0:
            if left == 0:
                rounds, left = rounds + 1, waiting
            u = np.uint32(queue[np.uint32(first)])
            first = first + 1 if first + 1 < n else 0
            waiting, left = waiting - 1, left - 1
            sent, news[u] = news[u], np.uint32(0)
            for e in range(start[u], start[np.uint32(u + 1)]):
                v = np.uint32(head[np.uint32(e)])
                had = active[v]
                due = np.uint32(sent & ~had)
                if due == 0:
                    continue
                visits += 1
                live = _flip(due, base[np.uint32(e)], high[np.uint32(e)], low[np.uint32(e)], salt)
                if live == 0:
                    continue
                if had == 0:
                    touched[reached] = v
                    reached += 1
                active[v] = np.uint32(had | live)
                if news[v] == 0:
                    last = first + waiting
                    queue[np.uint32(last if last < n else last - n)] = v
                    waiting += 1
                news[v] = np.uint32(news[v] | live)
        most = max(most, rounds)
        for j in range(reached):
            v = np.uint32(touched[j])
            ends, active[v] = active[v], np.uint32(0)
            for i in range(32):
                sizes[w, i] += np.int32((ends >> i) & 1)
    return visits, most


@_compiled
def _flip(due: Any, base: Any, high: Any, low: Any, salt: Any) -> Any:
    """The coins of `bits.bernoulli` that are due, from the bit that decides half of them."""
    live = np.uint32(0)
    i = PLANES - 1
    while i > 0:
        for _ in range(4):  # a branch for every bit would be guessed wrong more often
            r = _mix(base ^ salt[np.uint32(i)])
            bit = np.uint32(-((high >> i) & 1))
            live = np.uint32(live | (due & r & bit))
            due = np.uint32(due & (r ^ bit))
            i -= 1
        if due == 0:
            return live
    if (_mix(base ^ salt[PLANES]) >> 24) < low:
        live = np.uint32(live | due)
    return live
