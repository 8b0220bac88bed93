"""What a network's sites see of inputs, measured by cores that are put there for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from jaxsim.cores.wrapper import Wrapper
from jaxsim.inputs.batches import batches
from jaxsim.network.deployment import deploy
from jaxsim.network.network import Network
from jaxsim.network.site import Site


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


def require_run(site: Site, seen: Array, *sums: Array) -> None:
    """Checks that a measured site has run, on finite values.

    Args:
      site: that was measured.
      seen: how much.
      *sums: over what was seen.

    Raises:
      ValueError: it has seen nothing, or NaN or infinite values.
    """
    if not (seen > 0).all():
        raise ValueError(f"inputs: {site.name} did not run on them, so nothing is known of it")
    if not all(jnp.isfinite(s).all() for s in sums):
        raise ValueError(f"inputs: NaN or infinite values reach {site.name}")
