"""How input codes drive the rows of an array: without a sign, or a few bits at a time."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Num

from jaxsim.cores.core import Core, State
from jaxsim.cores.op import Op
from jaxsim.cores.role import role
from jaxsim.numerics.digits import code_dtype, digit, digit_count


class UnsignedInputsState(NamedTuple):
    """State behind inputs that were moved up.

    Attributes:
      inner: what the inner core wrote.
      total: sum of the weight codes of each output, broadcastable to the output.
    """

    inner: State
    total: Num[Array, "..."]


@role("inputs", at_rest="lifted")
def unsigned_inputs(core: Core) -> Core:
    """Adds to each input code what makes the smallest one zero, and takes its share off digitally.

    So an affine grid drives the rows with voltages of one sign, and what a ReLU puts to zero draws
    no current.

    Args:
      core: contracts codes of at least zero.
    """

    def moved(op: Op) -> tuple[Op, int]:
        if op.x_lo is None or op.x_hi is None:
            raise ValueError(
                "unsigned_inputs: the input is a float; wrap it in quantized(inputs=…)"
            )
        return op.inputs(0, op.x_hi - op.x_lo), op.x_lo

    def lift(op: Op, x: Array) -> Array:
        inner, lo = moved(op)
        if jnp.issubdtype(x.dtype, jnp.integer):
            x = x.astype(code_dtype(0, inner.x_hi or 0))
        return x - jnp.asarray(lo, x.dtype)

    def write(op: Op, w: Array, key: Any) -> UnsignedInputsState:
        return UnsignedInputsState(core.write(moved(op)[0], w, key), op.column_sum(w))

    def calibrate(op: Op, state: UnsignedInputsState, x: Array) -> UnsignedInputsState:
        return state._replace(inner=core.calibrate(moved(op)[0], state.inner, lift(op, x)))

    def read(op: Op, state: UnsignedInputsState, x: Array, key: Any) -> Array:
        inner, lo = moved(op)
        return core.read(inner, state.inner, lift(op, x), key) + lo * state.total

    return Core(write, calibrate, read)


@role("serial", at_rest="serial")
def bit_serial(core: Core, *, bits: int) -> Core:
    """Applies each input code as digits of `bits` bits, and adds their reads with shifts.

    A signed code is applied as sign and magnitude. The digits are input planes, least significant
    first: one contraction reads them all. Outside of a converter each digit is converted and added
    digitally; inside of one they are added as charge and converted once.

    Args:
      core: contracts the digits.
      bits: of one digit, at least 1.

    Source: Xiao et al. (2022), arXiv 2109.01262, §2; Shafiee et al. (2016), ISAAC.
    """

    def digits_of(op: Op) -> tuple[Op, list[int]]:
        """The op on digits, and the place value of each."""
        if op.x_lo is None or op.x_hi is None:
            raise ValueError("bit_serial: the input is a float; wrap it in quantized(inputs=…)")
        most = max(-op.x_lo, op.x_hi)
        count = digit_count(most, bits)
        full = min(most, 2**bits - 1)
        return op.inputs(-full if op.x_lo < 0 else 0, full), [2 ** (bits * i) for i in range(count)]

    def applied(op: Op, x: Array) -> tuple[Op, list[int], Array]:
        inner, places = digits_of(op)
        return inner, places, jnp.stack([digit(x, p, bits, len(places)) for p in places])

    def write(op: Op, w: Array, key: Any) -> State:
        return core.write(digits_of(op)[0], w, key)

    def calibrate(op: Op, state: State, x: Array) -> State:
        inner, _, digits = applied(op, x)
        return core.calibrate(inner, state, digits)

    def read(op: Op, state: State, x: Array, key: Any) -> Array:
        inner, places, digits = applied(op, x)
        y = core.read(inner, state, digits, key)
        return sum((y[i] * place for i, place in enumerate(places)), start=jnp.zeros((), y.dtype))

    return Core(write, calibrate, read)
