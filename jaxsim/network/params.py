"""Parameters of a network by path: read, checked, replaced."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxsim.network.leaves import path_name
from jaxsim.network.network import Net, Network
from jaxsim.network.site import Site


def param_names(net: Network) -> list[str]:
    """Lists the paths of the leaves of a network's parameters.

    Args:
      net: Network.
    """
    return [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(net.params)]


Tensors = dict[str, Array]
"""Parameters and buffers by path: `params/Conv_0/kernel`, `buffers/batch_stats/…/mean`."""


def tensors(net: Network) -> Tensors:
    """Lists parameters, pruned entries zero, and buffers, by path.

    Args:
      net: Network.
    """
    tree = {"params": net.masked_params(), "buffers": net.buffers}
    return {path_name(path): a for path, a in jax.tree_util.tree_leaves_with_path(tree)}


def with_tensors(net: Net, changes: Mapping[str, Array]) -> Net:
    """Replaces some parameters and buffers; their dtypes stay.

    Args:
      net: Network.
      changes: New values by path, as `tensors` names them.
    """
    tree = jax.tree_util.tree_map_with_path(
        lambda path, a: jnp.asarray(changes.get(path_name(path), a), a.dtype),
        {"params": net.params, "buffers": net.buffers},
    )
    return dataclasses.replace(net, params=tree["params"], buffers=tree["buffers"])


def params_of(net: Network, sites: Iterable[Site]) -> dict[str, Array]:
    """Lists the parameters that sites are named by.

    Args:
      net: Network.
      sites: Sites of the network.

    Returns:
      Values by path.
    """
    names = {site.param for site in sites}
    leaves = jax.tree_util.tree_leaves_with_path(net.params)
    return {name: p for path, p in leaves if (name := path_name(path)) in names}


def stacks_of(net: Network) -> dict[str, tuple[int, ...]]:
    """Lists the axes that scans stack in front of the parameters of sites.

    Args:
      net: Network.

    Returns:
      Their sizes by path, none for a weight that is read as a whole.
    """
    found: dict[str, tuple[int, ...]] = {}
    for site in net.sites:
        for part in site.parts:
            found.setdefault(part, site.stack)
    return found


def with_params(net: Net, params: dict[str, Array]) -> Net:
    """Replaces some parameters of a network.

    Args:
      net: Network.
      params: New values by path.
    """
    changed = jax.tree_util.tree_map_with_path(
        lambda path, p: params.get(path_name(path), p), net.params
    )
    return dataclasses.replace(net, params=changed)


def by_name(tree: Any) -> dict[str, Array]:
    """Lists the leaves of a tree of parameters by path.

    Args:
      tree: Tree of arrays.
    """
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
