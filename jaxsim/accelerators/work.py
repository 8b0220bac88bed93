"""Work that a network asks of hardware, and what a part of an accelerator spends on it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from jaxsim.cores.blocked import Blocks
from jaxsim.cores.wrapper import Wrapper

Arithmetic = Literal["codes", "floats", "analog", "elements"]
"""What is multiplied: integer codes, floats, codes in arrays of cells; or nothing is contracted."""

NOTHING: Mapping[str, Any] = MappingProxyType({})


class Work(NamedTuple):
    """Work that a site, or an equation that is none, asks of the part that runs it.

    Attributes:
      name: Name of the site, or of the equation's primitive.
      arithmetic: "codes", "floats" or "analog" for contractions, "elements" for everything else.
      matmul: Sizes (B, M, K, N) of one execution as B products [M, K] @ [K, N].
      runs: Number of executions in one call.
      copies: Number of weights that are held for it; 0 where both operands are activations, unless
        arrays hold one of them, which each execution writes.
      kept: Fraction of the weights that pruning left, in [0, 1].
      bits: Widths of a stored input, weight and result.
      sizes: Number of entries of the input, the weight and the result of one execution.
      groups: Number of parts of each sum that have a scale of their own, at least 1.
      blocks: Blocks that are multiplied; None where codes are multiplied whole.
      chain: Wrappers of the site's core, outermost first.
      counts: What the core counts in one call, by name, as `SiteCost.spent`.
      operations: Number of element operations of one execution, by kind: "add", "multiply",
        "divide", "function".
      drive: Mean of conductance times squared drive over the reads of cells, in [0, 1]; 1 where
        every cell is taken to be full and driven fully.

    Examples:
      >>> from jaxsim.accelerators import Work
      >>> work = Work("w", "codes", (1, 4, 64, 32), copies=1, kept=0.5, bits=(8, 8, 8))
      >>> work.stored_bits  # of a weight, half of which are pruned
      5.0
    """

    name: str
    arithmetic: Arithmetic
    matmul: tuple[int, int, int, int] = (0, 0, 0, 0)
    runs: float = 1
    copies: int = 0
    kept: float = 1.0
    bits: tuple[float, float, float] = (32, 32, 32)
    sizes: tuple[float, float, float] = (0, 0, 0)
    groups: int = 1
    blocks: Blocks | None = None
    chain: tuple[Wrapper, ...] = ()
    counts: Mapping[str, float] = NOTHING
    operations: Mapping[str, float] = NOTHING
    drive: float = 1.0

    @property
    def stored_bits(self) -> float:
        """Bits of a stored weight: of pruned ones those that remain, and a bit to say which."""
        return stored_bits(self.bits[1], self.kept)


class Spent(NamedTuple):
    """What a part spends on some work in one call, memory apart.

    Attributes:
      energy: Energy by component, in pJ.
      cycles: Number of cycles of the part.
      seconds: Time that they take.
      inputs, weights: Bits of either operand that the part reads from the memory next to it.
      sums: Bits of partial sums that it writes there and reads again.
      results: Bits of results that it writes there.
      area: Area that this work alone takes, in mm²: of cells that hold its weight. The area of what
        all share is the part's.
      utilization: Fraction of the part that is busy with it meanwhile, in [0, 1].

    Examples:
      >>> from jaxsim.accelerators import Spent
      >>> Spent({"laser": 2.5}, cycles=10, seconds=1e-9, inputs=64).energy["laser"]
      2.5
    """

    energy: Mapping[str, float]
    cycles: float
    seconds: float
    inputs: float = 0
    weights: float = 0
    sums: float = 0
    results: float = 0
    area: float = 0
    utilization: float = 1


def stored_bits(bits: float, kept: float) -> float:
    """Computes the bits that a stored weight takes, pruned ones included.

    Args:
      bits: Width of a weight.
      kept: Fraction that pruning left, in [0, 1].

    Examples:
      >>> from jaxsim.accelerators.work import stored_bits
      >>> stored_bits(8, 0.5), stored_bits(8, 1), stored_bits(8, 0.99)
      (5.0, 8, 8)
    """
    return bits if kept == 1 else min(bits, 1 + kept * bits)
