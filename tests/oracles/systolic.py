"""What a systolic array spends, counted tile by tile from its definition in docs/blocked.md.

Nothing is multiplied that can be walked through: each group, each tile of outputs, and each element
of the tile is counted by itself, ragged tiles at the edges as they are.
"""

import itertools

# Horowitz, "Computing's energy problem (and what we can do about it)", ISSCC 2014, figure 1.1.9:
# 45 nm CMOS at 0.9 V. 8-bit integer multiply 0.2 pJ, 32-bit integer add 0.1 pJ, 64 bits of a cache
# of 32 KB 20 pJ, 64 bits of DRAM 1.3 to 2.6 nJ.
HOROWITZ = {"multiply": 0.2 / 64, "add": 0.1 / 32, "sram": 20 / 64, "dram": 1300 / 64}


def spent(
    matmul,
    runs,
    *,
    rows,
    columns,
    multiply,
    add,
    sram,
    dram,
    accumulator,
    shifter,
    port,
    weight_loads,
    kept=1.0,
    bits=(8, 8),
    products=1,
    width=8,
    dynamic=False,
    blocked=False,
):
    """Energies in pJ, cycles and moved bits of `runs` times B products [M, K] @ [K, N].

    Args:
      bits: that an input and a weight take in the buffers, block index included.
      products: of blocks of `width` bits for one product of codes.
      dynamic: products of blocks are shifted by an index.
      blocked: results are cut to blocks.
      The rest are the array's fields, by name.
    """
    B, M, K, N = matmul
    counts = {"macs": 0.0, "x": 0, "w": 0, "y": 0, "steps": 0, "stored": 0}
    for _ in itertools.product(range(runs), range(B)):
        counts["stored"] += K * N
        for m, n in itertools.product(range(0, M, rows), range(0, N, columns)):
            height, breadth = min(rows, M - m), min(columns, N - n)
            counts["x"] += height * K  # the tile's inputs stream in from one side
            counts["w"] += breadth * K  # and its weights from the other
            counts["y"] += height * breadth
            counts["steps"] += K * products  # every element takes the products of its output
            counts["macs"] += kept * height * breadth * K
    # A sparse weight costs a bit to say whether it is there; where that is no gain it is dense.
    weight = bits[1] if kept == 1 else min(bits[1], 1 + kept * bits[1])
    multipliers = max(1, 8 * 8 // (width * width))  # that take the area of one of 8 by 8 bits
    operands = counts["x"] * bits[0] + counts["w"] * weight
    moved = operands + 8 * counts["y"]
    shifted = (shifter * counts["macs"] if dynamic else 0) + (8 * counts["y"] if blocked else 0)
    return {
        "multiply": counts["macs"] * products * width * width * multiply,
        "add": counts["macs"] * ((products - 1) * (2 * width) + accumulator) * add,
        "shift": shifted * add,
        "sram": moved * sram,
        "dram": weight_loads * counts["stored"] * weight * dram,
        "cycles": max(counts["steps"] / multipliers, operands / (rows * port + columns * port)),
        "bits": moved,
    }
