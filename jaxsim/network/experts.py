"""Experts: products with a stack of weights among which integers choose, an expert at a time.

A site is one product, so that any core can compute it. A product with chosen weights is therefore
said as a scan over the stack: each expert is multiplied by all rows, and its result is taken for
the rows that chose it. That is G times the work where the model's own equation does it once, but
ranges are those of the whole layer, no expert is without any, memory stays that of one expert, and
what is written, stored and masked is that of any other stack of layers. Statistics by which weights
are changed are those of each expert's own rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.extend.core as jex
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxsim import internals
from jaxsim.internals import parameters, shape_of
from jaxsim.network.routes import Route


class Product(NamedTuple):
    """Axes of a product with chosen weights, each named by a number.

    Attributes:
      x, w: Names of the axes of the input and of one expert's weight.
      summed: Names that a result is summed over.
      y: Names of the axes of the result.
      later: Names that the result of an expert has, and that are summed over once it is chosen.
      weight_first: True if the weight is the left operand.
      precision, dtype: As in `lax.dot_general`.
    """

    x: tuple[int, ...]
    w: tuple[int, ...]
    summed: tuple[int, ...]
    y: tuple[int, ...]
    later: tuple[int, ...]
    weight_first: bool
    precision: Any
    dtype: Any

    def of_expert(self, x: Array, w: Array) -> Array:
        """Multiplies all rows by one expert's weight, [*y, *later].

        An axis that neither operand has, since a row is multiplied by several slices, is of size 1.
        """
        sides = [(w, self.w), (x, self.x)] if self.weight_first else [(x, self.x), (w, self.w)]
        batch = [n for n in self.w if n in self.x and n not in self.summed]
        contract = [n for n in self.w if n in self.summed]
        (a, left), (b, right) = sides
        summed, alike = (
            ([left.index(n) for n in group], [right.index(n) for n in group])
            for group in (contract, batch)
        )
        y = lax.dot_general(
            a, b, (summed, alike), precision=self.precision, preferred_element_type=self.dtype
        )
        shared = {*batch, *contract}
        made = [*batch, *(n for n in (*left, *right) if n not in shared)]
        axes = (*self.y, *self.later)
        y = jnp.transpose(y, [made.index(n) for n in axes if n in made])
        return lax.expand_dims(y, [i for i, n in enumerate(axes) if n not in made])

    def row_counts(self, hits: Bool[Array, "G ..."], names: Sequence[int]) -> Float[Array, "G ..."]:
        """Counts how often each row is multiplied by each expert.

        Args:
          hits: For each expert, True where it is chosen.
          names: Names of the axes of `hits` behind the first.

        Returns:
          For each expert an array that broadcasts to the input.
        """
        several = tuple(1 + i for i, n in enumerate(names) if n not in self.x)
        counts = hits.astype(jnp.float32).sum(several)
        rows = [n for n in names if n in self.x]
        counts = jnp.transpose(counts, [0, *(1 + rows.index(n) for n in self.x if n in rows)])
        absent = [1 + i for i, n in enumerate(self.x) if n not in rows]
        return lax.expand_dims(counts, absent)


def products(eqn: jex.JaxprEqn) -> int:
    """Counts the multiply-accumulates of a product, each row by the one weight that it chose.

    Args:
      eqn: `dot_general` or `ragged_dot_general`.
    """
    if eqn.primitive.name == "ragged_dot_general":
        contract, _ = internals.ragged_dot(eqn).contract
    else:
        (contract, _), _ = parameters(eqn)["dimension_numbers"]
    x = shape_of(eqn.invars[0]).shape
    return shape_of(eqn.outvars[0]).size * math.prod(x[axis] for axis in contract)


def ragged_product(
    eqn: jex.JaxprEqn,
) -> Callable[[Array, Array, Array], Array] | None:
    """Says a `ragged_dot_general` as a scan over its groups of rows.

    Args:
      eqn: Equation whose right operand is a parameter.

    Returns:
      The function of its operands; None where not the rows are ragged but what is summed, or what
      is a batch.
    """
    ragged = internals.ragged_dot(eqn)
    group: Any = ragged.group
    (xs, ws, sizes) = (shape_of(v).shape for v in eqn.invars[:3])
    rows = ragged.rows
    if (
        group is None
        or ragged.offset
        or rows in (*ragged.contract[0], *ragged.batch[0])
        or len(sizes) not in (1, 1 + len(ragged.batch[0]))
    ):
        return None
    product = _product(
        eqn, ragged.contract, ragged.batch, (len(xs), len(ws)), w_at=1, along=[group]
    )
    product = product._replace(y=tuple(n for n in product.y if n != len(xs) + group))
    names = [rows] if len(sizes) == 1 else [*ragged.batch[0], rows]
    names = tuple(product.x[axis] for axis in names)

    def run(x: Array, w: Array, sizes: Array) -> Array:
        ends = jnp.cumsum(jnp.moveaxis(sizes.astype(jnp.int32), -1, 0), axis=0)[..., None]
        starts = jnp.concatenate([jnp.zeros_like(ends[:1]), ends[:-1]])
        row = jnp.arange(xs[rows], dtype=jnp.int32)
        hits = (row >= starts) & (row < ends)
        return _scan_experts(product, x, jnp.moveaxis(w, group, 0), hits, names, 0.0)

    return run


def routed_product(
    eqn: jex.JaxprEqn, w_at: int, route: Route
) -> Callable[[Array, Array], Array] | None:
    """Says a `dot_general` with chosen slices as a scan over their stack.

    Args:
      eqn: Equation.
      w_at: Position of the operand that is made of slices.
      route: How they are chosen.

    Returns:
      The function of the operands of `eqn` and then those of `route`; None where a slice is no
      matrix.
    """
    params = parameters(eqn)
    contract, batch = params["dimension_numbers"]
    ranks = tuple(len(shape_of(v).shape) for v in eqn.invars)
    along = [axis for axis, chosen in enumerate(route.along) if chosen]
    bound = {*contract[w_at], *batch[w_at]}
    free = [axis for axis in range(ranks[w_at]) if axis not in bound]
    if all(axis in along for axis in free) or all(axis in along for axis in contract[w_at]):
        return None
    product = _product(eqn, contract, batch, ranks, w_at=w_at, along=along)
    labels = _labels(contract, batch, ranks)[w_at]
    names = tuple(labels[axis] for axis in along)

    def run(*operands: Array) -> Array:
        held = operands[2:]
        stack, ids = route.stack(*held), route.chosen(*held)
        every = jnp.arange(stack.shape[0], dtype=jnp.int32)
        hits = ids == every.reshape(-1, *[1] * ids.ndim)
        return _scan_experts(product, operands[1 - w_at], stack, hits, names, route.missing)

    return run


def _labels(
    contract: Sequence[Sequence[int]], batch: Sequence[Sequence[int]], ranks: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Names the axes of both operands, those that belong together alike."""
    left, right = list(range(ranks[0])), list(range(ranks[0], sum(ranks)))
    for a, b in (*zip(*contract, strict=True), *zip(*batch, strict=True)):
        right[b] = left[a]
    return left, right


