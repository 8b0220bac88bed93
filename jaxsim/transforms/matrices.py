"""The weights of sites as the matrices that inputs meet, and back to the parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxsim.core import Wrapper
from jaxsim.network import Network, Site, path_name, write_states


def params_of(net: Network, sites: Iterable[Site]) -> dict[str, Array]:
    """The parameters that sites are named by."""
    names = {site.param for site in sites}
    leaves = jax.tree_util.tree_leaves_with_path(net.params)
    return {name: p for path, p in leaves if (name := path_name(path)) in names}


def with_params(net: Network, params: dict[str, Array]) -> Network:
    """A network with some parameters replaced."""
    changed = jax.tree_util.tree_map_with_path(
        lambda path, p: params.get(path_name(path), p), net.params
    )
    return dataclasses.replace(net, params=changed)


def matrices(
    net: Network, probes: Mapping[str, tuple[Wrapper, ...]], params: dict[str, Array]
) -> dict[str, Array]:
    """The weights of sites as batches of matrices, some parameters replaced."""
    states = write_states(dataclasses.replace(with_params(net, params), cores=probes), None)
    return {name: state.w for name, state in states.items()}


def solved(
    of: Callable[[dict[str, Array]], dict[str, Array]],
    params: dict[str, Array],
    targets: dict[str, Array],
) -> dict[str, Array]:
    """Parameters that give these weights, if each weight is a multiple of one parameter."""
    weights, back = jax.vjp(of, params)
    units = of(jax.tree.map(jnp.ones_like, params))
    cast = {name: w.astype(weights[name].dtype) for name, w in targets.items()}
    (share,), (values,) = back(units), back(cast)
    return {
        name: jnp.where(share[name] != 0, values[name] / share[name], p).astype(p.dtype)
        for name, p in params.items()
    }
