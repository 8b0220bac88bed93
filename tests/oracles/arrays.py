"""What analog arrays spend, counted array by array from its definition in docs/analog.md."""

import itertools
import math

# Ankit et al., "PUMA", ASPLOS 2019: include/constants.py of its simulator, which takes the figures
# of ISAAC (Shafiee et al., ISCA 2016) at 32 nm. In mW, ns and mm²: an array of 128 × 128 cells
# takes 0.3 and 2.5e-5 and is read in 100; a row's driver takes 0.00350625 dynamic and 0.000390625
# of leakage, 3.9e-3 in all, and 1.67e-7; a converter of 8 bits 1.8 and 0.2, 100, and 0.0012.
PUMA = {
    "adc": 1.5625,  # pJ: 2 mW · 100 ns = 200 pJ for the 128 columns it converts in that time
    "adc_area": 1200.0,  # µm²
    "dac": 0.39,  # pJ: 3.9 µW · 100 ns
    "dac_area": 0.167,  # µm²
    "cell": 0.0018310546875,  # pJ: 0.3 mW · 100 ns = 30 pJ for 16384 cells
    "cell_area": 0.00152587890625,  # µm²: 25 µm² for 16384 cells
}


def spent(
    matmul,
    runs,
    copies,
    *,
    adc_bits,
    array,
    rows=None,
    slices=1,
    digits=1,
    apart=True,
    pair=True,
):
    """Counts, energies in pJ and area in µm² of `runs` times B products [M, K] @ [K, N].

    Args:
      copies: Weights that are stored beside one another.
      adc_bits: Resolution of the converters; None where there are none.
      array: The model's constants by name, with `reference_bits`, of which `adc` is the energy, and
        `columns_per_adc`.
      rows: Most rows of an array.
      slices: Of a weight.
      digits: Of an input, converted one by one where `apart`.
      pair: Whether a weight is a pair of cells, subtracted before the converter.
    """
    B, M, K, N = matmul
    tiles = 1 if rows is None else math.ceil(K / rows)
    height = math.ceil(K / tiles)
    reads = conversions = drives = cells = columns = drivers = 0
    for _ in range(B):
        drivers += K
        for _, _ in itertools.product(range(tiles), range(slices)):
            columns += N
            cells += (2 if pair else 1) * height * N
    for _ in itertools.product(range(runs), range(M), range(digits)):
        reads += cells
        drives += drivers
    for _ in itertools.product(range(runs), range(M), range(digits if apart else 1)):
        conversions += columns
    converted = adc_bits is not None
    each = array["adc"] * 2.0 ** (adc_bits - array["reference_bits"]) if converted else 0.0
    converters = columns / array["columns_per_adc"] if converted else 0.0
    one = cells * array["cell_area"] + drivers * array["dac_area"] + converters * array["adc_area"]
    return {
        "conversions": conversions if converted else 0,
        "drives": drives,
        "adc": conversions * each,
        "dac": drives * array["dac"],
        "cells": reads * array["cell"],
        "area": copies * one,
    }
