"""What a chain of wrappers must hold before a transform."""

from __future__ import annotations

from jaxsim.cores.blocked import blocked
from jaxsim.cores.quantized import quantizer
from jaxsim.cores.wrapper import Wrapper
from jaxsim.network.network import Network
from jaxsim.network.site import Site
from jaxsim.network.transform import makers


def require_codes(net: Network, site: Site, transform: str) -> Wrapper:
    """The wrapper that stores a site's weights as codes, one for each.

    Raises:
      ValueError: they are no codes or pairs of blocks, or the site has no weights to store.
    """
    if site.kind == "dynamic":
        raise ValueError(
            f"{transform} at {site.name}: it contracts two inputs and stores no weight"
        )
    coded = quantizer(net.cores.get(site.name, ()))
    if coded is None or coded.settings["weights"] is None:
        held = "no integer codes" if makers(net, site) else "floats"
        raise ValueError(
            f"{transform} at {site.name}: its weights are {held}; put quantize(weights=…) with "
            "bits or a Grid before it"
        )
    for wrapper in net.cores[site.name]:
        if wrapper.make is blocked and len(wrapper.settings["blocks"].rows) > 1:
            raise ValueError(
                f"{transform} cannot follow block(pairs=…) at {site.name}: these pairs are no "
                "product set, and a cell holds one code for all of them"
            )
    return coded
