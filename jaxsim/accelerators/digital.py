"""Digital arrays: multipliers side by side, through which operands pass."""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple, get_args

from jaxsim.accelerators.dataflow import Dataflow, tile
from jaxsim.accelerators.work import Spent, Work
from jaxsim.cores.role import DIGITAL
from jaxsim.numerics.checks import check_range, checked_int

_HELD = DIGITAL | {"codes", "floats", "blocks", "groups", "observer"}
"""Roles whose arithmetic is that of digital elements."""


class Multiplied(NamedTuple):
    """Products of one array element for a product of two numbers.

    Attributes:
      products: Number of multiplications.
      width: Bits of an operand of each.
      multipliers: Number of multipliers of this width in an element.
      shifted: True if products are shifted by an index.
    """

    products: int
    width: int
    multipliers: int
    shifted: bool


@dataclasses.dataclass(frozen=True)
class DigitalArray:
    """A systolic array of multipliers, all alike, that operands pass through.

    An element holds as many block multipliers of K bits as take the area of one of `width` bits,
    floor(width² / K²), or one of `width` bits. Codes that are whole run on block multipliers as
    products of all their blocks. Products of weights that were pruned are gated, which saves energy
    and no cycles. Energies and areas are of 45 nm CMOS at 0.9 V; registers, control and leakage are
    not in the model.

    Attributes:
      rows, columns: Number of elements along each side. Own choice.
      count: Number of such arrays, which share the tiles of a product. Own choice.
      dataflow: What stays in the elements: "output" (sums), "weight" or "input".
      numbers: What it multiplies: "codes" (integers) or "floats".
      width: Bits of the multipliers' operands, the widest numbers it takes. Own choice.
      block: Bits of a block multiplier; None for plain ones, 0 for those that a site's blocks ask.
      multiply: Energy for each pair of operand bits in a multiplier, in pJ; 0.2 pJ for 8 × 8 bits.
        Source: Horowitz, "Computing's energy problem", ISSCC 2014. Of floats 3.7 pJ for 32 × 32.
      add: Energy for each bit of an adder, in pJ; 0.1 pJ for 32 bits. Source: Horowitz. Of floats
        0.9 pJ.
      accumulator: Bits of the sums. Own choice.
      shifter: Bits of the shifter of dynamic products, taken to cost as much as an adder as wide.
        Own assumption.
      port: Bits an edge element takes in a cycle: what the multipliers need. Own choice.
      clock: Cycles a second. Own choice.
      multiplier_area: Area for each pair of operand bits of a multiplier, in µm²; 282 µm² for 8 × 8
        bits. Source: the areas that tutorials print beside Horowitz's energies (Dally, NIPS 2015;
        not checked against a print).
      adder_area: Area for each bit of an adder, in µm²; 137 µm² for 32 bits. Source: the same.

    Examples:
      >>> from jaxsim.accelerators import DigitalArray, Work
      >>> array = DigitalArray(rows=32, columns=32)
      >>> work = Work("w", "codes", (1, 128, 512, 256), bits=(8, 8, 8))
      >>> array.accepts(work), array.spend(work).cycles
      ('', 18368.0)
    """

    rows: int = 32
    columns: int = 32
    count: int = 1
    dataflow: Dataflow = "output"
    numbers: Literal["codes", "floats"] = "codes"
    width: int = 8
    block: int | None = None
    multiply: float = 0.2 / 64
    add: float = 0.1 / 32
    accumulator: int = 32
    shifter: int = 16
    port: float = 8
    clock: float = 500e6
    multiplier_area: float = 282 / 64
    adder_area: float = 137 / 32

    def __post_init__(self):
        for name in ("rows", "columns", "count", "width", "accumulator", "shifter"):
            checked_int(name, getattr(self, name), 1)
        for name in ("multiply", "add", "multiplier_area", "adder_area"):
            check_range(name, getattr(self, name), 0)
        for name in ("port", "clock"):
            check_range(name, getattr(self, name), 0, above=True)
        if self.block is not None:
            checked_int("block", self.block, 0, self.width)
        if self.dataflow not in get_args(Dataflow):
            raise ValueError(f"dataflow={self.dataflow!r}: must be one of {get_args(Dataflow)}")
        if self.numbers not in ("codes", "floats"):
            raise ValueError(f"numbers={self.numbers!r}: must be 'codes' or 'floats'")

    @property
    def area(self) -> float:
        """Area of multipliers and accumulators, in mm²."""
        element = self.width**2 * self.multiplier_area + self.accumulator * self.adder_area
        return 1e-6 * self.count * self.rows * self.columns * element

    def accepts(self, work: Work) -> str:
        """Tells why the work cannot run here, in a phrase; "" where it can.

        Args:
          work: Work of a site.
        """
        if work.arithmetic != self.numbers:
            return _WHY[work.arithmetic] if work.arithmetic != "codes" else "takes floats"
        for other in work.chain:
            if other.role not in _HELD:
                return f"cannot hold {other!r}"
        if max(work.bits[:2]) > self.width:
            return f"takes {self.width} bits of each operand, not {max(work.bits[:2]):g}"
        if work.blocks is not None:
            K = int(work.blocks.K)
            if self.block is None:
                return f"has no block multipliers for blocks of {K} bits"
            if self.block not in (0, K):
                return f"multiplies blocks of {self.block} bits, not {K}"
        return ""

    def multiplied(self, work: Work) -> Multiplied:
        """Counts what an element multiplies for one product of a site.

        Args:
          work: Work of the site.
        """
        blocks = work.blocks
        if blocks is not None:
            width, products = int(blocks.width), int(blocks.products)
            shifted = bool(blocks.x_dynamic) or bool(blocks.w_dynamic)
            return Multiplied(products, width, max(1, self.width**2 // width**2), shifted)
        if self.block:
            products = 1
            for bits in work.bits[:2]:
                products *= -(-max(int(bits) - 1, 1) // self.block)
            return Multiplied(products, self.block, max(1, self.width**2 // self.block**2), False)
        return Multiplied(1, self.width, 1, False)

    def busy(self, work: Work) -> float:
        """Computes the cycles of a site where tiles follow one another without a gap.

        Args:
          work: Work of the site.
        """
        return self._cycles(work, fill=0)

    def _cycles(self, work: Work, fill: int) -> float:
        """Cycles in which operands pass, or enter through the ports where these are slower."""
        tiles = tile(work.matmul, self.rows, self.columns, self.dataflow)
        found = self.multiplied(work)
        folds = work.runs * -(-tiles.folds // self.count)
        operands = work.runs * (tiles.inputs * work.bits[0] + tiles.weights * work.stored_bits)
        ports = self.count * self.port * (self.rows + self.columns)
        passing = folds * tiles.steps * found.products / found.multipliers
        return max(passing + folds * fill, operands / ports)

    def spend(self, work: Work) -> Spent:
        """Computes energy, cycles and traffic of a site.

        Args:
          work: Work of the site.
        """
        B, M, K, N = work.matmul
        tiles = tile(work.matmul, self.rows, self.columns, self.dataflow)
        products, width, multipliers, shifted = self.multiplied(work)
        macs, outputs = work.runs * B * M * K * N * work.kept, work.runs * B * M * N
        cycles = float(self._cycles(work, tiles.fill))
        cut = 8 * outputs if work.blocks is not None else 0
        energy = {
            "multiply": macs * products * self.multiply * width**2,
            "add": macs * self.add * ((products - 1) * 2 * width + self.accumulator),
            "shift": self.add * ((macs * self.shifter if shifted else 0) + cut),
        }
        if work.groups > 1:  # each group's sum is multiplied by a scale as wide as an operand
            scaling = self.multiply * self.width * self.accumulator + self.add * self.accumulator
            energy["scale groups"] = outputs * work.groups * scaling
        slots = self.count * self.rows * self.columns * multipliers * cycles
        return Spent(
            energy,
            cycles,
            cycles / self.clock,
            inputs=work.runs * tiles.inputs * work.bits[0],
            weights=work.runs * tiles.weights * work.stored_bits,
            sums=work.runs * tiles.sums * self.accumulator,
            results=outputs * work.bits[2],
            utilization=work.runs * B * M * K * N * products / slots if slots else 0.0,
        )


_WHY = {
    "floats": "holds floats",
    "analog": "is in analog arrays",
    "elements": "contracts nothing",
}