def _product(
    eqn: jex.JaxprEqn,
    contract: Sequence[Sequence[int]],
    batch: Sequence[Sequence[int]],
    ranks: Sequence[int],
    *,
    w_at: int,
    along: Sequence[int],
) -> Product:
    params, labels = parameters(eqn), _labels(contract, batch, ranks)
    chosen = {labels[w_at][axis] for axis in along}
    summed = {labels[0][axis] for axis in contract[0]}
    first = [labels[0][axis] for axis in batch[0]]
    rest = [n for n in (*labels[0], *labels[1]) if n not in summed and n not in first]
    x = labels[1 - w_at]
    return Product(
        tuple(x),
        tuple(n for n in labels[w_at] if n not in chosen),
        tuple(summed - chosen),
        (*first, *rest),
        tuple(n for n in labels[w_at] if n in chosen & summed),
        w_at == 0,
        params["precision"],
        params["preferred_element_type"],
    )


def _scan_experts(
    product: Product,
    x: Array,
    stack: Array,
    hits: Bool[Array, "G ..."],
    names: Sequence[int],
    missing: float,
) -> Array:
    """Multiplies by one expert after the other and takes the rows that chose it.

    Last among what is scanned is how often each row is multiplied by the expert, of which the
    planner tells the site: what is measured of an expert is measured on its rows.

    Args:
      product: Axes.
      x: Input of all rows.
      stack: Weights, [G, *one expert's].
      hits: For each expert and each row, True if the row chose it.
      names: Names of the axes of `hits` behind the first.
      missing: Result of rows that chose none.
    """
    axes = (*product.y, *product.later)
    order = [0, *(1 + names.index(n) for n in axes if n in names)]
    spread = [hits.shape[1 + names.index(n)] if n in names else 1 for n in axes]
    sizes = dict(zip(product.x, x.shape, strict=True))
    sizes.update(zip(product.w, stack.shape[1:], strict=True))
    sizes.update(zip(names, hits.shape[1:], strict=True))
    shape = tuple(sizes[n] for n in axes)
    counts = product.row_counts(hits, names)
    hits = jnp.transpose(hits, order).reshape(hits.shape[0], *spread)
    dtype = product.dtype or jnp.result_type(x, stack)

    def step(y: Array, expert: tuple[Array, Array, Array]) -> tuple[Array, None]:
        w, hit, _ = expert
        one = product.of_expert(x, w).astype(dtype)
        hit, one = jnp.broadcast_to(hit, shape), jnp.broadcast_to(one, shape)
        return lax.select(hit, one, y), None

    y, _ = lax.scan(step, jnp.full(shape, missing, dtype), (stack, hits, counts))
    return y.sum(tuple(range(len(product.y), len(axes)))) if product.later else y
