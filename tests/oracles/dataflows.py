"""A systolic array stepped through, element by element and cycle by cycle.

Operands enter askew: the one of row r a cycle after that of row r - 1, and each moves on by one
element a cycle. What an element does in a cycle follows from that alone, no formula is used.
"""

import itertools
import math

# Dimensions of a product that lie along the rows and the columns of the array, and the one that
# passes in time.
PLACES = {"output": ("M", "N", "K"), "weight": ("K", "N", "M"), "input": ("K", "M", "N")}


def cycles(matmul, rows, columns, dataflow):
    """Cycles of B products [M, K] @ [K, N], one tile of the array after the other.

    A tile at the edge passes through the whole array: its operands leave at the same ends.
    """
    B, *sizes = matmul
    size = dict(zip("MKN", sizes, strict=True))
    down, across, time = (size[name] for name in PLACES[dataflow])
    total = 0
    for _ in itertools.product(
        range(B), range(math.ceil(down / rows)), range(math.ceil(across / columns))
    ):
        now = 0
        if dataflow != "output":  # what stays is shifted in, a row a cycle
            now += rows
        last = now
        for r, c, t in itertools.product(range(rows), range(columns), range(time)):
            last = max(last, now + r + c + t + 1)
        total += last
    return total


def traffic(matmul, rows, columns, dataflow):
    """Entries of inputs, weights and unfinished sums that cross the edges, walked tile by tile."""
    B, M, K, N = matmul
    size = {"M": M, "K": K, "N": N}
    along, beside, through = PLACES[dataflow]
    counts = {"inputs": 0, "weights": 0, "sums": 0, "results": 0}
    operands = {"inputs": ("M", "K"), "weights": ("K", "N")}
    for _ in range(B):
        for a in range(0, size[along], rows):
            for b in range(0, size[beside], columns):
                tile = {
                    along: min(rows, size[along] - a),
                    beside: min(columns, size[beside] - b),
                    through: size[through],
                }
                for name, (one, other) in operands.items():
                    counts[name] += tile[one] * tile[other]
                made = tile["M"] * tile["N"]
                finished = along != "K" or a + rows >= K
                counts["results" if finished else "sums"] += made
    return counts
