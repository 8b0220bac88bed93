"""Columns of cells with sources of their own, in one pass from the top down."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

LANES = 2**15
"""Numbers that `norton` carries at a time, so that they stay in the cache."""


@jax.jit
def norton(
    drive: Float[Array, "*arrays m n"],
    load: Float[Array, "*arrays m n"] | None,
    x: Float[Array, "*arrays b m"],
    column: Float[Array, " m"],
) -> Float[Array, "*arrays b n"]:
    """Currents of columns whose cells have sources of their own, switched on by the inputs.

    From the top down, all that is above a place on the wire is one current source (what it drives
    into a short circuit) with one conductance beside it. Exact in one pass.

    Args:
      drive: the current of each cell when switched on, into a wire at zero.
      load: its conductance; None if that is `drive`, from a supply of one.
      x: how far each cell is switched on, 0 to 1.
      column: resistances along the columns, at least 0.
    """
    lead = jnp.broadcast_shapes(drive.shape[:-2], x.shape[:-2])
    (b, m), n, size = x.shape[-2:], drive.shape[-1], int(np.prod(lead))
    x = jnp.broadcast_to(x, (*lead, b, m)).reshape(size, b, m)
    cells = [drive] if load is None else [drive, load]
    cells = [jnp.broadcast_to(c, (*lead, m, n)).reshape(size, m, n) for c in cells]
    cells = [jnp.moveaxis(c, -2, 0)[..., None] for c in cells]  # [m, arrays, n, 1]
    count = min(b, max(16, LANES // max(1, size * n)))
    chunks = -(-b // count)
    x = jnp.pad(x, [(0, 0), (0, chunks * count - b), (0, 0)]).reshape(size, chunks, count, m)

    def descend(x: Array) -> Array:
        """One chunk of inputs, [m, arrays, 1, count], vectors innermost for the sake of speed."""

        def step(above: Sequence[Array], at: tuple[Array, ...]) -> tuple[list[Array], None]:
            on, resistance, *cell = at
            here = [a + on * c for a, c in zip(above, cell, strict=True)]
            divider = 1 / (1 + resistance * here[-1])
            return [a * divider for a in here], None

        nothing = [jnp.zeros((size, n, count), x.dtype) for _ in cells]
        return lax.scan(step, nothing, (x, column, *cells))[0][0]

    y = lax.map(jax.checkpoint(descend), jnp.transpose(x, (1, 3, 0, 2))[:, :, :, None, :])
    y = jnp.transpose(y, (1, 0, 3, 2)).reshape(size, chunks * count, n)
    return y[:, :b].reshape(*lead, b, n)
