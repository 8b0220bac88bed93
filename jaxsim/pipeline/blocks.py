"""A network as a run of equal blocks, with what comes before and after."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from jaxsim.cores.conv import Conv
from jaxsim.network.cuts import Cut, Equations, cuts
from jaxsim.network.plan import contractions
from jaxsim.network.stages import Stage, Stages, signature, split

ARGUMENT = -1
"""Stands for the network's arguments among the stages that inputs come from."""


class Blocks(NamedTuple):
    """A network as a run of equal blocks, with what comes before and after.

    Attributes:
      cut: The network cut at each block.
      first: Position of the first block among its stages.
      number: Number of blocks.
      begins: The cut at which each group of blocks but the first begins.
    """

    cut: Stages
    first: int
    number: int
    begins: tuple[Cut, ...]

    @property
    def block(self) -> Stage:
        """The block that stands for all: the second, which takes what a block gives."""
        return self.cut.stages[self.first + 1]

    @property
    def boundary_inputs(self) -> list[int]:
        """Inputs that come from the block before; the others are the same for all blocks."""
        return [i for i, (s, _) in enumerate(input_sources(self.block)) if s == self.first]

    @property
    def boundary_outputs(self) -> list[int]:
        """The outputs of the block before that these are."""
        inputs = input_sources(self.block)
        return [inputs[i][1] for i in self.boundary_inputs]


def input_sources(stage: Stage) -> list[tuple[int, int]]:
    """Lists where a stage's arguments and live values come from, in its order.

    Args:
      stage: The stage.

    Returns:
      For each the stage, `ARGUMENT` for the network's arguments, and the position among its
      outputs.
    """
    return [*((ARGUMENT, i) for i in stage.arguments), *stage.sources]


def equal_blocks(line: Equations, stages: int) -> Blocks:
    """Finds the longest run of equal blocks that divides into so many stages.

    Args:
      line: A network's equations.
      stages: Number of groups of blocks.

    Raises:
      ValueError: No such run, convolutions on a CPU, or blocks that hand on more than the next
        block takes.
    """
    if jax.default_backend() == "cpu" and any(
        isinstance(c.op.geometry, Conv) for c in contractions(line.plan)
    ):
        raise ValueError(
            "engine='spmd': the network has convolutions, and XLA's CPU backend runs those in a "
            "loop 10 to 100 times slower than outside; use engine='mpmd'"
        )
    places = [cut for cut in cuts(line) if cut.minimal]
    run = _longest_run(line, places, stages)
    if not run.number:
        most = max(_longest_run(line, places, 1).number, 1)
        raise ValueError(
            f"engine='spmd': the network has no run of equal blocks for stages={stages}: as one "
            f"program for all devices it needs {stages} blocks or a multiple of that in a row, of "
            f"the same equations, shapes and dtypes, and here are {most} at most; unequal stages "
            "are programs of their own, which engine='mpmd' runs in one process"
        )
    known = {place.at: place for place in places}
    begins = [run.begin + i * run.length for i in range(run.number + 1)]
    inner = [
        known.get(at, Cut("", at, 0, 0, minimal=True)) for at in begins if 0 < at < len(line.active)
    ]
    each = run.number // stages
    groups = tuple(known[begins[i]] for i in range(each, run.number, each))
    blocks = Blocks(split(line, inner), 1 if run.begin else 0, run.number, groups)
    _check_links(blocks)
    return blocks


class _Run(NamedTuple):
    """Equal blocks that follow one another.

    Attributes:
      begin: Position of the first equation.
      length: Equations a block.
      number: Number of blocks.
    """

    begin: int = 0
    length: int = 0
    number: int = 0


def _longest_run(line: Equations, places: list[Cut], stages: int) -> _Run:
    """The run of equal blocks that covers most equations, of those that divide into stages."""
    marks = [signature(stage) for stage in split(line, places).stages]
    ats = [0, *(place.at for place in places), len(line.active)]
    best = _Run()
    for period in range(1, len(marks)):
        for start in range(len(marks) - period):
            same = 0
            while (
                start + same + period < len(marks)
                and marks[start + same] == marks[start + same + period]
            ):
                same += 1
            if not same:
                continue
            length = ats[start + period] - ats[start]
            run = _divisible(line, _Run(ats[start], length, same // period + 1), stages)
            if run.number > 1 and run.number * run.length > best.number * best.length:
                best = run
    return best


def _divisible(line: Equations, run: _Run, stages: int) -> _Run:
    """A run with as many blocks as divide into stages, one more at either end where it is equal."""
    begin, length, count = run
    # What precedes the first cut and follows the last may hold a block and more.
    if count % stages and _same(line, begin, begin + count * length, length):
        count += 1
    if count % stages and _same(line, begin, begin - length, length):
        begin, count = begin - length, count + 1
    return _Run(begin, length, count // stages * stages)


def _same(line: Equations, known: int, at: int, length: int) -> bool:
    """Whether the equations from `at` are the same block as those from `known`."""
    if at < 0 or at + length > len(line.active):
        return False
    marks: list[Any] = []
    for begin in (known, at):
        ends = [end for end in (begin, begin + length) if 0 < end < len(line.active)]
        pieces = split(line, [Cut("", end, 0, 0, minimal=True) for end in ends])
        marks.append(signature(pieces.stages[1 if begin else 0]))
    return marks[0] == marks[1]


def _check_links(blocks: Blocks) -> None:
    """Checks that each block reads of the one before it what the second reads of the first."""
    cut, first, count = blocks.cut, blocks.first, blocks.number
    into, out_of = blocks.boundary_inputs, blocks.boundary_outputs
    expected = input_sources(blocks.block)
    for j in range(1, count):
        links = list(expected)
        for i, at in zip(into, out_of, strict=True):
            links[i] = (first + j - 1, at)
        if input_sources(cut.stages[first + j]) != links:
            raise ValueError(
                f"engine='spmd': the block at {cut.stages[first + j].name} reads other values than "
                "the one before it; use engine='mpmd'"
            )
    sources = [s for s, _ in cut.outputs]
    sources += [s for stage in cut.stages[first + count :] for s, _ in stage.sources]
    if any(first <= s < first + count - 1 for s in sources):
        raise ValueError(
            "engine='spmd': what is inside the equal blocks is read after them; use engine='mpmd'"
        )
    if len(cut.stages[first + count - 1].outputs) != len(out_of):
        raise ValueError(
            "engine='spmd': the last block hands on other values than the others; use engine='mpmd'"
        )
