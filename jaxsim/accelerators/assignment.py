"""Assignment of sites to the parts that run them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jaxsim.accelerators.accelerator import Accelerator
from jaxsim.accelerators.work import Work
from jaxsim.network.network import Network
from jaxsim.network.site import matching_names


def assign_parts(
    net: Network,
    accelerator: Accelerator,
    works: Sequence[Mapping[str, Work]],
    asked: Mapping[str, str],
) -> dict[str, str]:
    """Chooses the part of each site: the one that is asked for, or the first that accepts it.

    Args:
      net: Network of the sites.
      accelerator: Its parts.
      works: Work of each site, by portion of the call.
      asked: Name of a part by pattern of sites.

    Raises:
      ValueError: No part runs some sites, or the one that is asked for does not.
    """
    chosen, refused = try_parts(net, accelerator, works, asked)
    if refused:
        said = ", ".join(f"{name} ({why})" for name, why in refused.items())
        raise ValueError(f"net: no part of the accelerator runs {said}")
    return chosen


def try_parts(
    net: Network,
    accelerator: Accelerator,
    works: Sequence[Mapping[str, Work]],
    asked: Mapping[str, str],
) -> tuple[dict[str, str], dict[str, str]]:
    """Finds the part of each site that one runs, and why none runs the others.

    Args:
      net: Network of the sites.
      accelerator: Its parts.
      works: Work of each site.
      asked: Name of a part by pattern of sites.

    Raises:
      ValueError: A part or a pattern that is unknown.
    """
    given: dict[str, str] = {}
    for pattern, part in asked.items():
        if part not in accelerator.parts:
            known = ", ".join(accelerator.parts)
            raise ValueError(f"parts[{pattern!r}]={part!r}: must be one of {known}")
        names = matching_names(net.sites, pattern, dynamic=pattern == "*", lookups=False)
        if not names:
            known = ", ".join(s.name for s in net.sites)
            raise ValueError(f"parts[{pattern!r}]: matches no site; the sites are: {known}")
        for name in names:
            given.setdefault(name, part)
    chosen: dict[str, str] = {}
    refused: dict[str, str] = {}
    for name, work in {name: work for own in works for name, work in own.items()}.items():
        options = [given[name]] if name in given else list(accelerator.parts)
        why = {part: accelerator.parts[part].accepts(work) for part in options}
        part = next((part for part, reason in why.items() if not reason), None)
        if part is None:
            refused[name] = "; ".join(f"{part} {reason}" for part, reason in why.items())
        else:
            chosen[name] = part
    return chosen, refused
