"""What options spend at places of a network on an accelerator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxsim.accelerators.accelerator import Accelerator
from jaxsim.accelerators.calls import Prepared
from jaxsim.accelerators.estimate import estimate_sites
from jaxsim.network.network import Network
from jaxsim.search.options import Fit, Option, apply_options, site_parts


class PartCosts(NamedTuple):
    """What options spend, and which a part of the accelerator runs.

    Attributes:
      spent: What each option spends at each place: "energy" in pJ, "latency" in s, "area" in mm²;
        0 where it cannot be chosen.
      fixed: What every choice spends beside it, in the same units: equations that are no sites of
        these places, and the area of the parts themselves.
      fit: Options that can be chosen, with those that no part runs refused.
    """

    spent: dict[str, Float[np.ndarray, "places options"]]
    fixed: dict[str, float]
    fit: Fit


def part_costs(
    net: Network,
    accelerator: Accelerator,
    options: Mapping[str, Option],
    fit: Fit,
    prepared: Sequence[Prepared],
) -> PartCosts:
    """Models each option at each place.

    Args:
      net: Network that is explored.
      accelerator: Hardware that runs it.
      options: Options by name.
      fit: Where they can be chosen.
      prepared: Portions of the call that is estimated, and what their equations ask.

    Raises:
      ValueError: An option, or a place, for which there is no part, or another site that none runs.
    """
    shape = len(fit.places), len(fit.options)
    spent = {name: np.zeros(shape) for name in ("energy", "latency", "area")}
    fits: list[set[str]] = [set() for _ in fit.places]
    refused = dict(fit.refused)
    placed = {site for place in fit.places for site in place.sites}
    fixed: dict[str, float] = {}
    for o, name in enumerate(fit.options):
        here = [i for i, options_here in enumerate(fit.fits) if name in options_here]
        chosen = dict.fromkeys((fit.places[i] for i in here), name)
        made = apply_options(net, options, chosen)
        found = estimate_sites(made, accelerator, prepared, parts=site_parts(net, options, chosen))
        for i in here:
            place = fit.places[i]
            why = [found.refused[s] for s in place.sites if s in found.refused]
            if why:
                refused[place.name, name] = why[0]
                continue
            fits[i].add(name)
            each = [found.sites[site] for site in place.sites]
            for quantity, table in spent.items():
                table[i, o] = sum(getattr(site, quantity) for site in each)
        if here and not any(name in fits[i] for i in here):
            why = refused[fit.places[here[0]].name, name]
            raise ValueError(f"options: no part runs {name!r} anywhere: {why}")
        if not fixed:
            if left := [s for s in found.refused if s not in placed]:
                raise ValueError(
                    f"accelerator: no part runs {left[0]} ({found.refused[left[0]]}), and no "
                    "option changes it"
                )
            others = [site for n, site in found.sites.items() if n not in placed]
            others += found.rest.values()
            fixed = {
                "energy": sum(site.energy for site in others),
                "latency": sum(site.latency for site in others),
                "area": accelerator.area + sum(site.area for site in others),
            }
    for i, place in enumerate(fit.places):
        if not fits[i]:
            whys = "; ".join(f"{o}: {w}" for (p, o), w in refused.items() if p == place.name)
            raise ValueError(f"options: none can be chosen at {place.name}: {whys}")
    return PartCosts(spent, fixed, fit._replace(fits=tuple(map(frozenset, fits)), refused=refused))
