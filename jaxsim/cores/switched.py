"""Several chains of cores at one site, of which a traced number chooses the one that reads."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
from jaxtyping import Array, Int

from jaxsim.cores.core import Core, State, stored_core
from jaxsim.cores.op import Op
from jaxsim.cores.role import role
from jaxsim.cores.wrapper import Wrapper, build


@role("observer")
def switched(
    core: Core, *, chains: tuple[tuple[Wrapper, ...], ...], choice: Int[Array, ""]
) -> Core:
    """Holds the weight as each of several chains does, and reads as one of them.

    All are written and calibrated, and only the chosen one computes, so one program serves every
    choice. The result has the dtype of the first chain's. Without wrappers a chain computes as
    weights do that are stored, sums of floats in whichever order is fastest.

    Args:
      core: Not read: each chain ends in its own.
      chains: Chains to choose from, wrappers outermost first.
      choice: Number of the one that reads; traced.
    """
    del core
    cores = [build(chain) if chain else stored_core for chain in chains]

    def write(op: Op, w: Array, key: Any) -> tuple[State, ...]:
        return tuple(each.write(op, w, key) for each in cores)

    def calibrate(op: Op, state: tuple[State, ...], x: Array) -> tuple[State, ...]:
        return tuple(c.calibrate(op, s, x) for c, s in zip(cores, state, strict=True))

    def read(op: Op, state: tuple[State, ...], x: Array, key: Any) -> Array:
        def one(i: int, state: tuple[State, ...], x: Array) -> Array:
            return cores[i].read(op, state[i], x, key)

        dtype = jax.eval_shape(partial(one, 0), state, x).dtype
        branches = [lambda state, x, i=i: one(i, state, x).astype(dtype) for i in range(len(cores))]
        return jax.lax.switch(choice, branches, state, x)

    return Core(write, calibrate, read)
