"""Accelerators by name: published figures put together, each with its source."""

from __future__ import annotations

from typing import Literal, NamedTuple

from jaxsim.accelerators.accelerator import Accelerator
from jaxsim.accelerators.analog import AnalogArray
from jaxsim.accelerators.digital import DigitalArray
from jaxsim.accelerators.memory import Memory
from jaxsim.accelerators.simd import SimdUnit
from jaxsim.numerics.checks import checked_int

SRAM = Memory(read=20 / 64, size=8 * 2**18, bandwidth=1024 * 500e6, area=8 * 2**18 * 0.5e-6)
"""256 KB at the energy of 32 KB (Horowitz, ISSCC 2014: 20 pJ for 64 bits), as of eight banks; 1024
bits a cycle at 500 MHz, an own choice; 0.5 µm² a bit, an own assumption."""

DRAM = Memory(read=1300 / 64, bandwidth=64 * 1600e6)
"""The lower of Horowitz's 1.3 to 2.6 nJ for 64 bits; one channel of DDR3-1600 (JEDEC)."""


def systolic_45nm(rows: int = 32, columns: int = 32) -> Accelerator:
    """A systolic array of 8-bit multipliers with sums that stay, a SIMD unit, SRAM and DRAM.

    Energies are Horowitz's of 45 nm; sizes, clocks and the SRAM's area are own choices.

    Args:
      rows: Elements along one side, at least 1.
      columns: Elements along the other, at least 1.

    Examples:
      >>> import jaxsim as js
      >>> list(js.accelerators.systolic_45nm().parts)
      ['array', 'simd']
    """
    return Accelerator(
        {"array": DigitalArray(rows, columns), "simd": SimdUnit()},
        {"sram": SRAM, "dram": DRAM},
        activations=8,
    )


def ax_bxp(K: int = 3, rows: int = 32, columns: int = 32) -> Accelerator:
    """`systolic_45nm` with multipliers of blocks of K bits, for what `js.block` leaves.

    The method is that of Elangovan et al., "Ax-BxP", arXiv 2011.13000; the array is our own, as
    docs/blocked.md says, and not the paper's.

    Args:
      K: Bits of a block, 1 to 7.
      rows: Elements along one side, at least 1.
      columns: Elements along the other, at least 1.

    Examples:
      >>> import jaxsim as js
      >>> js.accelerators.ax_bxp(2).parts["array"].block
      2
    """
    block = checked_int("K", K, 1, 7)
    plain = systolic_45nm()
    parts = {"array": DigitalArray(rows, columns, block=block), "simd": plain.parts["simd"]}
    return Accelerator(parts, plain.memory, activations=8)


def isaac_like() -> Accelerator:
    """Arrays of 128 × 128 two-bit cells with an ADC each, a SIMD unit, and a buffer.

    Arrays, drivers and converters have the figures of `AnalogArray`, 32 nm, from ISAAC (Shafiee et
    al., ISCA 2016) as PUMA's simulator takes them over. The SIMD unit and the memory are those of
    `systolic_45nm`, an own assumption. Sites need `js.slice_bits(2)` and `js.analog(rows=128)`.

    Examples:
      >>> import jaxsim as js
      >>> js.accelerators.isaac_like().parts["analog"].rows
      128
    """
    return Accelerator(
        {"analog": AnalogArray(128, 128, cell_bits=2), "simd": SimdUnit()},
        {"sram": SRAM, "dram": DRAM},
        activations=8,
    )


class Design(NamedTuple):
    """How an array holds and reads 8-bit codes.

    Attributes:
      rows: Rows of an array.
      cell_bits: Magnitude bits of a cell; fewer than 7 are slices.
      mapping: How signs are held.
      accumulate: Whether the digits of an input are added after the converter or before it.
    """

    rows: int
    cell_bits: int
    mapping: Literal["differential", "offset"]
    accumulate: Literal["digital", "analog"]


DESIGNS = {
    "A": Design(1152, 7, "differential", "analog"),
    "B": Design(1152, 1, "differential", "analog"),
    "C": Design(144, 7, "differential", "analog"),
    "D": Design(144, 1, "differential", "analog"),
    "E": Design(72, 2, "offset", "digital"),
}
"""Five designs that Xiao et al. compare, as reported (arXiv 2109.01262). Of which of them sum the
digits of an input before the converter only A's is; B to D are taken to, E not."""


def find_design(name: str) -> Design:
    """Finds one of the five designs.

    Args:
      name: "A", "B", "C", "D" or "E".

    Raises:
      ValueError: There is no such design.
    """
    if name not in DESIGNS:
        raise ValueError(f"name={name!r}: must be one of {', '.join(DESIGNS)}")
    return DESIGNS[name]


def paper_design(name: Literal["A", "B", "C", "D", "E"]) -> Accelerator:
    """Rows and cells of one of five designs that Xiao et al. compare, with our figures.

    Only the shape of the arrays is the paper's (as reported: A pairs of 7-bit cells in 1152 rows,
    B pairs of 1-bit slices, C as A in 144 rows, D as B in 144 rows, E an offset in 2-bit cells and
    72 rows; arXiv 2109.01262). Energies and areas are those of `isaac_like`, and so are no results
    of the paper's; arrays are as wide as they are high, an own choice. The sites say how codes are
    held: `js.designs.xiao` with the same name.

    Args:
      name: "A", "B", "C", "D" or "E".

    Raises:
      ValueError: There is no such design.

    Examples:
      >>> import jaxsim as js
      >>> js.accelerators.paper_design("E").parts["analog"].rows
      72
    """
    held = find_design(name)
    base = isaac_like()
    arrays = AnalogArray(held.rows, held.rows, cell_bits=held.cell_bits)
    parts = {"analog": arrays, "simd": base.parts["simd"]}
    return Accelerator(parts, base.memory, activations=8)


def mixed(K: int | None = None) -> Accelerator:
    """Analog arrays, a digital array and a SIMD unit side by side, on one SRAM and DRAM.

    The parts are those of `isaac_like` and `systolic_45nm`, of different nodes (32 and 45 nm), as
    published: no figure is scaled.

    Args:
      K: Bits of the digital array's block multipliers, 1 to 7; None for plain ones.

    Examples:
      >>> import jaxsim as js
      >>> list(js.accelerators.mixed().parts)
      ['analog', 'array', 'simd']
    """
    digital = systolic_45nm() if K is None else ax_bxp(K)
    parts = {"analog": isaac_like().parts["analog"], **digital.parts}
    return Accelerator(parts, digital.memory, activations=8)
