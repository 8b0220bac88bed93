"""Ranges of grids as parameters, trained together with the weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

from jax.tree_util import Partial
from jaxtyping import Array

from jaxsim.cores.observers import CodeEnds, code_ends
from jaxsim.cores.quantized import stored
from jaxsim.cores.wrapper import Wrapper, first_of, place_of
from jaxsim.formats import clipping
from jaxsim.formats.grid import Clip, Grid
from jaxsim.inputs.batches import reusable_batches
from jaxsim.network.network import Network
from jaxsim.network.site import Site
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

    def apply(net: Network) -> Network:
        chosen = transformable(net, "learn_ranges", sites)
        for site in chosen:
            if site.kind == "dynamic":
                raise ValueError(
                    f"learn_ranges at {site.name}: it contracts two inputs, whose ranges are those "
                    "of each batch"
                )
            if not _on_grids(net.cores.get(site.name, ())):
                raise ValueError(
                    f"learn_ranges at {site.name}: it is not on a grid; put quantize before it"
                )
        states: dict[str, Any] = observe_sites(
            net, {site.name: _probe(net.cores[site.name]) for site in chosen}, data
        )

        def learned(name: str, grid: Grid, site: Site) -> Clip | None:
            rule, state = weights if name == "weights" else activations, states[site.name]
            if rule is None or (name == "inputs" and not stored(grid)):
                return grid.clip
            if name == "weights":
                return rule(*state.ends)
            inner: Any = state.inner if isinstance(state, CodeEnds) else state
            return rule(*inner.inputs)

        return _with_rules(net, chosen, learned)

    return apply


def ranges(net: Network) -> dict[str, Array]:
    """The trained numbers of a network's ranges, by site, operand and position.

    Args:
      net: any network; it has some after `learn_ranges`.
    """
    found: dict[str, Array] = {}
    for name, chain in net.cores.items():
        for operand, rule in _rules(chain):
            found |= {f"{name} {operand} {i}": a for i, a in enumerate(rule.args)}
    return found


def with_ranges(net: Network, values: Mapping[str, Array]) -> Network:
    """A network with the numbers of `ranges` replaced."""

    def clip(operand: str, grid: Grid, site: str) -> Clip | None:
        if not _trained(grid.clip):
            return grid.clip
        rule = cast(Partial, grid.clip)
        kept = [values[f"{site} {operand} {i}"] for i in range(len(rule.args))]
        return Partial(rule.func, *kept)

    return _with_rules(net, net.cores, clip)


def _trained(rule: Any) -> bool:
    return isinstance(rule, Partial) and rule.func in clipping.TRAINED


def _on_grids(chain: Sequence[Wrapper]) -> bool:
    """Whether a chain's codes are of grids, whose range rules can be replaced."""
    coded = first_of(chain, "codes")
    forms = () if coded is None else [f for f in coded.formats if f is not None]
    return bool(forms) and all(isinstance(form, Grid) for form in forms)


def _rules(chain: Sequence[Wrapper]) -> list[tuple[str, Any]]:
    """The trained rules of a site's chain, by operand."""
    if not _on_grids(chain):
        return []
    grids = zip(("weights", "inputs"), chain[place_of(chain, "codes")].formats, strict=True)
    return [(name, g.clip) for name, g in grids if g is not None and _trained(g.clip)]


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


def _with_rules(
    net: Network, sites: Iterable[Any], clip: Callable[[str, Grid, Any], Clip | None]
) -> Network:
    """A network whose grids have other rules: `clip(operand, grid, site)`."""
    cores = dict(net.cores)
    for site in sites:
        name = site if isinstance(site, str) else site.name

        def changed(wrapper: Wrapper, site: Any = site) -> Wrapper:
            if wrapper.role != "codes":
                return wrapper
            grids = {
                operand: None
                if grid is None
                else dataclasses.replace(grid, clip=clip(operand, grid, site))
                for operand, grid in wrapper.settings.items()
            }
            return Wrapper.of(wrapper.factory, **grids)

        if _on_grids(cores[name]):
            cores[name] = tuple(map(changed, cores[name]))
    return dataclasses.replace(net, cores=cores)
