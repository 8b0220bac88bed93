"""What an optimizer trains of a network: parameters, classifiers, levels, ranges, adapters."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeGuard, cast

from jaxsim.cores.trained import trained_numbers, with_trained_numbers
from jaxsim.network.network import Net, Network
from jaxsim.staged.network import Staged
from jaxsim.staged.soften import require_soft


def has_exits(net: Network) -> TypeGuard[Staged]:
    """Whether a network has exits, whose classifiers train beside it.

    Args:
      net: The network.
    """
    return isinstance(net, Staged) and bool(net.exits)


def is_pipeline(net: Network) -> bool:
    """Whether a network runs in stages on several devices.

    Args:
      net: The network.
    """
    return isinstance(net, Staged) and net.layout is not None


def trained_values(net: Network, *, levels: bool = False) -> Any:
    """Collects what an optimizer trains: parameters, classifiers, learned ranges, adapters.

    Args:
      net: The network.
      levels: True if the levels of tokens are trained too.

    Returns:
      `net.params`, or where there is more
      `{"params": …, "heads": …, "level": …, "ranges": …, "adapters": …}`, what there is of them; of
      a deployed network its adapters alone, `{"adapters": …}`.
    """
    numbers = trained_numbers(net.cores)
    if net.deployed:
        return {"adapters": numbers.get("adapters", {})}
    more: dict[str, Any] = {}
    if has_exits(net):
        more["heads"] = net.heads
    if levels:
        more["level"] = require_soft(cast("Staged", net)).level
    more |= numbers
    return {"params": net.params, **more} if more else net.params


def with_values(net: Net, values: Any, *, levels: bool = False) -> Net:
    """Puts other values of `trained_values` in a network.

    Args:
      net: The network.
      values: A tree like that of `trained_values`.
      levels: True if the levels of tokens are among them.
    """
    if not (net.deployed or has_exits(net) or levels or trained_numbers(net.cores)):
        return dataclasses.replace(net, params=values)
    fields = {name: values[name] for name in ("params", "heads") if name in values}
    if levels:
        rule = require_soft(cast("Staged", net))
        fields["tokens"] = dataclasses.replace(rule, level=values["level"])
    return dataclasses.replace(net, **fields, cores=with_trained_numbers(net.cores, values))
