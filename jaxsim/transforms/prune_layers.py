"""What is left out of each layer, the rest making up for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxsim.cores.observers import Moments, moments
from jaxsim.cores.wrapper import Wrapper
from jaxsim.formats.grid import Grid
from jaxsim.inputs.batches import reusable_batches
from jaxsim.network.network import Network
from jaxsim.network.params import params_of, with_params
from jaxsim.network.transform import Transform, transformable
from jaxsim.numerics.checks import check_range, checked_int
from jaxsim.sparsity.masks import check_sparsity
from jaxsim.sparsity.obs import prune_layer
from jaxsim.sparsity.pattern import unstructured
from jaxsim.transforms.observe import observe_sites, require_run
from jaxsim.transforms.site_weights import site_matrices, solve_params
from jaxsim.values.calls import shown_as_called


@shown_as_called
def prune_layers(
    inputs: Any,
    sparsity: float | Array | None = None,
    *,
    keep: tuple[int, int] | None = None,
    damping: float | Array = 0.01,
    sites: str | Sequence[str] = "*",
) -> Transform:
    """Prunes each layer by itself and changes what is left, so that its outputs change least.

    Every layer loses the same share; its inputs are taken from the network as it is. Masks and
    weights are those of `js.sparsity.prune_layer`, the optimal brain surgeon one input after the
    other. Each of several experts is pruned for the rows that choose it; one that no row chooses by
    the magnitude of its weights, with a warning that names it.

    Args:
      inputs: what to measure the sites on: a batch (an array, a tuple of positional arguments, or a
        dict of keyword arguments) or an iterable of batches, of which one at a time is in memory; a
        generator is read once, here, and kept.
      sparsity: share of each layer's weights, in [0, 1); None with `keep`.
      keep: (n, m) to keep n of every m inputs of an output instead.
      damping: as a share of the mean of the inputs' second moments, above 0.
      sites: patterns of the sites.

    Raises:
      ValueError: an argument out of range; when applied, a site that is transformed, pruned, used
        twice, or contracts two inputs, that did not run, whose inputs m does not divide, or whose
        weight is computed from its parameter in a way that cannot be undone.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> keys = jax.random.split(jax.random.key(0), 3)
      >>> normal = jax.random.normal
      >>> params = {"a": normal(keys[0], (6, 8)), "b": normal(keys[1], (8, 3))}
      >>> x = jax.random.normal(keys[2], (4, 6))
      >>> net = js.trace(lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"], params, x)
      >>> sparse = js.prune_layers(x, 0.5)(net)
      >>> {name: int(mask.sum()) for name, mask in sorted(sparse.masks.items())}
      {'a': 24, 'b': 12}

    Source: Frantar and Alistarh (2023), arXiv 2301.00774.
    """
    check_range("damping", damping, 0, above=True)
    if keep is None:
        check_sparsity(sparsity, unstructured())
    else:
        if sparsity is not None:
            raise ValueError(f"sparsity={sparsity}: keep={keep} says how many stay")
        m = checked_int("keep", keep[1], 2)
        checked_int("keep", keep[0], 1, m - 1)

    data = reusable_batches(inputs)

    def apply(net: Network) -> Network:
        chosen = transformable(net, "prune_layers", sites)
        for site in chosen:
            if site.param is None or site.name in net.cores or site.param in net.masks:
                raise ValueError(f"prune_layers at {site.name}: it must come before any transform")
            if site.shared:
                raise ValueError(
                    f"prune_layers at {site.name}: its parameter is used twice, "
                    f"{', '.join(site.shared)} reads it too"
                )
        # the grid is not looked at
        probe = Wrapper.of(moments, weights=Grid(8))
        probes = {site.name: (probe,) for site in chosen}
        states: dict[str, Moments] = observe_sites(net, probes, data)
        targets, stay = dict[str, Array](), dict[str, Array]()
        one = jax.vmap(partial(prune_layer, damping=damping, keep=keep), in_axes=(0, 0, None))
        share = jnp.float32(0 if sparsity is None else sparsity)
        for name, state in states.items():
            site = next(s for s in chosen if s.name == name)
            require_run(site, state.seen, state.gram, idle="they are pruned by magnitude")
            K, N = state.w.shape[-2:]
            if keep is not None and K % keep[1]:
                raise ValueError(
                    f"keep={keep}: {name} has {K} inputs, which {keep[1]} does not divide"
                )
            gram = state.mean.reshape(-1, K, K)
            w, mask = one(state.w.reshape(-1, K, N), gram, share)
            targets[name] = w.reshape(state.w.shape)
            stay[name] = mask.reshape(state.w.shape).astype(jnp.float32)
        params, of = params_of(net, chosen), partial(site_matrices, net, probes)
        after = solve_params(of, params, targets)
        found = of(after)
        for name, w in targets.items():
            if not jnp.allclose(found[name], w, atol=1e-4 * float(jnp.abs(w).max())):
                raise ValueError(
                    f"prune_layers at {name}: no value of its parameter gives the pruned weights"
                )
        # layers of a stack that no turn of a loop reads stay as they are
        every = jax.tree.map(jnp.ones_like, params)
        masks = {name: m > 0.5 for name, m in solve_params(of, every, stay).items()}
        return dataclasses.replace(with_params(net, after), masks={**net.masks, **masks})

    return apply
