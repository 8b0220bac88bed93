"""Weights that are computed, made parameters: to be scored, masked and given back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
from jaxtyping import Array

from jaxsim.cores.partition import Partitioned
from jaxsim.cores.site_weight import captured, masked
from jaxsim.cores.wrapper import Wrapper, first_of
from jaxsim.network.arguments import call_arguments
from jaxsim.network.interpreter import Walk
from jaxsim.network.leaves import PyTree
from jaxsim.network.network import Net, Network
from jaxsim.network.params import by_name
from jaxsim.network.planner import trace_plan
from jaxsim.network.site import Site
from jaxsim.network.tracing import retrace
from jaxsim.network.writer import write_states
from jaxsim.sparsity.masks import Masks
from jaxsim.values.value import Value


def is_merged(site: Site, frozen: Iterable[str] = ()) -> bool:
    """Tells if zeros of a site's weight can stand at the site alone.

    Args:
      site: Site.
      frozen: Paths of the weights that are no parameters.
    """
    if site.param is None:
        return False
    return not site.parts or not set(site.parts).isdisjoint(frozen)


def opened(net: Network, chosen: Iterable[Site], merged: Iterable[Site]) -> Network:
    """A network that computes the same of parameters among which merged weights are.

    Parameters are by path, merged weights by `name_of` their site; the focus is on the chosen ones.

    Args:
      net: Network, not deployed.
      chosen: Sites to focus on.
      merged: Those whose weights are to be parameters.
    """
    names = {site.name: name_of(site) for site in merged}
    probes = {name: (Wrapper.of(captured),) for name in names}
    weights = write_states(dataclasses.replace(net, cores=probes, states={}), None)
    params = {**by_name(net.params), **{names[name]: w for name, w in weights.items()}}
    call = OpenCall(
        net.fn,
        jax.tree.structure(net.params),
        tuple(by_name(net.params)),
        tuple(names.items()),
        net.example,
        net.weights,
    )
    # however it is cut, it computes the same as a whole
    held: dict[str, Any] = {f.name: getattr(net, f.name) for f in dataclasses.fields(Network)}
    held.update(params=params, masks={}, cores={})
    found = retrace(Network(**held), call)
    own = {a.name: b.name for a, b in zip(net.sites, found.sites, strict=True)}
    masks, cores = dict(net.masks), {}
    for name, chain in net.cores.items():
        if name in names:
            here = first_of(chain, "mask")
            if here is not None:
                masks[names[name]] = here.settings["mask"]
            chain = tuple(w for w in chain if w.role != "mask")
        cores[own[name]] = chain
    return dataclasses.replace(
        found,
        masks=masks,
        cores={name: chain for name, chain in cores.items() if chain},
        focus=tuple(own[site.name] for site in chosen),
    )


def closed(net: Net, masks: Masks, merged: Iterable[Site]) -> Net:
    """A network with masks of one whose merged weights are parameters.

    Args:
      net: Network that was opened.
      masks: Masks of the opened one.
      merged: Sites whose weights were parameters; their masks stand at the sites.
    """
    cores, own = dict(net.cores), dict(masks)
    for site in merged:
        mask = own.pop(name_of(site), None)
        if mask is None:
            continue
        chain = [w for w in cores.get(site.name, ()) if w.role != "mask"]
        place = sum(w.role == "correction" for w in chain)
        wrapper = Wrapper.of(masked, mask=mask)
        cores[site.name] = (*chain[:place], wrapper, *chain[place:])
    return dataclasses.replace(net, cores=cores, masks=own)


def name_of(site: Site) -> str:
    """The path of a site's weight among the parameters of an opened network."""
    return f"{site.name}:merged"


@dataclasses.dataclass(frozen=True, eq=False)
class OpenCall(Value):
    """A model as a function of its parameters by path and of the weights that are made of them.

    Attributes:
      call: `(params, buffers, *args, **kwargs) -> outputs`.
      structure: Structure of its parameters.
      paths: Their paths.
      merged: Names of sites, and of their weights among the parameters.
      example: Arguments it was traced with.
      weights: Paths of the buffers that count as weights.
    """

    call: Callable[..., Any]
    structure: Any
    paths: tuple[str, ...]
    merged: tuple[tuple[str, str], ...]
    example: Partitioned
    weights: tuple[str, ...]

    def __call__(
        self, params: Mapping[str, Array], buffers: PyTree, *args: Any, **kwargs: Any
    ) -> Any:
        """Calls the model; the sites multiply by the weights that are given."""
        own = jax.tree.unflatten(self.structure, [params[path] for path in self.paths])
        arguments = call_arguments(args, kwargs)
        traced = trace_plan(self.call, own, buffers, arguments, self.example, self.weights)
        states = {site: params[name] for site, name in self.merged}
        walk = Walk(dict.fromkeys(states, ()), "stored", None)
        outputs, _ = walk.run(traced.plan, traced.values, states, ())
        return jax.tree.unflatten(traced.out_tree, outputs)
