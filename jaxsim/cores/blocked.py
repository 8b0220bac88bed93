"""Products of a few blocks of bits in place of all of them.

A code of b bits is sign and magnitude. Its magnitude is N = ceil((b - 1) / K) blocks of K bits,
index 0 the least significant, and a product of two codes is the sum of all products of their
blocks, shifted. Blocked arithmetic computes some of them. A block is held here in its place, as the
code that has the other bits zero: then nothing needs shifting, sums of blocks are codes again, and
a set of pairs I × J is one product of two codes.

Source: Elangovan, Jain and Raghunathan, "Ax-BxP: Approximate Blocked Computation for
Precision-Reconfigurable Deep Neural Network Acceleration", arXiv 2011.13000.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int, Int8, Num

from jaxsim.cores.core import Core, State
from jaxsim.cores.op import Op
from jaxsim.cores.role import role
from jaxsim.numerics.checks import is_traced
from jaxsim.numerics.gradients import zero_with_gradient_of

Rounding = Literal["trunc", "unbiased", "rounded"]
Pairs = tuple[tuple[int, int], ...]


class Cut(NamedTuple):
    """What becomes of a code's magnitude, by its bit length (0 to 7); all of it is traced.

    Attributes:
      before: what is added first, up to the largest magnitude [8].
      keep: which bits remain [8].
      after: what is added last [8].
    """

    before: Int8[Array, "8"]
    keep: Int8[Array, "8"]
    after: Int8[Array, "8"]

    def __call__(self, codes: Num[Array, "..."], bits: int) -> Num[Array, "..."]:
        """The codes that remain.

        Args:
          codes: of sign and magnitude, integers or floats.
          bits: width of a code, 2 to 8.

        Returns:
          Codes of the same shape and dtype.
        """
        q = codes.astype(jnp.int8)
        magnitude = jnp.abs(q)
        # A chain of selects is one pass in the widest registers; a table look-up is one at a time.
        before, keep, after = (table[0] for table in self)
        for length in range(1, bits):
            longer = magnitude >= np.int8(2 ** (length - 1))
            before = jnp.where(longer, self.before[length], before)
            keep = jnp.where(longer, self.keep[length], keep)
            after = jnp.where(longer, self.after[length], after)
        top = np.int8(2 ** (bits - 1) - 1)
        cut = ((jnp.minimum(magnitude, top - before) + before) & keep) + after
        return jnp.where(q < 0, -cut, cut).astype(codes.dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class Blocks:
    """Which blocks of the operands are multiplied; all of it is traced.

    Attributes:
      rows: cuts of the inputs and the weights whose products are added; one for a product set.
      K: bits of a block.
      n_x, n_w: how many blocks of an input and a weight are kept.
      products: how many products of blocks are computed for one of codes.
      x_bits, w_bits: bits a kept input and weight take, sign and block index included.
      x_dynamic, w_dynamic: the blocks are counted from each code's leading one.
      width: bits of the operands of a block product.
    """

    rows: tuple[tuple[Cut, Cut], ...]
    K: Int[Array, ""]
    n_x: Int[Array, ""]
    n_w: Int[Array, ""]
    products: Int[Array, ""]
    x_bits: Int[Array, ""]
    w_bits: Int[Array, ""]
    x_dynamic: Bool[Array, ""]
    w_dynamic: Bool[Array, ""]
    width: Int[Array, ""]

    def __repr__(self) -> str:
        numbers = (self.K, self.n_x, self.n_w, self.products, self.x_dynamic, self.w_dynamic)
        if any(map(is_traced, numbers)) or np.isnan(np.asarray(self.K, float)):
            return f"{len(self.rows)} traced"
        sides = ((self.n_x, self.x_dynamic), (self.n_w, self.w_dynamic))
        kept = " × ".join(f"{int(n)} {'dynamic' if d else 'static'}" for n, d in sides)
        every = int(self.products) == int(self.n_x) * int(self.n_w)
        return f"{'' if every else f'{int(self.products)} of '}{kept} blocks of {int(self.K)} bits"


class Blocked(NamedTuple):
    """State of a blocked site.

    Attributes:
      inner: what the inner core wrote of the weights of each row.
      exact: what it wrote of the uncut weights, whose products give the derivative; None where
        the inner state does.
    """

    inner: tuple[State, ...]
    exact: State | None


@role("blocks")
def blocked(core: Core, *, blocks: Blocks, bits: tuple[int, int]) -> Core:
    """Multiplies some blocks of the codes: each row's cuts, and the sum over rows.

    Weights are cut once, when they are written. The derivative is that of the exact product, so
    that training sees what is left out but not the steps it is left out in.

    Args:
      core: multiplies the codes of a row.
      blocks: what is kept.
      bits: width of the codes of inputs and weights.

    Source: Elangovan et al., arXiv 2011.13000; straight-through estimator, Bengio, Léonard and
    Courville (2013), arXiv 1308.3432.
    """
    x_width, w_width = bits

    def row_op(op: Op, row: int) -> Op:
        """The op of one row; the hardware stores and multiplies once, whatever rows there are."""
        stored = None if is_traced(blocks.w_bits) else int(blocks.w_bits)
        return dataclasses.replace(op, code_bits=stored, meter=op.meter if row == 0 else None)

    def write(op: Op, w: Array, key: Any) -> Blocked:
        inner = tuple(
            core.write(row_op(op, i), cut(w, w_width), key)
            for i, (_, cut) in enumerate(blocks.rows)
        )
        if op.integer and len(blocks.rows) == 1:
            return Blocked(inner, None)
        return Blocked(inner, core.write(dataclasses.replace(op, meter=None), w, key))

    def calibrate(op: Op, state: Blocked, x: Array) -> Blocked:
        inner = tuple(
            core.calibrate(op, held, cut(x, x_width))
            for held, (cut, _) in zip(state.inner, blocks.rows, strict=True)
        )
        return state._replace(inner=inner)

    def approximate(op: Op, state: Blocked, x: Array, key: Any) -> Array:
        rows = enumerate(zip(state.inner, blocks.rows, strict=True))
        reads = (
            core.read(row_op(op, i), held, cut(x, x_width), key) for i, (held, (cut, _)) in rows
        )
        y = next(reads)
        for more in reads:
            y = y + more
        return y

    def read(op: Op, state: Blocked, x: Array, key: Any) -> Array:
        y = approximate(op, state, x, key)
        if not is_traced(blocks.products):
            op.count("block_products", y.size * op.depth * int(blocks.products))
        if op.integer:
            return y
        held = state.inner[0] if state.exact is None else state.exact
        exact = core.read(dataclasses.replace(op, meter=None), held, x, key)
        return lax.stop_gradient(y) + zero_with_gradient_of(exact)

    return Core(write, calibrate, read)


def product_set(
    bits: tuple[int, int],
    K: int | Array,
    n: tuple[int | Array | None, int | Array | None],
    *,
    dynamic: tuple[bool, bool],
    rounding: Rounding,
) -> Blocks:
    """The most significant blocks of either operand, all products among them: one contraction.

    Args:
      bits: width of the codes of inputs and weights.
      K: bits of a block. May be traced.
      n: blocks kept of an input and of a weight, None for all. May be traced.
      dynamic: for each, whether they are counted from the leading block of the code, rather than
        from the top block of the width.
      rounding: "trunc" drops the bits below, "rounded" rounds to the nearest kept code, half up in
        magnitude, and "unbiased" sets the bit below the kept ones to make up for what is dropped.
    """
    sides = [_top(*side, rounding=rounding, K=K) for side in zip(bits, n, dynamic, strict=True)]
    (x_cut, n_x, x_bits, x_cuts), (w_cut, n_w, w_bits, w_cuts) = sides
    extra = (x_cuts | w_cuts) if rounding == "unbiased" else 0
    return _blocks(
        ((x_cut, w_cut),), K, (n_x, n_w), n_x * n_w, (x_bits, w_bits), dynamic, K + extra
    )


def pair_set(bits: tuple[int, int], K: int, pairs: Pairs, *, dynamic: tuple[bool, bool]) -> Blocks:
    """Any set of pairs of blocks, by as many contractions as it has distinct rows or columns.

    Args:
      bits: width of the codes of inputs and weights.
      K: bits of a block.
      pairs: indices (input, weight) of the blocks to multiply: from the least significant block
        up, or, of a dynamic operand, from the leading block of each code down.
      dynamic: for each operand, which of the two.
    """
    rows = tuple(
        (_chosen(bits[0], K, i, dynamic[0]), _chosen(bits[1], K, j, dynamic[1]))
        for i, j in grouped(pairs)
    )
    kept = [tuple({pair[side] for pair in pairs}) for side in (0, 1)]
    stored = [
        _stored(b, K, len(indices), -(-(b - 1) // K), True)
        if leading
        else 1 + int(_chosen(b, K, indices, False).keep.max()).bit_count()
        for b, indices, leading in zip(bits, kept, dynamic, strict=True)
    ]
    return _blocks(rows, K, map(len, kept), len(pairs), stored, dynamic, K)


def grouped(pairs: Iterable[tuple[int, int]]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """A set of pairs as the fewest of its products I × J by rows or by columns.

    Pairs whose first indices share all their partners are one product: no more are needed than
    there are first indices, or second ones.
    """
    by_row = _merged(pairs)
    by_column = [(i, j) for j, i in _merged((j, i) for i, j in pairs)]
    return min(by_row, by_column, key=len)


def _merged(pairs: Iterable[tuple[int, int]]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    partners: dict[int, set[int]] = {}
    for i, j in pairs:
        partners.setdefault(i, set()).add(j)
    sharing: dict[tuple[int, ...], list[int]] = {}
    for i in sorted(partners):
        sharing.setdefault(tuple(sorted(partners[i])), []).append(i)
    return [(tuple(rows), columns) for columns, rows in sharing.items()]


def _top(
    bits: int, n: Any, dynamic: bool, *, rounding: Rounding, K: Any
) -> tuple[Cut, Any, Any, Any]:
    """The cut to the top n blocks; n; the bits it takes; whether anything is cut."""
    xp = jnp if is_traced(K) or is_traced(n) else np
    length, count = np.arange(8), -(-(bits - 1) // K)
    n = count if n is None else n
    present = -(-length // K) if dynamic else count + 0 * length
    low = K * xp.maximum(present - n, 0)  # bits that go
    half = xp.where(length > 0, (1 << low) >> 1, 0)
    none = 0 * length
    cut = _cut(
        half if rounding == "rounded" else none,
        (2 ** (bits - 1) - 1) & ~((1 << low) - 1),
        half if rounding == "unbiased" else none,
    )
    return cut, n, _stored(bits, K, n, count, dynamic), (n < count) * 1


def _chosen(bits: int, K: int, indices: tuple[int, ...], dynamic: bool) -> Cut:
    """The cut to chosen blocks."""
    length = np.arange(8)
    keep = 0 * length
    for index in indices:
        place = -(-length // K) - 1 - index if dynamic else index + 0 * length
        keep |= np.where(place >= 0, (2**K - 1) << (K * np.maximum(place, 0)), 0)
    return _cut(0 * length, keep & (2 ** (bits - 1) - 1), 0 * length)


def _cut(*tables: Any) -> Cut:
    return Cut(*(jnp.asarray(table, jnp.int8) for table in tables))


def _stored(bits: int, K: Any, n: Any, count: Any, dynamic: bool) -> Any:
    """Bits of a kept code: sign, blocks and the place of the leading one; at most the code's."""
    xp = jnp if is_traced(K) or is_traced(n) else np
    if dynamic:
        places = sum((count - n >= 2**i) * 1 for i in range(3))  # ceil(log2(count - n + 1))
        taken = 1 + n * K + places
    else:
        taken = bits - K * (count - n)
    return xp.minimum(taken, bits)


def _blocks(
    rows: tuple[tuple[Cut, Cut], ...],
    K: Any,
    n: Iterable[Any],
    products: Any,
    bits: Iterable[Any],
    dynamic: tuple[bool, bool],
    width: Any,
) -> Blocks:
    def number(value: Any) -> Array:
        return jnp.asarray(value, jnp.int32)

    (n_x, n_w), (x_bits, w_bits) = map(number, n), map(number, bits)
    x_dynamic, w_dynamic = (jnp.asarray(d, bool) for d in dynamic)
    return Blocks(
        rows=rows,
        K=number(K),
        n_x=n_x,
        n_w=n_w,
        products=number(products),
        x_bits=x_bits,
        w_bits=w_bits,
        x_dynamic=x_dynamic,
        w_dynamic=w_dynamic,
        width=number(width),
    )
