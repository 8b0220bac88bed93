"""Crossbar model: energy and area of a network in analog arrays, by formula.

Nothing here is measured. The model counts conversions, driven rows and read cells, and multiplies
them by the energies below.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

from jaxsim.accelerators.analog import AnalogArray
from jaxsim.accelerators.work import Work
from jaxsim.console.table import shown_as_table, si
from jaxsim.cores.operand import writes_in_calls
from jaxsim.cores.wrapper import first_of
from jaxsim.network.network import Network
from jaxsim.numerics.checks import check_range, checked_int


class ArrayEnergy(NamedTuple):
    """Energy breakdown and area of one site in one call, by the model.

    Attributes:
      conversions: Number of ADC conversions.
      drives: Number of driven rows, each digit of an input counted.
      adc: Energy of the conversions, in pJ.
      dac: Energy of the drives, in pJ.
      cells: Energy of the cells that are read, in pJ.
      area: Area of cells, drivers and converters, in µm².
    """

    conversions: float
    drives: float
    adc: float
    dac: float
    cells: float
    area: float

    @property
    def energy(self) -> float:
        """Sum of the energies, in pJ."""
        return self.adc + self.dac + self.cells


@shown_as_table
class ArrayEstimate(NamedTuple):
    """An analytic estimate of a network in arrays. It prints.

    Attributes:
      names: Names of the analog sites.
      spent: Energy breakdown of each.
    """

    names: tuple[str, ...]
    spent: tuple[ArrayEnergy, ...]

    @property
    def energy(self) -> float:
        """Energy of all sites, in pJ."""
        return sum(s.energy for s in self.spent)

    @property
    def area(self) -> float:
        """Area of all sites, in µm²."""
        return sum(s.area for s in self.spent)

    def __rich__(self) -> Any:
        from rich.table import Table

        table = Table(title="one call in analog arrays · analytic model, not a measurement")
        table.add_column("site", style="bold", overflow="fold")
        for column in ("pJ", "conversions", "drives", "ADC pJ", "DAC pJ", "cells pJ", "µm²"):
            table.add_column(column, justify="right")
        for name, s in zip(self.names, self.spent, strict=True):
            table.add_row(name, si(s.energy), *map(si, s))
        totals = [sum(part) for part in zip(*self.spent, strict=True)]
        table.add_section()
        table.add_row("all", si(self.energy), *map(si, totals))
        return table


@dataclasses.dataclass(frozen=True)
class Crossbar:
    """Analog arrays with their converters, as an analytic model.

    Every array drives its rows once for each digit of an input and window, reads all of its cells
    then, and converts each column; `columns_per_adc` columns share a converter. The energy of a
    conversion doubles with every bit. Digital sums, buffers, control and leakage are not in the
    model. The defaults are 32 nm figures of arrays of 128 × 128 two-bit cells that are read in
    100 ns, as the PUMA simulator (Ankit et al., ASPLOS 2019) takes them over from ISAAC (Shafiee
    et al., ISCA 2016).

    Attributes:
      adc: Energy of a conversion of `adc_bits` bits, in pJ; 2 mW for 100 ns over 128 columns.
      adc_bits: Number of bits that `adc` is the energy of.
      adc_area: Area of a converter, in µm².
      columns_per_adc: Number of columns that share a converter.
      dac: Energy of driving one row with one digit, in pJ; 3.9 µW for 100 ns.
      dac_area: Area of a row's driver, in µm².
      cell: Energy of reading one cell, in pJ; 0.3 mW for 100 ns over 128² cells.
      cell_area: Area of a cell, in µm².

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> x = jnp.ones((1, 4))
      >>> net = js.trace(lambda p, x: x @ p["w"], {"w": jnp.ones((4, 2))}, x)
      >>> net = js.compose(js.quantize(8, 8), js.analog(adc=8))(net)
      >>> js.Crossbar().estimate(net).spent[0].conversions
      2.0
    """

    adc: float = 2e-3 * 1e-7 / 128 * 1e12
    adc_bits: int = 8
    adc_area: float = 1200.0
    columns_per_adc: int = 128
    dac: float = 3.9e-6 * 1e-7 * 1e12
    dac_area: float = 0.167
    cell: float = 0.3e-3 * 1e-7 / 128**2 * 1e12
    cell_area: float = 25 / 128**2

    def __post_init__(self):
        for name in ("adc_bits", "columns_per_adc"):
            checked_int(name, getattr(self, name), 1)
        for name in ("adc", "adc_area", "dac", "dac_area", "cell", "cell_area"):
            check_range(name, getattr(self, name), 0)

    @property
    def arrays(self) -> AnalogArray:
        """The part of an accelerator that this is: arrays as large as what they hold."""
        return AnalogArray(**dataclasses.asdict(self))

    def estimate(self, net: Network, *args: Any, **kwargs: Any) -> ArrayEstimate:
        """Estimates one call of a network in arrays; sites that are not analog are left out.

        Args:
          net: Network with analog sites; those without `adc=…` spend nothing on conversions.
          *args: Inputs (only shapes count); without any, those of the traced example.
          **kwargs: Keyword arguments, as in a call.

        Raises:
          ValueError: No site is analog, or calls write the cells of one.
        """
        copies = {site.name: math.prod(site.stack) for site in net.sites}
        arrays, found = self.arrays, dict[str, ArrayEnergy]()
        for site in net.cost(*args, **kwargs).sites:
            chain = net.cores.get(site.name, ())
            if first_of(chain, "array") is None:
                continue
            if writes_in_calls(chain):
                raise ValueError(
                    f"net: each call writes the cells of {site.name}, which costs energy of which "
                    "Crossbar knows nothing; js.estimate with AnalogArray(write=…) does"
                )
            work = Work(
                *(site.name, "analog", site.matmul, site.runs, copies[site.name]),
                chain=chain,
                counts=site.spent,
            )
            reads, energy = arrays.reads(work), arrays.spend(work).energy
            found[site.name] = ArrayEnergy(
                reads.conversions,
                reads.drives,
                *(energy[part] for part in ("adc", "dac", "cells")),
                area=arrays.used_area(reads, work.copies),
            )
        if not found:
            raise ValueError("net: none of its sites is analog; put analog(adc=…) on some")
        return ArrayEstimate(tuple(found), tuple(found.values()))
