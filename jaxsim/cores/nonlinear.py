"""Arrays whose cells obey no Ohm's law: Newton's method around the linear solver."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxsim.cores.nodal.blocks import Wires, column_currents, into_blocks, out_of_blocks
from jaxsim.cores.nodal.conjugate import Solution, in_chunks, linear

STEPS = 30
"""Most steps of Newton's method."""


@partial(jax.jit, static_argnames="iterations")
def solve(
    g: Float[Array, "*arrays m n"],
    v: Float[Array, "*arrays b m"],
    row: Float[Array, " n"],
    column: Float[Array, " m"],
    law: Callable[[Array], Array],
    *,
    tolerance: float | Array = 1e-6,
    iterations: int = 200,
) -> Solution:
    """Solves the network of `nodal` with cells whose current is g · law(e) at a voltage e.

    With e the voltages across cells, `e + Z(g law(e)) = v`. A step puts the tangent in place of the
    law: a cell becomes a conductance g law'(e) beside a current source, and the linear solver finds
    the voltages. Derivatives are those of the solution, not of the steps.

    Args:
      g: conductances for small voltages.
      v: inputs; leading axes broadcast with those of g.
      row: resistances along the rows, at least 0.
      column: resistances along the columns, at least 0.
      law: from voltages to currents of a cell of conductance one, increasing, zero at zero.
      tolerance: of the residual. Traced.
      iterations: most of them within a step.

    Returns:
      The solution; `iterations` are steps of Newton's method.
    """
    wires = Wires.of(row, column)
    run = partial(_newton, law=law, wires=wires, tolerance=tolerance, iterations=iterations)
    return in_chunks(lambda g: partial(run, g), g, v, tolerance)


class _Tangents(NamedTuple):
    """The equations of some arrays and vectors, in blocks.

    Attributes:
      left: `e -> [arrays, b]`, what is left of them at voltages, weighted by conductance.
      step: `e -> e`, the voltages of cells that follow their tangents at voltages that are held.
      ohmic: the voltages of cells that obey Ohm's law.
    """

    left: Callable[[Array], Array]
    step: Callable[[Array], Array]
    ohmic: Callable[[], Array]


def _tangents(
    g: Array,
    v: Array,
    law: Callable[[Array], Array],
    wires: Wires,
    tolerance: float | Array,
    iterations: int,
) -> _Tangents:
    drops = wires.drops()
    solve = partial(linear, wires=wires, tolerance=tolerance, iterations=iterations)

    def left(e: Array) -> Array:
        missed = e + drops(g * law(e)) - v
        axes = (0, 1, 2, 5)
        some = jnp.sum(jnp.abs(g) * v * v, axes)
        return jnp.sqrt(jnp.sum(jnp.abs(g) * missed * missed, axes) / jnp.where(some > 0, some, 1))

    def step(e: Array) -> Array:
        current, slope = jax.jvp(law, (e,), (jnp.ones_like(e),))
        beside = lax.stop_gradient(g * slope)
        return solve(beside)(v - drops(g * current - beside * e))[0]

    return _Tangents(left, step, lambda: solve(g)(v)[0])


def _closer(left: Callable[[Array], Array], e: Array, limit: Array, other: Array) -> Array:
    """Of each array and vector the other voltages where they leave less than a limit."""
    better = left(other) < limit  # never where it is no number
    return jnp.where(better[..., None], other, e)


def _newton(
    g: Float[Array, "arrays m n"],
    v: Float[Array, "arrays b m"],
    *,
    law: Callable[[Array], Array],
    wires: Wires,
    tolerance: float | Array,
    iterations: int,
) -> tuple[Array, Array, Array, Array]:
    m, n = g.shape[-2:]
    g, v = into_blocks(g[:, None]), into_blocks(v[..., None])
    v = jnp.broadcast_to(v, jnp.broadcast_shapes(v.shape, g.shape))
    live = _tangents(g, v, law, wires, tolerance, iterations)
    held = _tangents(*lax.stop_gradient((g, v, law, wires)), tolerance, iterations)

    def going(state: tuple[Any, ...]) -> Array:
        k, _, there, before = state
        return (k < STEPS) & jnp.any((there > tolerance) & (there < before))

    def again(state: tuple[Any, ...]) -> tuple[Any, ...]:
        k, e, there, _ = state
        e = _closer(held.left, e, there, held.step(e))
        return k + 1, e, held.left(e), there

    e = held.ohmic()
    first = held.left(e)
    k, e, *_ = lax.while_loop(going, again, (jnp.int32(0), e, first, jnp.full_like(first, jnp.inf)))
    # one more step, through which derivatives pass: those of the solution
    e = _closer(live.left, e, 2 * held.left(e) + tolerance, live.step(lax.stop_gradient(e)))
    return column_currents(g * law(e), n), out_of_blocks(e)[..., :m, :n], live.left(e), k + 1
