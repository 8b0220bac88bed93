"""Channels that are really removed: smaller tensors, the same model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from jaxsim.calls import shown_as_called
from jaxsim.core import Parts
from jaxsim.exits import EarlyExit
from jaxsim.network import Network, path_name
from jaxsim.numerics import check_range, checked_int
from jaxsim.sparsity.dependencies import (
    Dependencies,
    Group,
    dependencies,
    importances,
    smaller,
    without,
)
from jaxsim.transforms.compose import Transform, require_network

TOLERANCE = 1e-4
"""What outputs may differ by, as a share of the largest, where they are to be the same."""


@shown_as_called
def shrink(
    sparsity: float | None = None,
    *,
    keep: Mapping[str, Sequence[int] | Int[np.ndarray, " kept"]] | None = None,
    groups: str | Sequence[str] = "*",
    importance: Any = None,
    scope: Literal["group", "global"] = "group",
    min_channels: int = 1,
    round_to: int = 1,
    exact: bool = True,
) -> Transform:
    """Removes channels, heads or features: every parameter that holds them gets smaller.

    Which axes lose entries together is read from the model's equations (`dependencies`). The
    result is a network like any other, of the original model, that computes what the old one does
    with zeros in the removed places; that is checked on inputs of the traced shapes.

    Exactly one of three things says what goes: a share of the channels, those that are to stay, or,
    without either, the masks of the network: a channel goes when masks leave nothing of what makes
    it, or of what reads it.

    Args:
      sparsity: share of the channels to remove, in [0, 1): of each group, or of all.
      keep: for groups by name, the indices that stay.
      groups: globs or `re:` patterns of names of groups; those that cannot shrink are left whole.
      importance: a score for each parameter, in their structure; a channel is worth the sum of the
        scores that would go with it. None for their squares.
      scope: "group" ranks the channels of each group, "global" those of all groups together, each
        divided by the mean of its group.
      min_channels: fewest that stay of a group, at least 1.
      round_to: what stays of a group is a multiple of this, unless nothing goes.
      exact: also groups whose size enters the computation (a LayerNorm's mean, 1/√size) stay whole;
        else they shrink too, and the function changes.

    Raises:
      ValueError: an argument out of range; when applied, a transformed or deployed network, a group
        that does not exist or cannot shrink, nothing to remove, NaN scores, or outputs that change.

    Source: Fang et al. (2023), arXiv 2301.12900 (groups and their importance).
    """
    if sparsity is not None:
        check_range("sparsity", sparsity, 0, 1)
        if sparsity >= 1:
            raise ValueError(f"sparsity={sparsity}: must be below 1")
        if keep is not None:
            raise ValueError("sparsity and keep: give one of them")
    if scope not in ("group", "global"):
        raise ValueError(f"scope={scope!r}: must be 'group' or 'global'")
    least = checked_int("min_channels", min_channels, 1)
    multiple = checked_int("round_to", round_to, 1)

    def apply(net: Network) -> Network:
        require_network(net, "shrink")
        if isinstance(net, EarlyExit):
            raise ValueError("shrink cannot follow exit_early, whose classifiers read the channels")
        if net.deployed or net.cores:
            after = "deploy" if net.deployed else f"the cores at {next(iter(net.cores))}"
            raise ValueError(f"shrink cannot follow {after}: put it first")
        found = dependencies(net)
        free = [g for g in _chosen(net, found, groups) if not g.reason]
        if not exact:
            free = [g for g in _chosen(net, found, groups) if not g.reason or g.renormalising]
        if keep is not None:
            masks = _given(found, keep, exact=exact)
        elif sparsity is None:
            masks = _masked(net, found, free)
        else:
            scores = _squares(net) if importance is None else importance
            worth = importances(found, _checked(net, scores))
            worth = {g.name: worth[g.name] for g in free}
            masks = _ranked(worth, float(sparsity), scope, least, multiple)
        masks = {name: mask for name, mask in masks.items() if not mask.all()}
        if not masks:
            if keep is None and sparsity is not None and free:
                return net
            raise ValueError(
                "shrink: nothing to remove; print(js.dependencies(net)) says what can shrink"
            )
        small = smaller(net, found, masks)
        if not any(found[name].renormalising for name in masks):
            whole = net if sparsity is None and keep is None else without(net, found, masks)
            if (off := _difference(whole, small)) > TOLERANCE and exact:
                raise ValueError(
                    f"shrink: outputs would change by {off:.1e} of the largest against zeros in "
                    f"the removed places; leave out some of {', '.join(masks)}, or allow it by "
                    "exact=False"
                )
        return small

    return apply


def _chosen(net: Network, found: Dependencies, groups: str | Sequence[str]) -> tuple[Group, ...]:
    """The groups that are asked for, of those that the sites in focus make."""
    chosen = found.select(groups)
    if net.focus is None:
        return chosen
    within = {f"params/{site.param}" for site in net.select("*")}
    return tuple(g for g in chosen if {m.path for m in g.members if m.role == "out"} <= within)


def _squares(net: Network) -> Any:
    return jax.tree.map(lambda p: np.square(np.asarray(p, np.float64)), net.masked_params())


def _checked(net: Network, scores: Any) -> Any:
    if jax.tree.structure(scores) != jax.tree.structure(net.params):
        raise ValueError("importance: must have the structure of the network's parameters")
    for (path, p), score in zip(
        jax.tree_util.tree_leaves_with_path(net.params), jax.tree.leaves(scores), strict=True
    ):
        if np.shape(score) != np.shape(p):
            raise ValueError(
                f"importance: {path_name(path)} has {list(np.shape(score))}, the parameter "
                f"{list(np.shape(p))}"
            )
        if np.isnan(np.asarray(score)).any():
            raise ValueError(f"importance: {path_name(path)} holds NaN")
    return scores


def _given(found: Dependencies, keep: Mapping[str, Any], *, exact: bool) -> dict[str, Any]:
    masks: dict[str, Bool[np.ndarray, " size"]] = {}
    for name, given in keep.items():
        if name not in found.units:
            known = ", ".join(found.units)
            raise ValueError(f"keep: no group {name!r}; the groups are: {known}")
        group, index = found[name], np.asarray(given)
        if group.reason and (exact or not group.renormalising):
            raise ValueError(f"keep: {name} cannot shrink: {group.reason}")
        whole = index.ndim == 1 and index.size > 0 and index.dtype.kind in "iu"
        if not whole or index.min() < 0 or index.max() >= group.size:
            raise ValueError(
                f"keep: {name} has {given!r}; must be whole numbers from 0 to {group.size - 1}, "
                "at least one"
            )
        masks[name] = np.isin(np.arange(group.size), index)
    return masks


def _masked(net: Network, found: Dependencies, free: Sequence[Group]) -> dict[str, Any]:
    """What the masks leave of each group."""
    left = jax.tree_util.tree_map_with_path(
        lambda path, p: net.masks.get(path_name(path), np.ones(np.shape(p))), net.params
    )
    masks: dict[str, Bool[np.ndarray, " size"]] = {}
    made, read = (importances(found, left, role=role) for role in ("out", "in"))
    for group in free:
        alive = np.ones(group.size, bool)
        for role, count in (("out", made), ("in", read)):
            if any(m.role == role and m.path.startswith("params/") for m in group.members):
                alive &= count[group.name] > 0
        if not alive.any():
            raise ValueError(f"shrink: masks leave nothing of {group.name}")
        masks[group.name] = alive
    return masks


def _ranked(
    worth: Mapping[str, Float[np.ndarray, " size"]],
    sparsity: float,
    scope: str,
    least: int,
    multiple: int,
) -> dict[str, Bool[np.ndarray, " size"]]:
    """What stays: the worthiest, of equals the last ones."""
    if scope == "group":
        gone = {name: round(sparsity * w.size) for name, w in worth.items()}
    else:
        flat = np.concatenate([w / max(w.mean(), 1e-300) for w in worth.values()])
        out = np.zeros(flat.size, bool)
        out[np.argsort(flat, kind="stable")[: round(sparsity * flat.size)]] = True
        ends = np.cumsum([w.size for w in worth.values()])[:-1]
        gone = {n: int(p.sum()) for n, p in zip(worth, np.split(out, ends), strict=True)}
    masks: dict[str, Bool[np.ndarray, " size"]] = {}
    for name, w in worth.items():
        stay = max(w.size - gone[name], least)
        stay = min(-(-stay // multiple) * multiple, w.size)
        mask = np.ones(w.size, bool)
        mask[np.argsort(w, kind="stable")[: w.size - stay]] = False
        masks[name] = mask
    return masks


def _difference(whole: Network, small: Network) -> float:
    """Largest difference of outputs, as a share of the largest, on inputs of the traced shapes."""
    rng, drawn = np.random.default_rng(0), []
    for shape in whole.example.arrays:
        if jnp.issubdtype(shape.dtype, jnp.floating):
            drawn.append(jnp.asarray(rng.normal(size=shape.shape), shape.dtype))
        elif shape.dtype == bool:
            drawn.append(jnp.ones(shape.shape, bool))
        elif jnp.issubdtype(shape.dtype, jax.dtypes.prng_key):
            drawn.append(
                jax.random.split(jax.random.key(0), max(shape.size, 1)).reshape(shape.shape)
            )
        else:
            drawn.append(jnp.asarray(rng.integers(0, 2, shape.shape), shape.dtype))
    arguments = dataclasses.replace(whole.example, arrays=tuple(drawn))
    found = [jax.tree.leaves(_run(net, arguments)) for net in (whole, small)]
    worst = 0.0
    for a, b in zip(*found, strict=True):
        if jnp.issubdtype(a.dtype, jnp.floating):
            a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
            finite = np.isfinite(a) & np.isfinite(b)
            off = np.abs(np.where(finite, a - b, 0)).max(initial=0)
            worst = max(worst, off / max(np.abs(np.where(finite, a, 0)).max(initial=0), 1e-30))
    return worst


@jax.jit
def _run(net: Network, arguments: Parts) -> Any:
    args, kwargs = arguments.whole()
    return net(*args, **kwargs)
