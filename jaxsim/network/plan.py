"""Plans: which equations of a traced model are sites, and the meaning of the others."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import numpy as np

from jaxsim.cores.op import Op
from jaxsim.network.site import Site

Place = tuple[int, ...]
"""Position of an equation: those of the equations around it, outermost first, and its own."""


class Provenance(NamedTuple):
    """Provenance of a value that no input reaches.

    Attributes:
      param: Path of the largest weight it comes from, "" if from buffers and constants alone.
      size: Number of entries of that weight.
      scanned: Depths of the scans that read it slice by slice.
      sources: Paths of all parameters and buffers it comes from.
      parts: Paths of the weights whose zeros are zeros of it, by moving or scaling entries; none if
        it is computed in another way.
      rows: Gathers that took rows of it, all of them known.
      integers: Its entries, where constants of the model determine them and they are integers or
        truth values.
    """

    param: str = ""
    size: int = 0
    scanned: frozenset[int] = frozenset()
    sources: frozenset[str] = frozenset()
    parts: frozenset[str] = frozenset()
    rows: frozenset[Place] = frozenset()
    integers: np.ndarray | None = None


class Contraction(NamedTuple):
    """Equation that is a site: its op, abstract operands and their positions.

    The last is the position of how often each row of the input is multiplied, where the weight is
    one that integers choose; None where every row is.
    """

    site: Site
    op: Op
    x: jax.ShapeDtypeStruct
    w: jax.ShapeDtypeStruct
    x_at: int
    w_at: int
    rows_at: int | None = None

    @property
    def runs(self) -> int:
        """Number of executions in one call; a row that chooses several experts counts for each."""
        if not self.site.chosen:
            return self.site.runs
        once = jax.eval_shape(self.op.contract, self.x, self.w).size * self.op.depth
        return self.site.runs * (self.site.macs // max(once, 1))


class Rows(NamedTuple):
    """Consecutive slices of a stack.

    Attributes:
      first, last: First slice, and the one behind the last.
      total: Number of slices of the whole stack.
    """

    first: int
    last: int
    total: int

    @property
    def share(self) -> float:
        """Fraction of the stack."""
        return (self.last - self.first) / self.total


class Inner(NamedTuple):
    """Equation whose inner jaxprs hold sites or pass constant-derived values on.

    Attributes:
      plans: Plans of its jaxprs.
      names: Names of the sites inside.
      rewritten: True if the plan says in other words what the equation runs.
      rows: Slices that a part of a scan runs; None for anything else.
    """

    plans: tuple[Plan, ...]
    names: frozenset[str]
    rewritten: bool = False
    rows: Rows | None = None


Entry = Contraction | Inner | None


class Plan(NamedTuple):
    """Jaxpr with the meaning of each of its equations (None: evaluate it as it is)."""

    jaxpr: jex.Jaxpr
    consts: Sequence[Any]
    entries: tuple[Entry, ...]
    known: tuple[Provenance | None, ...]


def plain_plan(function: Callable[..., Any], *args: Any) -> Plan:
    """Builds the plan of a function's equations, none of which is a site.

    Args:
      function: Function of arrays.
      *args: Its arguments; shapes are enough.
    """
    closed = jax.make_jaxpr(function)(*args)
    return Plan(closed.jaxpr, closed.consts, (None,) * len(closed.jaxpr.eqns), ())


class Traced(NamedTuple):
    """Call of a model, traced and planned.

    Attributes:
      plan: Meaning of each equation.
      values: Inputs of the plan.
      out_tree: Structure of the outputs.
      readers: Sites and primitives that read a parameter or a buffer, by its path.
      lines: Line of the model in which a primitive first reads one, by path and primitive.
      miscomputed: Convolutions that XLA's CPU backend of JAX below 0.12 gets wrong, by parameter.
    """

    plan: Plan
    values: list[Any]
    out_tree: Any
    readers: dict[str, tuple[str, ...]]
    lines: dict[tuple[str, str], str]
    miscomputed: tuple[str, ...]

    @property
    def sites(self) -> tuple[Site, ...]:
        """Sites in order of execution, with what else reads their weights."""
        return tuple(
            dataclasses.replace(c.site, shared=self._other_readers(c.site))
            for c in contractions(self.plan)
        )

    @property
    def unreached(self) -> tuple[str, ...]:
        """Contractions with inputs that are not sites, each in a phrase."""
        found: list[str] = []
        for source, readers in self.readers.items():
            others = [r for r in readers if r.partition(" ")[0] in CONTRACTIONS]
            taken = [r for r in readers if r in LOOKUPS]
            opaque = [r.partition(" ")[0] for r in readers if r.partition(" ")[0] in OPAQUE]
            typed = [r.partition(" of ")[2] for r in others if " of " in r]
            imaginary = [r.partition(" by ")[2] for r in others if " by " in r]
            if others and source.startswith(BUFFERS):
                name = source.removeprefix(BUFFERS)
                found.append(f"{name} is a buffer ({', '.join(others)}): weights=… makes it a site")
            elif typed:
                found.append(f"{source} has dtype {typed[0]}; a weight must be a float")
            elif imaginary:
                found.append(f"{source} multiplies inputs of {imaginary[0]}; a site's are real")
            elif others:
                found.append(f"{source} is contracted as no site is ({', '.join(others)})")
            elif opaque and not source.startswith(BUFFERS):
                found.append(f"{source} goes into {', '.join(opaque)}, which is opaque")
            elif taken and not source.startswith(BUFFERS):
                found.append(f"{source} is looked up as no site is ({', '.join(taken)})")
        return tuple(found)

    def _other_readers(self, site: Site) -> tuple[str, ...]:
        readers = (self.readers.get(source, ()) for source in site.sources)
        return tuple(dict.fromkeys(r for names in readers for r in names if r != site.name))


CONTRACTIONS = ("dot_general", "conv_general_dilated", "ragged_dot", "ragged_dot_general")

LOOKUPS = ("gather", "dynamic_slice")

OPAQUE = ("pallas_call", "ffi_call", "custom_call", "pure_callback", "io_callback")
"""Primitives that hide what they compute: kernels, foreign functions and the host's."""

BUFFERS = "buffers/"
"""What paths of buffers begin with among the sources of a weight."""


def contractions(plan: Plan) -> Iterator[Contraction]:
    """Lists the sites of a plan, in order.

    Args:
      plan: Plan, with the plans inside it.
    """
    for entry in plan.entries:
        if isinstance(entry, Contraction):
            yield entry
        elif entry is not None:
            for inner in entry.plans:
                yield from contractions(inner)
