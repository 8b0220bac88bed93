"""Parameters of a network by path: read, checked, replaced."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxsim.network.leaves import path_name
from jaxsim.network.network import Network
from jaxsim.network.site import Site


def param_names(net: Network) -> list[str]:
    """Paths of the leaves of a network's parameters."""
    return [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(net.params)]


Tensors = dict[str, Array]
"""Parameters and buffers by path: `params/Conv_0/kernel`, `buffers/batch_stats/…/mean`."""


def tensors(net: Network) -> Tensors:
    """Parameters, pruned ones zero, and buffers, by path."""
    tree = {"params": net.masked_params(), "buffers": net.buffers}
    return {path_name(path): a for path, a in jax.tree_util.tree_leaves_with_path(tree)}


def with_tensors(net: Network, changes: Mapping[str, Array]) -> Network:
    """The network with some parameters and buffers replaced; their types stay."""
    tree = jax.tree_util.tree_map_with_path(
        lambda path, a: jnp.asarray(changes.get(path_name(path), a), a.dtype),
        {"params": net.params, "buffers": net.buffers},
    )
    return dataclasses.replace(net, params=tree["params"], buffers=tree["buffers"])


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


def by_name(tree: Any) -> dict[str, Array]:
    """The leaves of a tree of parameters, by path."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
