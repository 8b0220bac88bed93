"""Devices that err by a share of what others do."""

from __future__ import annotations

import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Key

from jaxsim.cores.cells.device import Device
from jaxsim.numerics.checks import check_range


def scaled(device: Device, share: float | Array) -> Device:
    """Cells whose errors of programming and of reading are a share of a device's.

    Draws stay those of the device, so that what differs between shares is the size alone. What
    time does to cells, and how many pulses they take, stays.

    Args:
      device: whose errors they are.
      share: of them, at least 0; 1 is the device itself. Traced.

    Raises:
      ValueError: no device, or a share below 0.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> import jaxsim as js
      >>> device, key = js.cells.independent(0.1), jax.random.key(0)
      >>> whole, half = (js.cells.scaled(device, s).program(jnp.ones(1), key) for s in (1.0, 0.5))
      >>> bool(jnp.allclose(whole - 1, 2 * (half - 1), atol=1e-6))
      True
    """
    if not isinstance(device, Device):
        raise ValueError(f"scaled: device={device!r}: must be a device from js.cells")
    check_range("share", share, 0)
    by = jnp.asarray(share, jnp.float32)
    noise = None if device.noise is None else Partial(_noise, device, share=by)
    return device._replace(program=Partial(_scaled, device, share=by), noise=noise)


def _scaled(device: Device, g: Array, key: Key[Array, ""], *, share: Array) -> Array:
    return g + share * (device.program(g, key) - g)


def _noise(device: Device, g: Array, *, share: Array) -> Array:
    assert device.noise is not None
    return share * device.noise(g)
