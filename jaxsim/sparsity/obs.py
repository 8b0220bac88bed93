"""Optimal brain surgeon (OBS) on a layer: prunes weights and adjusts the others.

A layer is a batch of matrix products x w. With H = E[xᵀx], changing w to q costs each output (w -
q)ᵀ H (w - q).
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxsim.sparsity.distribution import rank

_matmul = partial(jnp.matmul, precision=lax.Precision.HIGHEST)


def saliency(
    w: Float[Array, "K N"], gram: Float[Array, "K K"], damping: float | Array = 0.01
) -> tuple[Float[Array, "K N"], Float[Array, "K K"]]:
    """Computes the cost of losing each weight, and the change of the others that goes with it.

    Args:
      w: Weights of a layer.
      gram: Matrix H, the mean of the outer products of the inputs.
      damping: Term added to H's diagonal, as a fraction of its mean.

    Returns:
      The costs w_q² / [H⁻¹]_qq (twice the loss of half the quadratic form), and [K, K] whose column
      q holds -H⁻¹ e_q / [H⁻¹]_qq: times w_q, it is the change of the output's weights.

    Source: Hassibi and Stork (1993), Second order derivatives for network pruning, eq. 5.
    """
    inverse = jnp.linalg.inv(_damp(gram, damping))
    diagonal = jnp.diag(inverse)
    return w**2 / diagonal[:, None], -inverse / diagonal


@partial(jax.jit, static_argnames=("block", "keep"))
def prune_layer(
    w: Float[Array, "K N"],
    gram: Float[Array, "K K"],
    sparsity: float | Array = 0.5,
    *,
    damping: float | Array = 0.01,
    block: int = 64,
    keep: tuple[int, int] | None = None,
) -> tuple[Float[Array, "K N"], Bool[Array, "K N"]]:
    """Prunes the inputs of a layer one after another; those that follow compensate for each.

    A block of inputs is chosen from together, by w² / [H⁻¹]_qq among the inputs not yet passed;
    each block loses its share, so that round(sparsity · K · N) weights go in all.

    Args:
      w: Weights of a layer.
      gram: Matrix H, the mean of the outer products of the inputs.
      sparsity: Fraction to leave out, in [0, 1). Traced.
      damping: Term λ added to H's diagonal, as a fraction of its mean, above 0. Traced.
      block: Number of inputs that are chosen from together.
      keep: Pair (n, m) to keep n of every m inputs of an output instead; m divides K, and `block`
        is rounded to a multiple of m.

    Returns:
      The weights that remain, changed, the others zero; and which remain.

    Source: Frantar and Alistarh (2023), arXiv 2301.00774, algorithm 1.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> w, gram = jnp.array([[1.0], [0.1], [2.0], [0.2]]), jnp.eye(4)
      >>> _, mask = js.sparsity.prune_layer(w, gram, 0.5)
      >>> mask.ravel().tolist()
      [True, False, True, False]
    """
    K, N = w.shape
    unit = 1 if keep is None else keep[1]
    block = min(max(block // unit, 1) * unit, K)
    # H = R Rᵀ, R upper triangular: [H⁻¹]_qq among the inputs from q on is 1 / R_qq²
    upper = jnp.linalg.cholesky(_damp(gram, damping)[::-1, ::-1])[::-1, ::-1]
    feed = jnp.triu(upper / jnp.diag(upper), 1)
    worth = jnp.diag(upper)[:, None] ** 2
    sparsity = jnp.asarray(sparsity, jnp.float32)
    q, mask = w, jnp.ones((K, N), bool)
    for start in range(0, K, block):
        rows = slice(start, min(start + block, K))
        size = rows.stop - start
        # what is owed to row i: Σ_j<i feed_ji (w - q)_j over the rows before the block
        due, within = _matmul(feed[:, rows].T, w - q), feed[rows, rows]
        change = lax.linalg.triangular_solve(
            jnp.eye(size) + within.T, -due, left_side=True, lower=True, unit_diagonal=True
        )
        scores = (w[rows] - change) ** 2 * worth[rows]
        if keep is None:
            gone = jnp.round(sparsity * rows.stop * N) - jnp.round(sparsity * start * N)
            stays = rank(scores.ravel()).reshape(size, N) >= gone
        else:
            n, m = keep
            groups = scores.reshape(size // m, m, N).swapaxes(1, 2)
            stays = (rank(groups) >= m - n).swapaxes(1, 2).reshape(size, N)

        def row(
            i: Array,
            done: Array,
            due: Array = due,
            own: Array = w[rows],
            stays: Array = stays,
            within: Array = within,
        ) -> Array:
            at = own[i] + due[i] + _matmul(within[:, i], own - done)
            return done.at[i].set(jnp.where(stays[i], at, 0))

        done = lax.fori_loop(0, size, row, w[rows])
        q, mask = q.at[rows].set(done), mask.at[rows].set(stays)
    return q, mask


def _damp(gram: Array, damping: float | Array) -> Array:
    unit = jnp.mean(jnp.diag(gram))
    return gram / jnp.where(unit > 0, unit, 1) + damping * jnp.eye(len(gram))
