"""How far the outputs are off when one place alone becomes another."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jaxsim.cores.partition import Partitioned
from jaxsim.cores.switched import switched
from jaxsim.cores.wrapper import Wrapper
from jaxsim.inputs.batches import batches
from jaxsim.network.arguments import call_arguments
from jaxsim.network.deployment import deploy
from jaxsim.network.network import Network
from jaxsim.search.options import Option, Place, apply_options
from jaxsim.transforms.site_masks import moved_to_sites


class OutputErrors:
    """Measures the relative squared error of the outputs by an option at one place alone.

    All other places read as they did, and set the ranges so. A program of the option at all places,
    in which each is switched on by a number, serves them all: nothing is compiled for a place.

    Attributes:
      net: Network that is compared with.
      inputs: Inputs that set the ranges, and on which errors are measured.
      keys: Random keys, one for each time that weights are written anew; [None] for once, without.
    """

    def __init__(self, net: Network, inputs: Any, keys: Sequence[Key[Array, ""] | None]):
        """Runs nothing yet."""
        self.net, self.inputs, self.keys = net, inputs, keys
        self.calls: list[Partitioned] = [
            call_arguments(batch.args, {**net.defaults.combine(), **batch.kwargs})
            for batch in batches(inputs, "calibrate")
        ]
        self._expected: list[Array] = []

    def __call__(
        self,
        option: Option,
        places: Sequence[Place],
        advance: Callable[[Place], None] = lambda place: None,
    ) -> Float[np.ndarray, "draws places"]:
        """Measures an option at each of some places.

        Args:
          option: What becomes of a place.
          places: Places that it fits.
          advance: Told of each place before it is measured.

        Returns:
          The mean of |y - ŷ|² over that of |y|², by draw and place.

        Raises:
          ValueError: Outputs that are not finite.
        """
        found = np.zeros((len(self.keys), len(places)))
        if option.transform is None:
            return found
        net = switchable(self.net, option, places)
        for i, key in enumerate(self.keys):
            chip = deploy(net, calibrate=self.inputs, key=key)
            for j, place in enumerate(places):
                advance(place)
                found[i, j] = self._error(switch_on(chip, place), key)
        bad = [place.name for j, place in enumerate(places) if not np.isfinite(found[:, j]).all()]
        if bad:
            raise ValueError(
                f"options: {option.transform!r} at {bad[0]} makes outputs that are not finite"
            )
        return found

    def _error(self, chip: Network, key: Key[Array, ""] | None) -> float:
        if not self._expected:
            self._expected = [flat_outputs(self.net, c, None) for c in self.calls]
        sums = np.zeros(2)
        for arguments, expected in zip(self.calls, self._expected, strict=True):
            sums += np.asarray(_distance(chip, arguments, expected, key), np.float64)
        return float(sums[0] / max(sums[1], np.finfo(float).tiny))


def switchable(net: Network, option: Option, places: Sequence[Place]) -> Network:
    """A network in which an option stands at places and is switched off at each.

    Args:
      net: Network, not deployed.
      option: What may become of a place.
      places: Places that it fits.
    """
    made = apply_options(net, {"": option}, dict.fromkeys(places, ""))
    names = {name for place in places for name in place.sites}
    made = moved_to_sites(made, [s for s in net.sites if s.name in names], net.masks)
    cores = dict(made.cores)
    for name in names & made.cores.keys():
        before = net.cores.get(name, ())
        if made.cores[name] != before:
            wrapper = Wrapper.of(switched, reference=before, on=np.float32(0))
            cores[name] = (wrapper, *made.cores[name])
    return dataclasses.replace(made, cores=cores)


def switch_on(chip: Network, place: Place) -> Network:
    """A network in which the option stands switched on at one place.

    Args:
      chip: Network made by `switchable`.
      place: One of its places.
    """
    cores: dict[str, tuple[Wrapper, ...]] = dict(chip.cores)
    for name in place.sites:
        if name in cores and cores[name][0].factory is switched:
            outer = cores[name][0].settings
            on = Wrapper.of(switched, **{**outer, "on": np.float32(1)})
            cores[name] = (on, *cores[name][1:])
    return dataclasses.replace(chip, cores=cores)


@jax.jit
def flat_outputs(
    net: Network, arguments: Partitioned, key: Key[Array, ""] | None
) -> Float[Array, " n"]:
    """All outputs of a call in one array.

    Args:
      net: Network.
      arguments: Arguments of the call.
      key: Random key of the call, or None.
    """
    args, kwargs = arguments.combine()
    leaves = jax.tree.leaves(net(*args, key=key, **kwargs))
    return jnp.concatenate([jnp.ravel(leaf).astype(jnp.float32) for leaf in leaves])


@jax.jit
def _distance(
    chip: Network, arguments: Partitioned, expected: Array, key: Key[Array, ""] | None
) -> tuple[Array, Array]:
    off = flat_outputs(chip, arguments, key) - expected
    return jnp.sum(off**2), jnp.sum(expected**2)
