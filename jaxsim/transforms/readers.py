"""Which sites read what a parameter scales, found by scaling it and looking at their inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxsim.cores.observers import Peaks, peaks
from jaxsim.cores.wrapper import Wrapper
from jaxsim.network.network import Network
from jaxsim.network.params import tensors, with_tensors
from jaxsim.network.site import Site
from jaxsim.transforms.observe import observe_sites


class Readers:
    """Looks for the sites whose input channels a parameter scales, on some inputs."""

    def __init__(self, net: Network, inputs: Any):
        """Measures the network as it is.

        Args:
          net: Network in floats, without cores.
          inputs: Batch or an iterable of batches.
        """
        self.net, self.inputs = net, inputs
        self.before = self._peaks(net)

    def of(self, paths: Sequence[str], sites: Sequence[Site]) -> list[Site]:
        """The sites whose inputs are multiplied, channel by channel, by what parameters are.

        Their last layer alone is scaled, so that nothing before a site has changed but by it.

        Args:
          paths: Paths among `tensors` of parameters that are scaled together, such as a scale and a
            bias; their last axes are those of the channels.
          sites: Sites to look at.
        """
        tree = tensors(self.net)
        held = np.asarray(tree[paths[0]])
        by, last = factors_of(held.shape[-1]), (-1,) * len(self._stack(held, sites))
        scaled: dict[str, Any] = {}
        for path in paths:
            changed = np.array(tree[path])
            changed[last] = changed[last] * by
            scaled[path] = jnp.asarray(changed)
        after = self._peaks(with_tensors(self.net, scaled))
        found: list[Site] = []
        for site in sites:
            one, other = self.before.get(site.name), after.get(site.name)
            if one is None or other is None or one.shape[:-2] != held.shape[: one.ndim - 2]:
                continue
            was, now = one[(-1,) * len(site.stack)], other[(-1,) * len(site.stack)]
            if was.shape != (1, len(by)) or not (was > 0).any():
                continue
            if np.allclose(now, was * by, rtol=1e-3, atol=1e-5 * np.max(was)):
                found.append(site)
        return found

    def _stack(self, held: np.ndarray, sites: Sequence[Site]) -> tuple[int, ...]:
        """Leading axes of a parameter that are those of a stack."""
        stacks = {site.stack for site in sites if held.shape[: len(site.stack)] == site.stack}
        return max(stacks, key=len, default=())

    def _peaks(self, net: Network) -> Mapping[str, Float[np.ndarray, "*stack B C"]]:
        probes = {site.name: (Wrapper.of(peaks),) for site in net.sites if site.multiplies}
        states: dict[str, Peaks] = observe_sites(net, probes, self.inputs)
        return {name: np.asarray(state.x) for name, state in states.items()}


def factors_of(channels: int) -> Float[np.ndarray, " C"]:
    """Random factors from 1 to 2, one a channel, the same ones each time.

    Args:
      channels: Number of channels.
    """
    return np.random.default_rng(0).uniform(1, 2, channels).astype(np.float32)
