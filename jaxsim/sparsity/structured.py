"""What whole channels are worth: give these criteria to `js.prune(pattern=channel(…))`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxsim.cores.core import Core, State, float_core
from jaxsim.cores.op import Op
from jaxsim.cores.wrapper import Wrapper
from jaxsim.inputs.batches import batches, kept
from jaxsim.network.deployment import deploy
from jaxsim.network.leaves import path_name
from jaxsim.network.network import Network
from jaxsim.network.params import by_name
from jaxsim.network.writer import write_states
from jaxsim.sparsity.criterion import Criterion, Tree


def batch_norm_scale(scales: Mapping[str, str]) -> Criterion:
    """|γ| of the normalisation behind each kernel, for its output channels (network slimming).

    Args:
      scales: path of the scale by that of the kernel: `{"Conv_0/kernel": "BatchNorm_0/scale"}`.
        Name the same kernels in `sites=`.

    Raises:
      ValueError: when applied, a path that is no parameter, or a scale of another length than the
        kernel's last axis.

    Source: Liu et al. (2017), arXiv 1708.06519.
    """

    def score(net: Network, _: Any) -> Tree:
        flat = by_name(net.params)
        for kernel, scale in scales.items():
            if kernel not in flat or scale not in flat:
                missing = kernel if kernel not in flat else scale
                raise ValueError(f"scales: {missing!r} is no parameter; they are {', '.join(flat)}")
            if flat[scale].shape[-1:] != flat[kernel].shape[-1:]:
                raise ValueError(
                    f"scales: {scale} has {flat[scale].shape} values for the "
                    f"{flat[kernel].shape[-1]} outputs of {kernel}"
                )
        return jax.tree_util.tree_map_with_path(
            lambda path, p: (
                jnp.broadcast_to(jnp.abs(flat[scales[name]]), p.shape)
                if (name := path_name(path)) in scales
                else jnp.zeros_like(p)
            ),
            net.params,
        )

    return Criterion(score)


def redundancy(axis: int = -1) -> Criterion:
    """Sum of a channel's distances to the layer's others: one near the middle can be replaced.

    Args:
      axis: of the channels; that of the pattern.

    Source: He et al. (2019), arXiv 1811.00250, eq. 4.
    """

    def one(p: Array) -> Array:
        if p.ndim < 2:
            return jnp.zeros_like(p)
        flat = jnp.moveaxis(p, axis, 0).reshape(p.shape[axis], -1)
        square = jnp.sum(flat**2, 1)
        apart = square[:, None] + square - 2 * jnp.matmul(flat, flat.T, precision="highest")
        total = jnp.sum(jnp.sqrt(jnp.maximum(apart, 0)), 1)
        shape = [1] * p.ndim
        shape[axis] = len(total)
        return jnp.broadcast_to(total.reshape(shape), p.shape)

    return Criterion(lambda net, _: jax.tree.map(one, net.masked_params()))


def activation_variance(inputs: Any) -> Criterion:
    """Variance of each channel that flows into a site, for `channel(axis=-2)`.

    A channel that hardly varies can be left out, and a bias take its place.

    Args:
      inputs: a batch (an array, a tuple of positional arguments, or a dict of keyword arguments) or
        an iterable of batches; a generator is read once, here, and kept.
    """
    return _of_inputs(inputs, lambda m: m.squares / m.seen - (m.total / m.seen) ** 2)


def activity(inputs: Any) -> Criterion:
    """Share of inputs for which a channel that flows into a site is not zero: one less APoZ.

    Args:
      inputs: as in `activation_variance`. Use it where a ReLU comes before the site.

    Source: Hu et al. (2016), arXiv 1607.03250, eq. 1.
    """
    return _of_inputs(inputs, lambda m: m.nonzero / m.seen)


class Channels(NamedTuple):
    """State of a site whose input channels are measured.

    Attributes:
      w: the weight.
      total, squares, nonzero: sums over what flowed in, and how often it was not zero, [B, C].
      seen: how much of each channel that is.
    """

    w: Array
    total: Float[Array, "B C"]
    squares: Float[Array, "B C"]
    nonzero: Float[Array, "B C"]
    seen: Float[Array, ""]


def _of_inputs(inputs: Any, statistic: Any) -> Criterion:
    data = kept(inputs)

    def score(net: Network, _: Any) -> Tree:
        sites = [s for s in net.sites if s.param is not None and "#" not in s.name and not s.stack]
        names = [s.name for s in sites]
        probed = dataclasses.replace(net, cores={n: (Wrapper.of(_channels),) for n in names})
        seen = deploy(dataclasses.replace(probed, states={}), calibrate=batches(data)).states

        def spread(params: Tree) -> dict[str, Array]:
            """The weights of sites, which the scores are taken back from to parameters."""
            still = dataclasses.replace(probed, params=params, masks={})
            return {n: s.w for n, s in write_states(still, None).items()}

        _, back = jax.vjp(spread, net.params)
        values = dataclasses.replace(
            net, cores={n: (Wrapper.of(_valued, by=statistic(seen[n])),) for n in names}, masks={}
        )
        (found,) = back(write_states(values, None))
        return found

    return Criterion(score)


def _channels(core: Core) -> Core:
    """Measures each channel of what flows in, over everything else."""

    def write(op: Op, w: Array, key: Any) -> State:
        matmul = op.geometry.as_matmul()
        none = jnp.zeros((matmul.geometry.w_shape[0], op.geometry.channels))
        return Channels(w, none, none, none, jnp.zeros(()))

    def calibrate(op: Op, state: Channels, x: Array) -> State:
        def summed(x: Array) -> Array:
            # each channel as often as it meets a weight
            rows = op.geometry.as_matmul().x(x.astype(jnp.float32)).sum(-2)
            return rows.reshape(len(rows), -1, op.geometry.channels).sum(1)

        return Channels(
            state.w,
            state.total + summed(x),
            state.squares + summed(x * x),
            state.nonzero + summed(x != 0),
            state.seen + summed(jnp.ones_like(x)).max(),
        )

    def read(op: Op, state: Channels, x: Array, key: Any) -> Array:
        return core.read(op, state.w, x, key)

    return Core(write, calibrate, read)


def _valued(core: Core, *, by: Array) -> Core:
    """A core whose state has one number an input channel at each weight."""

    def write(op: Op, w: Array, key: Any) -> State:
        return jnp.broadcast_to(op.geometry.to_w(by), w.shape).astype(w.dtype)

    return Core(write, float_core.calibrate, float_core.read)
