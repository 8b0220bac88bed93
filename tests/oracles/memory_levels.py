"""Bits that come into a level of memory, by loading one block after the other."""

import math


def fetched(x, w, sums, size):
    """Bits of two operands that meet in a level which holds `size`, and of sums taken up again.

    One operand, or the sums that it makes, is held a block of half the level at a time; for each
    block the whole other one streams past. An operand that is one block is never loaded twice.
    Where sums are held, slices of both operands come into the other half, one after the other, and
    all sums of the block are written and read between two slices. The best order.
    """
    if size is None or x <= size / 2 or w <= size / 2:
        return x + w, 0
    found = []
    for held, streamed in ((x, w), (w, x)):
        for whole, spills in ((held, False), (sums, True)):
            loaded = spilled = 0.0
            blocks = max(math.ceil(whole / (size / 2)), 1)
            for _ in range(blocks):
                mine = held / blocks + streamed
                loaded += mine
                while spills and mine > size / 2:
                    mine -= size / 2
                    spilled += sums / blocks
            found.append((round(loaded, 6), round(spilled, 6)))
    return min(found)


def moves(work, spent, levels, weights):
    """Reads and writes at each level of one call, as `[(read, written)]`, the nearest first.

    Args:
      work: By name: `x`, `w`, `y` and `sums`, bits of one execution; `runs`, `copies`.
      spent: Bits of the part: `inputs`, `weights`, `sums`, `results`, of all executions.
      levels: Size of each level, None for any.
      weights: Position of the level in which weights lie.
    """
    found = [[0.0, 0.0] for _ in levels]
    found[0][0] += spent["inputs"] + spent["weights"] + spent["sums"]
    found[0][1] += spent["results"] + spent["sums"]
    held = work["x"] + work["y"] + (0 if work["copies"] else work["w"])
    home = 0
    while home < len(levels) - 1 and levels[home] is not None and held > levels[home]:
        home += 1
    place = weights if work["copies"] else home
    for _ in range(work["runs"]):
        for i in range(len(levels) - 1):
            x = work["x"] if home > i else 0
            w = work["w"] if place > i else 0
            if x or w:
                bits, spilled = fetched(x, w, work["sums"], levels[i])
                found[i + 1][0] += bits
                found[i][0] += spilled
                found[i][1] += bits + spilled
            if home > i:
                found[i][0] += work["y"]
                found[i + 1][1] += work["y"]
    return [tuple(level) for level in found]
