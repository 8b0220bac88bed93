"""Memory: levels between which operands move, and what moving them costs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jaxsim.accelerators.work import Spent, Work
from jaxsim.numerics.checks import check_range


@dataclasses.dataclass(frozen=True)
class Memory:
    """One level of memory.

    Attributes:
      read, write: Energy of a bit, in pJ; `write=None` for as much as a read.
      size: Bits that it holds; None for any number.
      bandwidth: Bits a second, reads and writes together; None for any number.
      area: Area, in mm².
      serves: Names of the parts that it serves; () for all.

    Examples:
      >>> import jaxsim as js
      >>> js.accelerators.Memory(read=20 / 64, size=8 * 32 * 1024).write_energy
      0.3125
    """

    read: float
    write: float | None = None
    size: float | None = None
    bandwidth: float | None = None
    area: float = 0.0
    serves: tuple[str, ...] = ()

    def __post_init__(self):
        check_range("read", self.read, 0)
        check_range("area", self.area, 0)
        for name in ("write", "size", "bandwidth"):
            if getattr(self, name) is not None:
                check_range(name, getattr(self, name), 0, above=name != "write")
        if isinstance(self.serves, str) or not all(isinstance(s, str) for s in self.serves):
            raise ValueError(f"serves={self.serves!r}: must be names of parts")
        object.__setattr__(self, "serves", tuple(self.serves))

    @property
    def write_energy(self) -> float:
        """Energy of writing a bit, in pJ."""
        return self.read if self.write is None else self.write


@dataclasses.dataclass(frozen=True)
class Link:
    """Wires between a part and the memory next to it.

    Attributes:
      energy: Energy of a bit, in pJ.
      bandwidth: Bits a second; None for any number.

    Examples:
      >>> import jaxsim as js
      >>> js.accelerators.Link(energy=0.1).bandwidth is None
      True
    """

    energy: float
    bandwidth: float | None = None

    def __post_init__(self):
        check_range("energy", self.energy, 0)
        if self.bandwidth is not None:
            check_range("bandwidth", self.bandwidth, 0, above=True)


SUM = 32
"""Bits of a sum that is held in memory before it is complete. Own choice."""


class Moved(NamedTuple):
    """Bits that some work moves, by level of memory.

    Attributes:
      read, written: Bits at each level.
    """

    read: dict[str, float]
    written: dict[str, float]


def moves(
    work: Work, spent: Spent, levels: Mapping[str, Memory], weights: str, held: bool
) -> Moved:
    """Counts the bits that move at each level of memory, for one call.

    The part reads and writes the nearest level. Activations lie in the nearest level that has room
    for an execution's input and result together, weights in the level that is named; from there
    they come through all levels between: once where one operand fits into half of the next level.
    Otherwise one operand is held in blocks of half that level, or the sums that it makes are, and
    the other one comes once for each block; whichever moves fewer bits. Sums that are held are
    taken up again for each slice of the operands that fits into the other half.

    Args:
      work: Work of a site or an equation.
      spent: What the part spends on it.
      levels: Levels that serve the part, the nearest first.
      weights: Name of the level in which weights lie between calls.
      held: True if the part holds the weights itself.
    """
    names = list(levels)
    read, written = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    if not names:
        return Moved(read, written)
    read[names[0]] += spent.inputs + spent.weights + spent.sums
    written[names[0]] += spent.sums + spent.results
    x = work.sizes[0] * work.bits[0]
    w = 0.0 if held else work.sizes[1] * work.stored_bits
    y = work.sizes[2] * work.bits[2]
    activations = x + y + (w if not work.copies else 0.0)
    home = _home(levels, activations)
    weight_home = home if not work.copies else names.index(weights)
    for i in range(max(home, weight_home)):
        inner, outer = names[i], names[i + 1]
        fetched, spilled = _fetched(
            x if home > i else 0.0,
            w if weight_home > i else 0.0,
            work.sizes[2] * SUM,
            levels[inner].size,
        )
        results = y if home > i else 0.0
        read[outer] += work.runs * fetched
        written[inner] += work.runs * (fetched + spilled)
        read[inner] += work.runs * (results + spilled)
        written[outer] += work.runs * results
    return Moved(read, written)


def _home(levels: Mapping[str, Memory], bits: float) -> int:
    """Position of the nearest level that has room for some bits, else of the last."""
    for i, level in enumerate(levels.values()):
        if level.size is None or bits <= level.size:
            return i
    return len(levels) - 1


def _fetched(x: float, w: float, sums: float, size: float | None) -> tuple[float, float]:
    """Bits of two operands that come into a level, and of sums that leave the part unfinished.

    Args:
      x: Bits of the input.
      w: Bits of the weight.
      sums: Bits of all sums that they make.
      size: Bits that the level holds; None for any number.
    """
    half = math.inf if size is None else size / 2
    if min(x, w) <= half:
        return x + w, 0.0
    options: list[tuple[float, float]] = []
    for held, passing in ((x, w), (w, x)):
        options.append((held + passing * math.ceil(held / half), 0.0))
        blocks = max(math.ceil(sums / half), 1)
        slices = math.ceil((held / blocks + passing) / half)
        options.append((held + passing * blocks, (slices - 1) * sums))
    return min(options)


def serving(levels: Mapping[str, Memory], part: str) -> dict[str, Memory]:
    """Selects the levels that serve a part, the nearest first.

    Args:
      levels: Levels of an accelerator.
      part: Name of the part.
    """
    return {name: m for name, m in levels.items() if not m.serves or part in m.serves}


def slowest(moved: Moved, levels: Mapping[str, Memory], names: Sequence[str]) -> float:
    """Computes the time of the level that takes longest, in s.

    Args:
      moved: Bits at each level.
      levels: Levels of an accelerator.
      names: Names of those that serve.
    """
    times = [0.0]
    for name in names:
        bandwidth = levels[name].bandwidth
        if bandwidth is not None:
            times.append((moved.read[name] + moved.written[name]) / bandwidth)
    return max(times)
