"""Coverage: which parameters transforms have reached, and why not the others."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from jaxsim.console.table import shown_as_table
from jaxsim.network.site import Site
from jaxsim.network.tables import coverage_table

Reach = Literal["transformed", "float", "no site"]
"""How far a parameter is reached: at every site that reads it, not at all of them, or by none."""


_SHOWN: tuple[tuple[Reach, str], ...] = (
    ("transformed", "transformed"),
    ("float", "float"),
    ("no site", "in no site"),
)


class Covered(NamedTuple):
    """How far one parameter is reached, or one contraction of two activations.

    Attributes:
      name: Path of the parameter, or name of the dynamic site.
      params: Number of its entries; 0 for a dynamic site.
      macs: Number of multiply-accumulates of a call with it, for the traced example.
      reach: "transformed" where each of its sites has a core or it is pruned, "float" where a site
        is left as the model has it, "no site" where no site reads it.
      frozen: True if it is no parameter but a weight that `trace(weights=…)` named.
      reason: Sites that are left, or what reads it instead of a site and where in the model.
    """

    name: str
    params: int
    macs: int
    reach: Reach
    frozen: bool
    reason: str


@shown_as_table
class Coverage(NamedTuple):
    """How far the transforms of a network reach. Printing shows a table.

    Attributes:
      rows: A row a parameter, then one for each dynamic site.
    """

    rows: tuple[Covered, ...]

    def __rich__(self) -> Any:
        return coverage_table(self.rows, self.line)

    def share(self, reach: Reach, *, of: Literal["params", "macs"] = "params") -> float:
        """Computes what fraction is reached so far.

        Args:
          reach: How far.
          of: What is counted.

        Returns:
          A fraction in [0, 1]; 0 where there is nothing to count.
        """
        total = sum(getattr(row, of) for row in self.rows)
        return sum(getattr(row, of) for row in self.rows if row.reach == reach) / max(total, 1)

    @property
    def line(self) -> str:
        """The shares of parameters and multiply-accumulates, in one line."""
        entries = [f"{self.share(r):.1%} {name}" for r, name in _SHOWN]
        parts = [", ".join(entries), f"{self.share('transformed', of='macs'):.1%} of MACs"]
        frozen = sum(row.params for row in self.rows if row.frozen)
        if frozen:
            parts[0] += f", {frozen / sum(row.params for row in self.rows):.1%} frozen"
        return "parameters: {}; transformed: {}".format(*parts)


def cover(
    sizes: Mapping[str, int],
    sites: Sequence[Site],
    changed: Collection[str],
    pruned: Collection[str],
    frozen: Collection[str],
    readers: Mapping[str, Sequence[str]],
) -> Coverage:
    """Tells of each parameter how far it is reached.

    Args:
      sizes: Number of entries of each parameter and each frozen weight, by path.
      sites: Sites of the network.
      changed: Names of the sites that have a core of their own.
      pruned: Paths of the parameters that have a mask.
      frozen: Paths of the weights that are not trained.
      readers: Phrases that name what reads a parameter, by path.
    """
    reading: dict[str, list[Site]] = {name: [] for name in sizes}
    for site in sites:
        for source in site.sources:
            reading.get(source, []).append(site)
    rows: list[Covered] = []
    for name, holding in reading.items():
        left = [s.name for s in holding if s.name not in changed and name not in pruned]
        reach: Reach = "float" if left else "transformed"
        reason = ", ".join(left)
        if not holding:
            reach, reason = "no site", ", ".join(readers.get(name, ("not read",)))
        macs = sum(_macs(s) for s in holding if s.param == name)
        rows.append(Covered(name, sizes[name], macs, reach, name in frozen, reason))
    for site in sites:
        if site.kind == "dynamic":
            reach = "transformed" if site.name in changed else "float"
            rows.append(Covered(site.name, 0, _macs(site), reach, False, ""))
    return Coverage(tuple(rows))


def _macs(site: Site) -> int:
    return site.macs * site.runs
