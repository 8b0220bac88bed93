"""The contract of a core: write a weight, read it with inputs, calibrate."""

from __future__ import annotations

import dataclasses
import operator
from functools import reduce
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Key

from jaxsim.cores.conv import Conv
from jaxsim.cores.geometry import Dot
from jaxsim.cores.op import Op
from jaxsim.cores.product import Operands, Subtraction, multiplies, subtracts
from jaxsim.numerics.packed import Bits, Packed, bits_to_pack, unpacked

State = Any
"""What a core stores for one site: a pytree of arrays."""


class Write(Protocol):
    """Programs a weight; done once, at deployment."""

    def __call__(self, op: Op, w: Array, key: Key[Array, ""] | None, /) -> State:
        """The state that reads take.

        Args:
          op: The contraction, and what the numbers of the weight are.
          w: Weight, with any leading planes that outer cores have added.
          key: Random key for what is drawn once; None where the caller gave none, and a core that
            draws then raises.
        """
        ...


class Calibrate(Protocol):
    """Sets ranges from what flows through; reads without noise."""

    def __call__(self, op: Op, state: State, x: Array, /) -> State:
        """The state with its ranges, of the same structure.

        Args:
          op: The contraction.
          state: Result of `Write`, or of an earlier calibration.
          x: Input, the same that `Read` sees.
        """
        ...


class Read(Protocol):
    """Computes the contraction as the hardware does."""

    def __call__(self, op: Op, state: State, x: Array, key: Key[Array, ""] | None, /) -> Array:
        """The outputs, `[*input planes, *weight planes, *output]`.

        Args:
          op: The contraction, and what the numbers of the input are.
          state: Result of `Write`, calibrated where `op.ranges` is "stored".
          x: Input, with any leading planes that outer cores have added.
          key: Random key for what is drawn at every read, or None.
        """
        ...


class Core(NamedTuple):
    """Meaning of one contraction of an input with a weight, as three pure functions.

    Attributes:
      write: Programs the weight once.
      calibrate: Sets ranges from inputs.
      read: Contracts inputs with what was written.

    Examples:
      >>> import jaxsim as js
      >>> def doubled(core):
      ...     return core._replace(read=lambda op, state, x, key: 2 * core.read(op, state, x, key))
      >>> doubled(js.float_core)._fields
      ('write', 'calibrate', 'read')
    """

    write: Write
    calibrate: Calibrate
    read: Read


def _write_float(op: Op, w: Array, key: Any) -> Array | Packed:
    bits = 8 * w.dtype.itemsize if op.w_hi is None or op.w_lo is None else op.code_bits
    if bits is None:
        levels = np.broadcast_to(op.w_hi - op.w_lo + 1, op.w_planes(w) or (1,))  # pyright: ignore
        op.count("weight_bits", float(np.ceil(np.log2(levels)).mean()) * w.size)
    else:
        op.count("weight_bits", bits * w.size)
    op.count("cells", w.size)
    packed = _bits_of_codes(op, w) if op.layout == "paired" else None
    return w if packed is None else Packed.of(w, op.geometry.contracted[-1] - w.ndim, packed)


def _bits_of_codes(op: Op, w: Array) -> Bits | None:
    """Bits that a byte is divided into to hold codes of an operand; None where they fill it."""
    if op.planes or op.w_lo is None or op.w_hi is None or not jnp.issubdtype(w.dtype, jnp.integer):
        return None
    return bits_to_pack(min(int(op.w_lo), -1), int(op.w_hi))


_SUBTRACTION = Subtraction(_write_float, lambda state: state[0] - state[1], _write_float)
_OPERANDS = Operands(lambda op, state: unpacked(state), lambda op, state, x, key: x, divides=True)


@subtracts(_SUBTRACTION)
@multiplies(_OPERANDS)
def _read_float(op: Op, state: Array | Packed, x: Array, key: Any) -> Array:
    return _product(op, state, x)


def _product(op: Op, state: Array | Packed, x: Array) -> Array:
    """The contraction; on a CPU, numbers of one place in their bytes together.

    XLA puts numbers that share bytes together one by one there.
    """
    dot = op.geometry
    apart = jax.default_backend() == "cpu" and jnp.issubdtype(x.dtype, jnp.floating)
    if not (apart and isinstance(state, Packed) and isinstance(dot, Dot)):
        return op.contract(x, unpacked(state))
    axis, products = dot.x_contract[-1] + op.x_planes(x), list[Array]()
    for part in state.parts():
        w = state.between(part.start, part.stop)
        some = dataclasses.replace(op, geometry=dataclasses.replace(dot, w_shape=w.shape))
        x_part = lax.slice_in_dim(x, part.start, part.stop, axis=axis)
        products.append(some.contract(x_part, w))
    return reduce(operator.add, products)


float_core = Core(
    write=_write_float,
    calibrate=lambda op, state, x: state,
    read=_read_float,
)
"""The contraction as the model does it; exact int32 where both operands are integer codes."""


@subtracts(_SUBTRACTION)
@multiplies(_OPERANDS)
def _read_stored(op: Op, state: Array | Packed, x: Array, key: Any) -> Array:
    return _product(over_taps(op), state, x)


def over_taps(op: Op) -> Op:
    """This op with depthwise convolutions of floats summed over taps, in whichever order."""
    if not isinstance(op.geometry, Conv):
        return op
    return dataclasses.replace(op, geometry=dataclasses.replace(op.geometry, tapped=True))


stored_core = float_core._replace(read=_read_stored)
"""The same behind weights that are stored in a format: floats are summed in whichever order is
fastest, for there is no arithmetic of the model's to be equal to."""
