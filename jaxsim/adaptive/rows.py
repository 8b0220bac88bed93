"""Rows of a batch on their own, as those have to be that may leave it."""

from __future__ import annotations

from jaxsim.cores.operand import writes_in_calls
from jaxsim.network.network import Network


def check_rows(net: Network) -> None:
    """Checks that what a network returns for a row does not depend on the others in its batch.

    Args:
      net: Network.

    Raises:
      ValueError: A core takes its ranges from a batch.
    """
    if net.cores and not net.deployed:
        raise ValueError(
            f"run: the core at {next(iter(net.cores))} is not deployed, and may take its ranges "
            "from whatever is in a batch; js.deploy(net, calibrate=…) first"
        )
    for site in net.sites:
        if writes_in_calls(net.cores.get(site.name, ())):
            raise ValueError(
                f"run: {site.name} contracts two inputs, and cells that it writes are those of a "
                "row's place in the batch; use simulate"
            )
        if site.kind == "dynamic" and site.name in net.cores:
            raise ValueError(
                f"run: {site.name} contracts two inputs, and its core takes their ranges from "
                "whatever is in a batch; use simulate"
            )
