"""Ranges of weights, evened out between consecutive layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxsim.inputs.batches import reusable_batches
from jaxsim.network.network import Net, Network
from jaxsim.network.transform import Transform
from jaxsim.numerics.checks import check_range
from jaxsim.transforms.rescaling import (
    TOLERANCE,
    Layer,
    Trials,
    factors,
    layers,
    norm_behind,
    norms,
    on_devices,
    on_host,
    on_outputs,
    trials_of,
)
from jaxsim.values.calls import shown_as_called

Values = dict[str, np.ndarray]
"""Parameters and buffers by path."""


class Pair(NamedTuple):
    """Two layers that a function joins which lets factors above zero through.

    Attributes:
      first, second: the layers.
      shifts: paths of what is added to the first one's outputs.
    """

    first: Layer
    second: Layer
    shifts: tuple[str, ...]


@shown_as_called
def equalize(inputs: Any, *, epsilon: float = 1e-5, sites: str | Sequence[str] = "*") -> Transform:
    """Rescales channels between consecutive layers so that one scale serves a whole kernel better.

    Between two layers joined by ReLU and the like, a channel can be multiplied by s in the first
    and divided by s in the second. With s = √(r₂ / r₁) of the channel's ranges in both, they are
    equal afterwards; where layers form a chain this is repeated until nothing moves.

    A kernel that something else reads too (a tied embedding) stays as it is.

    Pairs are found by trial: rescaling them must change no output. Fold norms before it, so that
    kernels are equalized as they act.

    Args:
      inputs: on which outputs are compared: a batch (an array, a tuple of positional arguments, or
        a dict of keyword arguments) or an iterable of batches; a few inputs are enough.
      epsilon: of batch norms between the layers, above 0: Flax's default.
      sites: patterns of the sites to equalize.

    Raises:
      ValueError: epsilon out of range; when applied, a transformed site, no pair, or outputs that
        change.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> keys = jax.random.split(jax.random.key(0), 3)
      >>> normal = jax.random.normal
      >>> params = {"a": normal(keys[0], (6, 8)), "b": normal(keys[1], (8, 3))}
      >>> x = jax.random.normal(keys[2], (4, 6))
      >>> net = js.trace(lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"], params, x)
      >>> even = js.equalize(x)(net)
      >>> bool(jnp.allclose(even(x), net(x), atol=1e-5))
      True
      >>> ratio = jnp.abs(even.params["a"]).max(0) / jnp.abs(even.params["b"]).max(1)
      >>> bool(jnp.allclose(ratio, 1, atol=1e-3))  # the ranges of each channel are equal
      True

    Source: Nagel et al. (2019), arXiv 1906.04721, §4.1.
    """
    check_range("epsilon", epsilon, 0, 1, above=True)

    data = reusable_batches(inputs)

    def apply(net: Net) -> Net:
        free, trials = layers(net, "equalize", sites), trials_of(net, data)
        found = pairs(net, free, trials, epsilon)
        if not found:
            raise ValueError(
                "equalize: no two of the sites are joined by a function through which positive "
                "factors go, such as relu"
            )
        changes = equalized(on_host(net), found)
        if (off := trials.off(changes)) > TOLERANCE:
            raise ValueError(f"equalize: outputs would change by {off:.1e} of the largest")
        return on_devices(net, changes)

    return apply


def pairs(net: Network, free: Sequence[Layer], trials: Trials, epsilon: float) -> list[Pair]:
    """Every two layers between which channels can be rescaled.

    Args:
      net: in floats.
      free: the layers to look at.
      trials: the network on inputs.
      epsilon: of batch norms between them.
    """
    held, found = on_host(net), list[Pair]()
    for first in free:
        norm = norm_behind(first, norms(net), trials, epsilon)
        added = (first.bias, *((norm.bias, norm.mean) if norm else ()))
        shifts = tuple(path for path in added if path is not None)
        for second in free:
            if second.kernel == first.kernel or axis_of(held, first, second) is None:
                continue
            pair = Pair(first, second, shifts)
            if trials.same(_rescaled(held, pair, factors(first))):
                found.append(pair)
                break
    return found


def axis_of(held: Values, first: Layer, second: Layer) -> int | None:
    """The axis of the second kernel that the first one's channels go into, if sizes allow one.

    That is the last but one, where pixels may have been flattened with them; for a depthwise
    convolution, whose kernels have one input channel, the last.
    """
    shape = held[second.kernel].shape
    if second.stack != first.stack:
        return None
    if shape[-2] % first.channels == 0:
        return -2
    if shape[-2] == 1 and shape[-1] == first.channels:
        return -1
    return None


def equalized(held: Values, found: Sequence[Pair]) -> Values:
    """The tensors that change, once ranges of each pair are equal."""
    changes: Values = {}
    for _ in range(100):
        moved = 0.0
        for pair in found:
            now = held | changes
            into = _into(now, pair)
            r1 = np.abs(now[pair.first.kernel]).max(
                tuple(range(len(pair.first.stack), now[pair.first.kernel].ndim - 1))
            )
            r2 = np.abs(into).max((-3, -1))
            used = (r1 > 0) & (r2 > 0)
            by = np.where(used, np.sqrt(np.where(used, r2, 1) / np.where(used, r1, 1)), 1)
            changes |= _rescaled(now, pair, by)
            moved = max(moved, float(np.abs(np.log(by)).max()))
        if moved < 1e-4:
            break
    return changes


def _into(held: Values, pair: Pair) -> np.ndarray:
    """The second kernel as [*stack, rest, C, rest], C the first one's channels."""
    kernel, C = held[pair.second.kernel], pair.first.channels
    last = 1 if axis_of(held, pair.first, pair.second) == -1 else kernel.shape[-1]
    return kernel.reshape(*pair.second.stack, -1, C, last)


def _rescaled(held: Values, pair: Pair, by: Any) -> Values:
    """The tensors of a pair, channels multiplied in the first and divided in the second."""
    changes = {path: on_outputs(held[path], by) for path in (pair.first.kernel, *pair.shifts)}
    stack = np.shape(by)[:-1]
    into = _into(held, pair) / np.reshape(by, (*stack, 1, np.shape(by)[-1], 1))
    return changes | {pair.second.kernel: into.reshape(held[pair.second.kernel].shape)}
