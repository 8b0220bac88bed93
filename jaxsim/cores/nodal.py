"""Currents of resistor networks shaped like a memory array.

One network for all functions here: a cell of conductance `g[i, j]` joins row wire i to column wire
j. Row i is driven by `v[i]` at its left end and open at its right end; column j is open at its top
and held at zero at its bottom, where its current is read. `row[j]` is the resistance of a row wire
between the cells j - 1 and j, from the source for j = 0; `column[i]` that of a column wire between
the cells i and i + 1, to ground for the last i. Resistances may be zero. Conductances are in units
of the largest one and resistances in units of its inverse.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

CHUNK = 2**19
"""Cells that `transfer` holds at a time, so that many arrays do not fill the memory."""
CORNER = 2
"""Cells along one side of the smallest block of `transfer`."""
BLOCK = 32
"""Largest number of cells along one side of a block of `solve`."""
CELLS = 2**18
"""Cells times vectors that `solve` holds at a time, so that they stay in the cache."""
LANES = 2**15
"""Numbers that `norton` carries at a time, so that they stay in the cache."""


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


@jax.jit
def transfer(
    g: Float[Array, "*arrays m n"], row: Float[Array, " n"], column: Float[Array, " m"]
) -> Float[Array, "*arrays m n"]:
    """The matrix G of the network's linear map: a column's current is `v @ G`.

    The array is joined from blocks of cells, twice as large each time. A block is a linear map from
    what its neighbors decide (the voltages at its left and bottom ends, the currents drawn at its
    right and top ends) to the other four; two blocks join by a well-conditioned solve as wide as
    their common side, whatever the resistances, zero included. Errors grow with the number of
    doublings rather than of rows: single precision keeps six digits.

    Args:
      g: conductances; negative ones are taken as they are.
      row: resistances along the rows, at least 0.
      column: resistances along the columns, at least 0.
    """
    lead, (m, n) = g.shape[:-2], g.shape[-2:]
    flat = g.reshape(-1, m, n)
    count = max(1, CHUNK // (m * n))
    run = partial(_transfer, row=row, column=column)
    if flat.shape[0] <= count:
        return run(flat).reshape(g.shape)
    chunks = -(-flat.shape[0] // count)
    flat = jnp.pad(flat, [(0, chunks * count - flat.shape[0]), (0, 0), (0, 0)])
    done = lax.map(run, flat.reshape(chunks, count, m, n)).reshape(-1, m, n)
    return done[: int(np.prod(lead))].reshape(g.shape)


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
    run = partial(_solve, drops=wire_drops(row, column), tolerance=tolerance, iterations=iterations)
    return in_chunks(run, g, v, tolerance)


def in_chunks(
    run: Callable[[Array, Array], tuple[Array, ...]],
    g: Float[Array, "*arrays m n"],
    v: Float[Array, "*arrays b m"],
    tolerance: float | Array,
) -> Solution:
    """The solution of all arrays and vectors, so few at a time that they stay in the cache.

    Args:
      run: `(g, v) -> current, cell_voltage, residual, iterations` of arrays [arrays, m, n] and
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
        return lax.map(partial(run, gv[0]), gv[1])

    def joined(part: Array) -> Array:
        part = jnp.moveaxis(part, 1, 2)
        part = part.reshape(x * arrays, y * vectors, *part.shape[4:])[:size, :b]
        return part.reshape(*lead, *part.shape[1:])

    current, e, residual, k = lax.map(chunk, (g, v))
    residual = lax.stop_gradient(joined(residual))
    return Solution(joined(current), joined(e), jnp.max(k), residual, residual <= tolerance)


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


def _solve(
    g: Float[Array, "arrays m n"],
    v: Float[Array, "arrays b m"],
    *,
    drops: Callable[[Array], Array],
    tolerance: float | Array,
    iterations: int,
) -> tuple[Array, Array, Array, Array]:
    """Currents, voltages, residuals and the number of iterations of a few arrays and vectors."""
    m, n = g.shape[-2:]
    g, v = into_blocks(g[:, None]), into_blocks(v[..., None])
    applied = jnp.broadcast_to(v, jnp.broadcast_shapes(v.shape, g.shape))
    e, (residual, k) = linear(g, applied, drops=drops, tolerance=tolerance, iterations=iterations)
    return column_currents(g * e, n), out_of_blocks(e)[..., :m, :n], residual, k


