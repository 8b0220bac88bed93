"""How many weights each layer loses, where all lose a share together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


class Layer(NamedTuple):
    """Layers of one shape: the slices of a stack, or one.

    Attributes:
      scores: of their units, [B, U].
      shape: of one layer's weight.
      size: weights a unit has.
    """

    scores: Float[Array, "B U"]
    shape: tuple[int, ...]
    size: int


class Distribution(NamedTuple):
    """How a sparsity is shared out.

    Attributes:
      removed: `(layers, sparsity) ->` how many units each layer loses, [B] for each entry. Those of
        the lowest scores go, ties in order of position.
    """

    removed: Callable[[Sequence[Layer], float | Array], list[Int[Array, " B"]]]


def global_() -> Distribution:
    """Ranks the units of all layers together; exactly round(sparsity · units) of them go."""
    return Distribution(_lowest)


def uniform() -> Distribution:
    """The same share of every layer: round(sparsity · units) of each."""

    def removed(layers: Sequence[Layer], sparsity: float | Array) -> list[Array]:
        return [
            jnp.full(len(layer.scores), _count(sparsity, layer.scores.shape[1])) for layer in layers
        ]

    return Distribution(removed)


def er() -> Distribution:
    """Layers keep a share in proportion to (inputs + outputs) / (inputs · outputs).

    Inputs and outputs are the last two axes, the channels of a Flax kernel.

    Source: Mocanu et al. (2018), arXiv 1707.04780, eq. 3.
    """
    return _by_density(lambda shape: sum(shape[-2:]) / float(np.prod(shape[-2:])))


def erk() -> Distribution:
    """Layers keep a share in proportion to (sum of their axes) / (product of their axes).

    A layer whose share would exceed one is dense, and the others share what is left.

    Source: Evci et al. (2020), arXiv 1911.11134, section 3.
    """
    return _by_density(lambda shape: sum(shape) / float(np.prod(shape)))


def lamp() -> Distribution:
    """Ranks all layers together by s² / Σ t², the sum over the layer's t of at least s.

    Scores must be magnitudes.

    Source: Lee et al. (2021), arXiv 2010.07611, eq. 4.
    """

    def removed(layers: Sequence[Layer], sparsity: float | Array) -> list[Array]:
        return _lowest([layer._replace(scores=_lamp(layer.scores)) for layer in layers], sparsity)

    return Distribution(removed)


def densities(
    shapes: Sequence[tuple[int, ...]],
    sparsity: float | Array,
    share: Callable[[tuple[int, ...]], float],
) -> Float[Array, " L"]:
    """Densities in proportion to a share, none above one, that keep (1 - sparsity) of all weights.

    Args:
      shapes: of L layers.
      sparsity: of all weights together, in [0, 1).
      share: of a shape, what its density is in proportion to.
    """
    sizes = jnp.asarray([float(np.prod(shape)) for shape in shapes])
    shares = jnp.asarray([share(shape) for shape in shapes], jnp.float32)
    budget = (1 - jnp.asarray(sparsity, jnp.float32)) * sizes.sum()
    epsilon, dense = jnp.zeros(()), jnp.zeros(len(shapes), bool)
    for _ in shapes:  # a round makes another layer dense, or changes nothing any more
        left = budget - jnp.sum(sizes, where=dense)
        epsilon = left / jnp.maximum(jnp.sum(shares * sizes, where=~dense), 1e-30)
        dense |= epsilon * shares > 1
    return jnp.where(dense, 1.0, epsilon * shares)


def rank(scores: Float[Array, "*B U"]) -> Int[Array, "*B U"]:
    """Place of each score along the last axis, the lowest first, ties in order of position."""
    order = jnp.argsort(scores, axis=-1)
    places = jnp.broadcast_to(jnp.arange(scores.shape[-1]), scores.shape)
    return jnp.put_along_axis(jnp.zeros_like(order), order, places, -1, inplace=False)


def _count(sparsity: float | Array, units: int) -> Array:
    return jnp.round(jnp.asarray(sparsity, jnp.float32) * units).astype(jnp.int32)


def _lowest(layers: Sequence[Layer], sparsity: float | Array) -> list[Array]:
    flat = jnp.concatenate([layer.scores.ravel() for layer in layers])
    gone = rank(flat) < _count(sparsity, flat.size)
    ends = np.cumsum([layer.scores.size for layer in layers])
    parts = jnp.split(gone, ends[:-1])
    return [p.reshape(layer.scores.shape).sum(1) for p, layer in zip(parts, layers, strict=True)]


def _by_density(share: Callable[[tuple[int, ...]], float]) -> Distribution:
    """A density for each layer, and counts of units that add up exactly."""

    def removed(layers: Sequence[Layer], sparsity: float | Array) -> list[Array]:
        shapes = [layer.shape for layer in layers for _ in layer.scores]
        units = jnp.asarray([layer.scores.shape[1] for layer in layers for _ in layer.scores])
        exact = (1 - densities(shapes, sparsity, share)) * units
        whole = jnp.floor(exact)
        missing = jnp.round(exact.sum()) - whole.sum()
        counts = (whole + (rank(whole - exact) < missing)).astype(jnp.int32)
        ends = np.cumsum([len(layer.scores) for layer in layers])
        return jnp.split(counts, ends[:-1])

    return Distribution(removed)


def _lamp(scores: Float[Array, "B U"]) -> Float[Array, "B U"]:
    order = jnp.argsort(scores, axis=-1)
    rising = jnp.maximum(jnp.take_along_axis(scores, order, -1), 0) ** 2
    above = jnp.cumsum(rising[:, ::-1], -1)[:, ::-1]
    share = rising / jnp.where(above > 0, above, 1)
    found = jnp.put_along_axis(jnp.zeros_like(share), order, share, -1, inplace=False)
    return jnp.where(scores == -jnp.inf, -jnp.inf, found)
