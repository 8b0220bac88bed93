"""The weights of sites as the matrices that inputs meet, and back to the parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxsim.cores.wrapper import Wrapper
from jaxsim.network.network import Network
from jaxsim.network.params import with_params
from jaxsim.network.writer import write_states


def site_matrices(
    net: Network, probes: Mapping[str, tuple[Wrapper, ...]], params: dict[str, Array]
) -> dict[str, Array]:
    """The weights of sites as batches of matrices, some parameters replaced."""
    states = write_states(dataclasses.replace(with_params(net, params), cores=probes), None)
    return {name: state.w for name, state in states.items()}


def solve_params(
    of: Callable[[dict[str, Array]], dict[str, Array]],
    params: dict[str, Array],
    targets: dict[str, Array],
) -> dict[str, Array]:
    """Parameters that give these weights, if each weight is a multiple of one parameter."""
    weights, back = jax.vjp(of, params)
    units = of(jax.tree.map(jnp.ones_like, params))
    cast = {name: w.astype(weights[name].dtype) for name, w in targets.items()}
    (share,), (values,) = back(units), back(cast)
    return {
        name: jnp.where(share[name] != 0, values[name] / share[name], p).astype(p.dtype)
        for name, p in params.items()
    }