def linear(
    g: Float[Array, "M N s arrays b t"],
    b: Float[Array, "M N s arrays b t"],
    *,
    drops: Callable[[Array], Array],
    tolerance: float | Array,
    iterations: int,
) -> tuple[Array, tuple[Array, Array]]:
    """Solves `e + Z(g e) = b` in blocks, with the derivatives of the solution.

    Args:
      g: conductances, of each array or of each array and vector.
      b: what the voltages add up to.
      drops: Z, of `wire_drops`.
      tolerance: of the residual.
      iterations: their largest number.

    Returns:
      The voltages e; what is left of the equations [arrays, b], and the number of iterations.
    """

    def matvec(g: Array, e: Array) -> Array:
        return e + drops(g * e)

    def total(x: Array) -> Array:
        """The sum over the cells, whole rows of vectors added first for the sake of speed."""
        return jnp.sum(jnp.sum(x, (0, 1, 2), keepdims=True), -1, keepdims=True)

    def iterate(g: Array, b: Array) -> tuple[Array, Int[Array, ""]]:
        square = g * b * b
        # The residual that the iteration carries along drifts from the true one by rounding.
        small = (jnp.asarray(tolerance, b.dtype) / 2) ** 2 * total(jnp.abs(square))

        def going(state: tuple[Array, ...]) -> Array:
            return (state[0] < iterations) & jnp.any(state[1])

        def step(state: tuple[Array, ...]) -> tuple[Array, ...]:
            k, active, e, r, p, current, rho = state
            q = p + drops(current)
            alpha = _ratio(rho, total(current * q))
            better = r - alpha * q
            square = g * better * better
            norm, after = total(jnp.abs(square)), total(square)
            active = active & jnp.isfinite(norm)
            e = jnp.where(active, e + alpha * p, e)
            r = jnp.where(active, better, r)
            p = jnp.where(active, r + _ratio(after, rho) * p, p)
            return k + 1, active & (norm > small), e, r, p, g * p, after

        first = jnp.int32(0), small > 0, jnp.zeros_like(b), b, b, g * b, total(square)
        k, _, e, *_ = lax.while_loop(going, step, first)
        return e, k

    def exact(g: Array, b: Array) -> tuple[Array, tuple[Array, Int[Array, ""]]]:
        """The solution, and what is left of the equations before its last step."""
        e, k = iterate(g, b)
        after = b - drops(g * e)  # also right where no current flows, which the product ignores
        left = total(jnp.abs(g) * (after - e) ** 2) / _or_one(total(jnp.abs(g) * b * b))
        return after, (jnp.sqrt(left).reshape(b.shape[3:5]), k)

    def transposed(g: Array, c: Array) -> tuple[Array, tuple[Array, Int[Array, ""]]]:
        e, aux = exact(g, drops(c))
        return c - g * e, aux

    held = lax.stop_gradient(g)
    solved = lax.custom_linear_solve(
        partial(matvec, g),
        b,
        lambda _, b: exact(held, b),
        lambda _, c: transposed(held, c),
        has_aux=True,
    )
    return cast("tuple[Array, tuple[Array, Array]]", solved)


def column_currents(
    current: Float[Array, "M N s arrays b t"], n: int
) -> Float[Array, "arrays b n"]:
    """The currents of columns, from those of cells in blocks."""
    total = jnp.moveaxis(jnp.sum(current, (0, 2)), 0, 2)
    return total.reshape(*total.shape[:2], -1)[..., :n]


def into_blocks(x: Float[Array, "arrays b m n"]) -> Float[Array, "M N s arrays b t"]:
    """Cells in M × N blocks of s × t, padded with zeros at the bottom and the right."""
    A, b, m, n = x.shape
    (M, s), (N, t) = _cut(m), _cut(n)
    x = jnp.pad(x, [(0, 0), (0, 0), (0, M * s - m), (0, N * t - n)])
    return jnp.transpose(x.reshape(A, b, M, s, N, t), (2, 4, 3, 0, 1, 5))


def out_of_blocks(x: Float[Array, "M N s arrays b t"]) -> Float[Array, "arrays b m n"]:
    """What `into_blocks` put there, with its padding."""
    M, N, s, A, b, t = x.shape
    return jnp.transpose(x, (3, 4, 0, 2, 1, 5)).reshape(A, b, M * s, N * t)


