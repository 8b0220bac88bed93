"""SIMD unit: lanes that add, multiply and evaluate functions, for what is no product of arrays."""

from __future__ import annotations

import dataclasses

from jaxsim.accelerators.work import Spent, Work
from jaxsim.numerics.checks import check_range, checked_int

KINDS = ("add", "multiply", "divide", "function")
"""Kinds of element operations; "add" stands for everything that costs as an addition does."""


@dataclasses.dataclass(frozen=True)
class SimdUnit:
    """Lanes of 32-bit floats for whatever is no contraction, and for products that no array takes.

    Energies are of 45 nm CMOS at 0.9 V; registers, control and leakage are not in the model.

    Attributes:
      lanes: Number of lanes. Own choice.
      contracts: True if contractions of floats, and of codes that no other part takes, run here.
      add: Energy of an addition, in pJ; comparisons, selections and logic are taken to cost as
        much. Source: Horowitz, "Computing's energy problem", ISSCC 2014: 0.9 pJ in 32-bit floats.
      multiply: Energy of a multiplication, in pJ. Source: Horowitz: 3.7 pJ.
      divide: Energy of a division or a root, in pJ: 26.3 pJ, 7.1 multiplications. Source: measured
        on a Cortex M4F, table 3 of PMC8934428.
      function: Energy of an exponential, a logarithm, a sine or the like, in pJ, taken to be eight
        multiplications and additions (a polynomial). Own assumption.
      divide_cycles, function_cycles: Cycles of a lane for either. Own assumption.
      clock: Cycles a second. Own choice.
      lane_area: Area of a lane's multiplier and adder, in µm²; 7700 + 4184 µm². Source: the areas
        that tutorials print beside Horowitz's energies (Dally, NIPS 2015; not checked against a
        print).

    Examples:
      >>> from jaxsim.accelerators import SimdUnit, Work
      >>> unit = SimdUnit(lanes=4)
      >>> unit.spend(Work("exp", "elements", operations={"function": 8})).cycles
      16.0
    """

    lanes: int = 32
    contracts: bool = True
    add: float = 0.9
    multiply: float = 3.7
    divide: float = 26.3
    function: float = 8 * (3.7 + 0.9)
    divide_cycles: int = 8
    function_cycles: int = 8
    clock: float = 500e6
    lane_area: float = 7700 + 4184

    def __post_init__(self):
        for name in ("lanes", "divide_cycles", "function_cycles"):
            checked_int(name, getattr(self, name), 1)
        for name in ("add", "multiply", "divide", "function", "lane_area"):
            check_range(name, getattr(self, name), 0)
        check_range("clock", self.clock, 0, above=True)

    @property
    def area(self) -> float:
        """Area of the lanes, in mm²."""
        return 1e-6 * self.lanes * self.lane_area

    def accepts(self, work: Work) -> str:
        """Tells why the work cannot run here, in a phrase; "" where it can.

        Args:
          work: Work of a site or an equation.
        """
        if work.arithmetic == "analog":
            return "is in analog arrays"
        if work.arithmetic != "elements" and not self.contracts:
            return "contracts nothing"
        return ""

    def spend(self, work: Work) -> Spent:
        """Computes energy, cycles and traffic of a site or an equation.

        Products of pruned weights are computed like the others. A lane multiplies and adds in one
        cycle; a row of inputs is read once for each `lanes` columns, a weight once for each row.

        Args:
          work: Work of the site or equation.
        """
        if work.arithmetic == "elements":
            counts = {kind: work.runs * work.operations.get(kind, 0) for kind in KINDS}
            inputs, weights = work.sizes[0] * work.bits[0], work.sizes[1] * work.stored_bits
            slots = sum(counts[kind] * self._cycles(kind) for kind in KINDS)
        else:
            B, M, K, N = work.matmul
            slots = work.runs * B * M * K * N
            counts = {"add": slots, "multiply": slots, "divide": 0, "function": 0}
            counts["multiply"] += 0 if work.groups == 1 else work.runs * B * M * N * work.groups
            inputs = B * M * K * -(-N // self.lanes) * work.bits[0]
            weights = B * K * N * M * work.stored_bits
        cycles = float(-(-slots // self.lanes))
        return Spent(
            {kind: counts[kind] * getattr(self, kind) for kind in KINDS if counts[kind]},
            cycles,
            cycles / self.clock,
            inputs=work.runs * inputs,
            weights=work.runs * weights,
            results=work.runs * work.sizes[2] * work.bits[2],
            utilization=slots / (self.lanes * cycles) if cycles else 0.0,
        )

    def _cycles(self, kind: str) -> int:
        return {"divide": self.divide_cycles, "function": self.function_cycles}.get(kind, 1)
