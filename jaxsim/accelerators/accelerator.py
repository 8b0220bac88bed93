"""An accelerator: parts that compute, memory levels between which operands move, and links."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from jaxsim.accelerators.memory import Link, Memory
from jaxsim.accelerators.part import Part, Runs
from jaxsim.numerics.checks import checked_int


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """Parts that compute, levels of memory and links, as an analytic model.

    A site runs on the first part that accepts its chain of cores, other equations on the first that
    accepts them; see `estimate`. Nothing in it is measured.

    Attributes:
      parts: Parts by name, in order of preference: `DigitalArray`, `AnalogArray`, `SimdUnit`, or a
        `Part` of one's own.
      memory: Levels by name, the nearest to the parts first; none where traffic is not counted.
      links: Wires between a part and the memory next to it, by name of the part.
      weights: Name of the level in which weights lie between calls; None for the last. Arrays of
        cells hold their own.
      activations: Bits in which floats lie in memory between equations, at least 1; None for those
        of their dtype.

    Examples:
      >>> import jaxsim as js
      >>> from jaxsim.accelerators import DigitalArray, Memory, SimdUnit
      >>> chip = js.Accelerator(
      ...     parts={"array": DigitalArray(rows=16, columns=16), "simd": SimdUnit()},
      ...     memory={"sram": Memory(read=20 / 64, size=2**21), "dram": Memory(read=1300 / 64)},
      ... )
      >>> round(chip.area, 3)
      0.488
    """

    parts: Mapping[str, Runs | Part]
    memory: Mapping[str, Memory] = dataclasses.field(default_factory=dict)
    links: Mapping[str, Link] = dataclasses.field(default_factory=dict)
    weights: str | None = None
    activations: int | None = None

    def __post_init__(self):
        for field, kind in (("parts", None), ("memory", Memory), ("links", Link)):
            given = getattr(self, field)
            if not isinstance(given, Mapping) or not all(isinstance(n, str) for n in given):
                raise ValueError(f"{field}={given!r}: must be a dict by name")
            for name, value in given.items():
                if not (isinstance(value, kind) if kind else _is_part(value)):
                    wanted = kind.__name__ if kind else "a part: accepts, spend and area"
                    raise ValueError(f"{field}[{name!r}]={value!r}: must be {wanted}")
            object.__setattr__(self, field, MappingProxyType(dict(given)))
        if not self.parts:
            raise ValueError("parts={}: give at least one")
        for name in self.links:
            _known("links", name, self.parts)
        for level, memory in self.memory.items():
            for name in memory.serves:
                _known(f"memory[{level!r}].serves", name, self.parts)
        if self.weights is not None:
            _known("weights", self.weights, self.memory)
        if self.activations is not None:
            checked_int("activations", self.activations, 1)

    def __hash__(self) -> int:
        tables = (self.parts, self.memory, self.links)
        return hash((*(tuple(t.items()) for t in tables), self.weights, self.activations))

    @property
    def area(self) -> float:
        """Area of everything but arrays that grow with the weights they hold, in mm²."""
        return sum(p.area for p in self.parts.values()) + sum(m.area for m in self.memory.values())

    @property
    def weight_level(self) -> str:
        """Name of the level in which weights lie, "" without memory."""
        return self.weights or next(reversed(list(self.memory)), "")


def _is_part(value: Any) -> bool:
    return callable(getattr(value, "accepts", None)) and callable(getattr(value, "spend", None))


def _known(what: str, name: str, table: Mapping[str, Any]) -> None:
    if name not in table:
        raise ValueError(f"{what}={name!r}: must be one of {', '.join(table) or 'none'}")
