"""Masks of a network's parameters, from scores."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from jaxsim.cores.core import Core, State, float_core
from jaxsim.cores.op import Op
from jaxsim.cores.wrapper import Wrapper
from jaxsim.network.leaves import path_name
from jaxsim.network.network import Network
from jaxsim.network.params import by_name
from jaxsim.network.site import Site
from jaxsim.network.writer import write_states
from jaxsim.numerics.arrays import in_auto_axes, placed_like
from jaxsim.numerics.checks import check_share, is_traced
from jaxsim.sparsity.distribution import Distribution, LayerScores, rank
from jaxsim.sparsity.lowest import leave_lowest
from jaxsim.sparsity.pattern import Layout, Pattern

Masks = dict[str, Bool[Array, "..."]]
"""Which weights remain, by the parameter's path."""


def select_kept(masks: Mapping[str, Array], tree: Any, other: Any) -> Any:
    """Selects between two trees of parameters by masks: the second where a mask is zero.

    Args:
      masks: Masks by path; other parameters are taken from the first tree.
      tree: Tree of parameters, or of arrays of their shapes.
      other: Another tree like it.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, a, b: (
            jnp.where(masks[name], a, b) if (name := path_name(path)) in masks else a
        ),
        tree,
        other,
    )


def stacks(
    net: Network, sites: str | Sequence[str], what: str = "prune"
) -> dict[str, tuple[int, ...]]:
    """Finds the parameters whose zeros are zeros of chosen sites, and the axes that loops stack.

    Args:
      net: Network.
      sites: Patterns of sites.
      what: Name of the function that would change the parameters.

    Returns:
      Sizes of the stacked axes by path: those of the parameter, whose layers a loop may read in any
      number.

    Raises:
      ValueError: A pattern that matches nothing, a site without a parameter, or one whose weight is
        computed from parameters so that their zeros are not zeros of it.
    """
    found: dict[str, tuple[int, ...]] = {}
    shapes = {name: np.shape(p) for name, p in by_name(net.params).items()}
    for site in net.select(sites):
        if site.param is None:
            raise ValueError(f"{what} at {site.name}: it contracts two inputs, it has no weight")
        if not site.parts:
            raise ValueError(
                f"{what} at {site.name}: its weight is computed from {', '.join(site.sources)}, so "
                "what is done there is not done to what is multiplied; leave it out by sites=…"
            )
        for part in site.parts:
            if part in net.weights:
                raise ValueError(
                    f"{what} at {site.name}: {part} is a weight that trace(weights=…) named and no "
                    "parameter; leave it out by sites=…"
                )
            found.setdefault(part, _layers(shapes[part], site))
    return found


def _layers(shape: tuple[int, ...], site: Site) -> tuple[int, ...]:
    """Finds the leading axes of a parameter that tell apart the layers which a site reads of it."""
    devices = math.prod(site.stack) // math.prod(site.layers)
    size, stack = math.prod(site.w_shape) * devices, site.layers
    counts = [len(stack), *range(1, len(shape))] if stack else []
    return next((shape[:n] for n in counts if math.prod(shape[n:]) == size), stack)


def require_alone(net: Network, sites: str | Sequence[str], what: str) -> None:
    """Checks that nothing but the chosen sites reads their parameters.

    Args:
      net: Network with the sites.
      sites: Patterns of the sites.
      what: Name of the function that would change the parameters.

    Raises:
      ValueError: Something else reads one.
    """
    selected = net.select(sites)
    names = {site.name for site in selected}
    for site in selected:
        if others := [reader for reader in site.shared if reader not in names]:
            raise ValueError(
                f"{what} at {site.name}: {', '.join(site.sources)} is read by "
                f"{', '.join(others)} too, which would see its zeros; leave it out by sites=…"
            )


def make_masks(
    net: Network,
    scores: Any,
    sparsity: float | Array | None,
    *,
    pattern: Pattern,
    distribution: Distribution,
    sites: str | Sequence[str] = "*",
    allow_collapse: bool = False,
) -> Masks:
    """Makes masks that leave out the units of the lowest scores; pruned weights stay so.

    The score of a unit is the mean over its weights.

    Args:
      net: Network with the layers and the masks so far.
      scores: Number for each parameter, a tree like `net.params`.
      sparsity: Fraction of the units to leave out; None where the pattern fixes it. Traced.
      pattern: Pattern, which says what weights form a unit.
      distribution: Distribution, which says how many units each layer loses.
      sites: Patterns of the sites to prune.
      allow_collapse: If True, a layer may lose all its weights.

    Raises:
      ValueError: Scores that are NaN, a stack that does not come first in its parameter, a layer
        that the pattern does not fit, or one that would lose everything.
    """
    stacked, flat, params = stacks(net, sites), by_name(scores), by_name(net.params)
    del scores  # each layer's go where its units are made
    # in the order of the tree, so that ties between layers have an order that is known
    names = [name for name in params if name in stacked]
    contracted = contracted_axes(net, names) if pattern.needs_axes else {}
    layouts: dict[str, Layout] = {}
    alive: dict[str, Array | None] = {}
    units: dict[str, Array] = {}
    for name in names:
        whole, stack = flat[name].shape, stacked[name]
        mine = flat.pop(name)
        if not is_traced(mine) and bool(_some_nan(mine)):
            raise ValueError(f"scores of {name}: some are NaN")
        if whole[: len(stack)] != stack:
            raise ValueError(
                f"prune at {name} {list(whole)}: a loop stacks it along an axis that is not its "
                "first"
            )
        shape = whole[len(stack) :]
        layout = pattern.layout(name, shape, contracted.get(name, ()))
        left = [net.masks[name]] if name in net.masks else []
        alive[name], units[name] = in_auto_axes(partial(_score_units, layout), mine, *left)
        del mine
        layouts[name] = layout
    if pattern.sparsity is not None:
        kept = {n: _kept_by_group(u, pattern.sparsity) for n, u in units.items()}
    else:
        assert sparsity is not None
        kept = _kept_by_layer(units, layouts, sparsity, distribution, tied=pattern.tied)
    masks: Masks = {}
    for name, mask in kept.items():
        old = [net.masks[name]] if name in net.masks else []
        mine, rows = in_auto_axes(
            partial(_spread, layouts[name], jnp.shape(params[name])), mask, alive[name], *old
        )
        masks[name] = placed_like(mine, params[name])
        if not allow_collapse and not is_traced(rows) and not bool(rows.all()):
            raise ValueError(
                f"sparsity={sparsity}: nothing is left of {name}; choose another distribution, or "
                "allow_collapse=True"
            )
    return masks


@partial(jax.jit, static_argnums=0)
def _score_units(layout: Layout, scores: Array, *masks: Array) -> tuple[Array | None, Array]:
    """Scores the units of a layer, and finds those of which anything is left; None for all."""
    if not masks:
        return None, layout.gather(scores).mean(-1)
    (left,) = masks
    alive = layout.gather(left).any(-1)
    score = layout.gather(jnp.where(left, scores, 0)).mean(-1)
    return alive, jnp.where(alive, score, -jnp.inf)


@jax.jit
def _some_nan(scores: Array) -> Array:
    return jnp.isnan(scores).any()


@partial(jax.jit, static_argnums=(0, 1))
def _spread(
    layout: Layout, shape: tuple[int, ...], kept: Array, alive: Array | None, *old: Array
) -> tuple[Array, Array]:
    """Makes a mask of the units that stay, and tells of each slice if anything of it is left."""
    mask = layout.spread(kept if alive is None else kept & alive).reshape(shape)
    for earlier in old:
        mask = mask & earlier
    return mask, mask.reshape(len(kept), -1).any(1)


def _kept_by_group(units: Array, sparsity: float) -> Array:
    """Finds the units that stay where each group loses the same fraction."""
    return rank(units) >= round(sparsity * units.shape[-1])


def _kept_by_layer(
    units: dict[str, Array],
    layouts: Mapping[str, Layout],
    sparsity: float | Array,
    distribution: Distribution,
    *,
    tied: bool,
) -> dict[str, Array]:
    """Finds the units [B, 1, U] that stay under a distribution; the scores are taken out."""
    sets: dict[str, list[str]] = {}
    for name in units:
        module = name.rsplit("/", 2)[0] if tied and name.count("/") > 1 else ""
        sets.setdefault(module if tied else name, []).append(name)
    layers: list[LayerScores] = []
    for names in sets.values():
        size = sum(layouts[name].size for name in names)
        mine = [units.pop(n) for n in names]
        if size == 1:
            mean = mine[0][:, 0]
        else:
            mean = _mean_score(mine, [layouts[n].size for n in names], size)
        del mine
        layers.append(LayerScores(mean, layouts[names[0]].shape, size))
    counts = distribution.removed(layers, sparsity)
    kept: dict[str, Array] = {}
    for key, count in zip(sets, counts, strict=True):
        kept[key] = leave_lowest(layers.pop(0).scores, count)[:, None]
    return {name: kept[key] for key, names in sets.items() for name in names}


@jax.jit
def _mean_score(units: Sequence[Array], sizes: Sequence[Array], size: Array) -> Array:
    """Averages scores [B, 1, U] of units that go together, by their numbers of weights."""
    total = sum((u[:, 0] * n for u, n in zip(units, sizes, strict=True)), jnp.float32(0))
    return total / size


def contracted_axes(net: Network, names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Finds the axes of each parameter that its site sums over, without those that scans stack.

    Found by writing parameters that vary along one axis only, and looking at the site's matrix.

    Args:
      net: Network.
      names: Paths of parameters.
    """
    sites = {part: s for s in reversed(net.sites) for part in s.parts if part in names}
    probed = dataclasses.replace(
        net,
        cores={s.name: (Wrapper.of(_keep_matrix),) for s in sites.values()},
        states={},
        masks={},
    )
    shapes = {
        n: p.shape[len(_layers(p.shape, sites[n])) :]
        for n, p in by_name(net.params).items()
        if n in names
    }
    found: dict[str, list[int]] = {name: [] for name in names}
    for axis in range(max(map(len, shapes.values()))):

        def varying(path: Any, p: Any, axis: int = axis) -> np.ndarray:
            name = path_name(path)
            if name not in shapes or axis >= len(shapes[name]):
                return np.zeros(np.shape(p), p.dtype)
            at = np.ndim(p) - len(shapes[name]) + axis
            index = np.arange(p.shape[at]).reshape(-1, *[1] * (np.ndim(p) - at - 1))
            return np.broadcast_to(index, p.shape).astype(p.dtype)

        # the answer is needed now, also where the network itself is traced
        with jax.ensure_compile_time_eval():
            params = jax.tree_util.tree_map_with_path(varying, net.params)
            buffers = jax.tree.map(lambda b: jnp.zeros(b.shape, b.dtype), net.buffers)
            still = dataclasses.replace(probed, params=params, buffers=buffers)
            written = write_states(still, None)
            for name, site in sites.items():
                if bool(jnp.ptp(written[site.name], axis=-2).any()):
                    found[name].append(axis)
    return {name: tuple(axes) for name, axes in found.items()}


def _keep_matrix(core: Core) -> Core:
    """Makes a core whose state is the site's matrix [B, K, N]."""

    def write(op: Op, w: Array, key: Any) -> State:
        return op.geometry.as_matmul().w(w)

    return Core(write, float_core.calibrate, float_core.read)


def check_sparsity(sparsity: float | Array | None, pattern: Pattern) -> None:
    """Checks that a sparsity is in [0, 1), and given where the pattern does not fix it.

    Args:
      sparsity: Fraction to leave out, or None.
      pattern: Pattern of the masks.

    Raises:
      ValueError: It is not.
    """
    if pattern.sparsity is not None:
        if sparsity is not None:
            raise ValueError(f"sparsity={sparsity}: the pattern fixes it at {pattern.sparsity:.4g}")
        return
    if sparsity is None:
        raise ValueError("sparsity=None: give one in [0, 1); this pattern does not fix it")
    check_share("sparsity", sparsity)
