"""Bits that come into a level of memory, by loading one block after the other."""

import math


def fetched(x, w, size):
    """Bits of two operands that meet in a level which holds `size`, half of it for each.

    One operand is held a block of half the level at a time; for each block the whole other one
    streams past. An operand that is one block is never loaded twice. The better of the two orders.
    """
    if size is None:
        return x + w
    found = []
    for held, streamed in ((x, w), (w, x)):
        loaded = 0.0
        blocks = max(math.ceil(held / (size / 2)), 1)
        for block in range(blocks):
            loaded += min(size / 2, held - block * size / 2)
            loaded += streamed
        found.append(loaded)
    return min(found)


def moves(work, spent, levels, weights):
    """Reads and writes at each level of one call, as `[(read, written)]`, the nearest first.

    Args:
      work: Sizes and widths by name: `x`, `w`, `y` bits of one execution, `runs`, `copies`.
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
                bits = fetched(x, w, levels[i])
                found[i + 1][0] += bits
                found[i][1] += bits
            if home > i:
                found[i][0] += work["y"]
                found[i + 1][1] += work["y"]
    return [tuple(level) for level in found]