def _cut(size: int) -> tuple[int, int]:
    """How many blocks an axis is cut into, and how long they are."""
    count = -(-size // BLOCK)
    return count, -(-size // count)


def wire_drops(row: Array, column: Array) -> Callable[[Array], Array]:
    """The voltages that currents of cells, in blocks, lose along the wires of both kinds: Z.

    Two cells of a wire share the resistance from its end to the nearer one. Within a block that is
    a small product; of another block nearer the end only its sum weighted by resistance matters,
    and of one farther away its sum.
    """
    (M, s), (N, t) = _cut(column.size), _cut(row.size)
    to_row = jnp.cumsum(jnp.pad(row, (0, N * t - row.size))).reshape(N, t)
    to_column = jnp.pad(column, (0, M * s - column.size))[::-1]
    to_column = jnp.cumsum(to_column)[::-1].reshape(M, s)

    def product(to: Array) -> Array:
        """[blocks, cells, cells + 2], what a block itself and two more columns contribute."""
        shared = jnp.minimum(to[:, :, None], to[:, None, :])
        return jnp.concatenate([shared, jnp.ones_like(to)[:, :, None], to[:, :, None]], 2)

    in_rows = jnp.tile(product(to_row), (M, 1, 1))
    in_columns = jnp.repeat(jnp.swapaxes(product(to_column), 1, 2), N, 0)
    upper_rows, upper_columns = (jnp.triu(jnp.ones((k, k), row.dtype), 1) for k in (N, M))

    def drops(current: Array) -> Array:
        shape = current.shape
        arrays, b = shape[3:5]
        in_row = _times(current.reshape(M * N, -1, t), in_rows).reshape(*shape[:-1], t + 2)
        in_column = _times(in_columns, current.reshape(M * N, s, -1))
        in_column = in_column.reshape(M, N, s + 2, arrays, b, t)
        weighted, plain = in_row[..., t + 1].reshape(M, N, -1), in_row[..., t].reshape(M, N, -1)
        nearer = _times(upper_rows.T, weighted).reshape(*shape[:-1], 1)
        farther = _times(upper_rows, plain).reshape(*shape[:-1], 1)
        along_row = in_row[..., :t] + nearer + farther * to_row[:, None, None, None]
        weighted, plain = in_column[:, :, s + 1].reshape(M, -1), in_column[:, :, s].reshape(M, -1)
        nearer = _times(upper_columns, weighted).reshape(M, N, 1, arrays, b, t)
        farther = _times(upper_columns.T, plain).reshape(M, N, 1, arrays, b, t)
        down = to_column[:, None, :, None, None, None]
        return along_row + in_column[:, :, :s] + nearer + farther * down

    return drops


class _Blocks(NamedTuple):
    """A grid of equal blocks, each a map from inputs at its sides to outputs at its sides.

    Inputs are the voltages at the left and bottom and the currents drawn from the right and top;
    outputs the currents into the left and out of the bottom and the voltages at the right and top.

    Attributes:
      maps: [arrays, block rows, block columns, outputs, inputs].
      size: number of wires at each side, "L", "T", "B" and "R".
      outs: the sides whose outputs are there, in order.
      ins: the sides whose inputs are there, in order.
    """

    maps: Float[Array, "..."]
    size: dict[str, int]
    outs: str
    ins: str

    def part(self, which: slice, axis: int, outs: str, ins: str) -> Array:
        """The maps of some blocks between some of their sides."""
        maps = self.maps[:, :, which] if axis == 1 else self.maps[:, which]
        at_outs, at_ins = _places(self.outs, self.size), _places(self.ins, self.size)
        maps = _taken(maps, -2, [at_outs[s] for s in outs])
        return _taken(maps, -1, [at_ins[s] for s in ins])


def _transfer(g: Array, row: Array, column: Array) -> Array:
    m, n = g.shape[-2:]
    above, right = -m % CORNER, -n % CORNER  # what is added carries no current there
    g = jnp.pad(g, [(0, 0), (above, 0), (0, right)])
    blocks = _squares(g, jnp.pad(row, (0, right)), jnp.pad(column, (above, 0)))
    while (shape := blocks.maps.shape[1:3]) != (1, 1):
        axis = _next_axis(*shape, blocks.size)
        R, C = (-(-k // 2) if a == axis else k for a, k in enumerate(shape))
        wires = {s: k * (1 + ((s in "LR") == (axis == 0))) for s, k in blocks.size.items()}
        order = "LTBR" if _next_axis(R, C, wires) == 1 else "TLRB"
        # Nothing is asked of a side that no block will join: the ends of the array.
        outs = "".join(s for s in order if not (s in "LR" and C == 1) and not (s == "T" and R == 1))
        ins = "".join(s for s in order if not (s == "R" and C == 1) and not (s in "TB" and R == 1))
        blocks = _joined(blocks, axis, outs, ins)
    G = blocks.part(slice(None), 1, "B", "L")[:, 0, 0]
    return jnp.swapaxes(G[:, :n, -m:], -1, -2)


def _next_axis(R: int, C: int, size: dict[str, int]) -> int:
    """Along which axis of the grid to join next: blocks stay square while they can."""
    return 1 if C > 1 and (size["T"] <= size["L"] or R == 1) else 0


def _squares(g: Array, row: Array, column: Array) -> _Blocks:
    """The smallest blocks, from the equations of their cells: (1 + g Z) i = g (open voltage)."""
    (B, m, n), k = g.shape, CORNER
    R, C = m // k, n // k
    g = jnp.swapaxes(g.reshape(B, R, k, C, k), 2, 3).reshape(B, R, C, k * k, 1)
    one = jnp.eye(k, dtype=g.dtype)
    across = jnp.cumsum(row.reshape(C, k), 1).astype(g.dtype)  # from the left end to each cell
    down = jnp.cumsum(column.reshape(R, k)[:, ::-1], 1)[:, ::-1].astype(g.dtype)  # to the bottom
    shared_row = jnp.minimum(across[:, :, None], across[:, None, :])
    shared_column = jnp.minimum(down[:, :, None], down[:, None, :])
    in_rows = jnp.einsum("ab,cjk->cajbk", one, shared_row)
    in_columns = jnp.einsum("rab,jk->rajbk", shared_column, one)
    Z = (in_rows + in_columns[:, None]).reshape(R, C, k * k, k * k)
    in_row, in_column = jnp.repeat(one, k, 0), jnp.tile(one, (k, 1))  # [cell, wire]
    by_row = jnp.tile(across, (1, k))[None, :, :, None] * in_row
    by_column = jnp.repeat(down, k, 1)[:, None, :, None] * in_column

    def columns(*sides: Array) -> Array:
        return jnp.concatenate([jnp.broadcast_to(s, (R, C, k * k, k)) for s in sides], -1)

    opened = columns(in_row, -by_column, -in_column, -by_row)
    reached = columns(in_row, by_column, in_column, -by_row)
    currents = _solved(jnp.eye(k * k, dtype=g.dtype) + g * Z, g * opened)
    zero = jnp.zeros((R, C, k, k), g.dtype)
    through = zero + one
    rows = [
        [zero, zero, zero, through],
        [zero, down[:, None, :1, None] * one + zero, through, zero],
        [zero, through, zero, zero],
        [through, zero, zero, -across[None, :, -1:, None] * one + zero],
    ]
    direct = jnp.concatenate([jnp.concatenate(r, -1) for r in rows], -2)
    maps = _times(jnp.swapaxes(reached, -1, -2), currents) + direct
    return _Blocks(maps, dict.fromkeys("LTBR", k), "LTBR", "LTBR")


def _joined(blocks: _Blocks, axis: int, outs: str, ins: str) -> _Blocks:
    """Blocks joined in pairs: a with b to its right (axis 1) or below it (axis 0)."""
    near, far = ("L", "R") if axis == 1 else ("T", "B")
    if blocks.maps.shape[1 + axis] % 2:
        blocks = _with_wires(blocks, axis)
    size, even, odd = blocks.size, slice(0, None, 2), slice(1, None, 2)
    a_outs, a_ins = (
        _without(far, have, want) for have, want in ((blocks.outs, outs), (blocks.ins, ins))
    )
    b_outs, b_ins = (
        _without(near, have, want) for have, want in ((blocks.outs, outs), (blocks.ins, ins))
    )
    a, b = partial(blocks.part, even, axis), partial(blocks.part, odd, axis)
    split = sum(size[s] for s in a_ins)

    # At the common side a decides p and b decides q: p = a(…, q) and q = b(…, p).
    p_of_q, q_of_p = a(far, far), b(near, near)
    by_ins = [a(far, a_ins), _times(p_of_q, b(near, b_ins))] if b_ins else [a(far, a_ins)]
    one = jnp.eye(p_of_q.shape[-1], dtype=p_of_q.dtype)
    p = _solved(one - _times(p_of_q, q_of_p), jnp.concatenate(by_ins, -1))
    q = _times(q_of_p, p)
    rows: list[Array] = []
    if b_ins:
        q = _plus(q, b(near, b_ins), split)
    if a_outs:
        rows.append(_plus(_times(a(a_outs, far), q), a(a_outs, a_ins), 0))
    if b_outs:
        below = _times(b(b_outs, near), p)
        rows.append(_plus(below, b(b_outs, b_ins), split) if b_ins else below)
    maps = jnp.concatenate(rows, -2)
    maps = _taken(maps, -2, _order(a_outs, b_outs, outs, size))
    maps = _taken(maps, -1, _order(a_ins, b_ins, ins, size))
    doubled = "TB" if axis == 1 else "LR"
    return _Blocks(maps, {s: k * (1 + (s in doubled)) for s, k in size.items()}, outs, ins)


def _with_wires(blocks: _Blocks, axis: int) -> _Blocks:
    """A block of wires alone at the open end of an odd row or column of blocks."""
    at_outs, at_ins = _places(blocks.outs, blocks.size), _places(blocks.ins, blocks.size)
    shape = list(blocks.maps.shape)
    wires = np.zeros(shape[-2:], blocks.maps.dtype)
    for out, into in ("LR", "RL", "TB", "BT"):
        if out in at_outs and into in at_ins:
            wires[slice(*at_outs[out]), slice(*at_ins[into])] = np.eye(blocks.size[out])
    shape[1 + axis] = 1
    wires = jnp.broadcast_to(wires, shape)
    both = [blocks.maps, wires] if axis == 1 else [wires, blocks.maps]
    return blocks._replace(maps=jnp.concatenate(both, 1 + axis))


def _solved(a: Array, b: Array) -> Array:
    """The solution of a x = b for systems of joined networks, which need no pivoting."""
    inverse = _inverse(lax.stop_gradient(a))
    return lax.custom_linear_solve(
        partial(_times, a),
        b,
        lambda _, b: _times(inverse, b),
        lambda _, c: _times(jnp.swapaxes(inverse, -1, -2), c),
    )


def _inverse(a: Array) -> Array:
    """The inverse, by Gauss-Jordan elimination in place, one wire connected after another.

    A pivot is one plus resistance times conductance seen from either side of that wire, so at least
    one. LAPACK, called for thousands of small blocks, is slower on a busy machine by far.
    """
    index = jnp.arange(a.shape[-1])

    def connect(i: Array, a: Array) -> Array:
        here, there = index == i, (index == i)[:, None]
        row = lax.dynamic_slice_in_dim(a, i, 1, a.ndim - 2)
        column = lax.dynamic_slice_in_dim(a, i, 1, a.ndim - 1)
        row = jnp.where(here, 1, row) / lax.dynamic_slice_in_dim(row, i, 1, a.ndim - 1)
        return jnp.where(there, row, jnp.where(here, 0, a) - column * row)

    return lax.fori_loop(0, a.shape[-1], connect, a)


def _times(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def _plus(a: Array, b: Array, at: int) -> Array:
    """The sum of two, b starting at column `at` of a."""
    # Adding a padded b instead takes XLA's CPU backend three times as long to compile.
    end = at + b.shape[-1]
    return jnp.concatenate([a[..., :at], a[..., at:end] + b, a[..., end:]], -1)


def _without(side: str, have: str, want: str) -> str:
    return "".join(s for s in have if s in want and s != side)


def _places(sides: str, size: dict[str, int]) -> dict[str, tuple[int, int]]:
    """Where each side begins and ends on an axis."""
    ends = np.cumsum([0, *(size[s] for s in sides)]).tolist()
    return dict(zip(sides, itertools.pairwise(ends), strict=True))


def _order(a: str, b: str, sides: str, size: dict[str, int]) -> list[tuple[int, int]]:
    """Where the wires of each side are, a's before b's, on an axis of first all a's then b's."""
    at_a, start = _places(a, size), sum(size[s] for s in a)
    at_b = {s: (lo + start, hi + start) for s, (lo, hi) in _places(b, size).items()}
    return [at[s] for s in sides for at in (at_a, at_b) if s in at]


def _taken(maps: Array, axis: int, places: Sequence[tuple[int, int]]) -> Array:
    """Stretches of an axis beside one another."""
    runs: list[tuple[int, int]] = []
    for lo, hi in places:
        if runs and runs[-1][1] == lo:
            runs[-1] = (runs[-1][0], hi)
        else:
            runs.append((lo, hi))
    axis += maps.ndim
    parts = [lax.slice_in_dim(maps, lo, hi, axis=axis) for lo, hi in runs]
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis)


def _or_one(x: Array) -> Array:
    return jnp.where(x > 0, x, 1)


def _ratio(a: Array, b: Array) -> Array:
    """The quotient, and zero where that is no number."""
    ratio = a / jnp.where(b == 0, 1, b)
    return jnp.where((b == 0) | ~jnp.isfinite(ratio), 0, ratio)
