"""Ranges of grids as parameters, trained together with the weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxtyping import Array

from jaxsim.cores.observers import CodeEnds, code_ends
from jaxsim.cores.quantized import stored
from jaxsim.cores.trained import on_grids, ranges_of, with_range_rules, with_ranges_in
from jaxsim.cores.wrapper import Wrapper, place_of
from jaxsim.formats import clipping
from jaxsim.formats.grid import Clip, Grid
from jaxsim.inputs.batches import reusable_batches
from jaxsim.network.network import Net, Network
from jaxsim.network.transform import Transform, transformable
from jaxsim.transforms.observe import observe_sites
from jaxsim.values.calls import shown_as_called


@shown_as_called
def learn_ranges(
    inputs: Any,
    *,
    weights: Callable[[Any, Any], Clip] | None = clipping.learned,
    activations: Callable[[Any, Any], Clip] | None = clipping.learned,
    sites: str | Sequence[str] = "*",
) -> Transform:
    """Makes the ranges of a quantized network parameters, which `jaxsim.train.fit` trains.

    They begin where the squared error of the weights, and of what flows for `inputs`, is smallest.

    Only cores of the sites change: what else reads a parameter reads it as before. Layers that a
    scan stacks have a range each: its numbers have the axes of the stack in front.

    Args:
      inputs: what to begin with: a batch (an array, a tuple of positional arguments, or a dict of
        keyword arguments) or an iterable of batches; a generator is read once, here, and kept.
      weights: rule of the weights from the ends of a range, `js.clipping.learned` for LSQ; None
        leaves them.
      activations: rule of the inputs; `lambda lo, hi: js.clipping.pact(hi)` for PACT; None leaves
        them.
      sites: patterns of the sites.

    Raises:
      ValueError: neither rule; when applied, a site that is not quantized on grids or that
        contracts two inputs, whose ranges are those of each batch.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> x = jnp.linspace(-1, 1, 32).reshape(4, 8)
      >>> net = js.trace(lambda params, x: x @ params["w"], {"w": jnp.eye(8)}, x)
      >>> from jaxsim.transforms.learn_ranges import ranges
      >>> sorted(ranges(js.learn_ranges(x)(js.quantize(4, 4)(net))))
      ['w inputs 0', 'w inputs 1', 'w weights 0', 'w weights 1']
    """
    if weights is None and activations is None:
        raise ValueError("weights=None, activations=None: nothing to learn")

    data = reusable_batches(inputs)

    def apply(net: Net) -> Net:
        chosen = transformable(net, "learn_ranges", sites)
        for site in chosen:
            if site.kind == "dynamic":
                raise ValueError(
                    f"learn_ranges at {site.name}: it contracts two inputs, whose ranges are those "
                    "of each batch"
                )
            if not on_grids(net.cores.get(site.name, ())):
                raise ValueError(
                    f"learn_ranges at {site.name}: it is not on a grid; put quantize before it"
                )
        states: dict[str, Any] = observe_sites(
            net, {site.name: _probe(net.cores[site.name]) for site in chosen}, data
        )

        def learned(site: str, operand: str, grid: Grid) -> Clip | None:
            rule, state = weights if operand == "weights" else activations, states[site]
            if rule is None or (operand == "inputs" and not stored(grid)):
                return grid.clip
            if operand == "weights":
                return rule(*state.ends)
            inner: Any = state.inner if isinstance(state, CodeEnds) else state
            return rule(*inner.inputs)

        cores = with_range_rules(net.cores, [site.name for site in chosen], learned)
        return dataclasses.replace(net, cores=cores)

    return apply


def ranges(net: Network) -> dict[str, Array]:
    """The trained numbers of a network's ranges, by site, operand and position.

    Args:
      net: any network; it has some after `learn_ranges`.
    """
    return ranges_of(net.cores)


def with_ranges(net: Net, values: Mapping[str, Array]) -> Net:
    """A network with the numbers of `ranges` replaced."""
    return dataclasses.replace(net, cores=with_ranges_in(net.cores, values))


def _probe(chain: Sequence[Wrapper]) -> tuple[Wrapper, ...]:
    """A chain that ends with the grids, their ranges those that err least."""
    at = place_of(chain, "codes")
    grids = {
        operand: grid
        and dataclasses.replace(grid, clip=clipping.least_squares(), rounding="nearest")
        for operand, grid in chain[at].settings.items()
    }
    held = (Wrapper.of(code_ends, weights=w),) if (w := grids["weights"]) is not None else ()
    return (*chain[:at], *held, Wrapper.of(chain[at].factory, **grids))
