"""Hardware that can be switched off at a site, by a number that is traced."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
from jaxtyping import Array

from jaxsim.cores.core import Core, State
from jaxsim.cores.op import Op
from jaxsim.cores.role import role
from jaxsim.cores.wrapper import Wrapper, build


class SwitchedState(NamedTuple):
    """State of a site whose hardware can be switched off.

    Attributes:
      off: State of the core that reads while it is off.
      on: State of the core that reads while it is on.
    """

    off: State
    on: State


@role("observer")
def switched(core: Core, *, reference: tuple[Wrapper, ...], on: float | Array) -> Core:
    """Reads what `core` does where `on` is not 0, and else what a reference does.

    Both are written and calibrated; only one of them computes. So one program tells what each of
    many sites does alone.

    Args:
      core: Core that can be switched on.
      reference: Chain of the core that reads while it is off.
      on: Number that is 0 where it is off; traced.
    """
    other = build(reference)

    def write(op: Op, w: Array, key: Any) -> SwitchedState:
        return SwitchedState(other.write(op, w, key), core.write(op, w, key))

    def calibrate(op: Op, state: SwitchedState, x: Array) -> SwitchedState:
        return SwitchedState(other.calibrate(op, state.off, x), core.calibrate(op, state.on, x))

    def read(op: Op, state: SwitchedState, x: Array, key: Any) -> Array:
        dtype = jax.eval_shape(lambda s, x: other.read(op, s, x, key), state.off, x).dtype
        return jax.lax.cond(
            on != 0,
            lambda s, x: core.read(op, s.on, x, key).astype(dtype),
            lambda s, x: other.read(op, s.off, x, key).astype(dtype),
            state,
            x,
        )

    return Core(write, calibrate, read)
