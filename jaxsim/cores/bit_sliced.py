"""A stored number spread over several cells."""

from __future__ import annotations

from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from jaxsim.cores.core import Core, State
from jaxsim.cores.op import Op
from jaxsim.cores.role import role
from jaxsim.numerics.digits import digit, digit_count


@role("slices", at_rest="sliced")
def bit_sliced(
    core: Core, *, bits: int, top: Literal["full_range", "padded"] = "full_range"
) -> Core:
    """Stores each code as digits of `bits` bits and adds their reads with shifts.

    A signed code is sliced as sign and magnitude, so every digit has its sign. The slices are
    weight planes, least significant first: one contraction reads them all.

    Args:
      core: stores and reads the digits.
      bits: magnitude bits of one cell, at least 1.
      top: what the top slice, which holds the bits that remain, takes for its largest digit:
        "full_range" what those can reach, so that its cells use all of their range; "padded" that
        of the other slices.

    Source: Xiao et al. (2022), arXiv 2109.01262, eq. 6–7.
    """

    def digits_of(op: Op) -> tuple[Op, list[int]]:
        """The op on digits, and the place value of each slice."""
        if op.w_lo is None or op.w_hi is None:
            raise ValueError("bit_sliced: the weight is a float; wrap it in quantized(weights=…)")
        largest = np.maximum(-op.w_lo, op.w_hi)
        count = digit_count(int(largest.max()), bits)
        shifts = [bits * i for i in range(count)]
        full = 2**bits - 1
        tops = [np.minimum(largest >> shift, full) for shift in shifts]
        if top == "padded":
            tops = [np.where(most > 0, full, 0) for most in tops]
        hi = np.stack([np.where(op.w_hi > 0, most, 0) for most in tops])
        lo = np.stack([np.where(op.w_lo < 0, -most, 0) for most in tops])
        return op.codes(lo, hi), [2**shift for shift in shifts]

    def write(op: Op, w: Array, key: Any) -> State:
        inner, places = digits_of(op)
        return core.write(
            inner, jnp.stack([digit(w, place, bits, len(places)) for place in places]), key
        )

    def calibrate(op: Op, state: State, x: Array) -> State:
        return core.calibrate(digits_of(op)[0], state, x)

    def read(op: Op, state: State, x: Array, key: Any) -> Array:
        inner, places = digits_of(op)
        y = core.read(inner, state, x, key)
        axis = op.x_planes(x)
        slices = (lax.index_in_dim(y, i, axis, keepdims=False) for i in range(len(places)))
        return sum((s * place for s, place in zip(slices, places, strict=True)), start=jnp.int32(0))

    return Core(write, calibrate, read)
