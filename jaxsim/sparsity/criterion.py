"""Scores of weights, of which the lowest are pruned."""

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


def _keep_memory(memory: Any, params: Tree, grads: Tree) -> Any:
    return memory


class Criterion(NamedTuple):
    """Score of every parameter.

    Attributes:
      score: Function `(net, memory) -> scores`, a tree like `net.params`.
      init: Function `params -> memory`, the start of what the criterion accumulates in a training
        run.
      update: Function `(memory, params, grads) -> memory`, called at every step of the run.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> import jaxsim as js
      >>> def cubes(net, memory):
      ...     return jax.tree.map(lambda w: jnp.abs(w) ** 3, net.params)
      >>> net = js.trace(lambda p, x: x @ p["w"], {"w": jnp.array([[1.0, 2.0]])}, jnp.ones((1, 1)))
      >>> js.sparsity.Criterion(cubes).score(net, ())["w"].tolist()
      [[1.0, 8.0]]
    """

    score: Callable[[Network, Any], Tree]
    init: Callable[[Tree], Any] = _nothing
    update: Callable[[Any, Tree, Tree], Any] = _keep_memory


def magnitude() -> Criterion:
    """Scores weights by |w|; with the pattern `channel`, by a filter's mean magnitude.

    Source: Han et al. (2015), arXiv 1506.02626; Li et al. (2017), arXiv 1608.08710, for filters.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> net = js.trace(lambda p, x: x @ p["w"], {"w": jnp.array([[1.0, -2.0]])}, jnp.ones((1, 1)))
      >>> js.prune(0.5, criterion=js.sparsity.magnitude())(net).masks["w"].tolist()
      [[False, True]]
    """
    return Criterion(lambda net, _: jax.tree.map(jnp.abs, net.masked_params()))


def squared() -> Criterion:
    """Scores weights by w², the order of |w|; with the pattern `channel`, by a filter's L2 norm.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> net = js.trace(lambda p, x: x @ p["w"], {"w": jnp.array([[1.0, -2.0]])}, jnp.ones((1, 1)))
      >>> js.sparsity.squared().score(net, ())["w"].tolist()
      [[1.0, 4.0]]
    """
    return Criterion(lambda net, _: jax.tree.map(jnp.square, net.masked_params()))


def random(key: Key[Array, ""]) -> Criterion:
    """Scores weights by uniform random numbers.

    Args:
      key: Random key.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> import jaxsim as js
      >>> net = js.trace(lambda p, x: x @ p["w"], {"w": jnp.ones((4, 4))}, jnp.ones((1, 4)))
      >>> sparse = js.prune(0.75, criterion=js.sparsity.random(jax.random.key(0)))(net)
      >>> int(sparse.masks["w"].sum())
      4
    """

    def score(net: Network, _: Any) -> Tree:
        leaves, treedef = jax.tree.flatten(net.params)
        keys = jax.random.split(key, len(leaves))
        drawn = [jax.random.uniform(k, p.shape) for k, p in zip(keys, leaves, strict=True)]
        return jax.tree.unflatten(treedef, drawn)

    return Criterion(score)


def given(scores: Tree) -> Criterion:
    """Scores weights by numbers from elsewhere.

    Args:
      scores: Tree like the parameters.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> net = js.trace(lambda p, x: x @ p["w"], {"w": jnp.ones((1, 2))}, jnp.ones((1, 1)))
      >>> scores = {"w": jnp.array([[2.0, 1.0]])}
      >>> js.prune(0.5, criterion=js.sparsity.given(scores))(net).masks["w"].tolist()
      [[True, False]]
    """
    return Criterion(lambda net, _: scores)


def taylor(loss: Loss) -> Criterion:
    """Scores weights by |g · w|, the change of the loss to first order without the weight.

    Args:
      loss: Loss of a network, such as `lambda net: cross_entropy(net(x), labels)`.

    Source: Molchanov et al. (2017), arXiv 1611.06440, eq. 7.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> x = jnp.array([[1.0, 3.0]])
      >>> net = js.trace(lambda p, x: x @ p["w"], {"w": jnp.array([[2.0], [1.0]])}, x)
      >>> js.sparsity.taylor(lambda net: net(x).sum()).score(net, ())["w"].tolist()
      [[2.0], [3.0]]
    """

    def score(net: Network, _: Any) -> Tree:
        w, g = gradients(net, loss)
        return jax.tree.map(lambda w, g: jnp.abs(w * g), w, g)

    return Criterion(score)


