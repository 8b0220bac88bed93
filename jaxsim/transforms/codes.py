"""What a chain of wrappers must hold before a transform."""

from __future__ import annotations

from collections.abc import Sequence

from jaxsim.cores.role import DIGITAL
from jaxsim.cores.wrapper import Wrapper, first_of
from jaxsim.formats.clipping import is_set
from jaxsim.formats.grid import Grid
from jaxsim.formats.microscaling import Microscaled
from jaxsim.network.network import Network
from jaxsim.network.site import Site
from jaxsim.network.transform import hardware_chain


def require_codes(net: Network, site: Site, transform: str, *, operands: bool = False) -> Wrapper:
    """The wrapper that stores a site's weights as codes, one for each.

    Args:
      net: Network.
      site: Site of it.
      transform: Name of the transform, for the error.
      operands: If True, products of two inputs are taken too.

    Raises:
      ValueError: they are no codes or pairs of blocks, or the site has no weights to store.
    """
    chain = net.cores.get(site.name, ())
    if site.kind == "dynamic" and not operands:
        raise ValueError(
            f"{transform} at {site.name}: it contracts two inputs and stores no weight"
        )
    coded = first_of(chain, "codes")
    if coded is None or coded.formats[0] is None:
        kind = "no integer codes" if hardware_chain(net, site) else "floats"
        raise ValueError(
            f"{transform} at {site.name}: its weights are {kind}; put quantize(weights=…) with "
            "bits or a Grid before it"
        )
    for wrapper in chain:
        if wrapper.role == "blocks" and len(wrapper.settings["blocks"].rows) > 1:
            raise ValueError(
                f"{transform} cannot follow block(pairs=…) at {site.name}: these pairs are no "
                "product set, and a cell holds one code for all of them"
            )
    return coded


def require_grid(net: Network, site: Site, transform: str, *, operands: bool = False) -> Grid:
    """The grid of a site's weights, for transforms that compute with its steps.

    Args:
      net: Network.
      site: Site of it.
      transform: Name of the transform, for the error.
      operands: If True, products of two inputs are taken too.

    Raises:
      ValueError: The weights are no codes, or codes of another format than a `Grid`.
    """
    form, _ = require_codes(net, site, transform, operands=operands).formats
    if not isinstance(form, Grid):
        raise ValueError(f"{transform} at {site.name}: its weights are on {form}, expected a Grid")
    return form


def short_elements(net: Network, site: Site) -> Microscaled | None:
    """The format of a site's weights where they are short elements in blocks, None elsewhere."""
    held = first_of(net.cores.get(site.name, ()), "floats")
    form = None if held is None else held.settings.get("weights")
    return form if isinstance(form, Microscaled) else None


def require_unset(net: Network, site: Site, transform: str, doing: str) -> None:
    """Checks that the weights of a site are rounded, and neither range nor scales are set.

    Args:
      net: Network.
      site: Site of it.
      transform: Name of the transform, for the error.
      doing: What it does to weights, in one word.

    Raises:
      ValueError: they are no codes or elements, or are set.
    """
    elements = short_elements(net, site)
    if elements is not None:
        if elements.steps is not None:
            raise ValueError(
                f"{transform} at {site.name}: the scales of its blocks are set by round_weights, "
                f"and {doing} changes the weights"
            )
    elif is_set(require_grid(net, site, transform).clip):
        raise ValueError(
            f"{transform} at {site.name}: the range of its weights is set, by round_weights or "
            f"otherwise, and {doing} changes the weights"
        )


def require_zeros(what: str, chain: Sequence[Wrapper]) -> None:
    """Checks that weights held without their zeros are floats, or codes of which a zero is zero.

    Raises:
      ValueError: something else holds them, or codes of a grid whose zero is another.
    """
    for wrapper in chain:
        if wrapper.role == "codes" and (grid := wrapper.formats[0]) is not None:
            if not grid.symmetric:
                raise ValueError(
                    f"{what}: its weights are on {grid}, where a zero has a code that is none; "
                    f"weights={grid.bits} is symmetric"
                )
        elif wrapper.role == "sparse":
            raise ValueError(f"{what}: it runs sparse already")
        elif wrapper.role not in DIGITAL | {"codes", "floats"}:
            raise ValueError(
                f"{what}: {wrapper.name} holds or sums its weights in parts of its own, and "
                "run_sparse is for those that this machine multiplies as they are"
            )
