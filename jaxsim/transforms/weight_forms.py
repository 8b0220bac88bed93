"""What weights are rounded to: found in a site's chain, measured there, and set."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxsim.cores.observers import moments
from jaxsim.cores.wrapper import Wrapper, first_of, place_of
from jaxsim.formats.clipping import fixed
from jaxsim.formats.grid import Grid
from jaxsim.formats.microscaling import Microscaled
from jaxsim.network.network import Network
from jaxsim.network.site import Site
from jaxsim.transforms.codes import require_grid, short_elements

Form = Grid | Microscaled
"""What weights are rounded to."""


def weight_form(net: Network, site: Site, transform: str) -> Form:
    """The even grid or the short elements that a site's weights are stored in.

    Args:
      net: Network.
      site: Site of it.
      transform: Name of the transform, for the error.

    Raises:
      ValueError: They are stored in something else, or not at all.
    """
    elements = short_elements(net, site)
    if elements is not None:
        return dataclasses.replace(elements, steps=None, tensor=None)
    grid = require_grid(net, site, transform)
    if grid.bits == 1 or grid.spacing != "even" or grid.rounding != "nearest":
        raise ValueError(
            f"{transform} at {site.name}: its weights are on {grid}; it rounds to the nearest of "
            "evenly spaced codes of at least 2 bits, or to the elements of js.mx and js.nvfp4"
        )
    return grid


def first_coded(chain: tuple[Wrapper, ...]) -> int:
    """Position of what quantizes a weight, or splits it into groups before.

    Args:
      chain: Wrappers of a site.
    """
    return min(place_of(chain, "groups"), place_of(chain, "codes"))


def with_moments(chain: tuple[Wrapper, ...], form: Form) -> tuple[Wrapper, ...]:
    """A chain that measures what the quantizer of another sees, all groups of a sum together.

    Args:
      chain: Wrappers of a site.
      form: What its weights are rounded to.
    """
    groups = first_of(chain, "groups")
    rows = None if groups is None else groups.settings["rows"]
    return (*chain[: first_coded(chain)], Wrapper.of(moments, weights=form, rows=rows))


def with_set(chain: tuple[Wrapper, ...], form: Form, ends: Any) -> tuple[Wrapper, ...]:
    """A chain whose weights' grid has a range, or blocks their scales, whatever the weights.

    Args:
      chain: Wrappers of a site.
      form: What its weights are rounded to.
      ends: As `Moments.ends`, behind the axes of the site's stack.
    """
    if isinstance(form, Microscaled):
        at = place_of(chain, "floats")
        steps, tensor = ends
        tensor = tensor if form.scale == "e4m3" else None
        form = dataclasses.replace(form, steps=steps, tensor=tensor)
        settings = {**chain[at].settings, "weights": form}
        return (*chain[:at], Wrapper.of(chain[at].factory, **settings), *chain[at + 1 :])
    at = place_of(chain, "codes")
    settings = {**chain[at].settings, "weights": dataclasses.replace(form, clip=fixed(*ends))}
    return (*chain[:at], Wrapper.of(chain[at].factory, **settings), *chain[at + 1 :])
