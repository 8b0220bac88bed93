"""Numbers of cores that train beside the parameters: ranges of grids, and adapters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

from jax.tree_util import Partial
from jaxtyping import Array

from jaxsim.cores.adapted import adapted
from jaxsim.cores.wrapper import Wrapper, first_of, place_of
from jaxsim.formats import clipping
from jaxsim.formats.grid import Clip, Grid

Cores = Mapping[str, tuple[Wrapper, ...]]
"""Wrappers by name of the transformed sites, outermost first."""


def trained_numbers(cores: Cores) -> dict[str, dict[str, Array]]:
    """Lists what trains of cores: `{"ranges": …, "adapters": …}`, those of them that there are.

    Args:
      cores: Wrappers by site.
    """
    found = {"ranges": ranges_of(cores), "adapters": adapters_of(cores)}
    return {kind: numbers for kind, numbers in found.items() if numbers}


def with_trained_numbers(cores: Cores, values: Mapping[str, Any]) -> dict[str, tuple[Wrapper, ...]]:
    """Puts other numbers in cores.

    Args:
      cores: Wrappers by site.
      values: Numbers as `trained_numbers` lists them; a kind that is not there stays as it is.
    """
    changed = dict(cores)
    if "ranges" in values:
        changed = with_ranges_in(changed, values["ranges"])
    if "adapters" in values:
        changed = with_adapters_in(changed, values["adapters"])
    return changed


def ranges_of(cores: Cores) -> dict[str, Array]:
    """Lists the trained numbers of ranges, by site, operand and position.

    Args:
      cores: Wrappers by site.
    """
    found: dict[str, Array] = {}
    for name, chain in cores.items():
        for operand, rule in _trained_rules(chain):
            found |= {f"{name} {operand} {i}": a for i, a in enumerate(rule.args)}
    return found


def with_ranges_in(cores: Cores, values: Mapping[str, Array]) -> dict[str, tuple[Wrapper, ...]]:
    """Replaces the trained numbers of ranges.

    Args:
      cores: Wrappers by site.
      values: Numbers as `ranges_of` lists them.
    """

    def clip(site: str, operand: str, grid: Grid) -> Clip | None:
        if not _is_trained(grid.clip):
            return grid.clip
        rule = cast(Partial, grid.clip)
        return Partial(rule.func, *(values[f"{site} {operand} {i}"] for i in range(len(rule.args))))

    return with_range_rules(cores, cores, clip)


def with_range_rules(
    cores: Cores, sites: Iterable[str], clip: Callable[[str, str, Grid], Clip | None]
) -> dict[str, tuple[Wrapper, ...]]:
    """Replaces the rules that ranges of grids follow.

    Args:
      cores: Wrappers by site.
      sites: Names of the sites.
      clip: `(site, operand, grid) -> rule`.
    """
    found = dict(cores)
    for site in sites:
        if not on_grids(cores[site]):
            continue

        def changed(wrapper: Wrapper, site: str = site) -> Wrapper:
            if wrapper.role != "codes":
                return wrapper
            grids = {
                operand: grid and dataclasses.replace(grid, clip=clip(site, operand, grid))
                for operand, grid in wrapper.settings.items()
            }
            return Wrapper.of(wrapper.factory, **grids)

        found[site] = tuple(map(changed, cores[site]))
    return found


def on_grids(chain: Sequence[Wrapper]) -> bool:
    """Whether a site's codes are of grids, whose range rules can be replaced.

    Args:
      chain: Wrappers of the site.
    """
    coded = first_of(chain, "codes")
    forms = () if coded is None else [f for f in coded.formats if f is not None]
    return bool(forms) and all(isinstance(form, Grid) for form in forms)


def adapters_of(cores: Cores) -> dict[str, Array]:
    """Lists the numbers of adapters: `site down` and `site up` by name.

    Args:
      cores: Wrappers by site.
    """
    found: dict[str, Array] = {}
    for name, chain in cores.items():
        if (place := adapter_place(chain)) is not None:
            found |= {f"{name} {which}": a for which, a in chain[place].settings.items()}
    return found


def with_adapters_in(cores: Cores, values: Mapping[str, Array]) -> dict[str, tuple[Wrapper, ...]]:
    """Replaces the numbers of adapters.

    Args:
      cores: Wrappers by site.
      values: Numbers as `adapters_of` lists them.
    """
    found = dict(cores)
    for name, chain in cores.items():
        if (place := adapter_place(chain)) is not None:
            settings = {which: values[f"{name} {which}"] for which in chain[place].settings}
            found[name] = (*chain[:place], Wrapper.of(adapted, **settings), *chain[place + 1 :])
    return found


def adapter_place(chain: Sequence[Wrapper]) -> int | None:
    """Finds the position of the adapter in a chain, None where it has none.

    Args:
      chain: Wrappers of a site.
    """
    return next((i for i, wrapper in enumerate(chain) if wrapper.factory is adapted), None)


def _is_trained(rule: Any) -> bool:
    return isinstance(rule, Partial) and rule.func in clipping.TRAINED


def _trained_rules(chain: Sequence[Wrapper]) -> list[tuple[str, Any]]:
    """The trained rules of a site's chain, by operand."""
    if not on_grids(chain):
        return []
    grids = zip(("weights", "inputs"), chain[place_of(chain, "codes")].formats, strict=True)
    return [(name, g.clip) for name, g in grids if g is not None and _is_trained(g.clip)]
