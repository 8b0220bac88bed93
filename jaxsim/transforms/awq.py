"""Weights that meet large inputs made larger before rounding, and their inputs smaller."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jaxsim.cores.observers import Moments, moments
from jaxsim.cores.op import Op
from jaxsim.cores.role import DIGITAL
from jaxsim.cores.scale_shift import smooth_scaling
from jaxsim.cores.wrapper import Wrapper, build
from jaxsim.formats.block_grid import BlockGrid
from jaxsim.formats.clipping import is_set
from jaxsim.formats.grid import Grid
from jaxsim.formats.microscaling import Microscaled
from jaxsim.inputs.batches import Batch, batches, reusable_batches
from jaxsim.network.network import Net, Network
from jaxsim.network.params import by_name, with_params
from jaxsim.network.site import Site
from jaxsim.network.transform import Transform, hardware_chain, transformable
from jaxsim.numerics.arrays import own_promotion, placed_like
from jaxsim.numerics.checks import checked_int
from jaxsim.transforms.by_site import Changed, solve_by_site
from jaxsim.transforms.readers import Readers, factors_of
from jaxsim.transforms.rescaling import Trials, trials_of
from jaxsim.values.calls import shown_as_called

_ROWS = 256
"""Rows that stand for all inputs of a site that sums over more. They are the same for all exponents
and measure every output, so that costs of 500 outputs are known to half a percent."""


@shown_as_called
def awq(inputs: Any, *, steps: int = 20, sites: str | Sequence[str] = "*") -> Transform:
    """Scales input channels by a power of their size, so that rounding harms large ones less.

    With s = (mean |x|)^α for each channel, weights are multiplied by s before they are rounded and
    inputs divided by it. α is the one of `steps` even steps from 0 that changes the outputs of the
    site least, over all inputs; whatever the format of the weights.

    The division is folded where that is exact: into the scale of the norm, or the kernel, whose
    channels these sites read and nothing else does; then all of them have one α. There the network
    stays as fast as it was. Any other site divides its inputs at each read, as `smooth` does.
    Producers are found by trial: scaling one must scale nothing but the inputs of these sites, and
    scaling both must change no output.

    Sites are measured one after the other on the inputs of the float network. What a site that sums
    over more than 256 inputs costs is estimated by 256 sums of them by random signs.

    Args:
      inputs: What to measure the sites on: a batch (an array, a tuple of positional arguments, or a
        dict of keyword arguments) or an iterable of batches of one shape.
      steps: Number of exponents to try, at least 2: 0, 1 / steps, … below 1.
      sites: Patterns of the sites to scale.

    Raises:
      ValueError: `steps` out of range; when applied, a site whose weights are not quantized, that
        did not run, that is scaled or corrected already, or the range of whose weights is set;
        batches of several shapes, or a site inside a branch, a loop of unknown length, experts or a
        `shard_map`.

    Warns:
      UserWarning: A site was measured on fewer inputs than it sums over.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> x = jax.random.normal(jax.random.key(0), (64, 8)) * jnp.array([9.0, *[1.0] * 7])
      >>> w = {"w": jax.random.normal(jax.random.key(1), (8, 4))}
      >>> net = js.trace(lambda params, x: x @ params["w"], w, x)
      >>> plain = js.quantize(3, None)(net)
      >>> better = js.awq(x)(plain)
      >>> error = lambda chip: float(jnp.abs(chip(x) - net(x)).mean())
      >>> error(better) < error(plain)
      True

    Source: Lin et al. (2024), arXiv 2306.00978, section 3.2.
    """
    steps = checked_int("steps", steps, 2)
    data = reusable_batches(inputs)

    def apply(net: Net) -> Net:
        chosen = transformable(net, "awq", sites)
        for site in chosen:
            _check(net, site)
        probe = Wrapper.of(moments, weights=Grid(8), sketch=_ROWS)  # the grid is not looked at
        masks = {s.name: [w for w in net.cores[s.name] if w.role == "mask"] for s in chosen}
        solve = partial(_try_exponents, net, steps)
        measured = solve_by_site(
            net,
            chosen,
            {name: (*before, probe) for name, before in masks.items()},
            data,
            solve,
            follow="float",
            what="awq",
        )
        return _scaled(net, chosen, measured, data)

    return apply


def _check(net: Network, site: Site) -> None:
    """Checks that the weights of a site are to be rounded, and nothing fixed how."""
    chain = hardware_chain(net, site)
    coded = next((w for w in chain if w.role in ("codes", "floats")), None)
    if site.kind == "dynamic" or coded is None or coded.formats[0] is None:
        raise ValueError(f"awq at {site.name}: its weights are floats; put quantize before it")
    form = coded.formats[0]
    if isinstance(form, Grid) and is_set(form.clip):
        raise ValueError(
            f"awq at {site.name}: the range of its weights is set, by round_weights or otherwise, "
            "and scaling changes the weights"
        )
    if isinstance(form, Microscaled) and form.steps is not None:
        raise ValueError(
            f"awq at {site.name}: the scales of its blocks are set by round_weights, and scaling "
            "changes the weights"
        )
    if isinstance(form, BlockGrid) and form.scale is not None:
        raise ValueError(
            f"awq at {site.name}: its codes are those of a file, and scaling changes the weights"
        )
    others = [w for w in net.cores[site.name] if w.role in DIGITAL and w.role != "mask"]
    if others:
        raise ValueError(f"awq cannot follow {others[0].name} at {site.name}")


class _Tried(NamedTuple):
    """What was tried at a slice of a site.

    Attributes:
      costs: Squared error of its outputs for each exponent.
      size: Mean magnitude of each input channel, [C].
    """

    costs: Array
    size: Array


def _try_exponents(
    net: Network, steps: int, site: Site, op: Op, state: Moments
) -> tuple[None, _Tried]:
    """What each exponent costs a slice of a site."""
    chain = tuple(
        Wrapper.of(w.factory, **{**w.settings, "inputs": None})
        if w.role in ("codes", "floats") and "inputs" in w.settings
        else w
        for w in hardware_chain(net, site)
        if w.role in ("groups", "codes", "floats")
    )
    size = state.size / jnp.maximum(state.seen, 1)[..., None]
    channels = size.reshape(len(size), -1, op.geometry.channels).mean(1)  # over a kernel's taps
    held = dataclasses.replace(
        op, geometry=op.geometry.as_matmul().geometry, masked=bool(net.site_masks(site))
    )
    return None, _Tried(_costs(held, chain, steps, state, channels), channels)


@partial(jax.jit, static_argnums=(0, 2))
@own_promotion()
def _costs(
    op: Op, chain: tuple[Wrapper, ...], steps: int, state: Moments, channels: Float[Array, "B C"]
) -> Float[Array, " steps"]:
    """Squared error of all outputs, by what each exponent makes of the weights."""
    core, K = build(chain), state.w.shape[1]
    rows = _root(state.gram)
    exact = jnp.matmul(rows, state.w, precision=lax.Precision.HIGHEST)

    def cost(exponent: Array) -> Array:
        by = channel_factors(channels, exponent)
        by = jnp.tile(by, (1, K // by.shape[1]))
        written = core.write(op, state.w * by[..., None], None)
        held = core.read(op, written, rows / by[:, None], None)
        return jnp.sum((held.astype(jnp.float32) - exact) ** 2)

    return lax.map(cost, jnp.arange(steps) / steps)


def _root(gram: Float[Array, "B m K"]) -> Float[Array, "B m K"]:
    """Rows whose outer products sum up to those of all inputs."""
    height, K = gram.shape[1:]
    if height < K:  # it is such rows
        return gram
    sizes, directions = jnp.linalg.eigh(gram)  # of fewer inputs than numbers some are zero
    return jnp.sqrt(jnp.maximum(sizes, 0))[..., None] * directions.mT


def channel_factors(
    channels: Float[Array, "... C"], exponent: float | Array
) -> Float[Array, "... C"]:
    """What the weights of each channel are multiplied by; their geometric middle is 1.

    Args:
      channels: Mean magnitude of each input channel; one that is zero counts as the least other.
      exponent: Power α.
    """
    least = jnp.min(jnp.where(channels > 0, channels, jnp.inf), -1, keepdims=True)
    size = jnp.maximum(channels, jnp.where(jnp.isfinite(least), least, 1))
    by = size ** jnp.asarray(exponent)
    return by / jnp.sqrt(by.max(-1, keepdims=True) * by.min(-1, keepdims=True))


def _scaled(net: Net, chosen: Sequence[Site], measured: Mapping[str, Changed], data: Any) -> Net:
    """A network whose channels are scaled: where folded, by one exponent for all readers."""
    steps = next(iter(measured.values())).kept.costs.shape[-1]
    cores = dict(net.cores)
    alone = {site.name: site for site in chosen}
    params = dict[str, Array]()
    for paths, into in _producers(net, chosen, measured, data):
        for site in into:
            del alone[site.name]
        by = _best(steps, [measured[site.name].kept for site in into])[..., 0, :]
        held = by_name(net.params)
        for path in paths:
            name = path.removeprefix("params/")
            own = np.asarray(params.get(name, held[name]))
            params[name] = _like(own / _between(by, own.ndim), held[name])
        for site in into:
            assert site.param is not None
            own = np.asarray(params.get(site.param, held[site.param]))
            params[site.param] = _like(own * _rows(by, own.ndim), held[site.param])
    for site in alone.values():
        by = _best(steps, [measured[site.name].kept])
        wrapper = Wrapper.of(smooth_scaling, channels=jnp.asarray(by))
        chain = cores[site.name]
        place = sum(w.role == "mask" for w in chain)
        cores[site.name] = (*chain[:place], wrapper, *chain[place:])
    return dataclasses.replace(with_params(net, params), cores=cores)


def _best(steps: int, kept: Sequence[_Tried]) -> Float[np.ndarray, "*stack B C"]:
    """The factors of the exponent that costs the sites of one input least together."""
    costs = sum(np.asarray(one.costs, np.float64) for one in kept)
    exponents = np.argmin(costs, -1)[..., None, None] / steps
    return np.asarray(
        channel_factors(jnp.asarray(kept[0].size), jnp.asarray(exponents)), np.float32
    )


def _producers(
    net: Network, chosen: Sequence[Site], measured: Mapping[str, Changed], data: Any
) -> Iterator[tuple[tuple[str, ...], list[Site]]]:
    """What can be divided instead of the inputs of sites: its paths, and these sites."""
    plain = dataclasses.replace(net, cores={}, states={})
    first = Batch(*next(batches(data)))
    left = {s.name: s for s in chosen if measured[s.name].plain and _folds(s, measured)}
    if not left:
        return
    readers, trials = Readers(plain, first), trials_of(plain, first)
    for paths in _candidates(net):
        into = readers.of(paths, list(left.values()))
        if into and _exact(trials, paths, into):
            for site in into:
                del left[site.name]
            yield paths, into
        if not left:
            return


def _folds(site: Site, measured: Mapping[str, Changed]) -> bool:
    """Whether a site's weight is a matrix whose first axis is that of the input's channels."""
    B, C = measured[site.name].kept.size.shape[-2:]
    return B == 1 and site.kind == "dot" and site.w_shape[0] == C and len(site.w_shape) == 2


def _candidates(net: Network) -> Iterator[tuple[str, ...]]:
    """Parameters that may scale channels alone: vectors, and kernels with their biases."""
    held = by_name(net.params)
    stacks = {site.param: site.stack for site in net.sites if site.multiplies and not site.shared}
    known = {site.stack for site in net.sites}
    for name, a in held.items():
        group = name.rpartition("/")[0]
        bias = f"{group}/bias"
        beside = () if bias == name or bias not in held else (f"params/{bias}",)
        vector = a.ndim > 0 and a.shape[:-1] in known and not name.endswith("bias")
        if vector or (name in stacks and a.ndim == len(stacks[name]) + 2):
            yield f"params/{name}", *beside


def _exact(trials: Trials, paths: Sequence[str], into: Sequence[Site]) -> bool:
    """Whether dividing a producer and multiplying its readers' weights changes no output."""
    held = by_name(trials.net.params)
    names = [path.removeprefix("params/") for path in paths]
    by = factors_of(held[names[0]].shape[-1])
    changes = {f"params/{name}": np.asarray(held[name]) / by for name in names}
    for site in into:
        assert site.param is not None
        changes[f"params/{site.param}"] = np.asarray(held[site.param]) * by[:, None]
    return trials.same(changes)


def _between(by: np.ndarray, ndim: int) -> np.ndarray:
    """[*stack, C] as it divides what has its channels last."""
    return by.reshape(*by.shape[:-1], *(1,) * (ndim - by.ndim), by.shape[-1])


def _rows(by: np.ndarray, ndim: int) -> np.ndarray:
    """[*stack, C] as it multiplies a kernel [*stack, C, N]."""
    return by.reshape(*by.shape, *(1,) * (ndim - by.ndim))


def _like(values: np.ndarray, before: Array) -> Array:
    return placed_like(jnp.asarray(values, before.dtype), before)
