"""Weights held without their zeros, and multiplied without them."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxsim.cores.core import Core
from jaxsim.cores.geometry import Matmul
from jaxsim.cores.op import Op
from jaxsim.cores.role import role

Layout = Literal["rows", "blocks"]
"""How weights are held: the entries of each output one after the other (compressed sparse rows), or
for each strip of outputs equally many blocks, those that hold anything (ELLPACK of blocks)."""


class Places(NamedTuple):
    """Where the weights [K, N] of a site that are held belong; axes of a stack come first.

    Attributes:
      inputs: of the entries, output by output [k]; for blocks [N / c, L], the strip of r
        inputs that each of L blocks of a strip of c outputs belongs to.
      begins: number of entries before each output and behind the last [N + 1]; for blocks [N / c],
        how many of the L hold anything.
    """

    inputs: Int[np.ndarray, "..."]
    begins: Int[np.ndarray, " strips"]


def matrices(core: Core) -> Core:
    """Writes a site's weight as a batch of matrices [B, K, N], to look at."""
    return core._replace(write=_matrix)


def _matrix(op: Op, w: Array, key: Any) -> Array:
    return op.geometry.as_matmul().w(w)


def places(held: Bool[np.ndarray, "K N"], layout: Layout, block: tuple[int, int]) -> Places:
    """Where the entries that are to be held belong.

    Args:
      held: which weights are not zero.
      layout: how they are held.
      block: inputs and outputs of a block.
    """
    if layout == "rows":
        begins = np.concatenate([[0], np.cumsum(held.sum(0))])
        return Places(np.nonzero(held.T)[1].astype(np.int32), begins.astype(np.int32))
    r, c = block
    K, N = held.shape
    full = np.pad(held, ((0, -K % r), (0, -N % c)))
    strips = full.reshape(full.shape[0] // r, r, full.shape[1] // c, c).any((1, 3)).T
    counts = strips.sum(1)
    # A strip's blocks come first; those behind them are of other strips and count as zeros.
    index = np.argsort(~strips, 1, kind="stable")[:, : max(counts.max(initial=0), 1)]
    return Places(index.astype(np.int32), counts.astype(np.int32))


def stacked_places(
    held: Bool[np.ndarray, "*stack K N"], layout: Layout, block: tuple[int, int]
) -> Places:
    """Where the entries of each slice of a stack belong, as many of each as the fullest has.

    Args:
      held: which weights are not zero, behind the axes of the stack.
      layout: how they are held.
      block: inputs and outputs of a block.
    """
    stack = held.shape[:-2]
    each = [places(slice_, layout, block) for slice_ in held.reshape(-1, *held.shape[-2:])]
    longest = max(where.inputs.shape[-1] for where in each)
    inputs = [np.pad(i, (*((0, 0),) * (i.ndim - 1), (0, longest - i.shape[-1]))) for i, _ in each]
    found = (np.stack(inputs), np.stack([where.begins for where in each]))
    return Places(*(a.reshape(*stack, *a.shape[1:]) for a in found))


def stored(where: Places, layout: Layout, block: tuple[int, int]) -> int:
    """Number of weights of a slice that are multiplied, zeros among them included."""
    size = where.inputs[(0,) * (where.begins.ndim - 1)].size
    return size * (1 if layout == "rows" else block[0] * block[1])


@role("sparse")
def compressed(
    core: Core, *, index: Array, begins: Array, layout: Layout, block: tuple[int, int]
) -> Core:
    """Holds a weight without its zeros; its reads multiply only what is held.

    Floats or codes of one matrix, of which a zero is zero: there is nothing of the inner core left.
    Each slice of a stack holds as many as the fullest one, those too many as zeros.

    Args:
      core: not used.
      index: see `Places`.
      begins: see `Places`.
      layout: how weights are held.
      block: inputs and outputs of a block.
    """
    r, c = block

    def of_slice(op: Op) -> tuple[Array, Array]:
        return op.slice_for_layer(jnp.asarray(index)), op.slice_for_layer(jnp.asarray(begins))

    def write(op: Op, w: Array, key: Any) -> Float[Array, "..."]:
        (matrix,), (index, begins) = op.geometry.as_matmul().w(w), of_slice(op)
        K, N = matrix.shape
        if layout == "rows":
            outputs = jnp.repeat(jnp.arange(N), jnp.diff(begins), total_repeat_length=index.size)
            held = matrix[index, outputs]
            if op.scan_index:
                held = jnp.where(jnp.arange(index.size) < begins[-1], held, 0)
            places_bits = int(K - 1).bit_length() * index.size + 32 * begins.size
        else:
            whole = jnp.pad(matrix, ((0, -K % r), (0, -N % c)))
            blocks = whole.reshape(-1, r, whole.shape[1] // c, c).transpose(2, 0, 1, 3)
            held = jnp.take_along_axis(blocks, index[:, :, None, None], 1)
            fill = jnp.arange(index.shape[1]) < begins[:, None]
            held = jnp.where(fill[:, :, None, None], held, 0)
            places_bits = int(-(-K // r) - 1).bit_length() * index.size
        bits = 8 * held.dtype.itemsize if op.code_bits is None else op.code_bits
        op.count("weight_bits", bits * held.size + places_bits)
        op.count("cells", held.size)
        return held

    def read(op: Op, held: Array, x: Array, key: Any) -> Array:
        matmul, (index, begins) = op.geometry.as_matmul(), of_slice(op)
        rows = matmul.x(x)[0]
        op.count("macs", rows.shape[0] * held.size)
        product = _by_rows if layout == "rows" else _by_blocks
        codes = jnp.issubdtype(rows.dtype, jnp.integer) and jnp.issubdtype(held.dtype, jnp.integer)
        if codes:
            wide = jnp.float32 if op.exact_in_floats(rows) else jnp.int32
            held, rows = held.astype(wide), rows.astype(wide)
        y = product(matmul, held, index, begins, rows)
        return matmul.y(y.astype(jnp.int32)[None] if codes else y[None], x.shape)

    return Core(write, lambda op, state, x: state, read)


def _by_blocks(matmul: Matmul, held: Array, index: Array, begins: Array, x: Array) -> Array:
    strips, count, r, c = held.shape
    M, K = x.shape
    x = jnp.pad(x, ((0, 0), (0, -K % r))).reshape(M, -1, r).transpose(1, 0, 2)
    # Strips first, so that the product is a batch of plain ones: twice as fast as a dot that has to
    # transpose what was gathered.
    met = jnp.take(x, index, 0).transpose(0, 2, 1, 3).reshape(strips, M, count * r)
    y = met @ held.reshape(strips, count * r, c)
    return y.transpose(1, 0, 2).reshape(M, strips * c)[:, : matmul.geometry.w_shape[2]]


def _by_rows(matmul: Matmul, held: Array, index: Array, begins: Array, x: Array) -> Array:
    from jax.experimental.sparse import BCSR

    _, K, N = matmul.geometry.w_shape
    # what a slice holds behind its last output is of no output: JAX takes it for padding
    return (BCSR((held, index, begins), shape=(N, K)) @ x.T).T
