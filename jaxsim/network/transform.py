"""Functions from networks to networks, composed and restricted to sites."""

from __future__ import annotations

import dataclasses
import inspect
import math
import warnings
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, Literal, Protocol, cast, overload

import jax
import numpy as np

from jaxsim.cores.core import Core, float_core
from jaxsim.cores.role import WEIGHT
from jaxsim.cores.wrapper import Wrapper, factory_name
from jaxsim.network.leaves import path_name
from jaxsim.network.network import Net, Network
from jaxsim.network.site import Site
from jaxsim.numerics.checks import check_called
from jaxsim.values.calls import shown_as_called


class Transform(Protocol):
    """A pure function from a network to a network of the same kind."""

    def __call__(self, net: Net, /) -> Net:
        """Transforms a network.

        Args:
          net: Network.
        """
        ...


@overload
def compose(*transforms: Transform) -> Transform: ...
@overload
def compose(*transforms: Callable[[Network], Net]) -> Callable[[Network], Net]: ...
@shown_as_called
def compose(*transforms: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Composes transforms into one that applies them in the written order.

    Args:
      *transforms: Functions from a network to a network, at least one.

    Raises:
      ValueError: None were given, or one is not a function.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> net = js.trace(lambda p, x: x @ p["w"], {"w": jnp.eye(4)}, jnp.ones((2, 4)))
      >>> js.compose(js.quantize(8, 8), js.slice_bits(2))(net)
      Network(1 sites, 1 transformed, 0 pruned, 16 parameters)
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
def rules(by_pattern: Mapping[str, Callable[[Network], Network]]) -> Transform:
    """Applies a transform to each pattern of sites; the first pattern that matches a site wins.

    Args:
      by_pattern: Transforms by glob or `re:` pattern (see `Network.select`), in order of
        precedence. "*" is for what the others leave, and may match nothing.

    Raises:
      ValueError: No rules, or one that is not a function; when applied, a pattern that matches no
        site or only sites that earlier rules took.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> params = {"a": jnp.eye(3), "b": jnp.eye(3)}
      >>> net = js.trace(lambda p, x: x @ p["a"] @ p["b"], params, jnp.ones((2, 3)))
      >>> net = js.rules({"a": js.quantize(8, 8), "*": js.quantize(4, 8)})(net)
      >>> sorted(net.cores)
      ['a', 'b']
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
            chosen = net.select(pattern, lookups=True)
            names = tuple(s.name for s in chosen if s.name not in taken)
            if not names and pattern != "*":
                raise ValueError(f"{pattern!r}: earlier rules take every site that it matches")
            taken.update(names)
            if names:
                focused = transform(dataclasses.replace(net, focus=names))
                net = dataclasses.replace(focused, focus=outer)
        return net

    return cast("Transform", apply)


@shown_as_called
def wrap(
    make: Callable[..., Core], *, sites: str | Sequence[str] = "*", **settings: Any
) -> Transform:
    """Makes a transform of a function `(core, **settings) -> Core`: adds an idea of hardware.

    Args:
      make: Function that wraps a core; at module level, so that equal settings share a compilation.
      sites: Patterns of the sites to wrap.
      **settings: Keyword arguments of `make`. Floats and arrays are traced, everything else is
        static.

    Raises:
      ValueError: `make` is not a function, or does not take these settings.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> def amplified(core, gain):
      ...     def read(op, state, x, key):
      ...         return gain * core.read(op, state, x, key)
      ...     return core._replace(read=read)
      >>> net = js.trace(lambda p, x: x @ p["w"], {"w": jnp.eye(2)}, jnp.ones((1, 2)))
      >>> js.wrap(amplified, gain=2.0)(net)(jnp.ones((1, 2))).tolist()
      [[2.0, 2.0]]
    """
    try:
        inspect.signature(make).bind(float_core, **settings)
    except TypeError as error:
        raise ValueError(f"make={make!r} with {settings}: {error}") from error

    def apply(net: Net) -> Net:
        chosen = transformable(net, factory_name(make), sites)
        return net.wrap((s.name for s in chosen), Wrapper.of(make, **settings))

    return apply


def require_network(net: Network, transform: str) -> None:
    """Checks that a transform is given a network.

    Args:
      net: Value given as a network.
      transform: Name of the transform.

    Raises:
      ValueError: It is something else.
    """
    if not isinstance(net, Network):
        raise ValueError(
            f"{transform} takes a Network, not {type(net).__name__}: js.trace(model, …) makes one"
        )


def transformable(
    net: Network,
    transform: str,
    sites: str | Sequence[str],
    *,
    lookups: Literal["all", "named", "none"] = "none",
    tell_rest: bool = False,
) -> tuple[Site, ...]:
    """Selects the sites that a transform is to change, in a network that can still be changed.

    Args:
      net: Value given as a network.
      transform: Name of the transform.
      sites: Patterns of sites, as `Network.select` takes them.
      lookups: Which tables the transform changes: those that any pattern matches, those that a
        pattern names as lookups, or none, where it changes how products are computed.
      tell_rest: If True, warns where a transform of every site leaves many parameters.

    Raises:
      ValueError: Not a network, a deployed one, a pattern that matches nothing, or lookups alone
        for a transform that changes how products are computed.
    """
    require_network(net, transform)
    if net.deployed:
        raise ValueError(f"{transform} cannot follow deploy: the weights are written already")
    chosen = net.select(sites, lookups=lookups == "all")
    products = tuple(site for site in chosen if lookups != "none" or site.kind != "lookup")
    if not products:
        raise ValueError(
            f"{transform} at {chosen[0].name}: rows are looked up there and nothing is multiplied; "
            "quantize stores a table in another format"
        )
    if tell_rest and sites == "*" and net.focus is None:
        _warn_of_rest(net, transform, {site.name for site in products})
    return products


def _warn_of_rest(net: Network, transform: str, chosen: Set[str]) -> None:
    """Warns where a transform of every site leaves more than a tenth of their parameters."""
    sizes = {
        path_name(path): math.prod(np.shape(p))
        for path, p in jax.tree_util.tree_leaves_with_path(net.params)
    }
    rest = {site.param: site.name for site in net.sites if site.kind == "lookup"}
    rest |= {phrase.partition(" ")[0]: phrase for phrase in net.unreached}
    reached = {source for site in net.sites if site.name in chosen for source in site.sources}
    left = {name: sizes[name] for name in rest if name in sizes and name not in reached}
    asked = sum(n for name, n in sizes.items() if name in reached or name in left)
    if sum(left.values()) > 0.1 * asked:
        names = ", ".join(str(rest[name]) for name in sorted(left, key=left.__getitem__)[-3:])
        warnings.warn(
            f"{transform} of every site leaves {sum(left.values()) / asked:.0%} of the parameters "
            f"that are multiplied or looked up as they are: {names}; net.coverage() lists them",
            UserWarning,
            stacklevel=5,
        )


def hardware_chain(net: Network, site: Site) -> list[Wrapper]:
    """Lists the wrappers around a site's core, outermost first, without those of the weight alone.

    A mask and a correction of the weight stand before any hardware, and hardware may follow them.

    Args:
      net: Network.
      site: One of its sites.
    """
    return [wrapper for wrapper in net.cores.get(site.name, ()) if wrapper.role not in WEIGHT]
