"""A network that holds every option at every place, and reads those that are chosen."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key

from jaxsim.cores.operand import writes_in_calls
from jaxsim.cores.partition import Partitioned
from jaxsim.cores.switched import switched
from jaxsim.cores.wrapper import Wrapper
from jaxsim.evaluate.sweep import sweep
from jaxsim.inputs.batches import batches
from jaxsim.network.arguments import call_arguments
from jaxsim.network.deployment import widen_ranges, write_chip
from jaxsim.network.network import Network
from jaxsim.search.options import Fit, Option, Place, apply_options
from jaxsim.transforms.site_masks import moved_to_sites


class Switchboard:
    """Deploys any choice of options without compiling anything anew.

    Weights are written once for each key, in the way of every option; choosing is a number at each
    site. What a choice computes is what its own network computes, but for the order in which
    depthwise convolutions of floats are summed.

    Attributes:
      net: Network as it was given.
      fit: Places, and the options that fit them.
      inputs: Inputs that set ranges.
      switched: The network with every option at every place.
    """

    def __init__(self, net: Network, options: Mapping[str, Option], fit: Fit, inputs: Any):
        """Writes nothing yet."""
        self.net, self.fit, self.inputs = net, fit, inputs
        self.switched = _switched_network(net, options, fit)
        self._written: dict[bytes, Network] = {}
        self._expected: list[Array] = []
        self._distance = partial(_distance, fit.places)

    def deploy(self, choice: Sequence[int | None], key: Key[Array, ""] | None) -> Network:
        """Deploys a choice, ranges set by what reaches each site then.

        Args:
          choice: Number of the option of each place; None for what it was.
          key: Random key of the cores that draw when they write, or None.
        """
        return widen_ranges(self._choose(self._write(key), choice), self.inputs)

    def errors(
        self,
        choices: Sequence[Sequence[int | None]],
        key: Key[Array, ""] | None,
        mesh: Mesh | None = None,
    ) -> Float[np.ndarray, " choices"]:
        """Measures how far the outputs are off, ranges set by the network as it was given.

        Args:
          choices: Numbers of the options, as `deploy` takes them.
          key: Random key of the cores that draw, or None.
          mesh: Devices over which choices are divided; None for one device.

        Returns:
          The mean of |y - ŷ|² over that of |y|² for each choice.
        """
        whole = [None] * len(self.fit.places)
        chip = widen_ranges(self._choose(self._write(key), whole), self.inputs)
        fixed = self.net.defaults.combine()
        calls = [
            call_arguments(batch.args, {**fixed, **batch.kwargs})
            for batch in batches(self.inputs, "calibrate")
        ]
        if not self._expected:
            self._expected = [flat_outputs(self.net, arguments, None) for arguments in calls]
        numbers, sums = [_numbers(choice) for choice in choices], np.zeros((len(choices), 2))
        for arguments, expected in zip(calls, self._expected, strict=True):
            # Of a batch of choices each would compute every option.
            found = sweep(
                self._distance,
                numbers,
                *(chip, arguments, expected, key),
                way="map",
                at_once=1,
                mesh=mesh,
            )
            sums += np.asarray(found, np.float64)
        return sums[:, 0] / np.maximum(sums[:, 1], np.finfo(float).tiny)

    def _write(self, key: Key[Array, ""] | None) -> Network:
        named = b"" if key is None else np.asarray(jax.random.key_data(key)).tobytes()
        if named not in self._written:
            self._written[named] = write_chip(self.switched, key)
        return self._written[named]

    def _choose(self, chip: Network, choice: Sequence[int | None]) -> Network:
        return _chosen(self.fit.places, chip, _numbers(choice))


def _numbers(choice: Sequence[int | None]) -> Int[np.ndarray, " places"]:
    """Numbers of the chains that read: 0 of what a site was."""
    return np.array([0 if option is None else option + 1 for option in choice], np.int32)


def _chosen(
    places: Sequence[Place],
    chip: Network,
    numbers: Int[Array, " places"] | Int[np.ndarray, " places"],
) -> Network:
    cores = dict(chip.cores)
    for i, place in enumerate(places):
        number = numbers[i, ...]  # an array, which is no static setting
        for site in place.sites:
            if site in cores:
                settings = cores[site][0].settings
                cores[site] = (Wrapper.of(switched, **{**settings, "choice": number}),)
    return dataclasses.replace(chip, cores=cores)


def _switched_network(net: Network, options: Mapping[str, Option], fit: Fit) -> Network:
    """The network in which each site of a place holds what it was and every option."""
    sites = {name for place in fit.places for name in place.sites}
    before = {name: net.cores.get(name, ()) for name in sites}
    chains = {name: [chain] for name, chain in before.items()}
    for name in fit.options:
        here = [p for p, fits in zip(fit.places, fit.fits, strict=True) if name in fits]
        made = apply_options(net, options, dict.fromkeys(here, name))
        inside = {site for place in here for site in place.sites}
        made = moved_to_sites(made, [s for s in net.sites if s.name in inside], net.masks)
        for site in sites:
            chains[site].append(made.cores.get(site, ()) if site in inside else before[site])
    for name, every in sorted(chains.items()):
        if any(map(writes_in_calls, every)):
            raise ValueError(
                f"options: analog(sites=…) at {name}: each call writes its cells, and an option is "
                "written once for all calls"
            )
    none = np.array(0, np.int32)
    cores = {
        name: (Wrapper.of(switched, chains=tuple(every), choice=none),)
        for name, every in chains.items()
        if any(chain != before[name] for chain in every)
    }
    return dataclasses.replace(net, cores={**net.cores, **cores})


@jax.jit
def flat_outputs(
    net: Network, arguments: Partitioned, key: Key[Array, ""] | None
) -> Float[Array, " n"]:
    """Runs a network and puts all of its outputs in one array.

    Args:
      net: Network.
      arguments: Arguments of the call.
      key: Random key of the call, or None.
    """
    args, kwargs = arguments.combine()
    leaves = jax.tree.leaves(net(*args, key=key, **kwargs))
    return jnp.concatenate([jnp.ravel(leaf).astype(jnp.float32) for leaf in leaves])


def _distance(
    places: Sequence[Place],
    numbers: Int[Array, " places"],
    chip: Network,
    arguments: Partitioned,
    expected: Float[Array, " n"],
    key: Key[Array, ""] | None,
) -> Float[Array, " 2"]:
    """Sums of squares of how far the outputs of a choice are off, and of what they should be."""
    off = flat_outputs(_chosen(places, chip, numbers), arguments, key) - expected
    return jnp.stack([jnp.sum(off**2), jnp.sum(expected**2)])
