"""Second-order criteria: Fisher information, WoodFisher, the Hessian's diagonal (OBD)."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Key

from jaxsim.inputs.batches import batch_of, one_batch, reusable_batches, row_count
from jaxsim.network.network import Network
from jaxsim.network.params import param_names, stacks_of
from jaxsim.numerics.arrays import native
from jaxsim.numerics.checks import check_range, checked_int
from jaxsim.sparsity.criterion import Criterion, Loss, Tree, hessian_product

ExampleLoss = Callable[[Network, Any], Float[Array, ""]]
"""A loss of a network on one example, whose arrays have a first axis of 1."""


def obd(loss: Loss, *, key: Key[Array, ""], samples: int = 16) -> Criterion:
    """Scores weights by optimal brain damage: h w² / 2 with h the diagonal of the Hessian.

    The diagonal is the mean of z · Hz over random signs z: exact for a diagonal Hessian.

    Args:
      loss: Loss of a network, twice differentiable.
      key: Random key of the signs.
      samples: Number of products, at least 1.

    Raises:
      ValueError: `samples` out of range.

    Source: LeCun, Denker and Solla (1990), Optimal brain damage, eq. 5; Bekas, Kokiopoulou and Saad
    (2007) for the diagonal.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> import jaxsim as js
      >>> x = jnp.array([[2.0]])
      >>> net = js.trace(lambda p, x: x @ p["w"], {"w": jnp.array([[3.0]])}, x)
      >>> criterion = js.sparsity.obd(lambda net: (net(x) ** 2).sum() / 2, key=jax.random.key(0))
      >>> criterion.score(net, ())["w"].tolist()
      [[18.0]]
    """
    samples = checked_int("samples", samples, 1)

    def score(net: Network, _: Any) -> Tree:
        leaves, treedef = jax.tree.flatten(net.params)

        def add_product(h: Tree, key: Any) -> tuple[Tree, None]:
            keys = jax.random.split(key, len(leaves))
            signs = [
                jax.random.rademacher(k, (p.size,), p.dtype).reshape(p.shape)
                for k, p in zip(keys, leaves, strict=True)
            ]
            z = jax.tree.unflatten(treedef, signs)
            v = hessian_product(net, loss, z)
            return jax.tree.map(lambda h, z, v: h + z * v, h, z, v), None

        @jax.jit
        def total(keys: Any) -> Tree:
            none = jax.tree.map(jnp.zeros_like, net.params)
            return jax.lax.scan(add_product, none, keys)[0]

        h = total(jax.random.split(key, samples))
        return jax.tree.map(lambda h, w: h / samples * w**2 / 2, h, net.masked_params())

    return Criterion(score)


def fisher(loss: ExampleLoss, data: Any, *, batch: int = 32) -> Criterion:
    """Scores weights by f w² / 2 with f the mean of the squared gradients of single examples.

    Args:
      loss: Loss of a network and one example, such as `lambda net, e: cross_entropy(net(e[0]),
        e[1])`.
      data: Batch (an array, a tuple or a dict of arrays) with an example along the first axis of
        each, or an iterable of batches; a generator is read once, here, and kept.
      batch: Number of examples whose gradients are in memory together, at least 1.

    Raises:
      ValueError: `batch` out of range.

    Source: Theis et al. (2018), arXiv 1801.05787, eq. 12.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> x = jnp.array([[1.0], [3.0]])
      >>> net = js.trace(lambda p, x: x @ p["w"], {"w": jnp.array([[2.0]])}, x)
      >>> js.sparsity.fisher(lambda net, x: net(x).sum(), x).score(net, ())["w"].tolist()
      [[10.0]]
    """
    batch, examples = checked_int("batch", batch, 1), reusable_batches(data, "data")

    def score(net: Network, _: Any) -> Tree:
        total: Tree = jax.tree.map(jnp.zeros_like, net.params)
        count = 0
        for grads in example_gradients(net, loss, examples, batch):
            count += len(jax.tree.leaves(grads)[0])
            total = jax.tree.map(lambda t, g: t + jnp.sum(g**2, 0), total, grads)
        return jax.tree.map(lambda f, w: f * w**2 / (2 * count), total, net.masked_params())

    return Criterion(score)


def wood_fisher(
    loss: ExampleLoss,
    data: Any,
    *,
    block: int = 64,
    damping: float | Array = 1e-5,
    batch: int = 32,
) -> Criterion:
    """Scores weights by w² / (2 [F⁻¹]_qq), F⁻¹ built example by example for blocks of weights.

    Args:
      loss: Loss of a network and one example, such as `lambda net, e: cross_entropy(net(e[0]),
        e[1])`.
      data: Batch with an example along the first axis of each array, or an iterable of batches, as
        `fisher` takes it.
      block: Number of weights of a block, at least 1. A layer, of those that a scan stacks each,
        is cut into blocks in order of position.
      damping: Term λ of F = λI + E[g gᵀ], above 0. Traced.
      batch: Number of examples whose gradients are in memory together, at least 1.

    Raises:
      ValueError: An argument out of range.

    Source: Singh and Alistarh (2020), arXiv 2004.14340, eq. 4 and section 4.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> x = jnp.array([[1.0], [3.0]])
      >>> net = js.trace(lambda p, x: x @ p["w"], {"w": jnp.array([[2.0]])}, x)
      >>> criterion = js.sparsity.wood_fisher(lambda net, x: net(x).sum(), x, damping=1.0)
      >>> criterion.score(net, ())["w"].round(1).tolist()
      [[12.0]]
    """
    block, batch = checked_int("block", block, 1), checked_int("batch", batch, 1)
    check_range("damping", damping, 0, above=True)
    examples = reusable_batches(data, "data")

    def score(net: Network, _: Any) -> Tree:
        stacks = stacks_of(net)
        layers = [math.prod(stacks.get(name, ())) for name in param_names(net)]
        rows = [
            [_blocks(g, k, block) for g, k in zip(jax.tree.leaves(grads), layers, strict=True)]
            for grads in example_gradients(net, loss, examples, batch)
        ]
        n = sum(len(r[0]) for r in rows)
        leaves, treedef = jax.tree.flatten(net.masked_params())
        found: list[Array] = []
        for i, (w, k) in enumerate(zip(leaves, layers, strict=True)):
            g = jnp.concatenate([r[i] for r in rows]).swapaxes(0, 1)
            diagonal = jax.vmap(lambda g: jnp.diag(inverse_fisher(g, damping, n)))(g)
            worth = w.ravel() ** 2 / (2 * diagonal.reshape(k, -1)[:, : w.size // k].ravel())
            found.append(worth.reshape(w.shape))
        return jax.tree.unflatten(treedef, found)

    return Criterion(score)


def inverse_fisher(
    g: Float[Array, "N D"], damping: float | Array, count: int | Array
) -> Float[Array, "D D"]:
    """Computes the inverse of λI + Σ g gᵀ / N, one gradient after another by Woodbury's identity.

    Args:
      g: Gradients of single examples, [N, D].
      damping: Term λ.
      count: Number of examples N.
    """

    def add(inverse: Array, g: Array) -> tuple[Array, None]:
        along = jnp.matmul(inverse, g, precision=lax.Precision.HIGHEST)
        return inverse - jnp.outer(along, along) / (count + jnp.dot(g, along)), None

    return lax.scan(add, jnp.eye(g.shape[1]) / damping, g)[0]


def example_gradients(net: Network, loss: ExampleLoss, data: Any, batch: int) -> Iterator[Tree]:
    """Computes gradients [n, …] of single examples, a batch of them at a time.

    Args:
      net: Network, not deployed.
      loss: Loss of a network and one example.
      data: Batch with an example along the first axis of each array, or an iterable of batches.
      batch: Number of examples of a batch.
    """
    still = dataclasses.replace(net, masks={})

    # not in a scan, where convolutions are slow on XLA's CPU backend
    @jax.jit
    def slopes(params: Tree, examples: Any) -> Tree:
        def one(example: Any) -> Tree:
            single = jax.tree.map(lambda a: a[None], example)
            return jax.grad(lambda p: loss(dataclasses.replace(still, params=p), single))(params)

        return jax.vmap(one)(examples)

    params = net.masked_params()
    for part in [data] if one_batch(data) else data:
        n, own = row_count(batch_of(part, "data"), "data"), jax.tree.map(native, part)
        for start in range(0, n, batch):
            rows = slice(start, start + batch)
            yield slopes(params, jax.tree.map(operator.itemgetter(rows), own))


def _blocks(g: Array, layers: int, block: int) -> Array:
    """Gradients [n, *shape] as [n, blocks, block], each layer filled up with zeros."""
    flat = g.reshape(len(g), layers, -1)
    size = min(block, flat.shape[2])
    flat = jnp.pad(flat, ((0, 0), (0, 0), (0, -flat.shape[2] % size)))
    return flat.reshape(len(g), -1, size)