def snip(loss: Loss) -> Criterion:
    """Scores weights by |g · w| over the sum of all, for a network that is not trained yet.

    The order is that of `taylor`; the scores add up to one.

    Args:
      loss: Loss of a network, such as `lambda net: cross_entropy(net(x), labels)`.

    Source: Lee, Ajanthan and Torr (2019), arXiv 1810.02340, eq. 6.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> x = jnp.array([[1.0, 3.0]])
      >>> net = js.trace(lambda p, x: x @ p["w"], {"w": jnp.ones((2, 1))}, x)
      >>> js.sparsity.snip(lambda net: net(x).sum()).score(net, ())["w"].tolist()
      [[0.25], [0.75]]
    """

    def score(net: Network, _: Any) -> Tree:
        found = taylor(loss).score(net, ())
        total = sum((jnp.sum(s) for s in jax.tree.leaves(found)), jnp.float32(0))
        return jax.tree.map(lambda s: s / jnp.where(total > 0, total, 1), found)

    return Criterion(score)


def grasp(loss: Loss) -> Criterion:
    """Scores weights by w · Hg, the fall of the gradient's norm without the weight.

    The paper removes the highest of -w · Hg; here as everywhere the lowest go, so the sign is the
    other one.

    Args:
      loss: Loss of a network, twice differentiable.

    Source: Wang, Zhang and Grosse (2020), arXiv 2002.07376, eq. 8.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> x = jnp.array([[1.0, 2.0]])
      >>> net = js.trace(lambda p, x: x @ p["w"], {"w": jnp.ones((2, 1))}, x)
      >>> js.sparsity.grasp(lambda net: (net(x) ** 2).sum()).score(net, ())["w"].tolist()
      [[60.0], [120.0]]
    """

    def score(net: Network, _: Any) -> Tree:
        w, g = gradients(net, loss)
        return jax.tree.map(jnp.multiply, w, hessian_product(net, loss, g))

    return Criterion(score)


def synflow(*example: Any, **options: Any) -> Criterion:
    """Scores weights by synaptic flow w · ∂R/∂w: R sums the outputs for inputs of one.

    Prune in many rounds (`js.prune(…, rounds=100)`): with one, whole layers are lost. Parts that
    are not multilinear, such as batch normalization, are run as they are.

    Args:
      *example: Positional arguments of the model, of which floats are replaced by ones.
      **options: Keyword arguments of the model, likewise.

    Source: Tanaka et al. (2020), arXiv 2006.05467, eq. 2 and algorithm 1.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> x = jnp.zeros((1, 2))
      >>> net = js.trace(lambda p, x: x @ p["w"], {"w": jnp.array([[2.0], [-1.0]])}, x)
      >>> js.sparsity.synflow(x).score(net, ())["w"].tolist()
      [[2.0], [1.0]]
    """

    def score(net: Network, _: Any) -> Tree:
        args, kwargs = jax.tree.map(_ones_like, (example, options))

        def flow(net: Network) -> Array:
            return sum((jnp.sum(y) for y in jax.tree.leaves(net(*args, **kwargs))), jnp.float32(0))

        w = jax.tree.map(jnp.abs, net.masked_params())
        w, g = gradients(dataclasses.replace(net, params=w), flow)
        return jax.tree.map(jnp.multiply, w, g)

    return Criterion(score)


def movement() -> Criterion:
    """Scores weights by -Σ g · w over a training run: those that move towards zero score low.

    Needs a run: give it to a schedule such as `gradual`.

    Source: Sanh, Wolf and Rush (2020), arXiv 2005.07683, eq. 3.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> criterion = js.sparsity.movement()
      >>> params, grads = {"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([3.0, -1.0])}
      >>> criterion.update(criterion.init(params), params, grads)["w"].tolist()
      [-3.0, 2.0]
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


def _ones_like(a: Any) -> Any:
    return jnp.ones_like(a) if jnp.issubdtype(jnp.result_type(a), jnp.inexact) else a


def gradients(net: Network, loss: Loss) -> tuple[Tree, Tree]:
    """Computes the gradients by the parameters, which pruned ones have too.

    Args:
      net: Network, not deployed.
      loss: Loss of a network.
    """
    open_net = dataclasses.replace(net, masks={})
    w = net.masked_params()
    return w, jax.grad(lambda p: loss(dataclasses.replace(open_net, params=p)))(w)


def hessian_product(net: Network, loss: Loss, v: Tree) -> Tree:
    """Multiplies the Hessian by the parameters with a vector, by a derivative of the gradient.

    Args:
      net: Network, not deployed.
      loss: Loss of a network, twice differentiable.
      v: Vector, a tree like the parameters.

    Source: Pearlmutter (1994), Fast exact multiplication by the Hessian.
    """
    open_net = dataclasses.replace(net, masks={})

    def slope(p: Tree) -> Tree:
        return jax.grad(lambda p: loss(dataclasses.replace(open_net, params=p)))(p)

    return jax.jvp(slope, (net.masked_params(),), (v,))[1]
