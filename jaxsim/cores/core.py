"""The contract of a core: write a weight, read it with inputs, calibrate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Key

from jaxsim.cores.op import Op

State = Any
"""What a core stores for one site: a pytree of arrays."""


class Core(NamedTuple):
    """What one contraction of an input with a weight means, as three pure functions.

    Attributes:
      write: `(op, w, key) -> state`, programs the weights; done once at deployment.
      calibrate: `(op, state, x) -> state` of the same structure, sets ranges from what flows
        through. It sees the same `x` as `read` and reads without noise.
      read: `(op, state, x, key) -> y`, the contraction as this hardware does it.

    `key` is None where the caller gave none; a core that draws random numbers then raises.

    Examples:
      >>> import jaxsim as js
      >>> def doubled(core):
      ...     return core._replace(read=lambda op, state, x, key: 2 * core.read(op, state, x, key))
      >>> doubled(js.float_core)._fields
      ('write', 'calibrate', 'read')
    """

    write: Callable[[Op, Array, Key[Array, ""] | None], State]
    calibrate: Callable[[Op, State, Array], State]
    read: Callable[[Op, State, Array, Key[Array, ""] | None], Array]


def _write_float(op: Op, w: Array, key: Any) -> Array:
    bits = 8 * w.dtype.itemsize if op.w_hi is None or op.w_lo is None else op.code_bits
    if bits is None:
        levels = np.broadcast_to(op.w_hi - op.w_lo + 1, op.w_planes(w) or (1,))  # pyright: ignore
        op.count("weight_bits", float(np.ceil(np.log2(levels)).mean()) * w.size)
    else:
        op.count("weight_bits", bits * w.size)
    op.count("cells", w.size)
    return w


float_core = Core(
    write=_write_float,
    calibrate=lambda op, state, x: state,
    read=lambda op, state, x, key: op.contract(x, state),
)
"""The contraction as the model does it; exact int32 where both operands are integer codes."""
