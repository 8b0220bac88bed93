"""What is left out of each layer, the rest making up for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxsim.cores.observers import Moments, moments
from jaxsim.cores.op import Op
from jaxsim.cores.wrapper import Wrapper
from jaxsim.formats.grid import Grid
from jaxsim.inputs.batches import reusable_batches
from jaxsim.network.network import Net
from jaxsim.network.params import params_of, with_params
from jaxsim.network.site import Site
from jaxsim.network.transform import Transform, transformable
from jaxsim.numerics.checks import check_range, checked_int
from jaxsim.sparsity.masks import check_sparsity
from jaxsim.sparsity.obs import prune_layer
from jaxsim.sparsity.pattern import unstructured
from jaxsim.transforms.by_site import fewest, solve_by_site, warn_of_few
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
    by_site: Literal["pruned", "float"] | None = None,
    sites: str | Sequence[str] = "*",
) -> Transform:
    """Prunes each layer by itself and changes what is left, so that its outputs change least.

    Every layer loses the same share; its inputs are taken from the network as it is, unless
    `by_site="pruned"`. Masks and weights are those of `js.sparsity.prune_layer`, the optimal brain
    surgeon one input after the other. `by_site` bounds memory as in `round_weights`. Each of
    several experts is pruned for the rows that choose it; one that no row chooses by the magnitude
    of its weights, with a warning that names it.

    Args:
      inputs: what to measure the sites on: a batch (an array, a tuple of positional arguments, or a
        dict of keyword arguments) or an iterable of batches, of which one at a time is in memory; a
        generator is read once, here, and kept.
      sparsity: share of each layer's weights, in [0, 1); None with `keep`.
      keep: (n, m) to keep n of every m inputs of an output instead.
      damping: as a share of the mean of the inputs' second moments, above 0.
      by_site: "pruned" to prune site by site, each measured on what the weights pruned before it
        leave; "float" to do so on the inputs of the network as it is; None for all at once.
      sites: patterns of the sites.

    Raises:
      ValueError: an argument out of range; when applied, a site that is transformed, pruned, used
        twice, or contracts two inputs, that did not run, whose inputs m does not divide, or whose
        weight is computed from its parameter in a way that cannot be undone; with `by_site`,
        batches of several shapes, or a site inside a branch, a loop of unknown length, experts or a
        `shard_map`.

    Warns:
      UserWarning: A site was measured on fewer inputs than it sums over.

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

    if by_site not in (None, "pruned", "float"):
        raise ValueError(f"by_site={by_site!r}: must be 'pruned', 'float' or None")
    data = reusable_batches(inputs)

    def apply(net: Net) -> Net:
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
        one = jax.vmap(partial(prune_layer, damping=damping, keep=keep), in_axes=(0, 0, None))
        share = jnp.float32(0 if sparsity is None else sparsity)

        def solve(site: Site, _: Op | None, state: Moments) -> tuple[Array, Array]:
            K, N = state.w.shape[-2:]
            if keep is not None and K % keep[1]:
                raise ValueError(
                    f"keep={keep}: {site.name} has {K} inputs, which {keep[1]} does not divide"
                )
            w, mask = one(state.w.reshape(-1, K, N), state.mean.reshape(-1, K, K), share)
            shape = state.w.shape
            return w.reshape(shape), mask.reshape(shape).astype(jnp.float32)

        targets, stay, moved = dict[str, Array](), dict[str, Array](), dict[str, Array]()
        masks = dict[str, Array]()
        if by_site is None:
            states: dict[str, Moments] = observe_sites(net, probes, data)
            for site in chosen:
                state = states[site.name]
                require_run(site, state.seen, state.gram, idle="they are pruned by magnitude")
                targets[site.name], stay[site.name] = solve(site, None, state)
            warn_of_few(fewest(states), "prune_layers")
        else:
            follow = "changed" if by_site == "pruned" else "float"
            changed = solve_by_site(
                net, chosen, probes, data, solve, follow=follow, what="prune_layers"
            )
            for site in chosen:
                one_site = changed.pop(site.name)
                if one_site.param is not None and site.param is not None:
                    moved[site.param] = one_site.param
                    masks[site.param] = one_site.kept.reshape(one_site.param.shape) > 0.5
                elif one_site.matrices is not None:
                    targets[site.name], stay[site.name] = one_site.matrices, one_site.kept
            net = with_params(net, moved)
            chosen = [site for site in chosen if site.name in targets]
            probes = {site.name: probes[site.name] for site in chosen}
        if not chosen:
            return dataclasses.replace(net, masks={**net.masks, **masks})
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
        masks |= {name: m > 0.5 for name, m in solve_params(of, every, stay).items()}
        return dataclasses.replace(with_params(net, after), masks={**net.masks, **masks})

    return apply
