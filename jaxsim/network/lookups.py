"""Lookups: rows of a parameter, chosen by integers, read from what a core stored of the table.

The format of a table is that of a product with its rows as outputs, as the head of a language model
has that shares it: a scale, a group and a code lie within a row. A lookup takes the rows out of
each array of the state, and multiplies them by an identity.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.extend.core as jex
import jax.extend.core.primitives as prims
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int, Num

from jaxsim.cores.core import Core, State
from jaxsim.cores.geometry import Dot
from jaxsim.cores.op import Op
from jaxsim.cores.role import WEIGHT
from jaxsim.cores.wrapper import Wrapper, build
from jaxsim.internals import parameters, shape_of
from jaxsim.network.plan import Contraction
from jaxsim.numerics.arrays import own_promotion
from jaxsim.values.value import PytreeValue

IDENTITY = 1024
"""Most rows of the identity that are multiplied at a time; wider tables are read in blocks."""


@partial(jax.tree_util.register_dataclass, data_fields=["held"], meta_fields=[])
@dataclasses.dataclass(frozen=True, eq=False)
class Transposed(PytreeValue):
    """An array of a lookup's state that a product holds, rows along its other axis.

    Attributes:
      held: The product's array, whose transpose the lookup wrote.
    """

    held: Num[Array, "a b"]


def is_transposed(node: Any) -> bool:
    """Tells if a node of a state is an array that something else holds, transposed.

    Args:
      node: Node of a state.
    """
    return isinstance(node, Transposed)


def as_written(state: State) -> State:
    """A state, or several, with all arrays as the core wrote them.

    Args:
      state: State of a site.
    """
    return jax.tree.map(
        lambda a: a.held.T if isinstance(a, Transposed) else a, state, is_leaf=is_transposed
    )


def looked_up_axis(eqn: jex.JaxprEqn, known: Sequence[Any]) -> int | None:
    """Finds the axis of a table along which an equation takes whole rows at integers.

    Args:
      eqn: Equation whose first operand is a parameter.
      known: What is known of its operands, None of those that inputs reach.

    Returns:
      The axis, 0 or 1; None where the equation takes something else than rows of a matrix.
    """
    shape = shape_of(eqn.invars[0]).shape
    if len(shape) != 2 or eqn.primitive not in (prims.gather_p, prims.dynamic_slice_p):
        return None
    params = parameters(eqn)
    sizes = params["slice_sizes"]
    if eqn.primitive is prims.dynamic_slice_p:
        cut = [axis for axis in (0, 1) if sizes[axis] != shape[axis]]
        return cut[0] if len(cut) == 1 and known[1 + cut[0]] is None else None
    numbers = params["dimension_numbers"]
    axes = numbers.start_index_map
    if len(axes) != 1 or numbers.collapsed_slice_dims != axes or numbers.operand_batching_dims:
        return None
    return axes[0] if sizes[1 - axes[0]] == shape[1 - axes[0]] else None


def rows_as_outputs(shape: tuple[int, ...], axis: int) -> Dot:
    """Builds the product of an identity with a table whose rows are its outputs.

    Args:
      shape: Shape of the table.
      axis: Axis along which rows are taken, 0 or 1.
    """
    # an entry times one is to be the entry, whatever the backend's products round
    exact = lax.Precision.HIGHEST
    return Dot((1,), (), (1 - axis,), (), 2, shape, precision=exact)


def row_axes(
    wrappers: Sequence[Wrapper], op: Op, w: jax.ShapeDtypeStruct, name: str, state: State = None
) -> list[int | None]:
    """Finds the axis of each array of a state along which the rows of a table lie.

    Args:
      wrappers: Wrappers of the site's core, outermost first.
      op: The lookup's product.
      w: Shape and dtype of the table.
      name: Name of the site, for the error.
      state: State that was written at deployment, whose layout counts; None before.

    Returns:
      An axis for each leaf of the state, None where all rows share it.

    Raises:
      ValueError: The core stores rows so that they cannot be told apart.
    """
    core = build([wrapper for wrapper in wrappers if wrapper.role not in WEIGHT])
    (axis,) = op.geometry.w_free  # pyright: ignore

    def written(op: Op, times: int) -> Any:
        longer = tuple(n * times if i == axis else n for i, n in enumerate(w.shape))
        resized = _with_table(op, longer)
        key = jax.eval_shape(lambda: jax.random.key(0))
        table = jax.ShapeDtypeStruct(longer, w.dtype)
        return jax.eval_shape(lambda w, k: core.write(resized, w, k), table, key)

    def differing(a: Any, b: Any) -> int | None:
        axes = [i for i, (n, m) in enumerate(zip(a.shape, b.shape, strict=True)) if n != m]
        if len(axes) > 1 or any(b.shape[i] != 2 * a.shape[i] for i in axes):
            raise ValueError
        if axes and a.shape[axes[0]] != w.shape[axis]:
            raise ValueError
        return axes[0] if axes else None

    try:
        held = jax.tree.structure(state, is_leaf=is_transposed)
        if state is not None and jax.tree.structure(written(op, 1)) != held:
            op = dataclasses.replace(op, layout="lean")
        once, twice = (jax.tree.leaves(written(op, times)) for times in (1, 2))
        return [differing(a, b) for a, b in zip(once, twice, strict=True)]
    except (TypeError, ValueError):
        chain = " → ".join(map(repr, wrappers))
        raise ValueError(
            f"sites: {name} is a lookup, and {chain} stores a table so that its rows cannot be "
            "taken out; leave it out by sites=…"
        ) from None


def read_rows(
    core: Core, op: Op, state: State, ids: Int[Array, " M"], axes: Sequence[int | None], key: Any
) -> Array:
    """Reads rows of a table from what a core stored of it.

    Args:
      core: Core that wrote the table.
      op: The lookup's product.
      state: What the core wrote.
      ids: Rows to read, each within the table.
      axes: Axis of the rows in each leaf of the state, as `row_axes` finds them.
      key: Random key for what is drawn at every read, or None.

    Returns:
      The rows, [M, D].
    """
    leaves, structure = jax.tree.flatten(state, is_leaf=is_transposed)

    def rows(leaf: Any, axis: int | None) -> Array:
        if isinstance(leaf, Transposed):
            return rows(leaf.held, None if axis is None else 1 - axis).T
        return leaf if axis is None else jnp.take(leaf, ids, axis, mode="clip")

    taken = [rows(leaf, axis) for leaf, axis in zip(leaves, axes, strict=True)]
    geometry: Any = op.geometry
    (free,), (along,) = geometry.w_free, geometry.w_contract
    shape = tuple(ids.shape[0] if i == free else n for i, n in enumerate(geometry.w_shape))
    width, written = geometry.w_shape[along], jax.tree.unflatten(structure, taken)
    block, blocks = min(width, IDENTITY), -(-width // IDENTITY)

    def entries(first: Any) -> Array:
        """Reads the entries of all rows in one block of columns, [block, M]."""
        here = first + jnp.arange(block, dtype=jnp.int32)
        one = (here[:, None] == jnp.arange(width, dtype=jnp.int32)).astype(jnp.float32)
        return core.read(_with_table(op, shape), written, one, key)

    if blocks == 1:
        return entries(0).T
    read = lax.map(entries, block * jnp.arange(blocks, dtype=jnp.int32))
    return read.reshape(blocks * block, -1)[:width].T


def read_table(wrappers: Sequence[Wrapper], entry: Contraction, state: State) -> Array:
    """Reads a whole table from what a core stored of it, as the parameter is laid out.

    Args:
      wrappers: Wrappers of the lookup's core, outermost first.
      entry: Site in its plan.
      state: What the core wrote at deployment.
    """
    op, geometry = dataclasses.replace(entry.op, integer=True), entry.op.geometry
    (rows,) = geometry.w_free  # pyright: ignore
    with own_promotion():
        axes = row_axes(wrappers, op, entry.w, entry.site.name, state)
        every = jnp.arange(entry.w.shape[rows])
        table = read_rows(build(wrappers), op, state, every, axes, None)
    return (table if rows == 0 else table.T).astype(entry.w.dtype)


def row_ids(eqn: jex.JaxprEqn, ins: Sequence[Any]) -> Int[Array, " M"]:
    """Computes which rows a lookup takes, flat; those outside of the table may be any.

    Args:
      eqn: Equation of the lookup.
      ins: Values of its operands.
    """
    if eqn.primitive is prims.gather_p:
        return ins[1].reshape(-1)
    shape, sizes = shape_of(eqn.invars[0]).shape, parameters(eqn)["slice_sizes"]
    (axis,) = (i for i in (0, 1) if sizes[i] != shape[i])
    first = jnp.clip(ins[1 + axis], 0, shape[axis] - sizes[axis])
    return first + jnp.arange(sizes[axis])


def as_looked_up(eqn: jex.JaxprEqn, ins: Sequence[Any], rows: Array) -> Array:
    """Arranges rows as an equation's result, with what it gives outside of the table.

    Args:
      eqn: Equation of the lookup.
      ins: Values of its operands.
      rows: Rows of the table, [M, D].
    """
    params, shape = parameters(eqn), shape_of(eqn.invars[0]).shape
    if eqn.primitive is prims.dynamic_slice_p:
        return rows if params["slice_sizes"][1] == shape[1] else rows.T
    ids, numbers = ins[1], params["dimension_numbers"]
    (axis,) = numbers.start_index_map
    if params["mode"] == lax.GatherScatterMode.FILL_OR_DROP:
        inside = (ids >= 0) & (ids < shape[axis])
        fill = jnp.nan if params["fill_value"] is None else params["fill_value"]
        rows = jnp.where(inside.reshape(-1, 1), rows, fill)
    (place,) = numbers.offset_dims
    return jnp.moveaxis(rows.reshape(*ids.shape[:-1], rows.shape[-1]), -1, place)


def _with_table(op: Op, shape: tuple[int, ...]) -> Op:
    geometry: Any = op.geometry
    return dataclasses.replace(op, geometry=dataclasses.replace(geometry, w_shape=shape))
