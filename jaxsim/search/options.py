"""What may become of the places of a network, and which of them can."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from jaxsim.network.cost import SiteCounts
from jaxsim.network.leaves import path_name
from jaxsim.network.network import Network, require_uncut
from jaxsim.network.plan import Plan, contractions
from jaxsim.network.transform import require_network
from jaxsim.numerics.checks import check_called


class Option(NamedTuple):
    """What may become of some of a network's sites, as `explore` takes it.

    Attributes:
      transform: Transform of cores and masks, such as `js.quantize(8, 8)` or a `js.compose` of
        several; None leaves the sites as they are.
      sites: Patterns of the sites that it may be chosen for, as `Network.select` takes them.
      part: Name of the accelerator's part that runs it; None for the first that can.

    Examples:
      >>> import jaxsim as js
      >>> js.Option(js.quantize(4, 8), sites=["layers*"])
      Option(transform=quantize(weights=4, inputs=8), sites=['layers*'], part=None)
    """

    transform: Callable[[Network], Network] | None
    sites: str | Sequence[str] = "*"
    part: str | None = None


class Place(NamedTuple):
    """Sites that one choice is made for: those that share a parameter.

    Attributes:
      name: Name of the first of them.
      sites: Names of all.
    """

    name: str
    sites: tuple[str, ...]


class Fit(NamedTuple):
    """Which options can be chosen where.

    Attributes:
      places: Places for which at least one option fits.
      options: Names of the options.
      refused: Why an option that was meant for a place does not fit there, by (place, option).
      fits: For each place the names of the options that fit.
    """

    places: tuple[Place, ...]
    options: tuple[str, ...]
    refused: dict[tuple[str, str], str]
    fits: tuple[frozenset[str], ...]

    def table(self) -> Bool[np.ndarray, "places options"]:
        """Tells for each place and option whether it can be chosen."""
        return np.array([[name in fits for name in self.options] for fits in self.fits])


class _OtherModelError(ValueError):
    """A transform does more than an option may."""


def named_options(
    options: Mapping[str, Callable[[Network], Network] | Option | None],
) -> dict[str, Option]:
    """Reads options by name.

    Args:
      options: Transforms, options, or None for what is left as it is, by name.

    Raises:
      ValueError: None, or one that is neither a transform nor an option.
    """
    if not isinstance(options, Mapping) or not options:
        raise ValueError(f"options={options!r}: give a dict of at least one option by name")
    found: dict[str, Option] = {}
    for name, option in options.items():
        made = option if isinstance(option, Option) else Option(option)
        if not isinstance(name, str) or not name:
            raise ValueError(f"options: {name!r} is no name")
        check_called(f"options: {name!r}", made.transform)
        if made.transform is not None and not callable(made.transform):
            raise ValueError(f"options: {name!r} has {made.transform!r}, which is no transform")
        found[name] = made
    return found


def find_places(net: Network) -> tuple[Place, ...]:
    """Groups the sites of a network by the parameter that they share.

    Args:
      net: Network.
    """
    grouped: dict[str, list[str]] = {}
    for site in net.sites:
        grouped.setdefault(site.param or f"{site.name} alone", []).append(site.name)
    return tuple(Place(names[0], tuple(names)) for names in grouped.values())


def fit_options(net: Network, options: Mapping[str, Option]) -> Fit:
    """Finds for each place the options that can be chosen there, by trying them.

    Args:
      net: Network, not deployed.
      options: Options by name.

    Raises:
      ValueError: A deployed network, patterns that match nothing, an option that changes more than
        cores and masks, or one that fits nowhere.
    """
    require_network(net, "explore")
    require_uncut(
        net,
        "explore",
        allowed=("exit_early", "prune_tokens"),
        reason="devices work at once, so that times of sites do not add up; explore the whole "
        "network and cut what was found",
    )
    if net.deployed:
        raise ValueError("net is deployed: its weights are written; explore the network before")
    places, plan = find_places(net), net.traced().plan
    fits: dict[str, set[str]] = {place.name: set() for place in places}
    refused: dict[tuple[str, str], str] = {}
    for name, option in options.items():
        meant = _meant(net, option)
        here = [place for place in places if not meant.isdisjoint(place.sites)]
        whys = _refusals(net, name, option, here, meant)
        whys = _unwritable(net, plan, option, here, whys)
        for place, why in zip(here, whys, strict=True):
            if why:
                refused[place.name, name] = why
            else:
                fits[place.name].add(name)
        fitting = [place for place in here if name in fits[place.name]]
        if not fitting:
            raise ValueError(f"options: {name!r} fits no site: {refused[here[0].name, name]}")
        _require_local(net, name, option, fitting)
    kept = tuple(place for place in places if fits[place.name])
    return Fit(kept, tuple(options), refused, tuple(frozenset(fits[p.name]) for p in kept))


def apply_options(
    net: Network, options: Mapping[str, Option], by_place: Mapping[Place, str]
) -> Network:
    """Applies to each place the option that was chosen for it.

    Args:
      net: Network, not deployed.
      options: Options by name.
      by_place: Name of an option by place.
    """
    made = net
    for name, option in options.items():
        sites = option_sites(net, option, by_place, name)
        if sites and option.transform is not None:
            made = _applied(made, option.transform, sites)
    return made


def option_sites(
    net: Network, option: Option, by_place: Mapping[Place, str], name: str
) -> tuple[str, ...]:
    """Lists the sites that an option changes where it is chosen.

    Args:
      net: Network, not deployed.
      option: The option.
      by_place: Name of an option by place.
      name: Name of this one.
    """
    meant = _meant(net, option)
    return tuple(
        site
        for place, chosen in by_place.items()
        if chosen == name
        for site in place.sites
        if site in meant
    )


def site_parts(
    net: Network, options: Mapping[str, Option], by_place: Mapping[Place, str]
) -> dict[str, str]:
    """Collects the parts of an accelerator that options ask for, by pattern of one site.

    Rows are looked up where other equations run, whatever multiplies by their table.

    Args:
      net: Network, not deployed.
      options: Options by name.
      by_place: Name of an option by place.
    """
    looked_up = {site.name for site in net.sites if site.kind == "lookup"}
    return {
        f"re:{re.escape(site)}": option.part
        for name, option in options.items()
        if option.part is not None
        for site in option_sites(net, option, by_place, name)
        if site not in looked_up
    }


def _meant(net: Network, option: Option) -> set[str]:
    """The sites that an option's patterns name, of "*" lookups too."""
    return {site.name for site in net.select(option.sites, lookups=option.sites == "*")}


