"""What a weight is worth: scores, of which the lowest are left out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxsim.network.network import Network

Loss = Callable[[Network], Float[Array, ""]]
"""A loss of a network on data of the caller's, differentiable by the parameters."""

Tree = Any
"""Of the structure of `Network.params`."""


def _nothing(params: Tree) -> Any:
    return ()


def _kept(memory: Any, params: Tree, grads: Tree) -> Any:
    return memory


class Criterion(NamedTuple):
    """A score of every parameter.

    Attributes:
      score: `(net, memory) -> scores`, a tree like `net.params`.
      init: `params -> memory`, what the criterion remembers of a training run.
      update: `(memory, params, grads) -> memory`, at every step of it.
    """

    score: Callable[[Network, Any], Tree]
    init: Callable[[Tree], Any] = _nothing
    update: Callable[[Any, Tree, Tree], Any] = _kept


def magnitude() -> Criterion:
    """|w|. Together with `channel` it is a filter's mean magnitude.

    Source: Han et al. (2015), arXiv 1506.02626; Li et al. (2017), arXiv 1608.08710, for filters.
    """
    return Criterion(lambda net, _: jax.tree.map(jnp.abs, net.masked_params()))


def squared() -> Criterion:
    """w², the same order for single weights; with `channel`, that of a filter's L2 norm."""
    return Criterion(lambda net, _: jax.tree.map(jnp.square, net.masked_params()))


def random(key: Key[Array, ""]) -> Criterion:
    """Uniform random numbers.

    Args:
      key: for them.
    """

    def score(net: Network, _: Any) -> Tree:
        leaves, treedef = jax.tree.flatten(net.params)
        keys = jax.random.split(key, len(leaves))
        drawn = [jax.random.uniform(k, p.shape) for k, p in zip(keys, leaves, strict=True)]
        return jax.tree.unflatten(treedef, drawn)

    return Criterion(score)


def given(scores: Tree) -> Criterion:
    """Scores from elsewhere.

    Args:
      scores: a tree like the parameters.
    """
    return Criterion(lambda net, _: scores)


def taylor(loss: Loss) -> Criterion:
    """|g · w|, what the loss changes by to first order without the weight.

    Args:
      loss: of a network, such as `lambda net: cross_entropy(net(x), labels)`.

    Source: Molchanov et al. (2017), arXiv 1611.06440, eq. 7.
    """

    def score(net: Network, _: Any) -> Tree:
        w, g = gradients(net, loss)
        return jax.tree.map(lambda w, g: jnp.abs(w * g), w, g)

    return Criterion(score)


def snip(loss: Loss) -> Criterion:
    """|g · w| as a share of the sum over all weights, for a network that is not trained yet.

    The order is that of `taylor`; the scores add up to one.

    Args:
      loss: of a network.

    Source: Lee, Ajanthan and Torr (2019), arXiv 1810.02340, eq. 6.
    """

    def score(net: Network, _: Any) -> Tree:
        found = taylor(loss).score(net, ())
        total = sum((jnp.sum(s) for s in jax.tree.leaves(found)), jnp.float32(0))
        return jax.tree.map(lambda s: s / jnp.where(total > 0, total, 1), found)

    return Criterion(score)


def grasp(loss: Loss) -> Criterion:
    """W · Hg, how much the gradient's norm would fall without the weight.

    The paper removes the highest of -w · Hg; here as everywhere the lowest go, so the sign is the
    other one.

    Args:
      loss: of a network, twice differentiable.

    Source: Wang, Zhang and Grosse (2020), arXiv 2002.07376, eq. 8.
    """

    def score(net: Network, _: Any) -> Tree:
        w, g = gradients(net, loss)
        return jax.tree.map(jnp.multiply, w, hessian_product(net, loss, g))

    return Criterion(score)


def synflow(*example: Any, **options: Any) -> Criterion:
    """Synaptic flow w · ∂R/∂w: R sums the outputs for inputs of one, all parameters positive.

    Prune in many rounds (`js.prune(…, rounds=100)`): with one, whole layers are lost. Parts that
    are not multilinear, such as batch normalisation, are run as they are.

    Args:
      *example: the model's positional arguments, of which floats are replaced by ones.
      **options: its keyword arguments, likewise.

    Source: Tanaka et al. (2020), arXiv 2006.05467, eq. 2 and algorithm 1.
    """

    def score(net: Network, _: Any) -> Tree:
        args, kwargs = jax.tree.map(_one, (example, options))

        def flow(net: Network) -> Array:
            return sum((jnp.sum(y) for y in jax.tree.leaves(net(*args, **kwargs))), jnp.float32(0))

        w = jax.tree.map(jnp.abs, net.masked_params())
        w, g = gradients(dataclasses.replace(net, params=w), flow)
        return jax.tree.map(jnp.multiply, w, g)

    return Criterion(score)


def movement() -> Criterion:
    """-Σ g · w over the steps of a training run: what moves towards zero is worth little.

    Needs a run: give it to a schedule such as `gradual`.

    Source: Sanh, Wolf and Rush (2020), arXiv 2005.07683, eq. 3.
    """

    def score(net: Network, memory: Any) -> Tree:
        if isinstance(memory, tuple) and not memory:
            raise ValueError(
                "criterion=movement(): it sums over a training run; give it to a schedule, such "
                "as js.sparsity.gradual"
            )
        return memory

    def update(memory: Tree, params: Tree, grads: Tree) -> Tree:
        return jax.tree.map(lambda m, w, g: m - w * g, memory, params, grads)

    return Criterion(score, lambda params: jax.tree.map(jnp.zeros_like, params), update)


def _one(a: Any) -> Any:
    return jnp.ones_like(a) if jnp.issubdtype(jnp.result_type(a), jnp.inexact) else a


def gradients(net: Network, loss: Loss) -> tuple[Tree, Tree]:
    """The parameters, pruned ones zero, and the gradients by them, which pruned ones have too.

    Args:
      net: not deployed.
      loss: of a network.
    """
    open_net = dataclasses.replace(net, masks={})
    w = net.masked_params()
    return w, jax.grad(lambda p: loss(dataclasses.replace(open_net, params=p)))(w)


def hessian_product(net: Network, loss: Loss, v: Tree) -> Tree:
    """The Hessian by the parameters times a vector, as the derivative of the gradient along it.

    Args:
      net: not deployed.
      loss: of a network, twice differentiable.
      v: the vector, a tree like the parameters.

    Source: Pearlmutter (1994), Fast exact multiplication by the Hessian.
    """
    open_net = dataclasses.replace(net, masks={})

    def slope(p: Tree) -> Tree:
        return jax.grad(lambda p: loss(dataclasses.replace(open_net, params=p)))(p)

    return jax.jvp(slope, (net.masked_params(),), (v,))[1]
