"""What a network's sites see of inputs, measured by cores that are put there for it."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxsim.cores.wrapper import Wrapper
from jaxsim.inputs.batches import batches
from jaxsim.network.deployment import deploy
from jaxsim.network.network import Network
from jaxsim.network.site import Site

SOME = 8
"""Experts that a warning lists by number."""


def observe_sites(
    net: Network, cores: Mapping[str, tuple[Wrapper, ...]], inputs: Any
) -> dict[str, Any]:
    """The states of cores that measure, after inputs have gone through.

    Args:
      net: not deployed.
      cores: chain of each site to measure at; the others compute in floats.
      inputs: a batch or an iterable of batches (see `jaxsim.inputs.batches`), one at a time in
        memory.

    Raises:
      ValueError: no batch, or what `deploy` raises.
    """
    probed = dataclasses.replace(net, cores=dict(cores), states={})
    return deploy(probed, calibrate=batches(inputs)).states


def require_run(site: Site, seen: Array, *sums: Array, idle: str) -> None:
    """Checks that a measured site has run, on finite values; experts that did not are named.

    Args:
      site: that was measured.
      seen: how much, behind the axes of the site's stack.
      *sums: over what was seen.
      idle: what becomes of experts that no row chose, for the warning.

    Raises:
      ValueError: it has seen nothing, or NaN or infinite values.
    """
    ran = np.asarray(seen > 0).reshape(*site.stack, -1).all(-1)
    if site.chosen and ran.any(-1).all() and not ran.all():
        places = [",".join(map(str, at)) for at in np.argwhere(~ran)]
        names = ", ".join(places[:SOME]) + (", …" if len(places) > SOME else "")
        warnings.warn(
            f"inputs: no row chooses {len(places)} of the {ran.size} experts of {site.name} "
            f"(numbers {names}): {idle}",
            UserWarning,
            stacklevel=4,
        )
    else:
        require_measured(site, bool(ran.all()))
    require_measured(site, True, *sums)


def require_measured(site: Site, ran: bool, *sums: Array) -> None:
    """Checks that a site has run, on finite values.

    Args:
      site: that was measured.
      ran: whether it has seen anything.
      *sums: over what was seen.

    Raises:
      ValueError: it has seen nothing, or NaN or infinite values.
    """
    if not ran:
        raise ValueError(f"inputs: {site.name} did not run on them, so nothing is known of it")
    if not all(jnp.isfinite(s).all() for s in sums):
        raise ValueError(f"inputs: NaN or infinite values reach {site.name}")
