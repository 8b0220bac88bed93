"""What cells draw, from codes alone, in numpy: one cell, one digit, one input after the other."""

import itertools

import numpy as np

from tests.oracles.crossbar import digits


def mean(x, w, *, slice_bits=None, input_bits=None, pair=True, empty=0.0):
    """Mean of conductance times squared drive over all cells and reads.

    Args:
      x: Input codes [M, K] in [-127, 127].
      w: Weight codes [K, N] in [-127, 127].
      slice_bits: Magnitude bits of a cell; None for all of them.
      input_bits: Bits of a digit; None for all of them.
      pair: Whether a code is a pair of cells; else it is moved up by 127.
      empty: Conductance of an empty cell.
    """
    codes = [np.maximum(w, 0), np.maximum(-w, 0)] if pair else [w + 127]
    largest = 127 if pair else 254
    width = largest.bit_length()
    cells = []
    for part in codes:
        if slice_bits is None:
            cells.append(part / largest)
            continue
        for i, digit in enumerate(digits(part, slice_bits, width)):
            top = min(2**slice_bits - 1, largest >> (slice_bits * i))
            cells.append(digit / top)
    drives = [x / 127]
    if input_bits is not None:
        drives = [d / (2**input_bits - 1) for d in digits(x, input_bits, 7)]
    power, reads = 0.0, 0
    for g, v in itertools.product(cells, drives):
        g = empty + (1 - empty) * g
        for row, column in itertools.product(v, g.T):
            power += float(np.sum(column * row**2))
            reads += len(column)
    return power / reads
