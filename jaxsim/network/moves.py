"""Equations that move vectors whole: what is done to a vector before one may be done behind it."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax.extend.core as jex
import numpy as np

from jaxsim.internals import Atom, parameters, shape_of

UNCHANGED = {
    *("copy", "copy_p", "device_put", "name", "optimization_barrier", "pvary", "reshard"),
    *("sharding_constraint", "stop_gradient"),
}
"""Primitives whose results are their operands, entry by entry: they name, place or hold them."""

SEVERAL = {"device_put", "optimization_barrier"}
"""Those of them that may have several operands, and as many results."""

ALIKE = UNCHANGED | {"convert_element_type", "neg", "reduce_precision"}
"""Primitives that do to each entry what they do to any other, and are linear."""

Origin = tuple[int, int]
"""Position of an operand, and an axis of it."""


def origins(eqn: jex.JaxprEqn, axis: int, same: Callable[[Atom, int], bool]) -> list[Origin] | None:
    """Finds where the vectors along an axis of a result come from, if they are moved as a whole.

    They are moved, joined with others, scaled or added: a matrix that all of them are multiplied by
    may stand before the equation or behind it.

    Args:
      eqn: Equation without inner jaxprs.
      axis: Axis of its results.
      same: Tells if an operand holds the same along all of an axis.

    Returns:
      The operands that vectors come from, with the axis along which they lie there; None where the
      equation does something else to them.
    """
    name, params = eqn.primitive.name, parameters(eqn)
    shapes = [shape_of(v).shape for v in eqn.invars]
    size = shape_of(eqn.outvars[0]).shape[axis]

    def whole(*found: Origin) -> list[Origin] | None:
        return [*found] if all(shapes[i][b] == size for i, b in found) else None

    if name in ALIKE:
        return [(0, axis)] if len(shapes) == 1 else None  # each result is of an operand of its own
    match name:
        case "transpose":
            return [(0, params["permutation"][axis])]
        case "reshape":
            return _reshaped(shapes[0], shape_of(eqn.outvars[0]).shape, axis)
        case "squeeze":
            kept = [i for i in range(len(shapes[0])) if i not in params["dimensions"]]
            return [(0, kept[axis])]
        case "broadcast_in_dim":
            along = params["broadcast_dimensions"]
            return whole((0, along.index(axis))) if axis in along else None
        case "add" | "add_any" | "sub":
            return whole((0, axis), (1, axis)) if _of_one_rank(shapes) else None
        case "mul" | "div":
            scaled = [i for i in (0, 1) if not same(eqn.invars[i], axis)]
            return whole((scaled[0], axis)) if scaled in ([0], [[1], [0]][name == "div"]) else None
        case "select_n":
            rest = [(i, axis) for i in range(1, len(shapes))]
            return whole(*rest) if same(eqn.invars[0], axis) else None
        case "concatenate":
            rest = [(i, axis) for i in range(len(shapes))]
            return None if params["dimension"] == axis else rest
        case "stack":
            at = params["axis"]
            rest = [(i, axis - (axis > at)) for i in range(len(shapes))]
            return None if axis == at else rest
        case "unstack":
            return [(0, axis + (axis >= params["axis"]))]
        case "tile":
            return whole((0, axis)) if params["reps"][axis] == 1 else None
        case "split":
            return None if params["axis"] == axis else [(0, axis)]
        case "rev":
            return None if axis in params["dimensions"] else [(0, axis)]
        case "pad":
            return (
                [(0, axis)] if not any(params["padding_config"][axis]) and _is_zero(eqn) else None
            )
        case "slice" | "dynamic_slice":
            return whole((0, axis))
        case "dynamic_update_slice":
            return whole((0, axis), (1, axis))
        case "gather":
            return _gathered(eqn, axis)
        case "scatter":
            return _scattered(eqn, axis)
        case _:
            return None


def destination(
    eqn: jex.JaxprEqn, operand: int, axis: int, same: Callable[[Atom, int], bool]
) -> int | None:
    """Finds the axis of a result along which vectors of an operand lie, moved as a whole.

    Args:
      eqn: Equation without inner jaxprs.
      operand: Position of the operand.
      axis: Axis of it.
      same: Tells if an operand holds the same along all of an axis.

    Returns:
      The axis; None where the equation does something else to the vectors.
    """
    for after in range(len(shape_of(eqn.outvars[0]).shape)):
        if (operand, axis) in (origins(eqn, after, same) or ()):
            return after
    return None


def _of_one_rank(shapes: list[tuple[int, ...]]) -> bool:
    return len({len(shape) for shape in shapes}) == 1


def _is_zero(eqn: jex.JaxprEqn) -> bool:
    filled = eqn.invars[1]
    return isinstance(filled, jex.Literal) and not np.any(filled.val)


def _reshaped(before: tuple[int, ...], after: tuple[int, ...], axis: int) -> list[Origin] | None:
    """The axis that a reshape leaves as it is: of the same size, and as much before it."""
    ahead = math.prod(after[:axis])
    for b, n in enumerate(before):
        if n == after[axis] and math.prod(before[:b]) == ahead:
            return [(0, b)]
    return None


def _gathered(eqn: jex.JaxprEqn, axis: int) -> list[Origin] | None:
    params, shape = parameters(eqn), shape_of(eqn.invars[0]).shape
    numbers = params["dimension_numbers"]
    dropped = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    windows = [i for i in range(len(shape)) if i not in dropped]
    if axis not in numbers.offset_dims:
        return None
    b = windows[numbers.offset_dims.index(axis)]
    return [(0, b)] if params["slice_sizes"][b] == shape[b] else None


def _scattered(eqn: jex.JaxprEqn, axis: int) -> list[Origin] | None:
    numbers = parameters(eqn)["dimension_numbers"]
    shape, updates = shape_of(eqn.invars[0]).shape, shape_of(eqn.invars[2]).shape
    dropped = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
    windows = [i for i in range(len(shape)) if i not in dropped]
    if axis not in windows:
        return None
    b = numbers.update_window_dims[windows.index(axis)]
    return [(0, axis), (2, b)] if updates[b] == shape[axis] else None
