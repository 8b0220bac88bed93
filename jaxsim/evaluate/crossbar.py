"""What a network would spend in analog arrays: an analytic model.

Nothing here is measured. The model counts conversions, driven rows and read cells, and multiplies
them by the energies below.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

from jaxsim.console.table import render, si
from jaxsim.cores.wrapper import Wrapper, first_of, place_of
from jaxsim.network.network import Network
from jaxsim.numerics.checks import check_range, checked_int
from jaxsim.numerics.digits import digit_count


class ArraySpent(NamedTuple):
    """What one site spends in one call, by the model.

    Attributes:
      conversions: of ADCs.
      drives: of rows, each digit of an input counted.
      adc: energy of the conversions in pJ.
      dac: energy of the drives in pJ.
      cells: energy of the cells that are read in pJ.
      area: of cells, drivers and converters in µm².
    """

    conversions: float
    drives: float
    adc: float
    dac: float
    cells: float
    area: float

    @property
    def energy(self) -> float:
        """All of it in pJ."""
        return self.adc + self.dac + self.cells


class ArrayEstimate(NamedTuple):
    """An analytic estimate of a network in arrays. It prints.

    Attributes:
      names: of the analog sites.
      spent: what each spends.
    """

    names: tuple[str, ...]
    spent: tuple[ArraySpent, ...]

    @property
    def energy(self) -> float:
        """In pJ."""
        return sum(s.energy for s in self.spent)

    @property
    def area(self) -> float:
        """In µm²."""
        return sum(s.area for s in self.spent)

    def __str__(self) -> str:
        return render(self.__rich__())

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
      adc: pJ of a conversion of `adc_bits` bits; 2 mW for 100 ns over 128 columns.
      adc_bits: see `adc`.
      adc_area: µm² of a converter.
      columns_per_adc: columns that share one.
      dac: pJ of driving one row with one digit; 3.9 µW for 100 ns.
      dac_area: µm² of a row's driver.
      cell: pJ of reading one cell; 0.3 mW for 100 ns over 128² cells.
      cell_area: µm² of a cell.
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

    def estimate(self, net: Network, *args: Any, **kwargs: Any) -> ArrayEstimate:
        """What one call of a network spends in arrays; sites that are not analog are left out.

        Args:
          net: some of its sites are analog; those without `adc=…` spend nothing on conversions.
          *args: inputs (only shapes count); without any, those of the traced example.
          **kwargs: keyword arguments, as in a call.

        Raises:
          ValueError: no site is analog.
        """
        copies = {site.name: math.prod(site.stack) for site in net.sites}
        found: dict[str, ArraySpent] = {}
        for site in net.cost(*args, **kwargs).sites:
            chain = net.cores.get(site.name, ())
            array, serial = place_of(chain, "array"), place_of(chain, "serial")
            if array == len(chain):
                continue
            (B, M, K, _), spent, digits = site.matmul, site.spent, _digits(chain)
            apart = serial < array
            conversions = spent.get("conversions", 0.0)
            columns = conversions / (site.runs * max(M, 1) * (digits if apart else 1))
            drives = float(site.runs * B * M * K * digits)
            shared = columns / self.columns_per_adc * self.adc_area + B * K * self.dac_area
            found[site.name] = ArraySpent(
                conversions=conversions,
                drives=drives,
                adc=spent.get("conversion_steps", 0.0) * self.adc / 2**self.adc_bits,
                dac=drives * self.dac,
                cells=spent["macs"] * self.cell,
                area=spent["cells"] * self.cell_area + copies[site.name] * shared,
            )
        if not found:
            raise ValueError("net: none of its sites is analog; put analog(adc=…) on some")
        return ArrayEstimate(tuple(found), tuple(found.values()))


def _digits(chain: tuple[Wrapper, ...]) -> int:
    """How many digits drive the rows for one input."""
    coded = first_of(chain, "codes")
    for wrapper in chain:
        if wrapper.role == "serial" and coded is not None:
            grid = coded.settings["inputs"]
            lo, hi = grid.code_range
            return digit_count(hi if grid.symmetric else hi - lo, wrapper.settings["bits"])
    return 1
