"""Transforms: pure functions from a network to a network, composed and kept to some sites."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxsim.cores.core import Core, float_core
from jaxsim.cores.role import WEIGHT
from jaxsim.cores.wrapper import Wrapper, factory_name
from jaxsim.network.network import Network
from jaxsim.network.site import Site
from jaxsim.numerics.checks import check_called
from jaxsim.values.calls import shown_as_called

Transform = Callable[[Network], Network]
"""A pure function from a network to a network."""


@shown_as_called
def compose(*transforms: Transform) -> Transform:
    """One transform that applies several, in the written order.

    Args:
      *transforms: at least one.

    Raises:
      ValueError: none were given, or one is not a function.
    """
    if not transforms:
        raise ValueError("transforms=(): compose at least one")
    for transform in transforms:
        check_called("transforms", transform)
        if not callable(transform):
            raise ValueError(f"transforms: {transform!r} is not a function from Network to Network")

    def apply(net: Network) -> Network:
        for transform in transforms:
            net = transform(net)
        return net

    return apply


@shown_as_called
def rules(by_pattern: Mapping[str, Transform]) -> Transform:
    """One transform for each pattern of sites; the first pattern that matches a site wins.

    Args:
      by_pattern: globs or `re:` patterns (see `Network.select`) and what to apply there, in order
        of precedence. "*" is for what the others leave, and may come to nothing.

    Raises:
      ValueError: no rules, or one that is not a function; when applied, a pattern that matches no
        site or only sites that earlier rules took.
    """
    if not isinstance(by_pattern, Mapping) or not by_pattern:
        raise ValueError(f"by_pattern={by_pattern!r}: give a dict of at least one rule")
    for pattern, transform in by_pattern.items():
        check_called(f"by_pattern: {pattern!r}", transform)
        if not callable(transform):
            raise ValueError(f"by_pattern: {pattern!r} has {transform!r}, which is no transform")

    def apply(net: Network) -> Network:
        outer, taken = net.focus, set[str]()
        for pattern, transform in by_pattern.items():
            names = tuple(s.name for s in net.select(pattern) if s.name not in taken)
            if not names and pattern != "*":
                raise ValueError(f"{pattern!r}: earlier rules take every site that it matches")
            taken.update(names)
            if names:
                focused = transform(dataclasses.replace(net, focus=names))
                net = dataclasses.replace(focused, focus=outer)
        return net

    return apply


@shown_as_called
def wrap(
    make: Callable[..., Core], *, sites: str | Sequence[str] = "*", **settings: Any
) -> Transform:
    """A transform from a function `(core, **settings) -> Core`: how to add an idea of hardware.

    Args:
      make: wraps a core; a function at module level, so that equal settings share a compilation.
      sites: patterns of the sites to wrap.
      **settings: its keyword arguments. Floats and arrays are traced, everything else is static.

    Raises:
      ValueError: `make` is not a function, or does not take these settings.
    """
    try:
        inspect.signature(make).bind(float_core, **settings)
    except TypeError as error:
        raise ValueError(f"make={make!r} with {settings}: {error}") from error

    def apply(net: Network) -> Network:
        chosen = transformable(net, factory_name(make), sites)
        return net.wrap((s.name for s in chosen), Wrapper.of(make, **settings))

    return apply


def require_network(net: Network, transform: str) -> None:
    """Checks that a transform is given a network.

    Raises:
      ValueError: it is something else.
    """
    if not isinstance(net, Network):
        raise ValueError(
            f"{transform} takes a Network, not {type(net).__name__}: js.trace(model, …) makes one"
        )


def transformable(net: Network, transform: str, sites: str | Sequence[str]) -> tuple[Site, ...]:
    """The sites a transform is to change, in a network that can still be changed.

    Raises:
      ValueError: it is no network or a deployed one, or a pattern matches nothing.
    """
    require_network(net, transform)
    if net.deployed:
        raise ValueError(f"{transform} cannot follow deploy: the weights are written already")
    return net.select(sites)


def hardware_chain(net: Network, site: Site) -> list[Wrapper]:
    """The wrappers around a site's core, outermost first, without those of the weight alone.

    A mask and a correction of the weight stand before any hardware, and hardware may follow them.
    """
    return [wrapper for wrapper in net.cores.get(site.name, ()) if wrapper.role not in WEIGHT]
