"""Axes of the results of an equation, by its primitive.

What a rule does not understand is frozen, with the primitive, the line of the model and the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.extend.core as jex

from jaxsim import internals
from jaxsim.internals import parameters, shape_of
from jaxsim.network.moves import UNCHANGED
from jaxsim.sparsity.channels.axes import (
    AxisGroup,
    Symbol,
    concatenate,
    factorize,
    freeze,
    product,
    reshape_groups,
    unify,
)


class ValueAxes(NamedTuple):
    """Axis groups of a value, and the parameter whose axes they are in some order, if it is one.

    Attributes:
      axes: Group of each axis.
      path: Path of the parameter; "" where it is none.
      order: For each axis which of the parameter's it is.
    """

    axes: tuple[AxisGroup, ...]
    path: str = ""
    order: tuple[int, ...] = ()


def frozen_axes(shape: Sequence[int], reason: str) -> ValueAxes:
    """Makes groups of which none may lose entries.

    Args:
      shape: Shape of the value.
      reason: Why not.
    """
    return ValueAxes(tuple(Symbol(n, reason) for n in shape))


def freeze_value(value: ValueAxes, reason: str) -> None:
    """Lets no axis of a value lose entries.

    Args:
      value: The value.
      reason: Why not.
    """
    for label in value.axes:
        freeze(label, reason)


def unify_values(a: ValueAxes, b: ValueAxes) -> None:
    """Says that two values have the same axes.

    Args:
      a: A value.
      b: Another.
    """
    for one, other in zip(a.axes, b.axes, strict=True):
        unify(one, other)


def describe_place(eqn: jex.JaxprEqn) -> str:
    """Writes the primitive of an equation and the line of the model that it comes from.

    Args:
      eqn: Equation.
    """
    where = internals.source_line(eqn)
    return f"{eqn.primitive.name} at {where}" if where else eqn.primitive.name


def freeze_equation(eqn: jex.JaxprEqn, ins: Sequence[ValueAxes], why: str) -> list[ValueAxes]:
    """Freezes all that an equation touches.

    Args:
      eqn: Equation.
      ins: Axis groups of its operands.
      why: What it does, after its name and its line.
    """
    reason = f"{describe_place(eqn)} {why}"
    for value in ins:
        freeze_value(value, reason)
    return [frozen_axes(shape_of(v).shape, reason) for v in eqn.outvars]


def result_axes(eqn: jex.JaxprEqn, ins: Sequence[ValueAxes]) -> Sequence[ValueAxes]:
    """Finds the axis groups of the results of an equation that neither multiplies nor runs others.

    Args:
      eqn: Equation.
      ins: Axis groups of its operands.
    """
    name = eqn.primitive.name
    if name in _MOVES:
        return [_MOVES[name](eqn, ins)]
    if name in _REDUCES:
        return [_reduce(eqn, ins[0], _REDUCES[name]) for _ in eqn.outvars]
    if name in _ALONG:
        return _along(eqn, ins, _ALONG[name])
    if name == "split":
        return _split(eqn, ins[0])
    if name == "unstack":
        return _unstack(eqn, ins[0])
    if name in UNCHANGED:
        return ins
    if name in ELEMENTWISE:
        return _elementwise(eqn, ins)
    return freeze_equation(eqn, ins, "is not understood")


def _elementwise(eqn: jex.JaxprEqn, ins: Sequence[ValueAxes]) -> list[ValueAxes]:
    """Operands of one shape; axes of size 1 and scalars are repeated."""
    shape = shape_of(eqn.outvars[0]).shape
    whole = [value for value in ins if value.axes]
    if any(len(value.axes) != len(shape) for value in whole):
        return freeze_equation(eqn, ins, "has operands of several ranks")
    if len(eqn.invars) == 1 and eqn.primitive.name in _SAME:
        return [ins[0]]
    axes: list[AxisGroup] = []
    for axis, size in enumerate(shape):
        first, *others = [
            *(value.axes[axis] for value in whole if value.axes[axis].size == size),
            Symbol(size),
        ]
        axes.append(first)
        for other in others:
            unify(first, other)
    return [ValueAxes(tuple(axes)) for _ in eqn.outvars]


def _broadcast(eqn: jex.JaxprEqn, ins: Sequence[ValueAxes]) -> ValueAxes:
    shape, to = parameters(eqn)["shape"], parameters(eqn)["broadcast_dimensions"]
    axes: list[AxisGroup] = [Symbol(n) for n in shape]
    for label, axis in zip(ins[0].axes, to, strict=True):
        if label.size == shape[axis]:
            axes[axis] = label
    return ValueAxes(tuple(axes))


def _transpose(eqn: jex.JaxprEqn, ins: Sequence[ValueAxes]) -> ValueAxes:
    order, value = parameters(eqn)["permutation"], ins[0]
    axes = tuple(value.axes[i] for i in order)
    return ValueAxes(axes, value.path, tuple(value.order[i] for i in order) if value.path else ())


def _squeeze(eqn: jex.JaxprEqn, ins: Sequence[ValueAxes]) -> ValueAxes:
    return ValueAxes(
        tuple(a for i, a in enumerate(ins[0].axes) if i not in parameters(eqn)["dimensions"])
    )


def _reshape(eqn: jex.JaxprEqn, ins: Sequence[ValueAxes]) -> ValueAxes:
    reason = f"{describe_place(eqn)} mixes axes that are laid out in different ways"
    if parameters(eqn).get("dimensions") is not None:
        return freeze_equation(eqn, ins, "transposes")[0]
    return ValueAxes(tuple(reshape_groups(ins[0].axes, shape_of(eqn.outvars[0]).shape, reason)))


def _slice(eqn: jex.JaxprEqn, ins: Sequence[ValueAxes]) -> ValueAxes:
    params, axes = parameters(eqn), list[AxisGroup]()
    strides = params["strides"] or (1,) * len(ins[0].axes)
    bounds = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    for label, (start, stop, stride) in zip(ins[0].axes, bounds, strict=True):
        axes.append(_part(eqn, label, start, stop, stride))
    return ValueAxes(tuple(axes))


def _part(eqn: jex.JaxprEqn, label: AxisGroup, start: int, stop: int, stride: int) -> AxisGroup:
    """Slices an axis: one of several equal parts, which then lose the same entries."""
    size = stop - start
    if size == label.size and stride == 1:
        return label
    even = stride == 1 and size and label.size % size == 0 and start % size == 0
    parts = factorize(label, label.size // size) if even else None
    if parts is None:
        freeze(label, f"{describe_place(eqn)} cuts it unevenly")
        return Symbol(-(-size // stride), f"{describe_place(eqn)} cuts it unevenly")
    freeze(parts[0], f"{describe_place(eqn)} takes one of them")
    return parts[1]


def _split(eqn: jex.JaxprEqn, value: ValueAxes) -> list[ValueAxes]:
    axis, sizes = parameters(eqn)["axis"], parameters(eqn)["sizes"]
    start, outs = 0, list[ValueAxes]()
    for size in sizes:
        axes = list(value.axes)
        axes[axis] = _part(eqn, axes[axis], start, start + size, 1)
        outs.append(ValueAxes(tuple(axes)))
        start += size
    return outs


def _dynamic_slice(eqn: jex.JaxprEqn, ins: Sequence[ValueAxes]) -> ValueAxes:
    axes = list[AxisGroup]()
    for label, size in zip(ins[0].axes, parameters(eqn)["slice_sizes"], strict=True):
        axes.append(label if label.size == size else _look_up(eqn, label, size))
    return ValueAxes(tuple(axes))


def _look_up(eqn: jex.JaxprEqn, label: AxisGroup, size: int) -> AxisGroup:
    reason = f"{describe_place(eqn)} looks entries up by number"
    freeze(label, reason)
    return Symbol(size, reason)


def _update(eqn: jex.JaxprEqn, ins: Sequence[ValueAxes]) -> ValueAxes:
    for whole, part in zip(ins[0].axes, ins[1].axes, strict=True):
        if whole.size == part.size:
            unify(whole, part)
        else:
            freeze(part, f"{describe_place(eqn)} looks entries up by number")
            freeze(whole, f"{describe_place(eqn)} looks entries up by number")
    return ValueAxes(ins[0].axes)


def _gather(eqn: jex.JaxprEqn, ins: Sequence[ValueAxes]) -> ValueAxes:
    operand, indices = ins
    numbers, sizes = parameters(eqn)["dimension_numbers"], parameters(eqn)["slice_sizes"]
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    offsets, kept = iter(numbers.offset_dims), dict[int, AxisGroup]()
    for axis, label in enumerate(operand.axes):
        whole = sizes[axis] == label.size and axis not in numbers.start_index_map
        out = label if whole and axis not in gone else _look_up(eqn, label, sizes[axis])
        if axis not in gone:
            kept[next(offsets)] = out
    batch = iter(indices.axes[:-1])
    rank = len(shape_of(eqn.outvars[0]).shape)
    return ValueAxes(tuple(kept[i] if i in kept else next(batch) for i in range(rank)))


def _concatenate(eqn: jex.JaxprEqn, ins: Sequence[ValueAxes]) -> ValueAxes:
    at = parameters(eqn)["dimension"]
    axes = list(ins[0].axes)
    for other in ins[1:]:
        for axis, label in enumerate(other.axes):
            if axis != at:
                unify(axes[axis], label)
    axes[at] = concatenate([value.axes[at] for value in ins])
    return ValueAxes(tuple(axes))


def _stack(eqn: jex.JaxprEqn, ins: Sequence[ValueAxes]) -> ValueAxes:
    for other in ins[1:]:
        unify_values(ins[0], other)
    at, axes = parameters(eqn)["axis"], ins[0].axes
    number = Symbol(len(ins), f"{describe_place(eqn)} counts them")
    return ValueAxes((*axes[:at], number, *axes[at:]))


def _unstack(eqn: jex.JaxprEqn, value: ValueAxes) -> list[ValueAxes]:
    at, axes = parameters(eqn)["axis"], value.axes
    freeze(axes[at], f"{describe_place(eqn)} counts them")
    return [ValueAxes((*axes[:at], *axes[at + 1 :])) for _ in eqn.outvars]


def _tile(eqn: jex.JaxprEqn, ins: Sequence[ValueAxes]) -> ValueAxes:
    reason = f"{describe_place(eqn)} repeats them"
    pairs = zip(parameters(eqn)["reps"], ins[0].axes, strict=True)
    return ValueAxes(tuple(a if n == 1 else product([Symbol(n, reason), a]) for n, a in pairs))


def _pad(eqn: jex.JaxprEqn, ins: Sequence[ValueAxes]) -> ValueAxes:
    axes: list[AxisGroup] = []
    for label, (lo, hi, inner) in zip(ins[0].axes, parameters(eqn)["padding_config"], strict=True):
        reason = f"{describe_place(eqn)} fills it up"
        if lo < 0 or hi < 0 or inner:
            freeze(label, reason)
            axes.append(
                Symbol(max(lo + hi + label.size + max(label.size - 1, 0) * inner, 0), reason)
            )
            continue
        around = [Symbol(lo, reason)] if lo else []
        behind = [Symbol(hi, reason)] if hi else []
        axes.append(concatenate([*around, label, *behind]))
    return ValueAxes(tuple(axes))


def _iota(eqn: jex.JaxprEqn, ins: Sequence[ValueAxes]) -> ValueAxes:
    counted = parameters(eqn)["dimension"]
    shape = enumerate(shape_of(eqn.outvars[0]).shape)
    return ValueAxes(
        tuple(Symbol(n, f"{describe_place(eqn)} counts" * (i == counted)) for i, n in shape)
    )


def _reduce(eqn: jex.JaxprEqn, value: ValueAxes, why: str) -> ValueAxes:
    """Reduces along axes; `why` says how one over zeros differs from one over fewer entries."""
    axes = parameters(eqn)["axes"]
    if why:
        for axis in axes:
            freeze(value.axes[axis], f"{describe_place(eqn)} {why}")
    return ValueAxes(tuple(a for i, a in enumerate(value.axes) if i not in axes))


def _along(
    eqn: jex.JaxprEqn, ins: Sequence[ValueAxes], of: Callable[[Any], Sequence[int]]
) -> list[ValueAxes]:
    """Passes axis groups but along those axes where the order of the entries counts."""
    for axis in of(parameters(eqn)):
        for value in ins:
            freeze(value.axes[axis], f"{describe_place(eqn)} goes along it")
    for other in ins[1:]:
        unify_values(ins[0], other)
    return [ValueAxes(ins[0].axes) for _ in eqn.outvars]


def _window(eqn: jex.JaxprEqn, ins: Sequence[ValueAxes]) -> ValueAxes:
    """Pools over windows: axes with windows of one entry pass."""
    value, params, axes = ins[0], parameters(eqn), list[AxisGroup]()
    rows = zip(
        value.axes,
        shape_of(eqn.outvars[0]).shape,
        params["window_dimensions"],
        params["window_strides"],
        params["padding"],
        strict=True,
    )
    for label, size, window, stride, padding in rows:
        if window == 1 and stride == 1 and tuple(padding) == (0, 0) and size == label.size:
            axes.append(label)
        else:
            freeze(label, "a place in an image or a window")
            axes.append(Symbol(size, "a place in an image or a window"))
    return ValueAxes(tuple(axes))


_MOVES: dict[str, Callable[[jex.JaxprEqn, Sequence[ValueAxes]], ValueAxes]] = {
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _update,
    "gather": _gather,
    "iota": _iota,
    "pad": _pad,
    "reduce_window_max": _window,
    "reduce_window_min": _window,
    "reduce_window_sum": _window,
    "reshape": _reshape,
    "slice": _slice,
    "squeeze": _squeeze,
    "stack": _stack,
    "tile": _tile,
    "transpose": _transpose,
}

_COMPARES = "compares the entries with each other"
_REDUCES = {
    "reduce_sum": "",
    "reduce_max": _COMPARES,
    "reduce_min": _COMPARES,
    "reduce_prod": "multiplies the entries",
    "reduce_and": _COMPARES,
    "reduce_or": _COMPARES,
    "argmax": _COMPARES,
    "argmin": _COMPARES,
}

_ALONG: dict[str, Callable[[Any], Sequence[int]]] = {
    "cumlogsumexp": lambda params: [params["axis"]],
    "cummax": lambda params: [params["axis"]],
    "cummin": lambda params: [params["axis"]],
    "cumprod": lambda params: [params["axis"]],
    "cumsum": lambda params: [params["axis"]],
    "rev": lambda params: params["dimensions"],
    "sort": lambda params: [params["dimension"]],
}

_SAME = UNCHANGED | {"convert_element_type", "reduce_precision"}
"""Primitives whose output stands for their operand, so that a weight stays one behind them."""

ELEMENTWISE = _SAME | {
    *("abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2", "atanh"),
    *("cbrt", "ceil", "clamp", "clz", "complex", "conj", "cos", "cosh", "digamma", "div", "eq"),
    *("erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt", "igamma", "imag"),
    *("integer_pow", "is_finite", "le", "lgamma", "log", "log1p", "logistic", "lt", "max", "min"),
    *("mul", "ne", "neg", "nextafter", "not", "or", "population_count", "pow", "real", "rem"),
    *("round", "rsqrt", "select_n", "shift_left", "shift_right_arithmetic", "sign", "sin", "sinh"),
    *("shift_right_logical", "sqrt", "square", "sub", "tan", "tanh", "xor"),
    *("bitcast_convert_type", "random_bits", "random_unwrap", "random_wrap"),
}
"""Primitives that compute each entry of their results from one of each operand."""
