"""How weights are rounded: so that the outputs change least, not each weight."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxsim.cores.observers import Moments
from jaxsim.cores.op import Op
from jaxsim.cores.site_weight import shifted
from jaxsim.cores.wrapper import Wrapper, first_of
from jaxsim.formats.microscaling import (
    Microscaled,
    element_levels,
)
from jaxsim.formats.rounding import Layer, Rounding, rounded
from jaxsim.inputs.batches import reusable_batches
from jaxsim.network.network import Net, Network
from jaxsim.network.params import params_of, with_params
from jaxsim.network.site import Site
from jaxsim.network.transform import Transform, transformable
from jaxsim.numerics.arrays import in_auto_axes, own_promotion
from jaxsim.numerics.checks import check_called
from jaxsim.transforms.block_scales import with_best_scales
from jaxsim.transforms.by_site import fewest, solve_by_site, warn_of_few
from jaxsim.transforms.observe import observe_sites, require_run
from jaxsim.transforms.site_weights import site_matrices, solve_params
from jaxsim.transforms.weight_forms import Form, first_coded, weight_form, with_moments, with_set
from jaxsim.values.calls import shown_as_called


@shown_as_called
def round_weights(
    rounding: Rounding,
    inputs: Any,
    *,
    by_site: Literal["rounded", "float"] | None = None,
    sites: str | Sequence[str] = "*",
) -> Transform:
    """Moves weights onto their grids, so that the outputs of their sites change least.

    The parameters become values that the grid holds, and the grid is fixed at the range it had:
    `deploy` then stores these codes, whatever follows. A parameter that something else reads too
    (the lookup of an embedding whose table is also the head, another site, another layout) or from
    which the weight is computed in a way that cannot be undone stays as it is: what rounding moves
    is then added at the site, and nothing else sees it.

    Weights may be codes of an even grid, or elements of `js.mx` and `js.nvfp4`; scales of their
    blocks are first fitted, by least squares weighed by the inputs' sizes, and then set likewise.

    What flows into a site is taken from the network with float inputs, and with float weights
    unless `by_site="rounded"`. Pruned weights stay zero. Each of several experts is rounded for
    the rows that choose it; one that no row chooses is rounded to nearest, with a warning that
    names it.

    By default all sites are measured at once, batch by batch, and the second moments of all their
    inputs are in memory. With `by_site` the network runs once, site by site and slice by slice of a
    scan: the moments of one slice are in memory, and beside them what is live of all batches.

    Args:
      rounding: `js.rounding.gptq()`, `js.rounding.adaround()`, or a function of your own.
      inputs: what to measure the sites on: a batch (an array, a tuple of positional arguments, or a
        dict of keyword arguments) or an iterable of batches, of which one at a time is in memory; a
        generator is read once, here, and kept.
      by_site: "rounded" to round site by site, each measured on what the weights rounded before it
        leave; "float" to do so on the inputs of the float network; None for all at once.
      sites: patterns of the sites whose weights to round.

    Raises:
      ValueError: `rounding` is no function or `by_site` another word; when applied, a site whose
        weights are not quantized, that did not run, or whose bias is corrected already; with
        `by_site`, batches of several shapes, sites that share a weight, or a site inside a branch,
        a loop of unknown length, experts or a `shard_map`.

    Warns:
      UserWarning: A site was measured on fewer inputs than it sums over.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> keys = jax.random.split(jax.random.key(0), 3)
      >>> normal = jax.random.normal
      >>> params = {"a": normal(keys[0], (6, 8)), "b": normal(keys[1], (8, 3))}
      >>> x = jax.random.normal(keys[2], (4, 6))
      >>> net = js.trace(lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"], params, x)
      >>> coarse = js.quantize(3, None)(net)
      >>> better = js.round_weights(js.rounding.gptq(), x)(coarse)
      >>> error = lambda chip: float(jnp.abs(chip(x) - net(x)).mean())
      >>> error(better) < error(coarse)
      True

    Source: Frantar et al. (2023), arXiv 2210.17323; Nagel et al. (2020), arXiv 2004.10568.
    """
    check_called("rounding", rounding)
    if not callable(rounding):
        raise ValueError(f"rounding={rounding!r}: must be a function, such as js.rounding.gptq()")

    if by_site not in (None, "rounded", "float"):
        raise ValueError(f"by_site={by_site!r}: must be 'rounded', 'float' or None")
    data = reusable_batches(inputs)

    def apply(net: Net) -> Net:
        chosen, grids = transformable(net, "round_weights", sites), dict[str, Form]()
        for site in chosen:
            grid = weight_form(net, site, "round_weights")
            if first_of(net.cores[site.name], "bias") is not None:
                raise ValueError(
                    f"round_weights cannot follow correct_bias at {site.name}: the correction is "
                    "for other weights; put it before"
                )
            grids[site.name] = grid
        probes = {name: with_moments(net.cores[name], grid) for name, grid in grids.items()}
        if by_site is None:
            found = _rounded_together(net, chosen, rounding, grids, probes, data)
            return _placed(net, chosen, grids, probes, found)
        changed = solve_by_site(
            net,
            chosen,
            probes,
            data,
            partial(_rounded_slice, net, rounding, grids),
            follow="changed" if by_site == "rounded" else "float",
            what="round_weights",
        )
        moved, rest = dict[str, Array](), dict[str, _Rounded]()
        cores = dict(net.cores)
        for site in chosen:
            one = changed.pop(site.name)
            scale, ends = one.kept
            if one.param is not None and site.param is not None:
                moved[site.param] = one.param
                cores[site.name] = with_set(cores[site.name], grids[site.name], ends)
            elif one.matrices is not None:
                wide = jnp.reshape(scale, (*site.stack, 1, 1, 1))
                rest[site.name] = _Rounded(one.matrices, wide, ends)
        net = dataclasses.replace(with_params(net, moved), cores=cores)
        left = [site for site in chosen if site.name in rest]
        return _placed(net, left, grids, {name: probes[name] for name in rest}, rest)

    return apply


class _Rounded(NamedTuple):
    """What is known of a site once its weights are rounded, behind the axes of its stack.

    Attributes:
      w: Rounded weights [B, K, N]; sites of one weight have the same array.
      scale: Step of the grid at each weight, or at a few of them.
      ends: Values of the smallest and the largest code, or scales of blocks.
    """

    w: Array
    scale: Array
    ends: Any


def _rounded_together(
    net: Network,
    chosen: Sequence[Site],
    rounding: Rounding,
    grids: Mapping[str, Form],
    probes: Mapping[str, tuple[Wrapper, ...]],
    data: Any,
) -> dict[str, _Rounded]:
    """Rounds the weights of all sites, once all of them have been measured."""
    measured: dict[str, Moments] = observe_sites(net, probes, data)
    states = {name: _fitted(state, grids[name]) for name, state in measured.items()}
    for site in chosen:
        state, idle = states[site.name], "their weights are rounded to nearest"
        require_run(site, state.seen, state.gram, idle=idle)
    warn_of_few(fewest(states), "round_weights")
    units = site_matrices(net, probes, jax.tree.map(jnp.ones_like, params_of(net, chosen)))
    layers = {s.name: _layer(states[s.name], grids[s.name], units[s.name]) for s in chosen}
    found: dict[str, _Rounded] = {}
    for group in _same(chosen, layers):
        gram = sum((layers[name].gram for name in group), jnp.float32(0))
        layer = layers[group[0]]._replace(gram=gram)
        w = in_auto_axes(rounded, rounding, layer)
        found |= {n: _Rounded(w, states[n].scale, states[n].ends) for n in group}
    return found


def _rounded_slice(
    net: Network, rounding: Rounding, grids: Mapping[str, Form], site: Site, _: Op, state: Moments
) -> tuple[Array, Any]:
    """Rounds a slice of a site, and notes the least step of its grid, and what that reaches."""
    state = _fitted(state, grids[site.name])
    free = state.w != 0 if net.site_masks(site) else jnp.ones(state.w.shape)
    layer = _layer(state, grids[site.name], free)
    least = jnp.min(jnp.where(state.scale > 0, state.scale, jnp.inf))
    return in_auto_axes(rounded, rounding, layer), (least, state.ends)


def _fitted(state: Moments, form: Form) -> Moments:
    """Moments with scales of blocks by least squares, errors weighed by sizes of inputs."""
    return _with_scales(form, state) if isinstance(form, Microscaled) else state


@partial(jax.jit, static_argnums=0)
@own_promotion()
def _with_scales(form: Microscaled, state: Moments) -> Moments:
    *stack, B, K, _ = state.w.shape
    sizes = jnp.diagonal(state.gram, axis1=-2, axis2=-1)
    sizes = sizes.reshape(*stack, B, K // form.rows, form.rows, 1)
    return with_best_scales(form, state, lambda off: jnp.sum(off**2 * sizes, -2, keepdims=True))


def _placed(
    net: Net,
    chosen: Sequence[Site],
    grids: Mapping[str, Form],
    probes: Mapping[str, tuple[Wrapper, ...]],
    found: Mapping[str, _Rounded],
) -> Net:
    """A network with these weights in its parameters, or, where none has them, at its sites."""
    if not chosen:
        return net
    params, of = params_of(net, chosen), partial(site_matrices, net, probes)
    targets = {s.name: (w := found[s.name].w).reshape(*s.stack, -1, *w.shape[-2:]) for s in chosen}
    alone = [site for site in chosen if _alone(site, found, chosen)]
    moved = solve_params(of, params, targets)
    moved = {n: moved[n] if any(n == s.param for s in alone) else p for n, p in params.items()}
    cores = {n: with_set(net.cores[n], grids[n], found[n].ends) for n in probes}
    rounded_net = with_params(net, moved)
    off = {
        name: not jnp.all(_near(w, targets[name], found[name].scale, grids[name]))
        for name, w in of(moved).items()
    }
    restored = {s.param for s in chosen if off[s.name]}
    rounded_net = with_params(rounded_net, {n: p for n, p in params.items() if n in restored})
    for site in chosen:
        if site.param in restored:
            shift = _shift(rounded_net, site, probes[site.name], targets[site.name])
            cores[site.name] = _with_shift(cores[site.name], shift)
    return dataclasses.replace(rounded_net, cores={**net.cores, **cores})


def _near(w: Array, target: Array, scale: Array, form: Form) -> Array:
    """Which weights are nearer to their target than to another code."""
    if isinstance(form, Microscaled):
        gap = float(np.diff(element_levels(form.kind)).min())
        return jnp.abs(w - target) <= 0.4 * gap * scale
    return jnp.abs(w - target) < 0.4 * scale


def _alone(site: Site, found: Mapping[str, _Rounded], chosen: Sequence[Site]) -> bool:
    """Whether a site's parameter is its own, or read by chosen sites only that have its codes."""
    same = {s.name for s in chosen if found[s.name].w is found[site.name].w}
    return same.issuperset(site.shared)


def _shift(net: Network, site: Site, probe: tuple[Wrapper, ...], target: Array) -> Array:
    """What is to be added to a site's weight so that its matrix is the target."""

    def matrix(shift: Array) -> Array:
        return site_matrices(net, {site.name: _with_shift(probe, shift)}, {})[site.name]

    zero = jnp.zeros((*site.stack, *site.w_shape), jnp.float32)
    now, back = jax.vjp(matrix, zero)
    # a matrix is the weight's entries in another order, so the transpose is the inverse
    return back((target - now).astype(now.dtype))[0]


def _with_shift(chain: tuple[Wrapper, ...], shift: Array) -> tuple[Wrapper, ...]:
    """A chain that corrects the weight right before what it is quantized, or measured, by."""
    at = min(first_coded(chain), len(chain) - 1)
    return (*chain[:at], Wrapper.of(shifted, shift=shift), *chain[at:])


def _layer(state: Moments, grid: Form, unit: Array) -> Layer:
    """What is to be rounded at a site, the slices of a stack side by side."""
    levels = None
    if isinstance(grid, Microscaled):
        levels = jnp.asarray(element_levels(grid.kind))
        lo, hi = -grid.kind.largest, grid.kind.largest
    else:
        lo, hi = grid.code_range
    stacked = (state.w, state.mean, state.scale, state.zero, unit != 0)
    w, gram, scale, zero, free = (a.reshape(-1, *a.shape[-2:]) for a in stacked)
    return Layer(w, gram, scale, zero, free, jnp.float32(lo), jnp.float32(hi), levels)


def _same(sites: Iterable[Site], layers: dict[str, Layer]) -> list[list[str]]:
    """Names of sites that use one weight: they must have the same codes."""
    groups: list[list[str]] = []
    first: list[Site] = []
    for site in sites:
        for other, group in zip(first, groups, strict=True):
            a, b = layers[site.name].w, layers[other.name].w
            if site.param == other.param and a.shape == b.shape and bool((a == b).all()):
                group.append(site.name)
                break
        else:
            first.append(site)
            groups.append([site.name])
    return groups
