"""What is left out: the smallest weights."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxsim.network import Network, path_name
from jaxsim.numerics import check_range, is_traced
from jaxsim.transforms.compose import Transform, transformable


def prune(
    sparsity: float | Array,
    *,
    scope: Literal["global", "layer"] = "global",
    sites: str | Sequence[str] = "*",
) -> Transform:
    """Sets the weights of smallest magnitude to zero and keeps them there.

    Exactly round(sparsity · n) of n weights go; ties go in order of position. The masks are data of
    the network, applied at every call, so gradients of pruned weights are zero.

    Args:
      sparsity: share of the weights to leave out, in [0, 1). Traced.
      scope: "global" ranks the weights of all sites together, "layer" within each layer. A
        parameter that scans stack along its first axes is as many layers.
      sites: patterns of the sites to prune.

    Raises:
      ValueError: sparsity or scope out of range; when applied, a site without a parameter, or
        scope "layer" where a scan stacks another axis.

    Source: Han et al. (2015), arXiv 1506.02626.
    """
    check_range("sparsity", sparsity, 0, 1)
    if not is_traced(sparsity) and jnp.any(jnp.asarray(sparsity) >= 1):
        raise ValueError(f"sparsity={sparsity}: must be below 1")
    if scope not in ("global", "layer"):
        raise ValueError(f"scope={scope!r}: must be 'global' or 'layer'")

    def apply(net: Network) -> Network:
        stacks: dict[str, tuple[int, ...]] = {}
        for site in transformable(net, "prune", sites):
            if site.param is None:
                raise ValueError(f"prune at {site.name}: it contracts two inputs, nothing to prune")
            stacks.setdefault(site.param, site.stack)
        leaves = jax.tree_util.tree_leaves_with_path(net.masked_params())
        weights = {n: jnp.abs(w) for p, w in leaves if (n := path_name(p)) in stacks}
        if scope == "layer":
            masks = {
                name: _by_layer(name, w, stacks[name], sparsity) for name, w in weights.items()
            }
        else:
            flat = _largest(jnp.concatenate([w.ravel() for w in weights.values()]), sparsity)
            masks, start = {}, 0
            for name, w in weights.items():
                masks[name] = flat[start : start + w.size].reshape(w.shape)
                start += w.size
        kept = {n: mask & net.masks[n] if n in net.masks else mask for n, mask in masks.items()}
        return dataclasses.replace(net, masks={**net.masks, **kept})

    return apply


def _by_layer(
    name: str, w: Float[Array, "..."], stack: tuple[int, ...], sparsity: float | Array
) -> Bool[Array, "..."]:
    if w.shape[: len(stack)] != stack:
        raise ValueError(
            f"scope='layer': a scan stacks {name} {list(w.shape)} along an axis that is not its "
            "first; use scope='global'"
        )
    layers = w.reshape(math.prod(stack), -1)
    return jax.vmap(partial(_largest, sparsity=sparsity))(layers).reshape(w.shape)


def _largest(w: Float[Array, " n"], sparsity: float | Array) -> Bool[Array, " n"]:
    """Which entries remain when the smallest round(sparsity · n) leave."""
    rank = jnp.zeros(w.shape, jnp.int32).at[jnp.argsort(w)].set(jnp.arange(w.size))
    return rank >= jnp.round(jnp.asarray(sparsity, jnp.float32) * w.size)
