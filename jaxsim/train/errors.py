"""A network whose cells err by a share of what they do, as training begins with."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxtyping import Array

from jaxsim.cores.cells.device import Device
from jaxsim.cores.cells.scaled import scaled
from jaxsim.cores.wrapper import Wrapper
from jaxsim.network.network import Network
from jaxsim.network.transform import require_network


def scale_errors(net: Network, share: float | Array) -> Network:
    """Makes the errors of all cells of a network a share of what they are.

    Training through cells that err less at first and fully at last is this with a share a step;
    `fit(errors=…)` does it. The share is traced: all steps are one program.

    Args:
      net: Network with cells (`js.analog(cells=…)`), not deployed.
      share: Of the errors of programming and of reading, at least 0 (`js.cells.scaled`).

    Raises:
      ValueError: A share below 0, a deployed network, whose cells are programmed, or one without
        cells.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> from jaxsim.train import scale_errors
      >>> x = jnp.ones((1, 2))
      >>> net = js.trace(lambda p, x: x @ p["w"], {"w": jnp.ones((2, 1))}, x)
      >>> net = js.analog(cells=js.cells.independent(0.2))(js.quantize(8, 8)(net))
      >>> key = jax.random.key(0)
      >>> bool(abs(scale_errors(net, 0.0)(x, key=key) - 2).max() < 1e-3)
      True
    """
    require_network(net, "scale_errors")
    if net.deployed:
        raise ValueError("scale_errors: the cells are programmed; scale errors, then deploy")

    def less(wrapper: Wrapper) -> Wrapper:
        settings = wrapper.settings
        if not isinstance(settings.get("device"), Device):
            return wrapper
        changed: dict[str, Any] = {**settings, "device": scaled(settings["device"], share)}
        return Wrapper.of(wrapper.factory, **changed)

    cores = {name: tuple(map(less, chain)) for name, chain in net.cores.items()}
    if not any(isinstance(w.settings.get("device"), Device) for c in cores.values() for w in c):
        raise ValueError("scale_errors: the network has no cells; js.analog(cells=…) gives it some")
    return dataclasses.replace(net, cores=cores)
