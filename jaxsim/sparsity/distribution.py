"""How many weights each layer loses, where all lose a fraction together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxsim.sparsity.lowest import count_lowest_by_row


class LayerScores(NamedTuple):
    """Scores of layers of one shape: the slices of a stack, or one layer.

    Attributes:
      scores: Scores of their units, [B, U].
      shape: Shape of one layer's weight.
      size: Number of weights of a unit.
    """

    scores: Float[Array, "B U"]
    shape: tuple[int, ...]
    size: int


class Distribution(NamedTuple):
    """Rule by which a sparsity is distributed over layers.

    Attributes:
      removed: Function `(layers, sparsity) ->` number of units each layer loses, [B] for each
        entry. Those of the lowest scores go, earlier ones first among equals.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> def one_each(layers, sparsity):
      ...     return [jnp.ones(1, int) for _ in layers]
      >>> net = js.trace(lambda p, x: x @ p["w"], {"w": jnp.array([[1.0, 2.0]])}, jnp.ones((1, 1)))
      >>> js.prune(0.5, distribution=js.sparsity.Distribution(one_each))(net).masks["w"].tolist()
      [[False, True]]
    """

    removed: Callable[[Sequence[LayerScores], float | Array], list[Int[Array, " B"]]]


def global_() -> Distribution:
    """Ranks the units of all layers together; exactly round(sparsity · units) of them go.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> params = {"a": jnp.array([[1.0, 2.0]]), "b": jnp.array([[3.0], [4.0]])}
      >>> net = js.trace(lambda p, x: x @ p["a"] @ p["b"], params, jnp.ones((1, 1)))
      >>> sparse = js.prune(0.25, distribution=js.sparsity.global_())(net)
      >>> [int(mask.sum()) for mask in sparse.masks.values()]
      [1, 2]
    """
    return Distribution(_count_lowest)


def uniform() -> Distribution:
    """Removes the same fraction of every layer: round(sparsity · units) of each.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> params = {"a": jnp.array([[1.0, 2.0]]), "b": jnp.array([[3.0], [4.0]])}
      >>> net = js.trace(lambda p, x: x @ p["a"] @ p["b"], params, jnp.ones((1, 1)))
      >>> sparse = js.prune(0.5, distribution=js.sparsity.uniform())(net)
      >>> [int(mask.sum()) for mask in sparse.masks.values()]
      [1, 1]
    """

    def removed(layers: Sequence[LayerScores], sparsity: float | Array) -> list[Array]:
        return [
            jnp.full(len(layer.scores), _count(sparsity, layer.scores.shape[1])) for layer in layers
        ]

    return Distribution(removed)


def er() -> Distribution:
    """Keeps of each layer in proportion to (inputs + outputs) / (inputs · outputs).

    Inputs and outputs are the last two axes, the channels of a Flax kernel.

    Source: Mocanu et al. (2018), arXiv 1707.04780, eq. 3.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> params = {"a": jnp.ones((4, 8)), "b": jnp.ones((8, 2))}
      >>> net = js.trace(lambda p, x: x @ p["a"] @ p["b"], params, jnp.ones((1, 4)))
      >>> sparse = js.prune(0.5, distribution=js.sparsity.er())(net)
      >>> sum(int(mask.sum()) for mask in sparse.masks.values())
      24
    """
    return _by_density(lambda shape: sum(shape[-2:]) / float(np.prod(shape[-2:])))


def erk() -> Distribution:
    """Keeps of each layer in proportion to (sum of its axes) / (product of its axes).

    A layer whose share would exceed one is dense, and the others share what is left.

    Source: Evci et al. (2020), arXiv 1911.11134, section 3.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> params = {"a": jnp.ones((4, 8)), "b": jnp.ones((8, 2))}
      >>> net = js.trace(lambda p, x: x @ p["a"] @ p["b"], params, jnp.ones((1, 4)))
      >>> sparse = js.prune(0.5, distribution=js.sparsity.erk())(net)
      >>> sum(int(mask.sum()) for mask in sparse.masks.values())
      24
    """
    return _by_density(lambda shape: sum(shape) / float(np.prod(shape)))


def lamp() -> Distribution:
    """Ranks all layers together by s² / Σ t², the sum over the layer's scores t of at least s.

    Scores must be magnitudes.

    Source: Lee et al. (2021), arXiv 2010.07611, eq. 4.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> params = {"a": jnp.array([[1.0, 2.0]]), "b": jnp.array([[30.0], [40.0]])}
      >>> net = js.trace(lambda p, x: x @ p["a"] @ p["b"], params, jnp.ones((1, 1)))
      >>> sparse = js.prune(0.5, distribution=js.sparsity.lamp())(net)
      >>> [mask.ravel().tolist() for mask in sparse.masks.values()]
      [[False, True], [False, True]]
    """

    def removed(layers: Sequence[LayerScores], sparsity: float | Array) -> list[Array]:
        return _count_lowest(
            [layer._replace(scores=_lamp_scores(layer.scores)) for layer in layers], sparsity
        )

    return Distribution(removed)


def densities(
    shapes: Sequence[tuple[int, ...]],
    sparsity: float | Array,
    share: Callable[[tuple[int, ...]], float],
) -> Float[Array, " L"]:
    """Computes densities proportional to a share, at most one, that add up to (1 - sparsity).

    Args:
      shapes: Shapes of L layers.
      sparsity: Fraction of all weights together that is left out, in [0, 1).
      share: Function from a shape to what its density is proportional to.
    """
    sizes = np.asarray([np.prod(shape) for shape in shapes], np.float32)
    shares = np.asarray([share(shape) for shape in shapes], np.float32)
    return _fill(sizes, shares, sparsity)


@jax.jit
def _fill(sizes: Array, shares: Array, sparsity: Array) -> Array:
    """Raises densities together, and leaves dense what is full."""
    budget = (1 - jnp.asarray(sparsity, jnp.float32)) * sizes.sum()

    # a round makes another layer dense, or changes nothing any more
    def fill(_: Any, filled: tuple[Array, Array]) -> tuple[Array, Array]:
        _, dense = filled
        left = budget - jnp.sum(sizes, where=dense)
        epsilon = left / jnp.maximum(jnp.sum(shares * sizes, where=~dense), 1e-30)
        return epsilon, dense | (epsilon * shares > 1)

    none = jnp.zeros((), sizes.dtype), jnp.zeros(sizes.shape, bool)
    epsilon, dense = jax.lax.fori_loop(0, len(sizes), fill, none)
    return jnp.where(dense, 1.0, epsilon * shares)


@jax.jit
def rank(scores: Float[Array, "*B U"]) -> Int[Array, "*B U"]:
    """Ranks scores along the last axis, the lowest first, earlier ones first among equals.

    Args:
      scores: Scores [..., U].
    """
    order = jnp.argsort(scores, axis=-1)
    places = jnp.broadcast_to(jnp.arange(scores.shape[-1]), scores.shape)
    return jnp.put_along_axis(jnp.zeros_like(order), order, places, -1, inplace=False)


def _count(sparsity: float | Array, units: int) -> Array:
    return jnp.round(jnp.asarray(sparsity, jnp.float32) * units).astype(jnp.int32)


def _count_lowest(layers: Sequence[LayerScores], sparsity: float | Array) -> list[Array]:
    units = sum(layer.scores.size for layer in layers)
    return count_lowest_by_row([layer.scores for layer in layers], _count(sparsity, units))


def _by_density(share: Callable[[tuple[int, ...]], float]) -> Distribution:
    """Distributes by a density for each layer, with counts of units that add up exactly."""

    def removed(layers: Sequence[LayerScores], sparsity: float | Array) -> list[Array]:
        shapes = [layer.shape for layer in layers for _ in layer.scores]
        units = np.asarray([layer.scores.shape[1] for layer in layers for _ in layer.scores])
        counts = _round_shares(densities(shapes, sparsity, share), units)
        ends = np.cumsum([len(layer.scores) for layer in layers])
        return jnp.split(counts, ends[:-1])

    return Distribution(removed)


@jax.jit
def _round_shares(kept: Array, units: Array) -> Array:
    """Counts what layers of so many units lose, so that the counts add up to the rounded sum."""
    exact = (1 - kept) * units
    # A compiler may compute `exact` anew at each use, and round it otherwise: a difference of
    # one unit. What a sort has written is read by all.
    whole, places = jnp.floor(exact), jnp.arange(len(units))
    _, whole, order = jax.lax.sort((whole - exact, whole, places), num_keys=1)
    missing = jnp.round(exact.sum()) - whole.sum()
    raised = (whole + (places < missing)).astype(jnp.int32)
    return jnp.zeros_like(raised).at[order].set(raised)


@jax.jit
def _lamp_scores(scores: Float[Array, "B U"]) -> Float[Array, "B U"]:
    order = jnp.argsort(scores, axis=-1)
    rising = jnp.maximum(jnp.take_along_axis(scores, order, -1), 0) ** 2
    above = jnp.cumsum(rising[:, ::-1], -1)[:, ::-1]
    share = rising / jnp.where(above > 0, above, 1)
    found = jnp.put_along_axis(jnp.zeros_like(share), order, share, -1, inplace=False)
    return jnp.where(scores == -jnp.inf, -jnp.inf, found)
