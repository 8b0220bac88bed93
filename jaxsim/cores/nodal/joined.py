"""The matrix of a network, joined from blocks of cells."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jaxsim.cores.nodal.dense import solved, times

CHUNK = 2**19
"""Cells that `transfer` holds at a time, so that many arrays do not fill the memory."""
CORNER = 2
"""Cells along one side of the smallest block of `transfer`."""


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
    currents = solved(jnp.eye(k * k, dtype=g.dtype) + g * Z, g * opened)
    zero = jnp.zeros((R, C, k, k), g.dtype)
    through = zero + one
    rows = [
        [zero, zero, zero, through],
        [zero, down[:, None, :1, None] * one + zero, through, zero],
        [zero, through, zero, zero],
        [through, zero, zero, -across[None, :, -1:, None] * one + zero],
    ]
    direct = jnp.concatenate([jnp.concatenate(r, -1) for r in rows], -2)
    maps = times(jnp.swapaxes(reached, -1, -2), currents) + direct
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
    by_ins = [a(far, a_ins), times(p_of_q, b(near, b_ins))] if b_ins else [a(far, a_ins)]
    one = jnp.eye(p_of_q.shape[-1], dtype=p_of_q.dtype)
    p = solved(one - times(p_of_q, q_of_p), jnp.concatenate(by_ins, -1))
    q = times(q_of_p, p)
    rows: list[Array] = []
    if b_ins:
        q = _plus(q, b(near, b_ins), split)
    if a_outs:
        rows.append(_plus(times(a(a_outs, far), q), a(a_outs, a_ins), 0))
    if b_outs:
        below = times(b(b_outs, near), p)
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
