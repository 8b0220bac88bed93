"""Analog arrays: cells that hold weights, rows that are driven, columns that are converted."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, NamedTuple

from jaxsim.accelerators.conversion import conversion_steps
from jaxsim.accelerators.work import Spent, Work
from jaxsim.cores.adc.converter import KINDS
from jaxsim.cores.operand import writes_in_calls
from jaxsim.cores.wrapper import Wrapper, first_of, place_of
from jaxsim.numerics.checks import check_range, checked_int
from jaxsim.numerics.digits import digit_count


class Reads(NamedTuple):
    """Counts of one site's reads in one call.

    Attributes:
      conversions: Number of ADC conversions.
      steps: Sum of 2^bits over them.
      drives: Number of driven rows, each digit of an input counted, and each array beside another.
      reads: Number of cells that are read, digits counted.
      digits: Digits that drive a row for one input.
      windows: Input vectors that arrays take one after the other, in all runs.
      cells: Number of cells that hold its weights, all copies counted.
      columns: Number of columns of one copy that are converted, all its arrays counted.
      rows: Number of rows of one copy that are driven; tiles share none.
    """

    conversions: float
    steps: float
    drives: float
    reads: float
    digits: int
    windows: float
    cells: float
    columns: float
    rows: float


@dataclasses.dataclass(frozen=True)
class AnalogArray:
    """Arrays of memory cells that hold the weights of sites, with drivers and converters.

    Every array drives its rows once for each digit of an input and window, reads all of its cells
    then, and converts each column; all arrays of a site work at once. Digital sums behind the
    converters, control and leakage are not in the model. The defaults are 32 nm figures of arrays
    of 128 × 128 two-bit cells that are read in 100 ns, as the PUMA simulator (Ankit et al., ASPLOS
    2019) takes them over from ISAAC (Shafiee et al., ISCA 2016).

    Attributes:
      rows, columns: Cells of one array along each side. With None arrays are as large as what they
        hold.
      count: Number of arrays that there are; None for as many as the weights need.
      cell_bits: Most magnitude bits that a cell holds; None for any.
      adc: Energy of a conversion of `adc_bits` bits, in pJ, doubling with each bit whatever the
        kind; 2 mW for 100 ns over 128 columns. Give that of the kind that is used.
      adc_bits: Number of bits that `adc` is the energy of.
      comparison: Energy of one decision of a comparator, in pJ. Where it is given, conversions are
        charged by what their kind takes (`conversion_steps`) instead of by `adc`: 2^b - 1
        comparisons of "flash" and "ramp", b of "sar", 2 b of "pipeline" and "cyclic". None charges
        them by `adc`.
      capacitor: Energy of switching a unit capacitor on, in pJ, which "sar" and "ramp" need then.
      residue: Energy of one amplified residue, in pJ, which "pipeline" and "cyclic" need.
      adc_kind: Kind of converters that do not say theirs, as `js.adc`'s circuits do. "flash"
        converts in one cycle of the converter's clock, "pipeline" too, once it is full, "sar" and
        "cyclic" in one for each bit, "ramp" in 2^bits, all columns at once. By definition of each.
      adc_clock: Cycles a second of a converter; 1.28 GHz, at which one takes 128 columns in 100 ns.
      adc_area: Area of a converter, in µm².
      columns_per_adc: Number of columns that share a converter.
      dac: Energy of driving one row with one digit, in pJ; 3.9 µW for 100 ns.
      dac_area: Area of a row's driver, in µm².
      cell: Energy of reading one cell, in pJ; 0.3 mW for 100 ns over 128² cells. Taken to be
        that of a full cell under full drive, which the source does not say: own assumption.
      cell_area: Area of a cell, in µm².
      read: Time of driving rows with one digit, in s; 100 ns.
      write: Energy of writing one cell, in pJ, where calls write keys and values
        (`js.analog(sites="dynamic*")`); None where they do not. Every cell of the operand is taken
        to be written, as in a call without a cache; a call with one writes those of its own tokens
        alone. Time of writes is not in the model.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> x = jnp.ones((1, 4))
      >>> net = js.trace(lambda p, x: x @ p["w"], {"w": jnp.ones((4, 2))}, x)
      >>> chip = js.compose(js.quantize(8, 8), js.analog(adc=8, rows=128))(net)
      >>> arrays = js.accelerators.AnalogArray(rows=128, columns=128)
      >>> found = js.estimate(chip, js.Accelerator({"analog": arrays}))
      >>> round(found.sites["w"].components["adc"], 2)  # 2 conversions
      3.12
    """

    rows: int | None = None
    columns: int | None = None
    count: int | None = None
    cell_bits: int | None = None
    adc: float = 2e-3 * 1e-7 / 128 * 1e12
    adc_bits: int = 8
    comparison: float | None = None
    capacitor: float | None = None
    residue: float | None = None
    adc_kind: Literal["flash", "pipeline", "sar", "cyclic", "ramp"] = "flash"
    adc_clock: float = 128 / 1e-7
    adc_area: float = 1200.0
    columns_per_adc: int = 128
    dac: float = 3.9e-6 * 1e-7 * 1e12
    dac_area: float = 0.167
    cell: float = 0.3e-3 * 1e-7 / 128**2 * 1e12
    cell_area: float = 25 / 128**2
    read: float = 1e-7
    write: float | None = None

    def __post_init__(self):
        for name in ("rows", "columns", "count", "cell_bits"):
            if getattr(self, name) is not None:
                checked_int(name, getattr(self, name), 1)
        for name in ("adc_bits", "columns_per_adc"):
            checked_int(name, getattr(self, name), 1)
        for name in ("adc", "adc_area", "dac", "dac_area", "cell", "cell_area", "read"):
            check_range(name, getattr(self, name), 0)
        for name in ("write", "comparison", *_OF_KIND.values()):
            if getattr(self, name) is not None:
                check_range(name, getattr(self, name), 0)
        for name in _OF_KIND.values():
            if getattr(self, name) is not None and self.comparison is None:
                raise ValueError(f"{name}={getattr(self, name)}: has no effect, comparison=None")
        check_range("adc_clock", self.adc_clock, 0, above=True)
        if self.adc_kind not in KINDS:
            kinds = ", ".join(map(repr, KINDS))
            raise ValueError(f"adc_kind={self.adc_kind!r}: must be one of {kinds}")
        if (self.rows is None) != (self.columns is None):
            raise ValueError(f"rows={self.rows}, columns={self.columns}: give both, or neither")
        if self.count is not None and self.rows is None:
            raise ValueError(f"count={self.count}: needs rows and columns of an array")

    @property
    def area(self) -> float:
        """Area that all sites share, in mm²: of arrays that there are, whether used or not."""
        return 0.0 if self.count is None else 1e-6 * self.count * self.array_area

    @property
    def array_area(self) -> float:
        """Area of one array with its drivers and converters, in µm²."""
        rows, columns = self.rows or 0, self.columns or 0
        converters = math.ceil(columns / self.columns_per_adc)
        cells = rows * columns * self.cell_area
        return cells + rows * self.dac_area + converters * self.adc_area

    def accepts(self, work: Work) -> str:
        """Tells why the work cannot run here, in a phrase; "" where it can.

        Args:
          work: Work of a site.
        """
        if work.arithmetic != "analog":
            return _WHY[work.arithmetic]
        if writes_in_calls(work.chain) and self.write is None:
            return "has no energy of writing the cells that calls write: AnalogArray(write=…)"
        kind = self.kind_of(work.chain)
        needed = _OF_KIND.get(kind)
        if self.comparison is not None and needed and getattr(self, needed) is None:
            return f"charges what conversions take, a {kind} also {needed}=…, which is None"
        rows = _setting(work.chain, "array", "rows", 0)
        if self.rows is not None and min(rows, work.matmul[2]) > self.rows:
            return f"has {self.rows} rows, not {rows}: js.analog(rows={self.rows})"
        if self.cell_bits is not None:
            held = cell_bits(work.chain)
            if held > self.cell_bits:
                return f"holds {self.cell_bits} bits a cell, not {held}: js.slice_bits"
        return ""

    def reads(self, work: Work) -> Reads:
        """Counts reads, drives and conversions of a site.

        Args:
          work: Work of the site.
        """
        B, M, K, _ = work.matmul
        chain, counts, digits = work.chain, work.counts, digits_of(work.chain)
        apart = place_of(chain, "serial") < place_of(chain, "array")
        conversions = counts.get("conversions", 0.0)
        passes = work.runs * max(M, 1)
        return Reads(
            conversions,
            counts.get("conversion_steps", 0.0),
            drives=float(work.runs * B * M * K * digits * self.across(work)),
            reads=counts["macs"],
            digits=digits,
            windows=float(work.runs * M),
            cells=counts["cells"],
            columns=conversions / (passes * (digits if apart else 1)),
            rows=B * K,
        )

    def arrays(self, work: Work) -> int:
        """Counts the arrays that hold the weights of a site, all copies counted.

        Args:
          work: Work of the site.
        """
        if self.columns is None:
            return 0
        return work.copies * work.matmul[0] * _tiles(work) * self.across(work)

    def across(self, work: Work) -> int:
        """Counts the arrays beside one another that hold the columns of one tile of rows.

        Each of them drives the rows of its own.

        Args:
          work: Work of the site.
        """
        if self.columns is None:
            return 1
        B, _, K, _ = work.matmul
        tiles = _tiles(work)
        full = tiles > 1 and _setting(work.chain, "array", "full", False)
        tall = _setting(work.chain, "array", "rows", K) if full else -(-K // tiles)
        columns = work.counts["cells"] / max(work.copies * B * tiles * tall, 1)
        return max(math.ceil(columns / self.columns), 1)

    def spend(self, work: Work) -> Spent:
        """Computes energy, time and area of a site.

        Args:
          work: Work of the site.
        """
        found = self.reads(work)
        apart = place_of(work.chain, "serial") < place_of(work.chain, "array")
        bits = math.log2(found.steps / found.conversions) if found.conversions else 0.0
        kind = self.kind_of(work.chain)
        turns = {"flash": 1.0, "pipeline": 1.0, "ramp": 2.0**bits}.get(kind, bits)
        shared = min(self.columns_per_adc, found.columns) if found.conversions else 0
        converting = turns / self.adc_clock * (1 if kind == "ramp" else shared)
        if apart:  # each digit is converted while the next is driven
            window = found.digits * max(self.read, converting)
        else:
            window = max(found.digits * self.read, converting)
        seconds = found.windows * window
        arrays = self.arrays(work)
        held = arrays * (self.rows or 0) * (self.columns or 0)
        if self.count is not None:
            area = 0.0
        elif arrays:
            area = 1e-6 * arrays * self.array_area
        else:
            area = 1e-6 * self.used_area(found, work.copies)
        B, M, K, N = work.matmul
        energy = {
            "adc": self.converting_energy(work, found, bits),
            "dac": found.drives * self.dac,
            "cells": found.reads * self.cell * work.drive,
        }
        writes = work.counts.get("cell_writes", 0.0)
        if self.write is not None and writes:
            energy["writes"] = writes * self.write
        return Spent(
            energy,
            found.windows * found.digits,
            seconds,
            inputs=work.runs * B * M * K * work.bits[0],
            weights=work.runs * B * K * N * work.bits[1] if writes else 0.0,
            results=work.runs * work.sizes[2] * work.bits[2],
            area=area,
            utilization=found.cells / held if held else 1.0,
        )

    def kind_of(self, chain: tuple[Wrapper, ...]) -> str:
        """Kind of a site's converters: what they say they are, or `adc_kind`.

        Args:
          chain: Wrappers of the site's core, outermost first.
        """
        return adc_kind_of(chain) or self.adc_kind

    def converting_energy(self, work: Work, found: Reads, bits: float) -> float:
        """Computes the energy of a site's conversions, in pJ.

        Args:
          work: Work of the site.
          found: Its counts.
          bits: Resolution of its converters.
        """
        if self.comparison is None or not found.conversions:
            return found.steps * self.adc / 2**self.adc_bits
        settings: dict[str, Any] = {}
        if (wrapper := first_of(work.chain, "adc")) is not None:
            settings = wrapper.settings
        steps = conversion_steps(
            self.kind_of(work.chain),
            bits,
            signed=bool(settings.get("signed", False)),
            split=getattr(getattr(settings.get("adc"), "kind", None), "split", None),
            columns=min(self.columns_per_adc, found.columns),
        )
        figures = (self.comparison, self.capacitor or 0.0, self.residue or 0.0)
        each = sum(n * energy for n, energy in zip(steps, figures, strict=True))
        return found.conversions * each

    def used_area(self, found: Reads, copies: int) -> float:
        """Computes the area of arrays as large as what they hold, in µm².

        Args:
          found: Counts of a site.
          copies: Number of its weights.
        """
        shared = found.columns / self.columns_per_adc * self.adc_area + found.rows * self.dac_area
        return found.cells * self.cell_area + copies * shared


def _tiles(work: Work) -> int:
    """Counts the tiles of rows over which a product is split."""
    K = work.matmul[2]
    return -(-K // _setting(work.chain, "array", "rows", K))


def digits_of(chain: tuple[Wrapper, ...]) -> int:
    """Counts the digits that drive the rows for one input.

    Args:
      chain: Wrappers of a site's core, outermost first.
    """
    coded = first_of(chain, "codes")
    for wrapper in chain:
        if wrapper.role == "serial" and coded is not None:
            _, grid = coded.formats
            lo, hi = grid.code_range
            return digit_count(hi if grid.symmetric else hi - lo, wrapper.settings["bits"])
    return 1


def adc_kind_of(chain: tuple[Wrapper, ...]) -> str:
    """The kind that a site's converter says it is, "" where it says none.

    Args:
      chain: Wrappers of a site's core, outermost first.
    """
    wrapper = first_of(chain, "adc")
    kind = None if wrapper is None else getattr(wrapper.settings.get("adc"), "kind", None)
    return "" if kind is None else kind.name


def cell_bits(chain: tuple[Wrapper, ...]) -> int:
    """Counts the bits of the largest number that one cell holds.

    Args:
      chain: Wrappers of a site's core, outermost first.
    """
    coded = first_of(chain, "codes")
    lo, hi = (0, 1) if coded is None else coded.formats[0].code_range
    most = max(-lo, hi)
    slices, pair = place_of(chain, "slices"), place_of(chain, "mapping")
    # what is added to a code, so that it has no sign, is added before it is sliced
    if pair < place_of(chain, "array"):
        most += max(0, -lo)
    bits = most.bit_length()
    return bits if slices == len(chain) else min(bits, chain[slices].settings["bits"])


def _setting(chain: tuple[Wrapper, ...], role: str, name: str, otherwise: int) -> int:
    at = place_of(chain, role)  # pyright: ignore[reportArgumentType]
    return otherwise if at == len(chain) else chain[at].settings.get(name, otherwise)


_OF_KIND = {"sar": "capacitor", "ramp": "capacitor", "pipeline": "residue", "cyclic": "residue"}
"""Figures that kinds of converters need beside that of a comparison."""

_WHY = {
    "codes": "holds cells; js.analog puts codes in them",
    "floats": "holds cells, and the site floats",
    "elements": "contracts nothing",
}
