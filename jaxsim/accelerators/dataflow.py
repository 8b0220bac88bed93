"""Dataflows of a systolic array: what stays in its elements, what passes, and for how long."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

Dataflow = Literal["output", "weight", "input"]
"""What stays in the elements: sums, weights or inputs."""


class Tiling(NamedTuple):
    """Counts of a product on an array, in entries and cycles.

    Attributes:
      folds: Number of tiles that the array takes one after the other.
      steps: Cycles in which a tile's operands pass through one element.
      fill: Cycles of filling and draining a tile.
      inputs, weights: Entries of either operand that the array reads.
      sums: Partial sums that leave the array unfinished, and enter it again.
      results: Entries of the result.
    """

    folds: int
    steps: int
    fill: int
    inputs: int
    weights: int
    sums: int
    results: int


def tile(matmul: tuple[int, int, int, int], rows: int, columns: int, dataflow: Dataflow) -> Tiling:
    """Cuts B products [M, K] @ [K, N] into the tiles of an array of elements.

    Sums that stay (output-stationary): rows of the array are rows of the result, columns its
    columns; a tile takes K steps and, as operands enter askew at two edges, R + C - 2 more.
    Weights that stay: rows are the K summed products, columns are columns of the result; a tile
    takes R cycles to be loaded, M steps, and R + C - 2 more. Inputs that stay: likewise, with
    rows of the result along the columns and N steps.

    Args:
      matmul: Sizes (B, M, K, N).
      rows: Elements R along the first side, at least 1.
      columns: Elements C along the other, at least 1.
      dataflow: What stays in the elements.

    Raises:
      ValueError: There is no such dataflow.

    Examples:
      >>> from jaxsim.accelerators.dataflow import tile
      >>> found = tile((1, 128, 512, 256), 32, 32, "output")
      >>> found.folds * (found.steps + found.fill)
      18368
    """
    B, M, K, N = matmul
    skew = rows + columns - 2
    if dataflow == "output":
        down, across = -(-M // rows), -(-N // columns)
        sizes = (K, skew, M * K * across, K * N * down, 0)
    elif dataflow == "weight":
        down, across = -(-K // rows), -(-N // columns)
        sizes = (M, rows + skew, M * K * across, K * N, M * N * (down - 1))
    elif dataflow == "input":
        down, across = -(-K // rows), -(-M // columns)
        sizes = (N, rows + skew, M * K, K * N * across, M * N * (down - 1))
    else:
        raise ValueError(f"dataflow={dataflow!r}: must be one of {get_args(Dataflow)}")
    steps, fill, inputs, weights, sums = sizes
    sums = max(sums, 0)
    return Tiling(B * down * across, steps, fill, B * inputs, B * weights, B * sums, B * M * N)
