"""Portions of a call of a network with exits: each stage, for the rows that reach it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxsim.network.cuts import cuts, equations, select_cuts
from jaxsim.network.network import base_network
from jaxsim.network.portions import Portion
from jaxsim.network.stages import split
from jaxsim.numerics.checks import is_traced
from jaxsim.staged.rows import exit_layout, find_rows, with_batch_size

if TYPE_CHECKING:
    from jaxsim.staged.network import Staged


def portions(
    net: Staged, args: Sequence[Any], kwargs: Mapping[str, Any], key: Any
) -> tuple[Portion, ...]:
    """Finds the rows that reach each stage of given inputs, and the stage's equations for them.

    Args:
      net: Network with exits, on one device, all of whose tokens stay.
      args: Inputs of a call; their values count.
      kwargs: Keyword arguments of the call.
      key: Random key of the call, or None.

    Raises:
      ValueError: Tokens leave or stages are on several devices; inputs that are no values; or what
        `simulate` raises.
    """
    others = [name for name in net.cut_by if name != "exit_early"]
    if others:
        raise ValueError(
            f"net: is cut by {', '.join(others)}; what runs for how many rows is known of "
            "exit_early alone"
        )
    arguments = net.arguments(args, kwargs, key)
    arrays = arguments.arrays
    if not arrays or any(is_traced(a) or isinstance(a, jax.ShapeDtypeStruct) for a in arrays):
        raise ValueError("args: where rows leave depends on values; give inputs, outside jit")
    layers = np.asarray(net.simulate(*args, key=key, **kwargs).layer)
    _, batched = find_rows(arguments)
    layout = exit_layout(net, arguments, batched, net.exits, net.feature)
    found: list[Portion] = []
    for stage in range(len(net.exits) + 1):
        rows = int(np.sum(layers > stage))
        line = equations(base_network(net), with_batch_size(arguments, batched, max(rows, 1)))
        part = split(line, select_cuts(cuts(line), net.exits)).stages[stage]
        shares = zip(part.sites, part.site_rows, strict=True)
        found.append(
            Portion(
                part.plan,
                len(part.params) + len(part.buffers),
                rows,
                {name: some.share for name, some in shares if some is not None},
                (layout.widths[stage], layout.classes) if stage < len(net.exits) else None,
                f"exit before {net.exits[stage]}" if stage < len(net.exits) else "",
            )
        )
    return tuple(found)
