"""A mini-batch as micro-batches, and what each returns as the outputs of the whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxsim.cores.partition import Partitioned
from jaxsim.network.arguments import abstract_arguments, call_arguments
from jaxsim.network.leaves import path_name
from jaxsim.network.network import Network
from jaxsim.numerics.checks import is_traced


class BatchSplit(NamedTuple):
    """How arrays divide into micro-batches.

    Attributes:
      size: Rows of the mini-batch: the leading axis of the first argument that has one.
      microbatches: Number of micro-batches, which divides the size.
    """

    size: int
    microbatches: int

    @property
    def microbatch_size(self) -> int:
        """Rows of a micro-batch."""
        return self.size // self.microbatches

    def divides(self, a: Any) -> bool:
        """Whether an array is divided: whether its leading axis is the batch.

        Args:
          a: Array of a call.
        """
        return np.ndim(a) > 0 and np.shape(a)[0] == self.size

    def shape(self, a: Any) -> jax.ShapeDtypeStruct:
        """Computes the shape of an array in one micro-batch.

        Args:
          a: Array of a call.
        """
        shape = (self.microbatch_size, *np.shape(a)[1:]) if self.divides(a) else np.shape(a)
        return jax.ShapeDtypeStruct(shape, a.dtype)

    def parts(self, arrays: Sequence[Any]) -> list[list[Any]]:
        """Divides arrays into micro-batches; those without a batch axis are in all of them.

        Args:
          arrays: Arrays of a call.

        Returns:
          The arrays of each micro-batch.
        """
        divided = iter(_divide([a for a in arrays if self.divides(a)], self.microbatches))
        columns = [next(divided) if self.divides(a) else [a] * self.microbatches for a in arrays]
        return [[column[m] for column in columns] for m in range(self.microbatches)]


def batch_split(arguments: Partitioned, count: int, replicas: int) -> BatchSplit:
    """Finds how the arguments of a call divide into micro-batches.

    Args:
      arguments: Arguments of the call.
      count: Number of micro-batches, at least 1.
      replicas: Devices that share a micro-batch, at least 1.

    Raises:
      ValueError: No argument has an axis, or the batch is not divisible.
    """
    sizes = [np.shape(a)[0] for a in arguments.arrays if np.ndim(a)]
    if not sizes:
        raise ValueError("args: no array has an axis to divide into micro-batches")
    if sizes[0] % count or sizes[0] == 0:
        raise ValueError(
            f"args: a batch of {sizes[0]} is not divisible into microbatches={count} equal parts"
        )
    if (sizes[0] // count) % replicas:
        raise ValueError(
            f"args: micro-batches of {sizes[0] // count} are not divisible among "
            f"{replicas} devices a stage"
        )
    return BatchSplit(sizes[0], count)


class OutputJoin(NamedTuple):
    """How the outputs of micro-batches become those of the mini-batch.

    Attributes:
      axes: For each output, the axis along which it holds the batch; None if it does not.
      means: By output that is a moving average of variances, which output is that of the mean, and
        how much of the old average remains [its shape].
    """

    axes: tuple[int | None, ...]
    means: dict[int, tuple[int, np.ndarray]]

    def join(self, parts: Sequence[Sequence[Array]]) -> list[Array]:
        """Joins the outputs of micro-batches to those of the mini-batch.

        Outputs that hold the batch are concatenated. Of the others, integers are those of the last
        micro-batch and floats are averaged, which is exact for a moving average of means. To that
        of variances the variance of the micro-batches' means is added, so that it too is the one
        update that the statistics of the whole mini-batch make.

        Args:
          parts: Outputs of each micro-batch.
        """
        if len(parts) == 1:
            return list(parts[0])
        joined: list[Array] = []
        for i, axis in enumerate(self.axes):
            values = [part[i] for part in parts]
            if axis is not None:
                joined.append(_concatenate(values, axis))
            elif not jnp.issubdtype(values[0].dtype, jnp.inexact):
                joined.append(values[-1])
            elif i in self.means:
                mean, decay = self.means[i]
                home = getattr(values[0], "sharding", None)
                means = [part[mean] for part in parts]
                if home is not None and not any(map(is_traced, means)):
                    means = jax.device_put(means, home)
                joined.append(_variance(values, means, decay))
            else:
                joined.append(_mean(values))
        return joined


def output_join(net: Network, whole: Partitioned, micro: Partitioned) -> OutputJoin:
    """Finds how the outputs of micro-batches join, from shapes alone.

    Args:
      net: Network that is called.
      whole: Arguments of the mini-batch.
      micro: Arguments of a micro-batch.

    Raises:
      ValueError: An output changes in more than one axis with the batch.
    """
    params, buffers = jax.eval_shape(lambda net: (net.params, net.buffers), net)
    large, small = (
        jax.tree_util.tree_leaves_with_path(
            jax.eval_shape(partial(_call, net), params, buffers, abstract_arguments(arguments))
        )
        for arguments in (whole, micro)
    )
    axes = tuple(
        _batch_axis(path_name(path), a.shape, b.shape)
        for (path, a), (_, b) in zip(large, small, strict=True)
    )
    if not updates_buffers(micro):
        return OutputJoin(axes, {})
    names = {path_name(path[1:]): i for i, (path, _) in enumerate(small) if len(path) > 1}
    buffered = {path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(buffers)}
    pairs = {
        names[name]: names[mean]
        for name in names
        if name in buffered and name.endswith("/var") and axes[names[name]] is None
        if (mean := name.removesuffix("var") + "mean") in names and mean in buffered
    }
    if not pairs:
        return OutputJoin(axes, {})

    # An update is linear in the old average, so its derivative is the share that remains. XLA
    # drops everything else.
    @jax.jit
    def remains() -> list[Array]:
        zeros = jax.tree.map(_zeros, (params, buffers, micro.arrays))
        ones = jax.tree.map(_unit_tangent, buffers)

        def updates(buffers: Any) -> Any:
            arguments = dataclasses.replace(micro, arrays=zeros[2])
            return jax.tree.leaves(_call(net, zeros[0], buffers, arguments))

        _, tangents = jax.jvp(updates, (zeros[1],), (ones,))
        return [tangents[i] for i in pairs]

    with jax.ensure_compile_time_eval():
        decays = [np.asarray(a) for a in remains()]
    return OutputJoin(axes, {i: (pairs[i], a) for i, a in zip(pairs, decays, strict=True)})


def updates_buffers(arguments: Partitioned) -> bool:
    """Whether a call returns updates of its buffers as a second output.

    Args:
      arguments: Arguments of the call.
    """
    return bool(arguments.combine()[1].get("mutable", False))


def _call(net: Network, params: Any, buffers: Any, arguments: Partitioned) -> Any:
    args, kwargs = arguments.combine()
    return net.fn(params, buffers, *args, **kwargs)


def _batch_axis(name: str, large: tuple[int, ...], small: tuple[int, ...]) -> int | None:
    if len(large) != len(small):
        raise ValueError(f"output {name}: its rank changes with the batch")
    changed = [i for i, (a, b) in enumerate(zip(large, small, strict=True)) if a != b]
    if len(changed) > 1:
        raise ValueError(
            f"output {name}: {list(large)} for the mini-batch and {list(small)} for a micro-batch "
            "differ in more than one axis"
        )
    return changed[0] if changed else None


def _zeros(a: jax.ShapeDtypeStruct) -> Array:
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        return jnp.broadcast_to(jax.random.key(0, impl=jax.random.key_impl(cast(Any, a))), a.shape)
    return jnp.zeros(a.shape, a.dtype)


def _unit_tangent(a: jax.ShapeDtypeStruct) -> Any:
    if jnp.issubdtype(a.dtype, jnp.inexact):
        return jnp.ones(a.shape, a.dtype)
    return np.zeros(a.shape, jax.dtypes.float0)


@partial(jax.jit, static_argnums=1)
def _divide(arrays: list[Array], count: int) -> list[list[Array]]:
    return [list(a.reshape(count, a.shape[0] // count, *a.shape[1:])) for a in arrays]


@partial(jax.jit, static_argnums=1)
def _concatenate(values: list[Array], axis: int) -> Array:
    return jnp.concatenate(values, axis)


@jax.jit
def _mean(values: list[Array]) -> Array:
    return jnp.mean(jnp.stack(values), 0)


@jax.jit
def _variance(values: list[Array], means: list[Array], remains: np.ndarray) -> Array:
    share = 1 - remains  # of the new statistic in the average; none where nothing is updated
    between = jnp.var(jnp.stack(means), 0) / jnp.where(share == 0, 1, share)
    return jnp.mean(jnp.stack(values), 0) + between.astype(values[0].dtype)


def example_of(net: Network, parts: int) -> Partitioned:
    """Shapes of the traced example as a mini-batch; it is one part where it is not divisible.

    Args:
      net: Any network.
      parts: Number of parts that a mini-batch divides into.
    """
    args, kwargs = net.example.combine()
    arguments = call_arguments(args, {**net.defaults.combine(), **kwargs})
    size = next((a.shape[0] for a in arguments.arrays if a.ndim), 0)
    if size % parts == 0:
        return arguments

    def enlarged(a: Any) -> Any:
        if not a.ndim or a.shape[0] != size:
            return a
        return jax.ShapeDtypeStruct((size * parts, *a.shape[1:]), a.dtype)

    return dataclasses.replace(arguments, arrays=tuple(map(enlarged, arguments.arrays)))
