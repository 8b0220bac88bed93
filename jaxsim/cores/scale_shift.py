"""What is done to inputs and outputs outside the hardware, in digital logic."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from jaxsim.cores.core import Core, State
from jaxsim.cores.op import Op
from jaxsim.cores.role import role


@role("scale", at_rest="smoothed")
def smooth_scaling(core: Core, *, channels: Array) -> Core:
    """Divides each input channel by a number and multiplies its weights by it.

    Args:
      core: contracts.
      channels: those numbers, [*stack, B, C]: C channels of each of B groups or batch entries.

    Source: Xiao et al. (2023), arXiv 2211.10438, eq. 3.
    """

    def write(op: Op, w: Array, key: Any) -> State:
        return core.write(
            op, w.astype(jnp.float32) * op.geometry.to_w(op.slice_for_layer(channels)), key
        )

    def divided(op: Op, x: Array) -> Array:
        return x.astype(jnp.float32) / op.geometry.to_x(op.slice_for_layer(channels))

    def calibrate(op: Op, state: State, x: Array) -> State:
        return core.calibrate(op, state, divided(op, x))

    def read(op: Op, state: State, x: Array, key: Any) -> Array:
        bits = 8 * op.slice_for_layer(channels).nbytes
        op.count_digital(multiplies=x.size, bits=bits)  # by reciprocals, which are known
        return core.read(op, state, divided(op, x), key)

    return Core(write, calibrate, read)


@role("bias", at_rest="biased")
def bias_correction(core: Core, *, bias: Array) -> Core:
    """Adds a number to each output channel.

    Args:
      core: contracts.
      bias: those numbers, of the weight's rank, contracted axes of size 1, behind the axes of the
        weight's stack.
    """

    def read(op: Op, state: State, x: Array, key: Any) -> Array:
        own = op.slice_for_layer(bias)
        y = core.read(op, state, x, key)
        op.count_digital(adds=y.size, bits=8 * own.nbytes)
        return y + op.to_output(own)

    return Core(core.write, core.calibrate, read)
