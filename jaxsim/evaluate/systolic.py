"""Systolic array model: energy and cycles of a network on an array that multiplies blocks.

Nothing here is measured and nothing was synthesized. The model counts operations and moved bits and
multiplies them by the energies below.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from jaxsim.accelerators.digital import DigitalArray
from jaxsim.accelerators.work import Work
from jaxsim.console.table import shown_as_table, si
from jaxsim.cores.blocked import Blocks
from jaxsim.cores.role import DIGITAL
from jaxsim.cores.wrapper import Wrapper, first_of
from jaxsim.network.network import Network
from jaxsim.numerics.checks import check_range, checked_int


class EnergyBreakdown(NamedTuple):
    """Energy, cycles and traffic of one site in one call, by the model.

    Attributes:
      multiply: Energy of block multipliers, in pJ.
      add: Energy of summing block products and accumulating, in pJ.
      shift: Energy of shifting products to the places of their blocks, and of cutting results to
        blocks, in pJ.
      sram: Energy of reading operands and writing results on chip, in pJ.
      dram: Energy of loading weights, in pJ.
      cycles: Number of cycles of the array.
      bits: Number of bits of operands and results moved to and from the array.
    """

    multiply: float
    add: float
    shift: float
    sram: float
    dram: float
    cycles: float
    bits: float

    @property
    def energy(self) -> float:
        """Sum of the energies, in pJ."""
        return self.multiply + self.add + self.shift + self.sram + self.dram


class Workload(NamedTuple):
    """Work that a site asks of the array.

    Attributes:
      matmul: Sizes (B, M, K, N) of B products [M, K] @ [K, N].
      runs: Number of executions in one call.
      kept: Fraction of the weights that pruning left, in [0, 1].
      bits: Widths of stored inputs and weights, where no blocks are chosen.
      blocks: Blocks that are multiplied; None where codes are multiplied whole.
    """

    matmul: tuple[int, int, int, int]
    runs: int
    kept: float
    bits: tuple[int, int]
    blocks: Blocks | None


@shown_as_table
class Estimate(NamedTuple):
    """An analytic estimate of a network on the array, beside the 8-bit baseline. It prints.

    Attributes:
      names: Names of the sites.
      spent: Energy breakdown of each site.
      baseline: Energy breakdown of each on an array of plain 8-bit multipliers, nothing skipped.
    """

    names: tuple[str, ...]
    spent: tuple[EnergyBreakdown, ...]
    baseline: tuple[EnergyBreakdown, ...]

    @property
    def energy(self) -> float:
        """Energy of all sites, in pJ."""
        return sum(s.energy for s in self.spent)

    @property
    def cycles(self) -> float:
        """Number of cycles of all sites."""
        return sum(s.cycles for s in self.spent)

    @property
    def bits(self) -> float:
        """Number of bits moved to and from the array."""
        return sum(s.bits for s in self.spent)

    @property
    def energy_gain(self) -> float:
        """Energy of the baseline over that of the network."""
        return sum(s.energy for s in self.baseline) / self.energy

    @property
    def speed_gain(self) -> float:
        """Cycles of the baseline over those of the network."""
        return sum(s.cycles for s in self.baseline) / self.cycles

    @property
    def traffic_gain(self) -> float:
        """Moved bits of the baseline over those of the network."""
        return sum(s.bits for s in self.baseline) / self.bits

    def __rich__(self) -> Any:
        from rich.table import Table

        table = Table(title="one call, gains over FxP8 · analytic model, not a measurement")
        table.add_column("site", style="bold", overflow="fold")
        for column in ("pJ", "multiply", "add", "shift", "SRAM", "DRAM", "cycles", "bits"):
            table.add_column(column, justify="right")
        for column in ("energy", "speed", "traffic"):
            table.add_column(f"{column} gain", justify="right")
        for name, s, base in zip(self.names, self.spent, self.baseline, strict=True):
            amounts = (s.energy, *s)
            gains = (base.energy / s.energy, base.cycles / s.cycles, base.bits / s.bits)
            table.add_row(name, *map(si, amounts), *(f"{gain:.2f}×" for gain in gains))
        totals = [sum(part) for part in zip(*self.spent, strict=True)]
        gains = (self.energy_gain, self.speed_gain, self.traffic_gain)
        table.add_section()
        table.add_row("all", *map(si, (self.energy, *totals)), *(f"{g:.2f}×" for g in gains))
        return table


@dataclasses.dataclass(frozen=True)
class Hardware:
    """A systolic array of precision-reconfigurable elements, as an analytic model.

    Sums stay in the elements (output-stationary). An element holds as many block multipliers as
    take the area of one 8-bit multiplier, floor(64 / K²); an array of plain 8-bit multipliers is
    the baseline. Block products of a code overlap in 2K bits, where they are added. Static blocks
    have fixed places; the product of dynamic ones is shifted by their indices. The
    multiply-accumulates of pruned weights are gated, which saves energy and no cycles, and their
    blocks are not stored, at one bit a weight to say which. Energies are of 45 nm CMOS at 0.9 V;
    registers, control and leakage are not in the model.

    Attributes:
      rows, columns: Number of elements of the array along each side. Own choice.
      multiply: Energy for each pair of operand bits in a multiplier, in pJ; 0.2 pJ for 8 × 8 bits.
        Source: Horowitz, "Computing's energy problem", ISSCC 2014.
      add: Energy for each bit of an adder, in pJ; 0.1 pJ for 32 bits. Source: Horowitz.
      sram: Energy for each bit of the operand buffers, in pJ; 20 pJ for 64 bits of 32 KB. Source:
        Horowitz.
      dram: Energy for each bit from DRAM, in pJ; the lower of 1.3 to 2.6 nJ for 64 bits. Source:
        Horowitz.
      accumulator: Bits of the sums in the elements. Own choice.
      shifter: Bits of the shifter of dynamic products, taken to cost as much as an adder as wide.
        Own assumption.
      port: Bits an edge element takes in a cycle: what the baseline needs. Own choice.
      weight_loads: Number of times each weight comes from DRAM in one call; 0 where weights stay on
        chip, 1 where each call loads them. Own choice.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> net = js.trace(lambda p, x: x @ p["w"], {"w": jnp.ones((4, 2))}, jnp.ones((1, 4)))
      >>> estimate = js.Hardware().estimate(js.quantize(8, 8)(net))
      >>> estimate.names, round(estimate.energy_gain, 2)
      (('w',), 1.0)
    """

    rows: int = 32
    columns: int = 32
    multiply: float = 0.2 / 64
    add: float = 0.1 / 32
    sram: float = 20 / 64
    dram: float = 1300 / 64
    accumulator: int = 32
    shifter: int = 16
    port: float = 8
    weight_loads: float = 0

    def __post_init__(self):
        for name in ("rows", "columns", "accumulator", "shifter"):
            checked_int(name, getattr(self, name), 1)
        for name in ("multiply", "add", "sram", "dram", "weight_loads"):
            check_range(name, getattr(self, name), 0)
        check_range("port", self.port, 0, above=True)

    @property
    def array(self) -> DigitalArray:
        """The part of an accelerator that this is: sums that stay, blocks of any size."""
        fields = ("rows", "columns", "multiply", "add", "accumulator", "shifter", "port")
        return DigitalArray(block=0, **{name: getattr(self, name) for name in fields})

    def estimate(self, net: Network, *args: Any, **kwargs: Any) -> Estimate:
        """Estimates one call of a network on the array.

        Contractions of two activations that were left as they are, are left out.

        Args:
          net: Quantized network; blocks of the products may be chosen, and weights pruned.
          *args: Inputs (only shapes count); without any, those of the traced example.
          **kwargs: Keyword arguments, as in a call.

        Raises:
          ValueError: A site computes with floats, or with hardware that this array does not have.
        """
        loads = self.loads(net, *args, **kwargs)
        plain = [load._replace(kept=1.0, bits=(8, 8), blocks=None) for load in loads.values()]
        return Estimate(
            tuple(loads), tuple(map(self.spend, loads.values())), tuple(map(self.spend, plain))
        )

    def loads(self, net: Network, *args: Any, **kwargs: Any) -> dict[str, Workload]:
        """Collects the work that each site asks of the array; see `estimate`.

        Args:
          net: Quantized network.
          *args: Inputs (only shapes count); without any, those of the traced example.
          **kwargs: Keyword arguments, as in a call.

        Raises:
          ValueError: As `estimate` raises.
        """
        found: dict[str, Workload] = {}
        for site, cost in zip(net.sites, net.cost(*args, **kwargs).sites, strict=True):
            chain = net.cores.get(site.name, ())
            if site.kind == "lookup" or (site.kind == "dynamic" and not chain):
                continue
            density = net.density(site)
            if density is None:
                raise ValueError(f"net: the mask of {site.name} is traced; call it outside jit")
            found[site.name] = Workload(
                matmul=cost.matmul,
                runs=cost.runs,
                kept=density,
                bits=_widths(site.name, chain),
                blocks=next((w.settings["blocks"] for w in chain if w.role == "blocks"), None),
            )
        return found

    def spend(self, load: Workload) -> EnergyBreakdown:
        """Computes the energy breakdown of one site.

        Args:
          load: Work of the site.
        """
        B, _, K, N = load.matmul
        blocks, (x_bits, w_bits) = load.blocks, load.bits
        if blocks is not None:
            x_bits, w_bits = int(blocks.x_bits), int(blocks.w_bits)
        work = Work(
            *("", "codes", load.matmul, load.runs, 1, load.kept),
            (x_bits, w_bits, 8),  # results leave the array as 8-bit codes
            blocks=blocks,
        )
        array = self.array
        spent = array.spend(work)
        bits = spent.inputs + spent.weights + spent.results
        stored = load.runs * B * K * N * work.stored_bits
        return EnergyBreakdown(
            *(spent.energy[part] for part in ("multiply", "add", "shift")),
            sram=bits * self.sram,
            dram=self.weight_loads * stored * self.dram,
            cycles=array.busy(work),
            bits=bits,
        )


def _widths(name: str, chain: tuple[Wrapper, ...]) -> tuple[int, int]:
    """Reads the bits of a site's inputs and weights, if the array can hold them.

    Raises:
      ValueError: It cannot.
    """
    coded = first_of(chain, "codes")
    if coded is None:
        raise ValueError(f"net: {name} holds floats; put quantize(weights=…, inputs=…) before it")
    for other in chain:
        if other.role not in DIGITAL | {"codes", "blocks"}:
            raise ValueError(f"net: the array cannot hold {other!r} at {name}")
    grids = coded.formats[::-1]
    if None in grids:
        raise ValueError(f"net: {name} has floats for an operand; quantize inputs and weights")
    return grids[0].bits, grids[1].bits
