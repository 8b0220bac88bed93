"""The devices of one stage, and how arrays lie on them."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding
from jaxtyping import Array


class StageDevices(NamedTuple):
    """The devices of one stage: one, or several that share each micro-batch.

    Attributes:
      devices: JAX devices, at least one.
    """

    devices: tuple[Any, ...]

    def __reduce__(self) -> Any:
        return _found_here, tuple((d.platform, d.id) for d in self.devices)

    @property
    def replicated(self) -> Sharding:
        """Sharding of what every device of the stage has a copy of."""
        if len(self.devices) == 1:
            return SingleDeviceSharding(self.devices[0])
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def mesh(self) -> Mesh:
        """The devices as a mesh of one axis."""
        return Mesh(np.asarray(self.devices), ("data",))

    def sharding(self, a: Any) -> Sharding:
        """Chooses the sharding of an activation: its first axis is divided where it can be.

        Args:
          a: Activation, or its shape.
        """
        if len(self.devices) > 1 and np.ndim(a) and np.shape(a)[0] % len(self.devices) == 0:
            return NamedSharding(self.mesh, PartitionSpec("data"))
        return self.replicated

    def move(self, a: Array) -> Array:
        """Moves an activation to the stage.

        Args:
          a: Activation, on any devices.
        """
        return jax.device_put(a, self.sharding(a))


def _found_here(*devices: tuple[str, int]) -> StageDevices:
    """The devices of a copy: those of this process that have these platforms and numbers.

    Raises:
      ValueError: It has no such device.
    """
    here = {(d.platform, d.id): d for d in jax.devices(devices[0][0])}
    if missing := [f"{platform}:{at}" for platform, at in devices if (platform, at) not in here]:
        raise ValueError(f"devices: the pipeline runs on {missing[0]}, which this process has not")
    return StageDevices(tuple(here[d] for d in devices))
