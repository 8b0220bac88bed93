"""How much each site's blocks lose at the outputs of a network."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxsim.cores.core import Core, State
from jaxsim.cores.op import Op
from jaxsim.cores.partition import Partitioned
from jaxsim.cores.wrapper import Wrapper, build
from jaxsim.inputs.batches import batches
from jaxsim.network.arguments import call_arguments
from jaxsim.network.deployment import deploy
from jaxsim.network.network import Network
from jaxsim.search.config import Config, configure
from jaxsim.search.switchboard import flat_outputs


def site_sensitivity(
    net: Network,
    names: Sequence[str],
    candidates: Sequence[Config],
    calibrate: Any,
    advance: Callable[[str], None] = lambda what: None,
) -> Float[np.ndarray, "sites candidates"]:
    """Estimates the relative squared error of the outputs by each candidate at each site alone.

    The error is measured where it is made, at all sites in one pass a candidate. How much of it
    reaches the outputs is measured once for each site, and taken to be the same for all candidates.

    Args:
      net: Quantized network.
      names: Names of the sites.
      candidates: Configurations that are compared.
      calibrate: Inputs that set the ranges, and on which errors are measured; read many times.
      advance: Told what is being measured.
    """
    watched = {n: (Wrapper.of(with_error, reference=net.cores[n]), *net.cores[n]) for n in names}
    local = np.zeros((len(names), len(candidates)))
    for c, config in enumerate(candidates):
        advance(f"errors: {config}")
        chosen = config.transform()(net)
        cores = {n: (*chain, chosen.cores[n][-1]) for n, chain in watched.items()}
        chip = deploy(dataclasses.replace(net, cores={**net.cores, **cores}), calibrate=calibrate)
        for i, name in enumerate(names):
            state = chip.states[name]
            local[i, c] = float(jnp.sum(state.error) / jnp.maximum(jnp.sum(state.size), 1e-30))
    calls = [call_arguments(*batch) for batch in batches(calibrate, "calibrate")]
    # A reference of middling error, neither lost in rounding nor beyond first order.
    middle = int(np.argmin(np.abs(np.log(local.mean(0) + 1e-30) - np.log(1e-2))))
    rest = Config(candidates[middle].K)
    expected = _outputs(deploy(net, calibrate=calibrate), calls)
    for i, name in enumerate(names):
        advance(f"sensitivity: {name}")
        alone = {n: candidates[middle] if n == name else rest for n in names}
        found = _outputs(deploy(configure(net, alone), calibrate=calibrate), calls)
        reached = np.sum((found - expected) ** 2) / max(np.sum(expected**2), 1e-30)
        local[i] *= reached / max(local[i, middle], 1e-30)
    return local


class ErrorState(NamedTuple):
    """State of a site whose error is measured.

    Attributes:
      exact: State of the exact core.
      inner: State of the core that is compared.
      error, size: Sums of squares of their outputs' difference and of the exact output.
    """

    exact: State
    inner: State
    error: Float[Array, ""]
    size: Float[Array, ""]


def with_error(core: Core, *, reference: tuple[Wrapper, ...]) -> Core:
    """Reads what `reference` does, and measures when calibrated how far `core` is from it.

    Args:
      core: Core that is compared.
      reference: Chain of the exact core.
    """
    exact = build(reference)

    def write(op: Op, w: Array, key: Any) -> ErrorState:
        zero = jnp.zeros(())
        return ErrorState(exact.write(op, w, key), core.write(op, w, key), zero, zero)

    def calibrate(op: Op, state: ErrorState, x: Array) -> ErrorState:
        mine, other = exact.calibrate(op, state.exact, x), core.calibrate(op, state.inner, x)
        y = exact.read(op, mine, x, None)
        error = jnp.sum((core.read(op, other, x, None) - y) ** 2)
        return ErrorState(mine, other, state.error + error, state.size + jnp.sum(y**2))

    def read(op: Op, state: ErrorState, x: Array, key: Any) -> Array:
        return exact.read(op, state.exact, x, key)

    return Core(write, calibrate, read)


def _outputs(net: Network, calls: Sequence[Partitioned]) -> Float[np.ndarray, " n"]:
    return np.concatenate([flat_outputs(net, arguments, None) for arguments in calls])
