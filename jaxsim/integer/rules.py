"""Rules of conversion: the integer form of each primitive.

Each takes the lowering, an equation, what its operands stand for and the shape of its result; notes
a step; and returns what the result stands for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

from jaxsim.integer.affine import (
    Affine,
    Counted,
    Floats,
    Numbers,
    affine,
    clip,
    common_step,
    compact,
    concatenate,
    rearrange,
    scale_and_shift,
)
from jaxsim.integer.equations import refusal, summed_windows
from jaxsim.integer.steps import AsIs, Operand, Spread, Take
from jaxsim.internals import parameters, shape_of

if TYPE_CHECKING:
    from jaxsim.integer.convert import Lowering

RESIDUAL_LEVELS = 2.0**23
"""Codes of the grids between sites, on which residuals are added and outputs returned."""

COARSER = 2.0**8
"""Times that a constant may widen the step of what it is chosen beside: 15 bits are left of 23."""

Rule = Callable[
    ["Lowering", jex.JaxprEqn, list[Any], Sequence[int]], "Affine | Floats | list[Affine]"
]


def _add(lowering: Lowering, eqn: jex.JaxprEqn, ins: list[Any], shape: Sequence[int]) -> Affine:
    """Converts an addition or a subtraction."""
    sign = -1.0 if eqn.primitive.name == "sub" else 1.0
    a, b = ins
    if not isinstance(b, Affine):
        out = scale_and_shift(a, np.ones((1,) * len(shape)), sign * compact(b, len(shape)), shape)
        return lowering.alias(eqn, ins, out)
    if not isinstance(a, Affine):
        out = scale_and_shift(b, np.full((1,) * len(shape), sign), compact(a, len(shape)), shape)
        return lowering.alias(eqn, ins, out)
    operands, (a, b) = lowering.to_common_grid(eqn, ins, RESIDUAL_LEVELS)
    lowering.apply(eqn, operands)
    bounds = (b.min_code, b.max_code) if sign > 0 else (-b.max_code, -b.min_code)
    return affine(shape, a.scale, 0.0, a.min_code + bounds[0], a.max_code + bounds[1])


def _scale(lowering: Lowering, eqn: jex.JaxprEqn, ins: list[Any], shape: Sequence[int]) -> Affine:
    """Converts a product with, or a quotient by, a known value, and a negation."""
    name = eqn.primitive.name
    if name == "neg":
        value, factor = ins[0], np.float64(-1)
    elif name == "div":
        value, factor = ins
        if isinstance(factor, Affine):
            raise refusal(eqn, "divides by an activation")
        factor = 1 / np.asarray(factor, np.float64)
    else:
        value, factor = ins if isinstance(ins[0], Affine) else ins[::-1]
        if isinstance(factor, Affine):
            raise refusal(eqn, "multiplies two activations")
    if not np.isfinite(factor).all():
        raise refusal(eqn, f"scales by {factor}")
    out = scale_and_shift(value, compact(factor, len(shape)), np.zeros((1,) * len(shape)), shape)
    return lowering.alias(eqn, ins, out)


def _clip(lowering: Lowering, eqn: jex.JaxprEqn, ins: list[Any], shape: Sequence[int]) -> Affine:
    """Converts a maximum, a minimum or a clamp."""
    if eqn.primitive.name == "clamp":
        lo, value, hi = ins
    elif all(isinstance(value, Affine) for value in ins):
        operands, (a, b) = lowering.to_common_grid(eqn, ins, RESIDUAL_LEVELS)
        lowering.apply(eqn, operands)
        end = np.maximum if eqn.primitive.name == "max" else np.minimum
        return affine(shape, a.scale, 0.0, end(a.min_code, b.min_code), end(a.max_code, b.max_code))
    else:
        value, end = ins if isinstance(ins[0], Affine) else ins[::-1]
        lo, hi = (end, np.inf) if eqn.primitive.name == "max" else (-np.inf, end)
    if isinstance(lo, Affine) or isinstance(hi, Affine) or not isinstance(value, Affine):
        raise refusal(eqn, "clips by an activation")
    lo, hi = compact(lo, len(shape)), compact(hi, len(shape))
    return lowering.alias(eqn, ins, clip(value, lo, hi, shape))


def _movable(
    lowering: Lowering, eqn: jex.JaxprEqn, value: Affine, shape: Sequence[int]
) -> tuple[list[Operand], Affine]:
    """Numbers that an equation moves to such a shape, and how it reads them."""
    if value.shape[:1] == tuple(shape[:1]) or value.constant_along(range(len(value.shape))):
        return [AsIs()], value
    # The batch may have moved among channels.
    operands, (value,) = lowering.to_common_grid(eqn, [value], RESIDUAL_LEVELS)
    return operands, value


def _move(lowering: Lowering, eqn: jex.JaxprEqn, ins: list[Any], shape: Sequence[int]) -> Affine:
    """Converts a primitive that moves numbers and does not change them."""
    params = parameters(eqn)
    operands, value = _movable(lowering, eqn, ins[0], shape)
    layout: Callable[[np.ndarray], np.ndarray]
    match eqn.primitive.name:
        case "transpose":
            layout = partial(np.transpose, axes=params["permutation"])
        case "rev":
            layout = partial(np.flip, axis=params["dimensions"])
        case "tile":
            layout = partial(np.tile, reps=params["reps"])
        case "slice":
            cut = zip(
                params["start_indices"],
                params["limit_indices"],
                params["strides"] or (1,) * len(shape),
                strict=True,
            )
            at = tuple(slice(*bounds) for bounds in cut)
            layout = lambda a: a[at]  # noqa: E731
        case "broadcast_in_dim":
            axes = params["broadcast_dimensions"]
            unit = [value.shape[axes.index(i)] if i in axes else 1 for i in range(len(shape))]
            layout = lambda a: np.broadcast_to(a.reshape(unit), shape)  # noqa: E731
        case _:
            layout = lambda a: a.reshape(shape)  # noqa: E731
    lowering.apply(eqn, operands)
    return rearrange(value, layout, shape)


def _concatenate(
    lowering: Lowering, eqn: jex.JaxprEqn, ins: list[Any], shape: Sequence[int]
) -> Affine:
    """Converts a concatenation; each part keeps its scale."""
    if not all(isinstance(value, Affine) for value in ins):
        raise refusal(eqn, "joins constants with activations")
    lowering.apply(eqn, [AsIs()] * len(ins))
    return concatenate(ins, parameters(eqn)["dimension"])


def _stack(lowering: Lowering, eqn: jex.JaxprEqn, ins: list[Any], shape: Sequence[int]) -> Affine:
    """Converts a stack; each part keeps its scale."""
    if not all(isinstance(value, Affine) for value in ins):
        raise refusal(eqn, "joins constants with activations")
    lowering.apply(eqn, [AsIs()] * len(ins))
    axis = parameters(eqn)["axis"]
    one = (*shape[:axis], 1, *shape[axis + 1 :])
    return concatenate([rearrange(v, lambda a: np.expand_dims(a, axis), one) for v in ins], axis)


def _part(
    lowering: Lowering, eqn: jex.JaxprEqn, ins: list[Any], shape: Sequence[int]
) -> list[Affine]:
    """Converts a primitive that takes all parts of an axis, one after another."""
    operands, value = _movable(lowering, eqn, ins[0], shape)
    axis, shapes = parameters(eqn)["axis"], [shape_of(v).shape for v in eqn.outvars]
    whole = eqn.primitive.name == "split"
    ends = np.cumsum([s[axis] if whole else 1 for s in shapes])
    lowering.apply(eqn, operands)

    def taken(i: int, a: np.ndarray) -> np.ndarray:
        return np.split(a, ends[:-1], axis)[i] if whole else a.take(i, axis)

    return [rearrange(value, partial(taken, i), own) for i, own in enumerate(shapes)]


def _window(lowering: Lowering, eqn: jex.JaxprEqn, ins: list[Any], shape: Sequence[int]) -> Affine:
    """Converts a slice at a place that is known when the network is converted."""
    value, *starts = ins
    operands, value = _movable(lowering, eqn, value, shape)
    lowering.apply(eqn, [*operands, *map(lowering.computed, starts)])
    first = [
        int(np.clip(at, 0, whole - n))
        for at, whole, n in zip(starts, value.shape, shape, strict=True)
    ]
    part = tuple(slice(at, at + n) for at, n in zip(first, shape, strict=True))
    return rearrange(value, lambda a: a[part], shape)


def _select(lowering: Lowering, eqn: jex.JaxprEqn, ins: list[Any], shape: Sequence[int]) -> Affine:
    """Converts a choice between numbers, and one known beforehand between numbers and zeros."""
    which, *cases = ins
    kept = [i for i, case in enumerate(cases) if isinstance(case, Affine)]
    zeros = [not np.any(case) for case in cases if not isinstance(case, Affine)]
    if isinstance(which, Floats) or len(kept) != 1 or not all(zeros):
        return _choose(lowering, eqn, which, cases, shape)
    factor = compact(np.asarray(which, np.int32) == kept[0], len(shape)).astype(np.float64)
    value = cases[kept[0]]
    out = scale_and_shift(value, factor, np.zeros((1,) * len(shape)), shape)
    return lowering.alias(eqn, ins, out)


def _choose(
    lowering: Lowering, eqn: jex.JaxprEqn, which: Any, cases: list[Any], shape: Sequence[int]
) -> Affine:
    """Converts a choice between what goes to one grid, constants as well."""
    rank = len(shape)
    numbers = [
        case if isinstance(case, Affine) else affine(shape, 0.0, compact(case, rank), 0, 0)
        for case in cases
    ]
    if all(isinstance(case, Affine) for case in cases):
        operands, there = lowering.to_common_grid(eqn, numbers, RESIDUAL_LEVELS)
    else:
        fills = [np.asarray(case) for case in cases if not isinstance(case, Affine)]
        if not all(np.isfinite(fill).all() for fill in fills):
            raise refusal(eqn, "chooses numbers that are not finite")
        step = common_step(numbers, RESIDUAL_LEVELS)
        alone = common_step([v for v in cases if isinstance(v, Affine)], RESIDUAL_LEVELS)
        if step > COARSER * alone:
            far = max(float(np.abs(fill).max()) for fill in fills)
            raise refusal(eqn, f"chooses {far:g} beside activations that its grid would round away")
        there = [affine(shape, step, 0.0, *(np.round(e / step) for e in v.bounds)) for v in numbers]
        operands = [
            lowering.rescale_to(
                eqn, case, step, 0.0, float(grid.min_code.min()), float(grid.max_code.max())
            )
            if isinstance(case, Affine)
            else lowering.constant(jnp.asarray(grid.min_code, jnp.int32))
            for case, grid in zip(cases, there, strict=True)
        ]
    if isinstance(which, Floats):
        truths: Operand = AsIs()
    else:  # what does not vary over the batch is for any
        truths = lowering.constant(jnp.asarray(compact(which, rank), np.asarray(which).dtype))
    lowering.steps.append(Spread(eqn.primitive.name, (truths, *operands)))
    least, most = (
        end(np.concatenate([np.ravel(code) for code in codes]))
        for end, codes in (
            (np.min, [v.min_code for v in there]),
            (np.max, [v.max_code for v in there]),
        )
    )
    return affine(shape, there[0].scale, 0.0, least, most)


def _compare(lowering: Lowering, eqn: jex.JaxprEqn, ins: list[Any], shape: Sequence[int]) -> Floats:
    """Converts a comparison: of integers of one scale, or with the integer that a bound is."""
    name = eqn.primitive.name
    if all(isinstance(value, Affine) for value in ins):
        operands, _ = lowering.to_common_grid(eqn, ins, RESIDUAL_LEVELS)
        lowering.apply(eqn, operands)
        return Floats()
    at = 0 if isinstance(ins[0], Affine) else 1
    value, bound = ins[at], compact(ins[1 - at], len(shape))
    if np.isnan(bound).any():
        raise refusal(eqn, "compares with what is no number")
    operand: Operand = AsIs()
    if value.is_clipped or not (value.scale > 0).all():
        (operand,), (value,) = lowering.to_common_grid(eqn, [value], RESIDUAL_LEVELS)
    place = (bound - value.shift) / value.scale
    # where the bound lies between two integers, the one that the answer turns at
    upward = name in (("ge", "lt") if at == 0 else ("le", "gt"))
    codes = np.clip(np.ceil(place) if upward else np.floor(place), -(2.0**31), 2.0**31 - 1)
    operands = [operand, lowering.constant(jnp.asarray(codes.astype(np.int32)))]
    lowering.steps.append(Spread(name, tuple(operands if at == 0 else operands[::-1])))
    return Floats()


def _magnitude(
    lowering: Lowering, eqn: jex.JaxprEqn, ins: list[Any], shape: Sequence[int]
) -> Affine:
    """Converts an absolute value."""
    operands, (value,) = lowering.to_common_grid(eqn, ins, RESIDUAL_LEVELS)
    lowering.apply(eqn, operands)
    most = np.maximum(np.abs(value.min_code), np.abs(value.max_code))
    return affine(shape, value.scale, 0.0, 0, most)


def _pad(lowering: Lowering, eqn: jex.JaxprEqn, ins: list[Any], shape: Sequence[int]) -> Affine:
    """Converts a padding with zeros."""
    value, fill = ins
    if isinstance(fill, Affine) or np.any(fill):
        raise refusal(eqn, f"pads with {fill}, not with zeros")
    (operand,), (value,) = lowering.to_common_grid(eqn, [value], RESIDUAL_LEVELS)
    lowering.apply(eqn, [operand, lowering.constant(jnp.int32(0))])
    return affine(
        shape, value.scale, 0.0, min(value.min_code.min(), 0), max(value.max_code.max(), 0)
    )


def _sum(lowering: Lowering, eqn: jex.JaxprEqn, ins: list[Any], shape: Sequence[int]) -> Affine:
    """Converts a sum along axes or over windows."""
    (value,), (along, count, padded) = ins, summed_windows(eqn, ins[0].shape)
    operands: list[Operand] = [AsIs()]
    room = (2.0**31 - 1) / count
    reach = max(float(np.abs(end).max()) for end in (value.min_code, value.max_code))
    uniform = value.constant_along(along) and not (padded and value.shift.any())
    if value.is_clipped or not uniform or reach > room:
        largest = min(RESIDUAL_LEVELS, np.floor(room / 2))
        operands, (value,) = lowering.to_common_grid(eqn, ins, largest)
    lowering.apply(eqn, operands, count)
    kept = _reduce(value, along, shape)
    # windows at a border may hold fewer numbers
    least, most = (count * end for end in (kept.min_code, kept.max_code))
    if padded:
        least, most = np.minimum(least, 0), np.maximum(most, 0)
    return affine(shape, kept.scale, kept.shift * count, least, most)


def _extreme(lowering: Lowering, eqn: jex.JaxprEqn, ins: list[Any], shape: Sequence[int]) -> Affine:
    """Converts a maximum or minimum along axes or over windows."""
    (value,), (along, _, _) = ins, summed_windows(eqn, ins[0].shape)
    operands: list[Operand] = [AsIs()]
    if not (value.is_monotonic and value.constant_along(along)):
        operands, (value,) = lowering.to_common_grid(eqn, ins, RESIDUAL_LEVELS)
    lowering.apply(eqn, operands)
    return _reduce(value, along, shape)


def _index_of_largest(
    lowering: Lowering, eqn: jex.JaxprEqn, ins: list[Any], shape: Sequence[int]
) -> Floats:
    """Converts an argmax or argmin: numbers of one scale are compared as their integers are."""
    (value,), along = ins, list(parameters(eqn)["axes"])
    operands: list[Operand] = [AsIs()]
    if value.is_clipped or not (value.is_monotonic and value.constant_along(along)):
        operands, _ = lowering.to_common_grid(eqn, ins, RESIDUAL_LEVELS)
    lowering.apply(eqn, operands)
    return Floats()


def _take(lowering: Lowering, eqn: jex.JaxprEqn, ins: list[Any], shape: Sequence[int]) -> Affine:
    """Converts a gather: slices of integers, at integers that were given or found."""
    value, ids = ins
    if not isinstance(value, Affine):
        raise refusal(eqn, "looks up constants at integers that stand for numbers")
    params = parameters(eqn)
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    filled = params["fill_value"] not in (None, 0) and not _all_there(eqn, ids)
    if numbers.operand_batching_dims or filled:
        raise refusal(eqn, "takes slices in a way that has no integer form")
    chosen = [a for a, n in enumerate(value.shape) if sizes[a] != n]
    chosen += [a for a in numbers.collapsed_slice_dims if a not in chosen]
    operands: list[Operand] = [AsIs()]
    zero_is_zero = not value.shift.any() and (value.lo <= 0).all() and (value.hi >= 0).all()
    if not (value.constant_along(chosen) and zero_is_zero):  # what is not there is zero
        operands, (value,) = lowering.to_common_grid(eqn, [value], RESIDUAL_LEVELS)
        if not value.constant_along(chosen):
            ends = (value.min_code.min(), value.max_code.max())
            value = affine(value.shape, value.scale.item(), 0.0, *ends)
    lowering.steps.append(Take(eqn.primitive.name, (operands[0], lowering.computed(ids))))
    kept = [a for a in range(len(value.shape)) if a not in numbers.collapsed_slice_dims]

    def placed(a: Numbers) -> Numbers:
        unit = [1] * len(shape)
        for axis, at in zip(kept, numbers.offset_dims, strict=True):
            unit[at] = a.shape[axis]
        return a.reshape(unit)

    taken = Affine(tuple(shape), *map(placed, value.arrays))
    return taken._replace(
        min_code=np.minimum(taken.min_code, 0), max_code=np.maximum(taken.max_code, 0)
    )


def _all_there(eqn: jex.JaxprEqn, ids: Any) -> bool:
    """Tells if slices are taken at integers that are known, and none of them from outside."""
    if isinstance(ids, Affine | Floats | Counted):
        return False
    params, shape = parameters(eqn), shape_of(eqn.invars[0]).shape
    axes = params["dimension_numbers"].start_index_map
    room = np.array([shape[axis] - params["slice_sizes"][axis] for axis in axes])
    return bool(np.all((np.asarray(ids) >= 0) & (np.asarray(ids) <= room)))


def _reduce(value: Affine, axes: Sequence[int], shape: Sequence[int]) -> Affine:
    """Reduces several numbers of one scale to one; axes are dropped where the shape has none."""
    keep = len(shape) == len(value.shape)
    bounds = {
        "min_code": value.min_code.min(tuple(axes), keepdims=True),
        "max_code": value.max_code.max(tuple(axes), keepdims=True),
    }
    value = value._replace(shape=tuple(shape), **bounds)
    if keep:
        return value
    return Affine(value.shape, *(np.squeeze(a, tuple(axes)) for a in value.arrays))


RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("add", "sub", "add_any"), _add),
    **dict.fromkeys(("mul", "div", "neg"), _scale),
    **dict.fromkeys(("max", "min", "clamp"), _clip),
    **dict.fromkeys(
        ("reshape", "transpose", "squeeze", "broadcast_in_dim", "slice", "rev", "tile"), _move
    ),
    **dict.fromkeys(("split", "unstack"), _part),
    "dynamic_slice": _window,
    "select_n": _select,
    **dict.fromkeys(("ge", "gt", "le", "lt"), _compare),
    "abs": _magnitude,
    "stack": _stack,
    **dict.fromkeys(("argmax", "argmin"), _index_of_largest),
    "gather": _take,
    "concatenate": _concatenate,
    "pad": _pad,
    **dict.fromkeys(("reduce_sum", "reduce_window_sum"), _sum),
    **dict.fromkeys(
        ("reduce_max", "reduce_min", "reduce_window_max", "reduce_window_min"), _extreme
    ),
}
