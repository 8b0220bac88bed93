"""Clipping of weights between steps, so that no few of them set the range of all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from jaxsim.network.leaves import path_name
from jaxsim.network.network import Network
from jaxsim.network.transform import require_network
from jaxsim.numerics.checks import check_range
from jaxsim.sparsity.masks import stacks


def clip_weights(
    net: Network, deviations: float | Array = 2.5, *, sites: str | Sequence[str] = "*"
) -> optax.GradientTransformation:
    """Keeps weights within a few standard deviations of their layer, after every step.

    Codes and cells are scaled to the largest weight. Where a few are far larger than the rest, all
    others lie close to zero, and an error of a cell is large beside them. Put it last in a chain.

    Args:
      net: Network to be trained.
      deviations: Bound of a weight's magnitude in standard deviations of the layer's weights about
        zero, those that are zero not counted; above 0. Traced.
      sites: Patterns of the sites whose weights to clip.

    Returns:
      An optax transformation whose updates end within the bound; its `update` needs the parameters.

    Raises:
      ValueError: No network, a bound out of range, or a site without parameters of its own; in
        `update`, no parameters, or parameters of another network.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> import jaxsim as js
      >>> from jaxsim.train import clip_weights
      >>> w = jnp.array([[1.0, -1.0, 1.0, 5.0]])
      >>> net = js.trace(lambda p, x: x @ p["w"], {"w": w}, jnp.ones((1, 1)))
      >>> optimizer = optax.chain(optax.sgd(1.0), clip_weights(net, 1.0))
      >>> grads = {"w": jnp.zeros((1, 4))}
      >>> updates, _ = optimizer.update(grads, optimizer.init(net.params), net.params)
      >>> [round(float(w), 2) for w in (net.params["w"] + updates["w"])[0]]
      [1.0, -1.0, 1.0, 2.65]

    Source: the remedy against outlying weights of hardware-aware training for analog arrays, Rasch
      et al. (2023), arXiv 2302.08469.
    """
    require_network(net, "clip_weights")
    check_range("deviations", deviations, 0, above=True)
    layers = {name: len(sizes) for name, sizes in stacks(net, sites, "clip_weights").items()}

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if params is None:
            raise ValueError("params=None: clip_weights needs the parameters; update(…, params)")
        names = {path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)}
        # beside what else is trained, `fit` has the parameters in a dict of their own
        prefix = "" if layers.keys() <= names else "params/"
        if missing := [name for name in layers if prefix + name not in names]:
            raise ValueError(f"params: {', '.join(missing)} of the network is not among them")

        def clipped(path: Any, change: Array, weight: Array) -> Array:
            name = path_name(path).removeprefix(prefix)
            if name not in layers or path_name(path) != prefix + name:
                return change
            moved = weight + change
            axes = tuple(range(layers[name], moved.ndim))
            count = jnp.maximum(jnp.sum(moved != 0, axes, keepdims=True), 1)
            deviation = jnp.sqrt(jnp.sum(jnp.square(moved), axes, keepdims=True) / count)
            bound = (deviations * deviation).astype(moved.dtype)
            return jnp.clip(moved, -bound, bound) - weight

        return jax.tree_util.tree_map_with_path(clipped, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
