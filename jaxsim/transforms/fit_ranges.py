"""Ranges of weights, cut so that the outputs of their sites change least."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxsim.cores.observers import Moments
from jaxsim.cores.op import Op
from jaxsim.cores.wrapper import first_of
from jaxsim.formats.grid import Grid
from jaxsim.formats.microscaling import Microscaled
from jaxsim.inputs.batches import reusable_batches
from jaxsim.network.network import Net, Network
from jaxsim.network.site import Site
from jaxsim.network.transform import Transform, transformable
from jaxsim.numerics.arrays import own_promotion
from jaxsim.transforms.block_scales import with_best_scales
from jaxsim.transforms.by_site import as_weight, solve_by_site
from jaxsim.transforms.codes import require_unset
from jaxsim.transforms.weight_forms import Form, weight_form, with_moments, with_set
from jaxsim.values.calls import shown_as_called

_SHARES = tuple(1 - i / 40 for i in range(20))
"""Shares of the whole range that are tried."""


@shown_as_called
def fit_ranges(inputs: Any, *, sites: str | Sequence[str] = "*") -> Transform:
    """Cuts the ranges of weights where that changes the outputs of their sites least.

    What is beyond a range becomes its end, and steps between become smaller. For each range (a
    channel's, a group's or a tensor's) 20 shares from all of it to about half are tried, and one is
    chosen by the squared error that it makes of the outputs: weights that multiply large inputs
    count more. For `js.mx` and `js.nvfp4` scales of blocks are tried, larger ones too.

    Errors of groups and blocks of one output count each on its own. Ranges are then set: later
    transforms keep them. `js.round_weights` behind it rounds on them (of short elements it fits
    scales of its own). Where inputs are not known, `js.clipping.least_squares` does the same by
    weights alone.

    Sites are measured one after the other on the inputs of the float network.

    Args:
      inputs: What to measure the sites on: a batch (an array, a tuple of positional arguments, or a
        dict of keyword arguments) or an iterable of batches of one shape.
      sites: Patterns of the sites whose ranges to fit.

    Raises:
      ValueError: When applied, a site whose weights are neither on an even grid of two bits or more
        nor short elements, that did not run, or the range of whose weights is set; sites that share
        a weight, batches of several shapes, or a site inside a branch, a loop of unknown length,
        experts or a `shard_map`.

    Warns:
      UserWarning: A site was measured on fewer inputs than it sums over.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> x = jax.random.normal(jax.random.key(0), (64, 8)) * jnp.array([0.1, *[1.0] * 7])
      >>> w = {"w": jax.random.normal(jax.random.key(1), (8, 4)).at[0].mul(3)}
      >>> net = js.trace(lambda params, x: x @ params["w"], w, x)
      >>> plain = js.quantize(3, None)(net)
      >>> better = js.fit_ranges(x)(plain)
      >>> error = lambda chip: float(jnp.square(chip(x) - net(x)).mean())
      >>> error(better) < error(plain)
      True

    Source: Lin et al. (2024), AWQ, arXiv 2306.00978, the search for clipped weights of its code.
    """
    data = reusable_batches(inputs)

    def apply(net: Net) -> Net:
        chosen, forms = transformable(net, "fit_ranges", sites), dict[str, Form]()
        for site in chosen:
            forms[site.name] = weight_form(net, site, "fit_ranges")
            require_unset(net, site, "fit_ranges", "fitting again")
        changed = solve_by_site(
            net,
            chosen,
            {name: with_moments(net.cores[name], form) for name, form in forms.items()},
            data,
            partial(_fitted, net, forms),
            follow="float",
            what="fit_ranges",
        )
        cores = dict(net.cores)
        for site in chosen:
            cores[site.name] = with_set(cores[site.name], forms[site.name], changed[site.name].kept)
        return dataclasses.replace(net, cores=cores)

    return apply


def _fitted(
    net: Network, forms: dict[str, Form], site: Site, op: Op, state: Moments
) -> tuple[None, Any]:
    """The ends of a slice's ranges that cost least, or the scales of its blocks."""
    form, groups = forms[site.name], first_of(net.cores[site.name], "groups")
    rows = None if groups is None else groups.settings["rows"]
    if isinstance(form, Microscaled):
        return None, _of_blocks(form, state).ends
    shares = _of_grid(dataclasses.replace(form, clip=None, average=None), rows, state)
    if form.per == "tensor":
        by = shares.reshape(-1)[0]
    elif rows is not None:
        by = shares.reshape(jnp.shape(state.ends[0]))
    else:
        whole = as_weight(op, jnp.broadcast_to(shares, state.w.shape))
        by = jnp.max(whole, op.geometry.contracted)
    return None, tuple(end * by for end in state.ends)


@partial(jax.jit, static_argnums=0)
@own_promotion()
def _of_blocks(form: Microscaled, state: Moments) -> Moments:
    tiles = state.w.shape[-2] // form.rows
    return with_best_scales(form, state, partial(_costs, _grams(state, tiles, form.rows)))


@partial(jax.jit, static_argnums=(0, 1))
@own_promotion()
def _of_grid(form: Grid, rows: int | None, state: Moments) -> Float[Array, "B tiles N"]:
    """The share of each range that costs least; where a tensor has one range, of all of them."""
    K = state.w.shape[-2]
    tiles = 1 if rows is None else -(-K // rows)
    size = -(-K // tiles)
    grams = _grams(state, tiles, size)
    w, scale, zero = (_tiled(a, tiles, size) for a in (state.w, state.scale, state.zero))

    def cost(share: Array) -> Array:
        step = jnp.where(scale > 0, scale, 1) * share
        codes = jnp.clip(jnp.round(w / step) + zero, *form.code_range)
        off = _costs(grams, (codes - zero) * step - w)[..., 0, :]
        return jnp.broadcast_to(jnp.sum(off), off.shape) if form.per == "tensor" else off

    shares = jnp.asarray(_SHARES)
    return shares[jnp.argmin(lax.map(cost, shares), 0)]


def _costs(
    grams: Float[Array, "B tiles S S"], off: Float[Array, "B tiles S N"]
) -> Float[Array, "B tiles 1 N"]:
    """Squared error of outputs, summed over all inputs, of what is added to a tile's weights."""
    moved = jnp.matmul(grams, off, precision=lax.Precision.HIGHEST)
    return jnp.sum(off * moved, -2, keepdims=True)


def _grams(state: Moments, tiles: int, size: int) -> Float[Array, "B tiles S S"]:
    """Second moments of the inputs of each tile."""
    fill = tiles * size - state.gram.shape[-1]
    gram = jnp.pad(state.gram, ((0, 0), (0, fill), (0, fill)))
    whole = gram.reshape(len(gram), tiles, size, tiles, size)
    return jnp.moveaxis(jnp.diagonal(whole, axis1=1, axis2=3), -1, 1)


def _tiled(a: Float[Array, "B K N"], tiles: int, size: int) -> Float[Array, "B tiles S N"]:
    fill = tiles * size - a.shape[1]
    return jnp.pad(a, ((0, 0), (0, fill), (0, 0))).reshape(len(a), tiles, size, a.shape[-1])
