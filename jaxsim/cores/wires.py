"""Wires with resistance: what a column of an array really adds up.

Resistances are relative, r = R · Gmax for a wire from one cell to the next and Gmax the largest
conductance of a cell: r = 1e-3 is 1 Ω beside cells of 1 kΩ. Row 0 of an array is the one farthest
from the foot of its columns, column 0 the one next to the drivers of its rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Float

from jaxsim.cores import nodal, nonlinear
from jaxsim.cores.core import Core, State
from jaxsim.cores.nodal import Solution
from jaxsim.cores.op import Op
from jaxsim.cores.role import role
from jaxsim.numerics.checks import check_called, check_range, is_traced

__all__ = [
    "Wires",
    "input_source",
    "gated",
    "sinh",
    "effective_conductance",
    "solve",
    "currents",
    "parasitic_resistance",
]

FEW = 8
"""Up to so many vectors for each set of conductances conjugate gradients are the faster solver."""


class Wires(NamedTuple):
    """The wires of an array; made by `input_source` or `gated`.

    Attributes:
      row: resistance of a row wire from one cell to the next.
      column: resistance of a column wire from one cell to the next.
      row_terminal: further resistance between a driver and its row.
      column_terminal: further resistance between a column and its foot.
      topology: "input_source" where the rows carry the cells' current, "gated" where they only
        switch it on.
      interleaved: the two cells of a pair share a column wire.
      solver: "geff", "cg" or "auto".
      law: from the voltage across a cell to its current, for a cell of conductance one; None for
        Ohm's law.

    Examples:
      >>> import jaxsim as js
      >>> js.wires.input_source(1e-4).topology
      'input_source'
    """

    row: float | Array
    column: float | Array
    row_terminal: float | Array
    column_terminal: float | Array
    topology: Literal["input_source", "gated"]
    interleaved: bool
    solver: Literal["auto", "geff", "cg"]
    law: Callable[[Array], Array] | None = None

    def __str__(self) -> str:
        ends = {"row end": self.row_terminal, "column end": self.column_terminal}
        parts = {"row": self.row, "column": self.column} if self.topology != "gated" else {}
        parts = parts or {"column": self.column}
        parts |= {k: r for k, r in ends.items() if is_traced(r) or r != 0}
        shown = [f"{k} {'traced' if is_traced(r) else f'{r:.4g}'}" for k, r in parts.items()]
        kind = [self.topology.replace("_", " "), *(["interleaved"] if self.interleaved else [])]
        if self.law is not None:
            function = getattr(self.law, "func", self.law)
            shown.append(f"{getattr(function, '__name__', 'law').lstrip('_')} cells")
        return ", ".join([*kind, *shown])


def input_source(
    row: float | Array,
    column: float | Array | None = None,
    *,
    row_terminal: float | Array = 0.0,
    column_terminal: float | Array = 0.0,
    interleaved: bool = False,
    solver: Literal["auto", "geff", "cg"] = "auto",
    law: Callable[[Array], Array] | None = None,
) -> Wires:
    """Rows drive the cells: inputs are voltages, and both kinds of wire carry the cells' current.

    Args:
      row: R · Gmax of a row wire from one cell to the next, at least 0. Traced.
      column: that of a column wire; None for the same. Traced.
      row_terminal: R · Gmax between a driver and its row, beside the first piece of wire. Traced.
      column_terminal: R · Gmax between a column and its foot, likewise. Traced.
      interleaved: the positive and the negative cell of a pair lie on one column wire, with rows of
        their own that are driven with opposite signs; otherwise signs have arrays of their own.
      solver: "geff" computes the matrix that the array multiplies by, once for given conductances;
        "cg" solves for each input, and `solve` says how well; "auto" takes the faster, and the
        first where the second does not converge.
      law: from voltages across cells to currents of cells of conductance one, increasing, zero at
        zero, such as `sinh`; a voltage of one is the largest input. None for Ohm's law. Any other
        is no linear map: it is solved by Newton's method for each input ("cg").

    Raises:
      ValueError: a resistance is negative, the solver is unknown, or "geff" with a law.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> wires = js.wires.input_source(1e-3)
      >>> bool(js.wires.effective_conductance(jnp.ones((8, 4)), wires).max() < 1)
      True
    """
    if solver not in ("auto", "geff", "cg"):
        raise ValueError(f"solver={solver!r}: must be 'auto', 'geff' or 'cg'")
    check_called("law", law)
    if law is not None:
        if solver == "geff":
            raise ValueError("solver='geff': cells with a law of their own are no linear map")
        law, solver = (law if isinstance(law, Partial) else Partial(law)), "cg"
    column = row if column is None else column
    r = {"row": row, "column": column}
    r |= {"row_terminal": row_terminal, "column_terminal": column_terminal}
    return Wires(
        **_checked(r), topology="input_source", interleaved=interleaved, solver=solver, law=law
    )


def sinh(strength: float | Array) -> Callable[[Array], Array]:
    """Cells whose current grows faster than their voltage: the law sinh of s e, over s.

    Args:
      strength: s, of a voltage of one, above 0 and at most 10. Traced.

    Raises:
      ValueError: out of range.

    Examples:
      >>> import jaxsim as js
      >>> law = js.wires.sinh(2.0)
      >>> round(float(law(1.0)), 3)
      1.813
    """
    check_range("strength", strength, 0, 10, above=True)
    return Partial(_sinh, strength=jnp.asarray(strength, jnp.result_type(float)))


def _sinh(e: Array, *, strength: Array) -> Array:
    return jnp.sinh(strength.astype(jnp.result_type(e)) * e) / strength


def gated(
    column: float | Array,
    *,
    column_terminal: float | Array = 0.0,
    interleaved: bool = False,
) -> Wires:
    """Inputs switch cells on that have a supply of their own: only the column wires lose voltage.

    An input must be -1, 0 or 1, so inputs are applied bit by bit; negative ones are applied in a
    second pass whose current is subtracted.

    Args:
      column: R · Gmax of a column wire from one cell to the next, at least 0. Traced.
      column_terminal: R · Gmax between a column and its foot, beside the last piece. Traced.
      interleaved: the two cells of a pair lie on one column wire, where their currents subtract.

    Raises:
      ValueError: a resistance is negative.

    Examples:
      >>> import jaxsim as js
      >>> js.wires.gated(1e-4).topology
      'gated'

    Source: Xiao et al. (2022), arXiv 2109.01262, p. 42.
    """
    r = _checked({"column": column, "column_terminal": column_terminal})
    none = jnp.zeros((), jnp.result_type(float))
    ends = {"row": none, "row_terminal": none, **r}
    return Wires(**ends, topology="gated", interleaved=interleaved, solver="auto", law=None)


def effective_conductance(g: Float[Array, "..."], wires: Wires) -> Float[Array, "..."]:
    """The matrix that an array multiplies by: with wires of an input source it is a linear map.

    Args:
      g: conductances, [*arrays, m, n] with m rows; [2, *arrays, m, n], positive first, for
        interleaved pairs.
      wires: of an input source.

    Returns:
      Of the shape of g. For pairs, which no array separates, the first is that of the net current
      and the second zero, so that their difference is what the array computes.

    Raises:
      ValueError: the wires are gated, and the array no linear map.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> g, wires = jnp.ones((8, 4)), js.wires.input_source(1e-3)
      >>> v = jnp.linspace(0, 1, 8)[None]
      >>> matrix = js.wires.effective_conductance(g, wires)
      >>> bool(jnp.allclose(v @ matrix, js.wires.currents(g, v, wires), rtol=1e-4))
      True
    """
    if wires.topology == "gated":
        raise ValueError("wires: a gated array is no linear map of its inputs")
    if wires.law is not None:
        raise ValueError(f"wires={wires}: cells with a law of their own are no linear map")
    row, column = _segments(wires, g)
    if not wires.interleaved:
        return nodal.transfer(g, row, column)
    both = nodal.transfer(_interleaved(g), row, _on_one_wire(column))
    both = both.reshape(*g.shape[1:-1], 2, g.shape[-1])
    return _net(both[..., 0, :] - both[..., 1, :])


def solve(
    g: Float[Array, "..."],
    v: Float[Array, "..."],
    wires: Wires,
    *,
    tolerance: float | Array = 1e-6,
    iterations: int = 200,
) -> Solution:
    """Solves an array with an input source for given inputs, and says how well.

    Args:
      g: conductances, [*arrays, m, n]; [2, *arrays, m, n], positive first, for interleaved pairs.
      v: inputs, [*arrays, b, m].
      wires: of an input source.
      tolerance: of the residual. Traced.
      iterations: their largest number.

    Returns:
      The solution. For pairs it is that of the shared columns, [*arrays, …], with the positive and
      the negative row of each pair beside one another in `cell_voltage`, [*arrays, b, 2 m, n].

    Raises:
      ValueError: the wires are gated.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> found = js.wires.solve(jnp.ones((8, 4)), jnp.ones((1, 8)), js.wires.input_source(1e-3))
      >>> bool(found.residual.max() < 1e-5)
      True
    """
    if wires.topology == "gated":
        raise ValueError("wires: a gated array is solved exactly by `currents`")
    row, column = _segments(wires, g)
    if wires.interleaved:
        g, column = _interleaved(g), _on_one_wire(column)
        v = jnp.stack([v, -v], -1).reshape(*v.shape[:-1], -1)
    settings = {"tolerance": tolerance, "iterations": iterations}
    if wires.law is not None:
        return nonlinear.solve(g, v, row, column, wires.law, **settings)
    return nodal.solve(g, v, row, column, **settings)


def currents(g: Float[Array, "..."], v: Float[Array, "..."], wires: Wires) -> Float[Array, "..."]:
    """The currents at the feet of the columns.

    Args:
      g: conductances, [*arrays, m, n]; [2, *arrays, m, n], positive first, for interleaved pairs.
      v: inputs, [*arrays, b, m]; -1, 0 or 1 for gated wires.
      wires: of the array.

    Returns:
      [*arrays, b, n]; [2, *arrays, b, n] for pairs, the net current and zero.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> i = js.wires.currents(jnp.ones((8, 4)), jnp.ones((1, 8)), js.wires.input_source(1e-3))
      >>> i.shape, bool(i.max() < 8)  # less than without resistance
      ((1, 4), True)
    """
    if wires.topology == "gated":
        _, column = _segments(wires, g)
        drive, load = (g[0] - g[1], g[0] + g[1]) if wires.interleaved else (g, None)

        def applied(sign: int) -> Array:
            return nodal.norton(drive, load, jnp.maximum(sign * v, 0), column)

        y = applied(1)
        y = lax.cond(jnp.any(v < 0), lambda y: y - applied(-1), lambda y: y, y)
        return _net(y) if wires.interleaved else y
    if wires.solver == "geff" or (wires.solver == "auto" and v.shape[-2] > FEW):
        return jnp.matmul(v, effective_conductance(g, wires), precision=lax.Precision.HIGHEST)
    found = solve(g, v, wires)
    y = _net(found.current) if wires.interleaved else found.current
    if wires.solver == "cg":
        return y
    direct = wires._replace(solver="geff")
    return lax.cond(jnp.all(found.converged), lambda: y, lambda: currents(g, v, direct))


@role("cells", at_rest="wired")
def parasitic_resistance(core: Core, *, wires: Wires, redrawn: bool = False) -> Core:
    """Reads an array through the resistance of its wires.

    It goes right inside `held`, whose conductances it takes; each matrix that it is given is one
    array, so it goes inside `tiled` too. Interleaved pairs are the first weight plane, as
    `differential` makes it, and come back as net current and zero.

    Where the array is a linear map, the matrix of that map is what the inner core stores and reads.

    Args:
      core: stores and reads what the array multiplies by.
      wires: of the array.
      redrawn: the stored conductances change at every read (read noise), so that nothing can be
        computed when they are written.

    Examples:
      >>> import jaxsim as js
      >>> array = js.analog(cells=js.cells.proportional(0.0), wires=js.wires.input_source(1e-4))
      >>> "wires" in repr(array)
      True
    """
    fixed = wires.topology == "input_source" and wires.solver != "cg" and not redrawn

    def write(op: Op, w: Array, key: Any) -> State:
        if jnp.issubdtype(w.dtype, jnp.integer):
            raise ValueError(
                f"parasitic_resistance: the weight is {w.dtype} codes; wrap it in "
                "conductance(device=…)"
            )
        if wires.interleaved:
            _check_pairs(op, w)
        if not fixed:
            return core.write(op, w, key)
        to_matrix = op.geometry.as_matmul().w
        # a permutation of the entries: its transpose is its inverse
        back = jax.linear_transpose(to_matrix, w)
        return core.write(op, back(effective_conductance(to_matrix(w), wires))[0], key)

    def read(op: Op, state: State, x: Array, key: Any) -> Array:
        if fixed:
            return core.read(op, state, x, key)
        matmul, lead = op.geometry.as_matmul(), op.x_planes(x)
        v, g = matmul.x(x), matmul.w(state)
        full = 1 if wires.law is None else _largest(op)
        *planes, B, M, K = v.shape
        count = math.prod(planes)
        v = jnp.moveaxis(v.reshape(count, B, M, K), 0, 1).reshape(B, count * M, K)
        none = jnp.zeros((*g.shape[:-2], 0, g.shape[-1]), v.dtype)
        y = full * currents(g, v / full, wires) if v.size else none
        y = jnp.moveaxis(y.reshape(*y.shape[:-2], count, M, y.shape[-1]), -3, 0)
        y = matmul.y(y.reshape(*planes, *y.shape[1:]), x.shape[lead:])
        op.count("macs", y.size * op.depth)
        return y

    return Core(write, core.calibrate, read)


def _largest(op: Op) -> int:
    """The input code that is a voltage of one."""
    if op.x_lo is None or op.x_hi is None:
        raise ValueError("wires: cells with a law of their own need inputs as codes")
    return max(-op.x_lo, op.x_hi, 1)


def _checked(resistances: dict[str, float | Array]) -> dict[str, Array]:
    for name, r in resistances.items():
        check_range(name, r, 0)
    return {name: jnp.asarray(r, jnp.result_type(float)) for name, r in resistances.items()}


def _check_pairs(op: Op, w: Array) -> None:
    planes = op.w_planes(w)
    if not planes or planes[0] != 2 or op.w_hi is None:
        raise ValueError("wires: interleaved pairs need the differential mapping around them")
    if np.any(op.w_hi[0] != op.w_hi[1]):
        raise ValueError(
            f"wires: interleaved pairs need codes as large on both sides, not {op.w_hi.tolist()}; "
            "make the weights' grid symmetric"
        )


def _segments(wires: Wires, g: Array) -> tuple[Array, Array]:
    """Resistance of each piece of a row, from its driver, and of a column, to its foot."""
    m, n = g.shape[-2:]
    dtype = jnp.promote_types(g.dtype, jnp.float32)
    ends = (wires.row, wires.row_terminal, wires.column, wires.column_terminal)
    row, row_terminal, column, column_terminal = (jnp.asarray(r, dtype) for r in ends)
    first, last = (jnp.arange(k) == at for k, at in ((n, 0), (m, m - 1)))
    return (
        row + row_terminal * first.astype(dtype),
        column + column_terminal * last.astype(dtype),
    )


def _interleaved(g: Array) -> Array:
    """Pairs of arrays as one, the rows of a pair beside one another."""
    return jnp.moveaxis(g, 0, -2).reshape(*g.shape[1:-2], 2 * g.shape[-2], g.shape[-1])


def _on_one_wire(column: Array) -> Array:
    """The pieces of a column whose cells come in pairs at one place."""
    return jnp.stack([jnp.zeros_like(column), column], -1).reshape(-1)


def _net(y: Array) -> Array:
    return jnp.stack([y, jnp.zeros_like(y)])
