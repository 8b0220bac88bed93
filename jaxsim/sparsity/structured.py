"""Criteria of whole channels, for `js.prune(pattern=channel(…))`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxsim.cores.core import Core, State, float_core
from jaxsim.cores.observers import row_counts
from jaxsim.cores.op import Op
from jaxsim.cores.wrapper import Wrapper
from jaxsim.inputs.batches import batches, reusable_batches
from jaxsim.network.deployment import deploy
from jaxsim.network.leaves import path_name
from jaxsim.network.network import Network
from jaxsim.network.params import by_name, stacks_of
from jaxsim.network.writer import write_states
from jaxsim.sparsity.criterion import Criterion, Tree


def batch_norm_scale(scales: Mapping[str, str]) -> Criterion:
    """Scores output channels of kernels by |γ| of the normalization behind (network slimming).

    Args:
      scales: Path of the scale by that of the kernel: `{"Conv_0/kernel": "BatchNorm_0/scale"}`.
        Name the same kernels in `sites=`.

    Raises:
      ValueError: When applied, a path that no parameter has, or a scale of another length than the
        kernel's last axis, or of other layers where a scan stacks them.

    Source: Liu et al. (2017), arXiv 1708.06519.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> params = {"w": jnp.ones((3, 2)), "scale": jnp.array([0.1, -2.0])}
      >>> net = js.trace(lambda p, x: x @ p["w"] * p["scale"], params, jnp.ones((1, 3)))
      >>> score = js.sparsity.batch_norm_scale({"w": "scale"}).score(net, ())["w"]
      >>> score[0].round(1).tolist() == jnp.array([0.1, 2.0]).tolist()
      True
    """

    def score(net: Network, _: Any) -> Tree:
        flat, stacks, spread = by_name(net.params), stacks_of(net), dict[str, Array]()
        for kernel, scale in scales.items():
            if kernel not in flat or scale not in flat:
                missing = kernel if kernel not in flat else scale
                raise ValueError(f"scales: {missing!r} is no parameter; they are {', '.join(flat)}")
            stack, shape = stacks.get(kernel, ()), flat[kernel].shape
            if flat[scale].shape != (*stack, *shape[-1:]):
                layers = f" in each of {list(stack)} layers" if stack else ""
                raise ValueError(
                    f"scales: {scale} has {flat[scale].shape} values for the "
                    f"{shape[-1]} outputs of {kernel}{layers}"
                )
            middle = (1,) * (len(shape) - len(stack) - 1)
            own = jnp.abs(flat[scale]).reshape(*stack, *middle, shape[-1])
            spread[kernel] = jnp.broadcast_to(own, shape)
        return jax.tree_util.tree_map_with_path(
            lambda path, p: spread.get(path_name(path), jnp.zeros_like(p)), net.params
        )

    return Criterion(score)


def redundancy(axis: int = -1) -> Criterion:
    """Scores a channel by its summed distances to the layer's others: central ones are replaceable.

    Layers that a scan stacks are layers by themselves.

    Args:
      axis: Axis of the channels, as given to the pattern.

    Source: He et al. (2019), arXiv 1811.00250, eq. 4.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> w = jnp.array([[0.0, 1.0, 4.0]])
      >>> net = js.trace(lambda p, x: x @ p["w"], {"w": w}, jnp.ones((1, 1)))
      >>> js.sparsity.redundancy().score(net, ())["w"].tolist()
      [[5.0, 4.0, 7.0]]
    """

    def one(p: Array, stack: tuple[int, ...]) -> Array:
        if stack:
            rows = p.reshape(-1, *p.shape[len(stack) :])
            return jax.vmap(lambda p: one(p, ()))(rows).reshape(p.shape)
        if p.ndim < 2:
            return jnp.zeros_like(p)
        flat = jnp.moveaxis(p, axis, 0).reshape(p.shape[axis], -1)
        square = jnp.sum(flat**2, 1)
        apart = square[:, None] + square - 2 * jnp.matmul(flat, flat.T, precision="highest")
        total = jnp.sum(jnp.sqrt(jnp.maximum(apart, 0)), 1)
        shape = [1] * p.ndim
        shape[axis] = len(total)
        return jnp.broadcast_to(total.reshape(shape), p.shape)

    def score(net: Network, _: Any) -> Tree:
        stacks = stacks_of(net)
        return jax.tree_util.tree_map_with_path(
            lambda path, p: one(p, stacks.get(path_name(path), ())), net.masked_params()
        )

    return Criterion(score)


def activation_variance(inputs: Any) -> Criterion:
    """Scores the channels that flow into a site by their variance, for `channel(axis=-2)`.

    A channel that hardly varies can be left out, and a bias take its place.

    Args:
      inputs: Batch (an array, a tuple of positional arguments, or a dict of keyword arguments) or
        an iterable of batches; a generator is read once, here, and kept.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> x = jnp.array([[1.0, 2.0], [1.0, 4.0]])
      >>> net = js.trace(lambda p, x: x @ p["w"], {"w": jnp.ones((2, 1))}, x)
      >>> js.sparsity.activation_variance(x).score(net, ())["w"].ravel().tolist()
      [0.0, 1.0]
    """
    return _input_criterion(inputs, lambda m: m.mean(m.squares) - m.mean(m.total) ** 2)


def activity(inputs: Any) -> Criterion:
    """Scores the channels that flow into a site by the fraction of nonzero inputs (1 - APoZ).

    Args:
      inputs: Batch or iterable of batches, as `activation_variance` takes it. Use it where a ReLU
        comes before the site.

    Source: Hu et al. (2016), arXiv 1607.03250, eq. 1.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> x = jnp.array([[1.0, 0.0], [1.0, 4.0]])
      >>> net = js.trace(lambda p, x: x @ p["w"], {"w": jnp.ones((2, 1))}, x)
      >>> js.sparsity.activity(x).score(net, ())["w"].ravel().tolist()
      [1.0, 0.5]
    """
    return _input_criterion(inputs, lambda m: m.mean(m.nonzero))


def wanda(inputs: Any) -> Criterion:
    """Scores weights by |w| · ‖x‖, with the norm of the input channel that a weight meets.

    The paper compares within each output: `js.prune(criterion=wanda(x), pattern=per_output(0.5))`,
    or `pattern=n_of_m(2, 4)`.

    Args:
      inputs: Batch or iterable of batches, as `activation_variance` takes it.

    Source: Sun et al. (2024), arXiv 2306.11695, eq. 1.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> x = jnp.array([[3.0, 0.0], [4.0, 1.0]])
      >>> net = js.trace(lambda p, x: x @ p["w"], {"w": jnp.array([[1.0], [-2.0]])}, x)
      >>> js.sparsity.wanda(x).score(net, ())["w"].ravel().tolist()
      [5.0, 2.0]
    """
    norms = _input_criterion(inputs, lambda m: jnp.sqrt(m.squares))

    def score(net: Network, memory: Any) -> Tree:
        found = norms.score(net, memory)
        return jax.tree.map(lambda w, x: jnp.abs(w) * x, net.masked_params(), found)

    return Criterion(score)


class ChannelSums(NamedTuple):
    """State of a site whose input channels are measured.

    Attributes:
      w: Weight of the site.
      total, squares, nonzero: Sums over the inputs, over their squares, and number of nonzero ones,
        [B, C].
      seen: Number of values of each channel.
    """

    w: Array
    total: Float[Array, "B C"]
    squares: Float[Array, "B C"]
    nonzero: Float[Array, "B C"]
    seen: Float[Array, ""]

    def mean(self, total: Float[Array, "*stack B C"]) -> Float[Array, "*stack B C"]:
        """Divides a sum by the number of values of each channel, that of each layer of a stack.

        Channels of an expert that multiplied nothing are zero.
        """
        return total / jnp.maximum(self.seen, 1)[..., None, None]


def _input_criterion(inputs: Any, statistic: Any) -> Criterion:
    data = reusable_batches(inputs)

    def score(net: Network, _: Any) -> Tree:
        sites = [s for s in net.sites if s.multiplies and "#" not in s.name]
        names = [s.name for s in sites]
        probed = dataclasses.replace(
            net, cores={n: (Wrapper.of(_measure_channels),) for n in names}
        )
        seen = deploy(dataclasses.replace(probed, states={}), calibrate=batches(data)).states

        def spread(params: Tree) -> dict[str, Array]:
            """The weights of sites, which the scores are taken back from to parameters."""
            still = dataclasses.replace(probed, params=params, masks={})
            return {n: s.w for n, s in write_states(still, None).items()}

        _, back = jax.vjp(spread, net.params)
        values = dataclasses.replace(
            net,
            cores={n: (Wrapper.of(_set_values, by=statistic(seen[n])),) for n in names},
            masks={},
        )
        (found,) = back(write_states(values, None))
        return found

    return Criterion(score)


def _measure_channels(core: Core) -> Core:
    """Makes a core that measures each channel of its inputs, over everything else."""

    def write(op: Op, w: Array, key: Any) -> State:
        matmul = op.geometry.as_matmul()
        none = jnp.zeros((matmul.geometry.w_shape[0], op.geometry.channels))
        return ChannelSums(w, none, none, none, jnp.zeros(()))

    def calibrate(op: Op, state: ChannelSums, x: Array) -> State:
        matmul = op.geometry.as_matmul()
        often = None if op.rows is None else row_counts(op, x)[..., None]

        def sum_channels(x: Array) -> Array:
            # each channel as often as it meets a weight
            rows = matmul.x(x.astype(jnp.float32))
            rows = rows if often is None else jnp.where(often > 0, often * rows, 0)
            return rows.sum(-2).reshape(len(rows), -1, op.geometry.channels).sum(1)

        return ChannelSums(
            state.w,
            state.total + sum_channels(x),
            state.squares + sum_channels(x * x),
            state.nonzero + sum_channels(x != 0),
            state.seen + sum_channels(jnp.ones_like(x)).max(),
        )

    def read(op: Op, state: ChannelSums, x: Array, key: Any) -> Array:
        return core.read(op, state.w, x, key)

    return Core(write, calibrate, read)


def _set_values(core: Core, *, by: Array) -> Core:
    """Makes a core whose state has one number per input channel at each weight."""

    def write(op: Op, w: Array, key: Any) -> State:
        own = op.geometry.to_w(op.slice_for_layer(by))
        return jnp.broadcast_to(own, w.shape).astype(w.dtype)

    return Core(write, float_core.calibrate, float_core.read)
