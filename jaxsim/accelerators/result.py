"""Result of an estimate: what sites, other equations and parts spend."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from jaxsim.accelerators.accelerator import Accelerator
from jaxsim.accelerators.table import estimate_table
from jaxsim.console.table import shown_as_table


class SiteEstimate(NamedTuple):
    """What one site, or all equations of one primitive, spend in one call.

    Attributes:
      part: Name of the part that runs it.
      components: Energy by component of the part, in pJ; "convert" is the SIMD unit's, for codes of
        inputs and scales of results, and so is "digital", for what is computed beside the hardware.
      memory: Energy by level of memory, in pJ.
      bits: Bits moved by level of memory, reads and writes together.
      latency: Time, in s: of the slowest of the part, the conversions, the link and the levels.
      area: Area that it alone takes, in mm²: of cells that hold its weight.
      cycles: Cycles of the part.
      utilization: Fraction of the part that is busy with it meanwhile, in [0, 1].
      equations: Number of executions in one call.
    """

    part: str
    components: dict[str, float]
    memory: dict[str, float]
    bits: dict[str, float]
    latency: float
    area: float
    cycles: float
    utilization: float
    equations: float

    @property
    def energy(self) -> float:
        """Sum of the energies, in pJ."""
        return sum(self.components.values()) + sum(self.memory.values())

    def joined(self, other: SiteEstimate) -> SiteEstimate:
        """Adds what is spent elsewhere in the call, one after the other.

        Args:
          other: What is spent there, on the same part.
        """
        latency = self.latency + other.latency
        busy = self.latency * self.utilization + other.latency * other.utilization
        return SiteEstimate(
            self.part,
            summed((self.components, other.components)),
            summed((self.memory, other.memory)),
            summed((self.bits, other.bits)),
            latency,
            self.area + other.area,
            self.cycles + other.cycles,
            busy / latency if latency else 0.0,
            self.equations + other.equations,
        )

    def scaled(self, batches: int, devices: int) -> SiteEstimate:
        """Multiplies it to what several batches spend, one after the other on each of some devices.

        Args:
          batches: Number of batches.
          devices: Number of devices that do the same at once.
        """
        times = batches * devices
        return self._replace(
            components={name: times * e for name, e in self.components.items()},
            memory={name: times * e for name, e in self.memory.items()},
            bits={name: times * b for name, b in self.bits.items()},
            latency=batches * self.latency,
            area=devices * self.area,
            cycles=batches * self.cycles,
            equations=times * self.equations,
        )

    def idle(self) -> SiteEstimate:
        """Leaves of it the area alone: nothing runs."""
        nothing = dict.fromkeys(self.memory, 0.0)
        return SiteEstimate(self.part, {}, nothing, nothing, 0.0, self.area, 0.0, 0.0, 0.0)


class PartEstimate(NamedTuple):
    """What runs on one part in one call.

    Attributes:
      energy: Energy of the part and of what it moves, in pJ.
      latency: Time in which it is at work, in s.
      area: Its area, and that of the cells of its sites, in mm².
      utilization: Fraction of it that is busy while it is at work, in [0, 1].
      sites: Names of its sites.
    """

    energy: float
    latency: float
    area: float
    utilization: float
    sites: tuple[str, ...]


class StageEstimate(NamedTuple):
    """How long the stages that one device runs take in one call.

    Attributes:
      ahead: Time of one batch in the stages before its first, in s.
      latency: Time of all batches in its own, in s.
      behind: Time of one batch in the stages after its last, in s.
      devices: Number of devices that share them.
    """

    ahead: float
    latency: float
    behind: float
    devices: int


@shown_as_table
class Estimate(NamedTuple):
    """An analytic estimate of one call of a network on an accelerator. It prints.

    Attributes:
      sites: What each site spends.
      rest: What the other equations spend, by primitive.
      uncounted: Number of equations that are not counted, by primitive.
      notes: Sentences that say what the estimate leaves out.
      accelerator: The accelerator; each device of a pipeline is one.
      stages: Stages of a pipeline by device; none of a network on one device.
    """

    sites: dict[str, SiteEstimate]
    rest: dict[str, SiteEstimate]
    uncounted: dict[str, float]
    notes: tuple[str, ...]
    accelerator: Accelerator
    stages: tuple[StageEstimate, ...] = ()

    @property
    def energy(self) -> float:
        """Energy of the call, in pJ."""
        return sum(s.energy for s in self._all)

    @property
    def latency(self) -> float:
        """Time of the call, in s: of its equations one after the other.

        Of a pipeline, that until the device is done that takes longest, which works without a gap
        once the first batch has reached it, and until its last batch has gone through the others.
        """
        if self.stages:
            return max(s.ahead + s.latency + s.behind for s in self.stages)
        return sum(s.latency for s in self._all)

    @property
    def area(self) -> float:
        """Area of the accelerator, with the cells that hold the network's weights, in mm²."""
        return self._devices * self.accelerator.area + sum(s.area for s in self.sites.values())

    @property
    def components(self) -> dict[str, float]:
        """Energy by component of the parts, in pJ."""
        return summed(s.components for s in self._all)

    @property
    def memory(self) -> dict[str, float]:
        """Energy by level of memory, in pJ."""
        return summed(s.memory for s in self._all)

    @property
    def bits(self) -> dict[str, float]:
        """Bits moved by level of memory."""
        return summed(s.bits for s in self._all)

    @property
    def parts(self) -> dict[str, PartEstimate]:
        """What runs on each part."""
        found: dict[str, PartEstimate] = {}
        for name, part in self.accelerator.parts.items():
            sites = tuple(n for n, s in self.sites.items() if s.part == name)
            own = [s for s in self._all if s.part == name]
            time = sum(s.latency for s in own)
            busy = sum(s.latency * s.utilization for s in own)
            found[name] = PartEstimate(
                sum(s.energy for s in own),
                time,
                self._devices * part.area + sum(s.area for s in own),
                busy / time if time else 0.0,
                sites,
            )
        return found

    @property
    def _devices(self) -> int:
        return sum(s.devices for s in self.stages) or 1

    @property
    def _all(self) -> tuple[SiteEstimate, ...]:
        return (*self.sites.values(), *self.rest.values())

    def __rich__(self) -> Any:
        return estimate_table(self)


def summed(tables: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Adds tables of amounts, name by name.

    Args:
      tables: Amounts by name.
    """
    found: dict[str, float] = {}
    for table in tables:
        for name, amount in table.items():
            found[name] = found.get(name, 0.0) + amount
    return found
