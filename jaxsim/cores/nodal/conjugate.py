"""Voltages across cells for given inputs, by conjugate gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxsim.cores.nodal.blocks import Wires, column_currents, into_blocks, out_of_blocks
from jaxsim.cores.nodal.coarse import coarse

CELLS = 2**18
"""Cells times vectors that `solve` holds at a time, so that they stay in the cache."""


class Solution(NamedTuple):
    """What `solve` found.

    Attributes:
      current: [..., b, n], of each column.
      cell_voltage: [..., b, m, n], across each cell.
      iterations: how many were taken.
      residual: [..., b], what is left of the cells' voltage equations, root mean square weighted by
        conductance, relative to the inputs.
      converged: [..., b], whether that is within the tolerance.
    """

    current: Float[Array, "..."]
    cell_voltage: Float[Array, "..."]
    iterations: Int[Array, ""]
    residual: Float[Array, "..."]
    converged: Bool[Array, "..."]


@partial(jax.jit, static_argnames="iterations")
def solve(
    g: Float[Array, "*arrays m n"],
    v: Float[Array, "*arrays b m"],
    row: Float[Array, " n"],
    column: Float[Array, " m"],
    *,
    tolerance: float | Array = 1e-6,
    iterations: int = 200,
) -> Solution:
    """Solves the network for given inputs, by conjugate gradients on the voltages across the cells.

    With e those voltages, `e + Z(g e) = v`, where Z is the resistance that the paths of two cells
    share. That is symmetric in the inner product weighted by g, where its eigenvalues are at least
    1 for g >= 0. A cell without conductance is no special case, and a negative one (an unclipped
    error) makes the product indefinite, which the method survives while such cells are weak.

    Derivatives are those of the solution, not of the iteration.

    Args:
      g: conductances.
      v: inputs; leading axes broadcast with those of g.
      row: resistances along the rows, at least 0.
      column: resistances along the columns, at least 0.
      tolerance: of the residual. Traced.
      iterations: their largest number.

    Returns:
      The solution, finite and with its residual whether it converged or not.
    """
    wires = Wires.of(row, column)
    run = partial(_solve, wires=wires, tolerance=tolerance, iterations=iterations)
    return in_chunks(run, g, v, tolerance)


def in_chunks(
    run: Callable[[Array], Callable[[Array], tuple[Array, ...]]],
    g: Float[Array, "*arrays m n"],
    v: Float[Array, "*arrays b m"],
    tolerance: float | Array,
) -> Solution:
    """The solution of all arrays and vectors, so few at a time that they stay in the cache.

    Args:
      run: `g -> v -> current, cell_voltage, residual, iterations` of arrays [arrays, m, n] and
        vectors [arrays, b, m].
      g: conductances.
      v: inputs; leading axes broadcast with those of g.
      tolerance: of the residual.
    """
    lead = jnp.broadcast_shapes(g.shape[:-2], v.shape[:-2])
    (b, m), n, size = v.shape[-2:], g.shape[-1], int(np.prod(lead))
    vectors = min(b, max(1, CELLS // (m * n)))
    arrays = min(size, max(1, CELLS // (b * m * n)))
    x, y = -(-size // arrays), -(-b // vectors)
    g = jnp.broadcast_to(g, (*lead, m, n)).reshape(size, m, n)
    g = jnp.pad(g, [(0, x * arrays - size), (0, 0), (0, 0)]).reshape(x, arrays, m, n)
    v = jnp.broadcast_to(v, (*lead, b, m)).reshape(size, b, m)
    v = jnp.pad(v, [(0, x * arrays - size), (0, y * vectors - b), (0, 0)])
    v = jnp.moveaxis(v.reshape(x, arrays, y, vectors, m), 2, 1)

    def chunk(gv: tuple[Array, Array]) -> tuple[Array, ...]:
        return lax.map(run(gv[0]), gv[1])

    def joined(part: Array) -> Array:
        part = jnp.moveaxis(part, 1, 2)
        part = part.reshape(x * arrays, y * vectors, *part.shape[4:])[:size, :b]
        return part.reshape(*lead, *part.shape[1:])

    current, e, residual, k = lax.map(chunk, (g, v))
    residual = lax.stop_gradient(joined(residual))
    return Solution(joined(current), joined(e), jnp.max(k), residual, residual <= tolerance)


def _solve(
    g: Float[Array, "arrays m n"],
    *,
    wires: Wires,
    tolerance: float | Array,
    iterations: int,
) -> Callable[[Array], tuple[Array, Array, Array, Array]]:
    """Currents, voltages, residuals and the number of iterations of a few arrays and vectors."""
    m, n = g.shape[-2:]
    g = into_blocks(g[:, None])
    solved = linear(g, wires, tolerance=tolerance, iterations=iterations)

    def run(v: Float[Array, "arrays b m"]) -> tuple[Array, Array, Array, Array]:
        applied = into_blocks(v[..., None])
        applied = jnp.broadcast_to(applied, jnp.broadcast_shapes(applied.shape, g.shape))
        e, (residual, k) = solved(applied)
        return column_currents(g * e, n), out_of_blocks(e)[..., :m, :n], residual, k

    return run


def linear(
    g: Float[Array, "M N s arrays b t"],
    wires: Wires,
    *,
    tolerance: float | Array,
    iterations: int,
) -> Callable[[Array], tuple[Array, tuple[Array, Array]]]:
    """What solves `e + Z(g e) = b` in blocks, with the derivatives of the solution.

    Args:
      g: conductances, of each array or of each array and vector.
      wires: whose drops are Z.
      tolerance: of the residual.
      iterations: their largest number.

    Returns:
      `b -> e`, with what is left of the equations [arrays, b], and the number of iterations.
    """
    held, nearly = lax.stop_gradient(g), coarse(*lax.stop_gradient((g, wires)))
    drops = wires.drops()

    def total(x: Array) -> Array:
        """The sum over the cells, whole rows of vectors added first for the sake of speed."""
        return jnp.sum(jnp.sum(x, (0, 1, 2), keepdims=True), -1, keepdims=True)

    def iterate(b: Array) -> tuple[Array, Int[Array, ""]]:
        # The residual that the iteration carries along drifts from the true one by rounding.
        small = (jnp.asarray(tolerance, b.dtype) / 2) ** 2 * total(jnp.abs(held) * b * b)

        def going(state: tuple[Array, ...]) -> Array:
            return (state[0] < iterations) & jnp.any(state[1])

        def step(state: tuple[Array, ...]) -> tuple[Array, ...]:
            k, active, e, r, p, rho = state
            z = nearly(r)
            after = total(held * r * z)
            p = z + _ratio(after, rho) * p
            current = held * p
            q = p + drops(current)
            alpha = _ratio(after, total(current * q))
            better = r - alpha * q
            norm = total(jnp.abs(held) * better * better)
            active = active & jnp.isfinite(norm)
            e = jnp.where(active, e + alpha * p, e)
            r = jnp.where(active, better, r)
            return k + 1, active & (norm > small), e, r, p, after

        zero = jnp.zeros_like(b)
        k, _, e, *_ = lax.while_loop(
            going, step, (jnp.int32(0), small > 0, zero, b, zero, jnp.zeros_like(small))
        )
        return e, k

    def exact(b: Array) -> tuple[Array, tuple[Array, Int[Array, ""]]]:
        """The solution, and what is left of the equations before its last step."""
        e, k = iterate(b)
        missed = b - e - drops(held * e)
        left = total(jnp.abs(held) * missed**2) / _or_one(total(jnp.abs(held) * b * b))
        # also right where no current flows, which the product ignores
        return e + nearly(missed), (jnp.sqrt(left).reshape(b.shape[3:5]), k)

    def transposed(c: Array) -> tuple[Array, tuple[Array, Int[Array, ""]]]:
        e, aux = exact(drops(c))
        return c - held * e, aux

    def solved(b: Array) -> tuple[Array, tuple[Array, Array]]:
        found = lax.custom_linear_solve(
            lambda e: e + drops(g * e),
            b,
            lambda _, b: exact(b),
            lambda _, c: transposed(c),
            has_aux=True,
        )
        return cast("tuple[Array, tuple[Array, Array]]", found)

    return solved


def _or_one(x: Array) -> Array:
    return jnp.where(x > 0, x, 1)


def _ratio(a: Array, b: Array) -> Array:
    """The quotient, and zero where that is no number."""
    ratio = a / jnp.where(b == 0, 1, b)
    return jnp.where((b == 0) | ~jnp.isfinite(ratio), 0, ratio)
