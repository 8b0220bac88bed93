"""Inputs made from batch statistics, where there are no data to calibrate on."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxsim.cores.observers import Outputs, outputs
from jaxsim.cores.wrapper import Wrapper
from jaxsim.network.deployment import deploy, widen_ranges
from jaxsim.network.network import Network
from jaxsim.network.params import tensors
from jaxsim.network.transform import require_network
from jaxsim.numerics.arrays import own_promotion
from jaxsim.numerics.checks import check_range, checked_int
from jaxsim.transforms.rescaling import layers, norm_behind, norms, trials_of


@own_promotion()
def synthesize_inputs(
    net: Network,
    count: int = 64,
    *,
    key: Key[Array, ""],
    steps: int = 300,
    rate: float = 0.1,
    epsilon: float = 1e-5,
) -> Float[Array, "count ..."]:
    """Inputs that a network's batch norms take for data it was trained on.

    Starting from normal noise, Adam makes the mean and the standard deviation of what enters each
    norm those that it has stored: the sum over norms of the mean over channels of
    ((m - mean) / std)² + (s / std - 1)², with m and s of the inputs at hand.

    Args:
      net: in floats, its norms not folded, with one array of floats for its input.
      count: how many inputs, at least 2.
      key: for the noise.
      steps: of Adam, at least 1.
      rate: of Adam, above 0.
      epsilon: of the norms, above 0: Flax's default.

    Returns:
      The inputs [count, ...], to calibrate on.

    Raises:
      ValueError: an argument out of range, a network that is transformed or takes other inputs, or
        no norm that stands behind a site alone.

    Examples:
      >>> import flax.linen as nn
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> model = nn.Sequential(
      ...     [nn.Conv(4, (3, 3)), nn.BatchNorm(True), nn.relu, nn.Conv(2, (3, 3))]
      ... )
      >>> x = jax.random.normal(jax.random.key(0), (2, 6, 6, 3))
      >>> net = js.trace(model, jax.jit(model.init)(jax.random.key(1), x), x)
      >>> made = js.synthesize_inputs(net, 4, key=jax.random.key(2), steps=2)
      >>> made.shape
      (4, 6, 6, 3)

    Source: Cai et al. (2020), arXiv 2001.00281, eq. 4.
    """
    import optax

    require_network(net, "synthesize_inputs")
    count, steps = checked_int("count", count, 2), checked_int("steps", steps, 1)
    check_range("rate", rate, 0, above=True)
    check_range("epsilon", epsilon, 0, 1, above=True)
    args, _ = net.example.combine()
    if len(args) != 1 or not jnp.issubdtype(getattr(args[0], "dtype", jnp.int32), jnp.floating):
        raise ValueError("net: it must take one array of floats")
    first, noise = jax.random.split(key)
    x = jax.random.normal(noise, (count, *args[0].shape[1:]), args[0].dtype)
    # what the norms are paired by must reach all of them, so it is noise too
    trials = trials_of(net, jax.random.normal(first, (8, *x.shape[1:]), x.dtype))
    held, left, watched = tensors(net), norms(net), dict[str, Any]()
    for layer in layers(net, "synthesize_inputs", "*"):
        if norm := norm_behind(layer, left, trials, epsilon):
            left.remove(norm)
            added = 0 if layer.bias is None else held[layer.bias]
            watched[layer.name] = (held[norm.mean] - added, held[norm.var] + epsilon)
    if not watched:
        raise ValueError("net: no batch norm stands behind a site alone; are they folded already?")
    probes = {name: (Wrapper.of(outputs),) for name in watched}
    chip = deploy(dataclasses.replace(net, cores=probes))

    def loss(x: Array) -> Array:
        states: dict[str, Outputs] = widen_ranges(chip, x).states
        total = jnp.float32(0)
        for name, (mean, var) in watched.items():
            m, v = (a.reshape(mean.shape) for a in (states[name].mean, states[name].variance))
            spread = jnp.sqrt(jnp.maximum(v, 1e-12) / var)
            each = jnp.square(m - mean) / var + jnp.square(spread - 1)
            total += jnp.sum(jnp.mean(each, -1))  # over the layers of a stack
        return total

    optimizer = optax.adam(rate)

    # A step at a time from Python: XLA's CPU backend runs convolutions in a scan far slower.
    @jax.jit
    def step(x: Array, state: Any) -> tuple[Any, Any]:
        changes, state = optimizer.update(jax.grad(loss)(x), state)
        return optax.apply_updates(x, changes), state

    state = optimizer.init(x)
    for _ in range(steps):
        x, state = step(x, state)
    return x