def _applied(
    net: Network, transform: Callable[[Network], Network], sites: Sequence[str]
) -> Network:
    made = transform(dataclasses.replace(net, focus=tuple(sites)))
    return dataclasses.replace(made, focus=net.focus)


def _refusals(
    net: Network, name: str, option: Option, places: Sequence[Place], meant: set[str]
) -> list[str]:
    """Why an option does not fit each of some places, "" where it does."""
    if option.transform is None:
        return [""] * len(places)
    together = [s for place in places for s in place.sites if s in meant]
    try:
        return _unchanged(net, _checked(net, name, option.transform, together), places)
    except _OtherModelError:
        raise
    except ValueError as error:
        if len(places) == 1:
            return [str(error)]
    return [_refusals(net, name, option, [place], meant)[0] for place in places]


def _unwritable(
    net: Network, plan: Plan, option: Option, places: Sequence[Place], whys: Sequence[str]
) -> list[str]:
    """Why an option does not fit each of some places, weights of another form than it has told."""
    fitting = [place for place, why in zip(places, whys, strict=True) if not why]
    made = apply_options(net, {"": option}, dict.fromkeys(fitting, ""))
    names, counts = {site for place in fitting for site in place.sites}, SiteCounts()
    refused: dict[str, str] = {}
    for contraction in contractions(plan):
        site, chain = contraction.site, made.cores.get(contraction.site.name, ())
        if site.name not in names or not chain:
            continue
        op = dataclasses.replace(contraction.op, scan_index=(0,) * len(site.stack))
        try:
            looks_up = site.kind == "lookup"
            counts(op, chain, contraction.x, contraction.w, looks_up=looks_up)
        except ValueError as error:
            refused[site.name] = str(error)
    return [
        why or next((refused[site] for site in place.sites if site in refused), "")
        for place, why in zip(places, whys, strict=True)
    ]


def _checked(
    net: Network, name: str, transform: Callable[[Network], Network], sites: Sequence[str]
) -> Network:
    """The transformed network.

    Raises:
      ValueError: It has other parameters or buffers: what an option does to one site would be felt
        at others.
    """
    made = _applied(net, transform, sites)
    before = jax.tree_util.tree_leaves_with_path((net.params, net.buffers))
    after = jax.tree.leaves((made.params, made.buffers))
    if len(before) != len(after) or type(made) is not type(net):
        raise _OtherModelError(f"options: {name!r} makes another model; apply it before explore")
    for (path, a), b in zip(before, after, strict=True):
        if a is not b:
            raise _OtherModelError(
                f"options: {name!r} changes {path_name(path[1:])}, which other sites may feel; an "
                "option changes cores and masks, so apply it before explore"
            )
    return made


def _require_local(net: Network, name: str, option: Option, places: Sequence[Place]) -> None:
    """Checks that an option does to a place what it would do to it alone.

    Raises:
      ValueError: It does not.
    """
    options = {name: option}
    together = apply_options(net, options, dict.fromkeys(places, name))
    sites = {site.name: site for site in net.sites}
    for place in places:
        parts = {part for site in place.sites for part in sites[site].parts}
        held = [together.cores.get(site, ()) for site in place.sites]
        numbers = any(np.size(leaf) > 1 for leaf in jax.tree.leaves(held))
        if not numbers and all(together.masks.get(p) is net.masks.get(p) for p in parts):
            continue
        alone = apply_options(net, options, {place: name})
        same = held == [alone.cores.get(site, ()) for site in place.sites]
        for part in parts & together.masks.keys():
            same = same and bool(jnp.all(together.masks[part] == alone.masks[part]))
        if not same:
            raise ValueError(
                f"options: {name!r} does something else to {place.name} alone than to all its "
                "sites together, and each chooses for itself: apply it before explore, or, if it "
                "prunes, with distribution=js.sparsity.uniform()"
            )


def _unchanged(net: Network, made: Network, places: Sequence[Place]) -> list[str]:
    """For each place "the transform leaves it as it is", or "" where it is changed."""
    by_name = {site.name: site for site in net.sites}

    def changed(name: str) -> bool:
        if net.cores.get(name, ()) != made.cores.get(name, ()):
            return True
        parts = by_name[name].parts
        return any(net.masks.get(p) is not made.masks.get(p) for p in parts)

    return [
        "" if any(map(changed, place.sites)) else "the transform leaves it as it is"
        for place in places
    ]
