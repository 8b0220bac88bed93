"""What wires do from block to block, solved: a preconditioner of the equations of cells."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxsim.cores.nodal.blocks import Wires
from jaxsim.cores.nodal.dense import inverse, times


def coarse(g: Float[Array, "M N s arrays b t"], wires: Wires) -> Callable[[Array], Array]:
    """Nearly solves `e + Z(g e) = r`, with what wires lose taken as constant within a block.

    Only the sums of currents over the cells that a wire has in a block matter then. Those of a row
    wire obey a system as wide as its blocks are many, as do those of a column wire, and each sees
    the other through the cells. One sweep over rows, columns and rows again is symmetric in the
    product weighted by g, as Z g is.

    Args:
      g: conductances, of each array or of each array and vector.
      wires: those of all arrays.

    Returns:
      `r -> e`.
    """
    held = jnp.transpose(g, (0, 1, 3, 4, 2, 5))  # [M, N, arrays, b, s, t]
    of_rows, of_columns = _sums(g)
    row = _losses(of_rows, _between(wires.to_row), 1)
    column = _losses(of_columns, _between(wires.to_column), 0)

    def rows(y: Float[Array, "M N arrays b t"]) -> Float[Array, "M N arrays b s"]:
        """Sums along rows of the currents that voltages on the columns draw."""
        return _on_cells(held, y)

    def columns(y: Float[Array, "M N arrays b s"]) -> Float[Array, "M N arrays b t"]:
        return _on_cells(jnp.swapaxes(held, 4, 5), y)

    def nearly(r: Float[Array, "M N s arrays b t"]) -> Float[Array, "M N s arrays b t"]:
        in_rows, in_columns = _sums(g * r)
        lost = row(in_rows)
        across = column(in_columns - columns(lost))
        lost = row(in_rows - rows(across))
        return r - jnp.transpose(lost, (0, 1, 4, 2, 3))[..., None] - across[:, :, None]

    return nearly


def _sums(
    cells: Float[Array, "M N s arrays b t"],
) -> tuple[Float[Array, "M N arrays b s"], Float[Array, "M N arrays b t"]]:
    """What is added up along rows and along columns of each block."""
    # XLA's CPU backend fuses an ordinary sum into what reads it, and adds anew for every cell.
    M, N, s, arrays, b, t = cells.shape
    in_rows = times(cells.reshape(-1, t), jnp.ones((t, 1), cells.dtype))
    in_rows = jnp.transpose(in_rows.reshape(M, N, s, arrays, b), (0, 1, 3, 4, 2))
    return in_rows, sum(cells[:, :, i] for i in range(1, s)) + cells[:, :, 0]


def _between(to: Float[Array, "blocks cells"]) -> Float[Array, "blocks blocks"]:
    """The mean resistance that cells of two blocks of a wire share."""
    here = jnp.minimum(to[:, :, None], to[:, None, :]).mean((1, 2))
    mean = to.mean(1)
    nearer = jnp.minimum(mean[:, None], mean[None, :])
    return jnp.where(jnp.eye(len(to), dtype=bool), here, nearer)


def _losses(
    g: Float[Array, "M N arrays b wires"], shared: Float[Array, "k k"], axis: int
) -> Callable[[Array], Array]:
    """What is lost on wires, block by block, where currents are drawn and the loss draws less."""
    load = jnp.moveaxis(jnp.maximum(g, 0), axis, -1)[..., None, :]
    loss = times(inverse(jnp.eye(len(shared), dtype=g.dtype) + shared * load), shared)

    def solved(current: Float[Array, "M N arrays b wires"]) -> Float[Array, "M N arrays b wires"]:
        drawn = jnp.moveaxis(current, axis, -1)[..., None]
        return jnp.moveaxis(times(loss, drawn)[..., 0], -1, axis)

    return solved


def _on_cells(
    g: Float[Array, "M N arrays b s t"], y: Float[Array, "M N arrays b t"]
) -> Float[Array, "M N arrays b s"]:
    if g.shape[3] == 1:  # one product for all vectors
        return times(y, jnp.swapaxes(g[:, :, :, 0], 3, 4))
    return times(g, y[..., None])[..., 0]
