"""Channels that are really removed: smaller tensors, the same model."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from jaxsim.cores.partition import Partitioned
from jaxsim.network.leaves import path_name
from jaxsim.network.network import Net, Network, require_uncut
from jaxsim.network.params import stacks_of, tensors, with_tensors
from jaxsim.network.transform import Transform, require_network
from jaxsim.numerics.checks import check_range, checked_int
from jaxsim.sparsity.channels.groups import (
    Dependencies,
    Group,
    dependencies,
    find_blame,
    find_unmade,
    importances,
    remove_entries,
    tied_sizes,
    zero_entries,
)
from jaxsim.staged.exit_channels import remaining_heads
from jaxsim.staged.network import Staged
from jaxsim.transforms.constants import emitted, read_through, watched
from jaxsim.values.calls import shown_as_called

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
    it, or of what reads it. A constant that it still emits goes into the layers that read it; where
    none can take it, the channel stays and a warning names it.

    Layers that a scan stacks lose the same channels, so that the stack stays one array: what a
    channel is worth is the sum over the layers. Channels that masks leave empty in some of the
    layers only stay, and a warning names them.

    Args:
      sparsity: share of the channels to remove, in [0, 1): of each group, or of all.
      keep: for groups by name, the indices that stay, in every layer of a stack.
      groups: globs or `re:` patterns of names of groups; those that cannot shrink are left whole.
      importance: a score for each parameter, in their structure; a channel is worth the sum of the
        scores that would go with it, of all layers of a stack. None for their squares.
      scope: "group" ranks the channels of each group, "global" those of all groups together, each
        divided by the mean of its group.
      min_channels: fewest that stay of a group, at least 1.
      round_to: what stays of a group is a multiple of this, unless nothing goes.
      exact: also groups whose size enters the computation (a LayerNorm's mean, 1/√size) stay whole;
        else they shrink too, and the function changes.

    Raises:
      ValueError: an argument out of range; when applied, a transformed or deployed network, a group
        that does not exist or cannot shrink, nothing to remove (as where masks leave other channels
        empty in each layer of a stack), NaN scores, or outputs that change.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> keys = jax.random.split(jax.random.key(0), 3)
      >>> normal = jax.random.normal
      >>> params = {"a": normal(keys[0], (6, 8)), "b": normal(keys[1], (8, 3))}
      >>> x = jax.random.normal(keys[2], (4, 6))
      >>> net = js.trace(lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"], params, x)
      >>> small = js.shrink(0.5)(net)
      >>> {name: p.shape for name, p in small.params.items()}
      {'a': (6, 4), 'b': (4, 3)}

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

    def apply(net: Net) -> Net:
        require_network(net, "shrink")
        given = net
        require_uncut(
            net,
            "shrink",
            allowed=("exit_early", "pipeline_shard", "prune_tokens"),
        )
        if net.deployed or net.cores:
            after = "deploy" if net.deployed else f"the cores at {next(iter(net.cores))}"
            raise ValueError(f"shrink cannot follow {after}: put it first")
        found = dependencies(net)
        free = [g for g in _chosen(net, found, groups) if not g.reason]
        if not exact:
            free = [g for g in _chosen(net, found, groups) if not g.reason or g.renormalizing]
        if keep is not None:
            masks = _given(found, keep, exact=exact)
        elif sparsity is None:
            masks, net = _masked(net, found, free, exact=exact)
        else:
            scores = _squares(net) if importance is None else importance
            worth = importances(found, _checked(net, scores))
            worth = {g.name: worth[g.name] for g in free}
            tied = {} if scope == "global" else tied_sizes(found)
            masks = _ranked(worth, float(sparsity), scope, least, multiple, tied)
            masks = _fitting(net, found, worth, masks, least, multiple, exact=exact)
        masks = {name: mask for name, mask in masks.items() if not mask.all()}
        if not masks:
            if keep is None and sparsity is not None and free:
                return net
            if keep is None and (uneven := _uneven(net, found, free)):
                raise ValueError(
                    f"shrink: nothing to remove: {', '.join(uneven)} are empty in some layers of a "
                    "stack only, and the layers are one array; prune the same ones in all of them"
                )
            raise ValueError(
                "shrink: nothing to remove; print(js.dependencies(net)) says what can shrink"
            )
        if keep is None and sparsity is None and (uneven := _uneven(net, found, free)):
            warnings.warn(
                f"shrink: {', '.join(uneven)} are empty in some layers of a stack only, and stay",
                stacklevel=3,
            )
        small = remove_entries(net, found, masks)
        if isinstance(net, Staged) and isinstance(small, Staged) and net.exits:
            small = dataclasses.replace(small, heads=remaining_heads(net, found, masks))
        if not any(found[name].renormalizing for name in masks):
            whole = given if sparsity is None and keep is None else zero_entries(net, found, masks)
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
        if group.reason and (exact or not group.renormalizing):
            raise ValueError(f"keep: {name} cannot shrink: {group.reason}")
        whole = index.ndim == 1 and index.size > 0 and index.dtype.kind in "iu"
        if not whole or index.min() < 0 or index.max() >= group.size:
            raise ValueError(
                f"keep: {name} has {given!r}; must be whole numbers from 0 to {group.size - 1}, "
                "at least one, the same in every layer of a stack"
            )
        masks[name] = np.isin(np.arange(group.size), index)
    return masks


def _masked(
    net: Net, found: Dependencies, free: Sequence[Group], *, exact: bool
) -> tuple[dict[str, Any], Net]:
    """What the masks leave of each group, and the network with what the rest emits folded in."""
    left = _left(net)
    masks: dict[str, Bool[np.ndarray, " size"]] = {}
    empty = find_unmade(found, left)
    made, read = (importances(found, left, role=role) for role in ("out", "in"))
    dead = [g for g in free if empty[g.name].any()]
    arguments = _drawn(net)
    readers = watched(net, dead, arguments) if dead else {}
    folded, held = net, list[str]()
    for group in free:
        gone = np.zeros(group.size, bool)
        if any(m.role == "in" and m.path.startswith("params/") for m in group.members):
            gone |= read[group.name] == 0
        if group in dead and (group.renormalizing or not read_through(net, group)):
            gone |= made[group.name] == 0  # whether the rest computes the same is seen at the end
        elif group in dead:
            what = empty[group.name] & ~gone

            def same(other: Network) -> bool:
                return _difference(net, other) <= TOLERANCE

            constant = emitted(net, found, group, what, readers, same)
            gone |= constant.gone
            now = tensors(folded)
            before = tensors(net)
            folded = with_tensors(
                folded, {p: now[p] + a - before[p] for p, a in constant.changes.items()}
            )
            if exact:
                stays = (constant.held | (made[group.name] == 0)) & ~gone
                held += [f"{group.name}[{c}]" for c in np.flatnonzero(stays)]
            else:
                gone |= made[group.name] == 0
        if gone.all():
            raise ValueError(f"shrink: masks leave nothing of {group.name}")
        masks[group.name] = ~gone
    if held:
        warnings.warn(
            f"shrink: {', '.join(held)} are empty and stay: they emit a constant that no bias or "
            "norm behind them can take",
            stacklevel=3,
        )
    return masks, folded


def _left(net: Network) -> Any:
    """What masks leave of each parameter, ones where there are none."""
    return jax.tree_util.tree_map_with_path(
        lambda path, p: np.asarray(net.masks.get(path_name(path), np.ones(np.shape(p)))),
        net.params,
    )


def _uneven(net: Network, found: Dependencies, free: Sequence[Group]) -> list[str]:
    """Channels that masks leave empty in some layers of a stack and not in all."""
    stacks = {name: math.prod(stack) for name, stack in stacks_of(net).items() if stack}
    left, some = _left(net), {g.name: np.zeros(g.size, bool) for g in free}
    every = find_unmade(found, left)

    def one(path: Any, a: np.ndarray, layer: int) -> np.ndarray:
        count = stacks.get(path_name(path))
        if count is None:
            return a
        chosen = np.arange(count).reshape(-1, 1) == layer % count
        return (a.reshape(count, -1) * chosen).reshape(a.shape)

    for layer in range(max(stacks.values(), default=0)):
        only = jax.tree_util.tree_map_with_path(lambda path, a, i=layer: one(path, a, i), left)
        unmade = find_unmade(found, only)
        some = {name: empty | unmade[name] for name, empty in some.items()}
    return [f"{n}[{c}]" for n, empty in some.items() for c in np.flatnonzero(empty & ~every[n])]


def _ranked(
    worth: Mapping[str, Float[np.ndarray, " size"]],
    sparsity: float,
    scope: str,
    least: int,
    multiple: int,
    tied: Mapping[str, Sequence[str]],
) -> dict[str, Bool[np.ndarray, " size"]]:
    """What stays: the worthiest, of equals the last ones."""
    if scope == "group":
        gone = {name: round(sparsity * w.size) for name, w in worth.items()}
        for outer, inner in tied.items():
            inner = [name for name in inner if name in worth]
            if outer in worth and inner:
                gone |= _together(outer, inner, {n: w.size for n, w in worth.items()}, sparsity)
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


def _together(
    outer: str, inner: Sequence[str], sizes: Mapping[str, int], sparsity: float
) -> dict[str, int]:
    """How many groups of a convolution go, and how many channels of each, to leave one share."""
    best: tuple[float, int, list[int]] | None = None
    for groups in range(sizes[outer], 0, -1):
        wanted = [(1 - sparsity) * sizes[outer] * sizes[name] for name in inner]
        stay = [
            min(max(round(w / groups), 1), sizes[name])
            for w, name in zip(wanted, inner, strict=True)
        ]
        off = sum(abs(groups * n - w) for n, w in zip(stay, wanted, strict=True))
        if best is None or off < best[0] - 1e-9:
            best = off, groups, stay
    assert best is not None
    _, groups, stay = best
    gone = {outer: sizes[outer] - groups}
    return gone | {name: sizes[name] - n for name, n in zip(inner, stay, strict=True)}


def _fitting(
    net: Network,
    found: Dependencies,
    worth: Mapping[str, Float[np.ndarray, " size"]],
    masks: dict[str, Bool[np.ndarray, " size"]],
    least: int,
    multiple: int,
    *,
    exact: bool,
) -> dict[str, Bool[np.ndarray, " size"]]:
    """These masks, or the nearest with which the model runs the same equations."""

    def refused(some: Mapping[str, Any]) -> bool:
        why = find_blame(net, found, {n: m for n, m in some.items() if not m.all()})
        return why is not None and (exact or not why.renormalizing)

    if not refused(masks):
        return masks
    fitted = dict(masks)
    for name, mask in masks.items():
        if mask.all() or not refused({name: mask}):
            continue
        order, wanted = np.argsort(worth[name], kind="stable"), int(mask.sum())
        sizes = (n for n in range(least, mask.size + 1) if n % multiple == 0 or n == mask.size)
        for stay in sorted(sizes, key=lambda n: (abs(n - wanted), -n)):
            other = np.ones(mask.size, bool)
            other[order[: mask.size - stay]] = False
            fitted[name] = other
            if other.all() or not refused({name: other}):
                break
    return fitted


def _drawn(net: Network) -> Partitioned:
    """Random arguments of the traced shapes."""
    rng, drawn = np.random.default_rng(0), []
    for shape in net.example.arrays:
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
    return dataclasses.replace(net.example, arrays=tuple(drawn))


def _difference(whole: Network, small: Network) -> float:
    """Largest difference of outputs, as a share of the largest, on inputs of the traced shapes."""
    arguments = _drawn(whole)
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
def _run(net: Network, arguments: Partitioned) -> Any:
    args, kwargs = arguments.combine()
    if isinstance(net, Staged) and net.exits:
        return net.exit_logits(*args, **kwargs)
    return net(*args, **kwargs)
