"""A plan: which equations of a traced model are sites, and what the others are."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax

from jaxsim.cores.op import Op
from jaxsim.network.site import Site


class Known(NamedTuple):
    """Provenance of a value that no input reaches.

    Attributes:
      param: path of the largest weight it comes from, "" if from buffers and constants alone.
      size: entries of that weight.
      mapped: depths of the scans that hand it out slice by slice.
      sources: paths of all parameters and buffers it comes from.
      parts: paths of the weights whose zeros are zeros of it, by moving or scaling entries; none
        if it is computed in another way.
    """

    param: str = ""
    size: int = 0
    mapped: frozenset[int] = frozenset()
    sources: frozenset[str] = frozenset()
    parts: frozenset[str] = frozenset()


class Contraction(NamedTuple):
    """An equation that is a site: its op, abstract operands and where they stand."""

    site: Site
    op: Op
    x: jax.ShapeDtypeStruct
    w: jax.ShapeDtypeStruct
    x_at: int
    w_at: int


class Inner(NamedTuple):
    """An equation whose inner jaxprs hold sites or pass known values on."""

    plans: tuple[Plan, ...]
    names: frozenset[str]


Entry = Contraction | Inner | None


class Plan(NamedTuple):
    """A jaxpr, and for each of its equations what the walk does there (None: bind it)."""

    jaxpr: Any
    consts: Sequence[Any]
    entries: tuple[Entry, ...]
    known: tuple[Known | None, ...]


class Traced(NamedTuple):
    """A call, traced.

    Attributes:
      plan: what each equation is.
      values: what the plan takes.
      out_tree: structure of what it returns.
      readers: for each parameter and buffer the sites and primitives that read it.
      miscomputed: convolutions that XLA's CPU backend of JAX below 0.12 gets wrong, by parameter.
    """

    plan: Plan
    values: list[Any]
    out_tree: Any
    readers: dict[str, tuple[str, ...]]
    miscomputed: tuple[str, ...]

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites, in order of execution, with what else reads their weights."""
        return tuple(
            dataclasses.replace(c.site, shared=self._shared(c.site))
            for c in contractions(self.plan)
        )

    @property
    def unreached(self) -> tuple[str, ...]:
        """What is contracted with inputs and is no site, each in a phrase."""
        found: list[str] = []
        for source, readers in self.readers.items():
            others = [r for r in readers if r.partition(" ")[0] in CONTRACTIONS]
            typed = [r.partition(" of ")[2] for r in others if " of " in r]
            if others and source.startswith(BUFFERS):
                name = source.removeprefix(BUFFERS)
                found.append(f"{name} is a buffer ({', '.join(others)}): weights=… makes it a site")
            elif typed:
                found.append(f"{source} has dtype {typed[0]}; a weight must be a float")
            elif others:
                found.append(f"{source} is contracted as no site is ({', '.join(others)})")
        return tuple(found)

    def _shared(self, site: Site) -> tuple[str, ...]:
        readers = (self.readers.get(source, ()) for source in site.sources)
        return tuple(dict.fromkeys(r for names in readers for r in names if r != site.name))


CONTRACTIONS = ("dot_general", "conv_general_dilated", "ragged_dot", "ragged_dot_general")


BUFFERS = "buffers/"
"""What paths of buffers begin with among the sources of a weight."""


def contractions(plan: Plan) -> Iterator[Contraction]:
    """The sites of a plan, in order."""
    for entry in plan.entries:
        if isinstance(entry, Contraction):
            yield entry
        elif entry is not None:
            for inner in entry.plans:
                yield from contractions(inner)
