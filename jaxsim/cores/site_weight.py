"""The weight of one site changed where it is multiplied, whatever else reads its parameter."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxtyping import Array, Bool, Float

from jaxsim.cores.core import Core, State, float_core
from jaxsim.cores.op import Op
from jaxsim.cores.role import role


@role("mask")
def masked(core: Core, *, mask: Bool[Array, "..."]) -> Core:
    """Sets pruned entries of the weight to zero at this site alone.

    Args:
      core: contracts the masked weight.
      mask: Entries that remain, of the weight's shape behind the axes of its stack.
    """

    def write(op: Op, w: Array, key: Any) -> State:
        pruned = dataclasses.replace(op, masked=True)
        return core.write(pruned, w * op.slice_for_layer(mask).astype(w.dtype), key)

    return Core(write, core.calibrate, core.read)


@role("correction")
def shifted(core: Core, *, shift: Float[Array, "..."]) -> Core:
    """Adds a correction to the weight at this site alone; gradients reach the parameter.

    Args:
      core: contracts the corrected weight.
      shift: What is added, of the weight's shape behind the axes of its stack.
    """

    def write(op: Op, w: Array, key: Any) -> State:
        return core.write(op, w + op.slice_for_layer(shift).astype(w.dtype), key)

    return Core(write, core.calibrate, core.read)


@role("observer")
def captured(core: Core) -> Core:
    """Stores the weight as it arrives, for those who want to know it."""
    del core
    return Core(lambda op, w, key: w, float_core.calibrate, float_core.read)
