"""Low-rank adapters beside what a site multiplies, in digital floats."""

from __future__ import annotations

from typing import Any

from jaxtyping import Array, Float

from jaxsim.cores.core import Core, State
from jaxsim.cores.op import Op
from jaxsim.cores.role import role


@role("digital")
def adapted(
    core: Core, *, down: Float[Array, "*stack B K r"], up: Float[Array, "*stack B r N"]
) -> Core:
    """Adds a product of low rank to a site's outputs, whatever stores its weight.

    Args:
      core: Contracts.
      down: From the inputs of a sum to the rank, behind the axes of the weight's stack.
      up: From the rank to the outputs.

    Source: Hu et al. (2021), arXiv 2106.09685, section 4.1.
    """

    def read(op: Op, state: State, x: Array, key: Any) -> Array:
        y = core.read(op, state, x, key)
        matmul = op.geometry.as_matmul()
        rows = matmul.x(x.astype(down.dtype))
        one, other = op.slice_for_layer(down), op.slice_for_layer(up)
        added = rows @ one @ other
        products = (rows.size + added.size) * one.shape[-1]
        bits = 8 * (one.nbytes + other.nbytes)
        op.count_digital(adds=products + y.size, multiplies=products, bits=bits)
        return y + matmul.y(added, x.shape[op.x_planes(x) :]).astype(y.dtype)

    return Core(core.write, core.calibrate, read)
