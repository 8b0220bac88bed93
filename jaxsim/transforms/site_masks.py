"""Masks of parameters that are read elsewhere too, moved to the sites that they are for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxsim.cores.site_weight import captured, masked
from jaxsim.cores.wrapper import Wrapper
from jaxsim.network.leaves import path_name
from jaxsim.network.network import Net, Network
from jaxsim.network.site import Site
from jaxsim.network.writer import write_states
from jaxsim.sparsity.masks import Masks


def at_sites(net: Net, sites: Iterable[Site], before: Masks) -> Net:
    """A network whose masks leave alone what else reads a parameter.

    A parameter that only these sites read keeps its mask. Of any other, and of a site whose weight
    is corrected after it was read, the mask becomes a core of the site.

    Args:
      net: With masks of parameters.
      sites: Those the masks are meant for.
      before: Masks of parameters that were there already, for all that reads them.
    """
    sites = [s for s in sites if any(part in net.masks for part in s.parts)]
    names = {s.name for s in sites}
    moving = [s for s in sites if not names.issuperset(s.shared) or _corrections(net, s)]
    # A parameter that one of its sites reads through a core is left to the cores of all of them.
    parts = {part for s in moving for part in s.parts}
    return moved_to_sites(net, [s for s in sites if not parts.isdisjoint(s.parts)], before)


def moved_to_sites(net: Net, sites: Iterable[Site], before: Masks) -> Net:
    """A network in which the masks of some sites' parameters stand at these sites.

    Args:
      net: With masks of parameters.
      sites: Those the masks are moved to; those without stay as they are.
      before: Masks of parameters that were there already, which they keep.
    """
    moving = [s for s in sites if any(part in net.masks for part in s.parts)]
    if not moving:
        return net
    weights = _weights(net, net.masks, moving)
    parts = {part for s in moving for part in s.parts}
    cores = dict(net.cores)
    for site in moving:
        chain, place = cores.get(site.name, ()), _corrections(net, site)
        wrapper = Wrapper.of(masked, mask=jnp.nan_to_num(weights[site.name]) != 0)
        cores[site.name] = (*chain[:place], wrapper, *chain[place:])
    left = {name: mask for name, mask in net.masks.items() if name not in parts}
    left |= {name: mask for name, mask in before.items() if name in parts}
    return dataclasses.replace(net, cores=cores, masks=left)


def at_parameters(net: Net, sites: Iterable[Site]) -> Net:
    """A network whose masks at sites are masks of parameters, to be scored and made again.

    Args:
      net: With masks at sites, or without.
      sites: Those to look at.
    """
    masks, cores = dict(net.masks), dict(net.cores)
    for site in sites:
        here = [w for w in cores.get(site.name, ()) if w.role == "mask"]
        if not here:
            continue
        cores[site.name] = tuple(w for w in cores[site.name] if w.role != "mask")
        for name, mask in _of_parameters(net, site, here[-1].settings["mask"]).items():
            masks[name] = mask & masks[name] if name in masks else mask
    cores = {name: chain for name, chain in cores.items() if chain}
    return dataclasses.replace(net, cores=cores, masks=masks)


def _corrections(net: Network, site: Site) -> int:
    """How many wrappers of a site's chain stand before its weight is what it multiplies."""
    roles = [w.role for w in net.cores.get(site.name, ())]
    return len(roles) - roles[::-1].index("correction") if "correction" in roles else 0


def _weights(net: Network, values: Masks, sites: Iterable[Site]) -> dict[str, Array]:
    """The weights of sites where the parameters are masks, or ones."""

    def value(path: object, p: Array) -> Array:
        held = values.get(path_name(path))  # pyright: ignore[reportArgumentType]
        return jnp.ones(p.shape, p.dtype) if held is None else held.astype(p.dtype)

    params = jax.tree_util.tree_map_with_path(value, net.params)
    cores = {site.name: (Wrapper.of(captured),) for site in sites}
    return write_states(
        dataclasses.replace(net, params=params, masks={}, cores=cores, states={}), None
    )


def _of_parameters(net: Network, site: Site, mask: Array) -> Masks:
    """The masks of parameters that give a site's."""
    shapes = {
        name: a.shape
        for path, a in jax.tree_util.tree_leaves_with_path(net.params)
        if (name := path_name(path)) in site.parts
    }

    def weight(parts: dict[str, Array]) -> Array:
        return _weights(net, parts, [site])[site.name]

    w, back = jax.vjp(weight, {name: jnp.ones(shape) for name, shape in shapes.items()})
    (read,), (kept,) = back(jnp.ones_like(w)), back(mask.astype(w.dtype))
    return {name: (kept[name] != 0) | (read[name] == 0) for name in shapes}
