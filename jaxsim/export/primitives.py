"""Primitives of JAX as operators of ONNX.

A rule takes the graph, an equation and what its operands are (known arrays, or values of the
graph), and returns its result. `WORDS` says primitives by others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsim.export.graph import Graph, Tensor, is_fixed
from jaxsim.export.products import contract
from jaxsim.export.refusals import refusal
from jaxsim.internals import parameters, shape_of
from jaxsim.network.moves import UNCHANGED
from jaxsim.network.plan import Plan, plain_plan

Rule = Callable[[Graph, jex.JaxprEqn, Sequence[Any]], Any]


def _joint(values: Sequence[Tensor]) -> tuple[Any, ...]:
    """Sizes of what operands give entry by entry, each the same along axes of size 1."""
    rank = max(len(v.shape) for v in values)
    rows = [(1,) * (rank - len(v.shape)) + v.shape for v in values]
    return tuple(
        next((n for n in sizes if not (is_fixed(n) and n == 1)), 1)
        for sizes in zip(*rows, strict=True)
    )


def _entrywise(operator: str, graph: Graph, eqn: jex.JaxprEqn, ins: Sequence[Any]) -> Tensor:
    values = list(map(graph.tensor, ins))
    return graph.add(operator, values, _joint(values))


def _zero(value: Any) -> bool:
    return not isinstance(value, Tensor) and np.size(value) == 1 and float(np.ravel(value)[0]) == 0


def _max(graph: Graph, eqn: jex.JaxprEqn, ins: Sequence[Any]) -> Tensor:
    floats = jnp.issubdtype(shape_of(eqn.outvars[0]).dtype, jnp.floating)
    for a, b in (ins, ins[::-1]):
        if floats and _zero(b) and isinstance(a, Tensor):
            return graph.add("Relu", [a], a.shape)
    return _entrywise("Max", graph, eqn, ins)


def _not_equal(graph: Graph, eqn: jex.JaxprEqn, ins: Sequence[Any]) -> Tensor:
    same = _entrywise("Equal", graph, eqn, ins)
    return graph.add("Not", [same], same.shape)


def _logical(operator: str, graph: Graph, eqn: jex.JaxprEqn, ins: Sequence[Any]) -> Tensor:
    if shape_of(eqn.outvars[0]).dtype != bool:
        raise refusal(eqn, "of the bits of whole numbers has no form in ONNX")
    return _entrywise(operator, graph, eqn, ins)


def _remainder(graph: Graph, eqn: jex.JaxprEqn, ins: Sequence[Any]) -> Tensor:
    a, b = map(graph.tensor, ins)
    return graph.add("Mod", [a, b], _joint([a, b]), fmod=1)


def _integer_pow(graph: Graph, eqn: jex.JaxprEqn, ins: Sequence[Any]) -> Tensor:
    (x,), y = map(graph.tensor, ins), parameters(eqn)["y"]
    if y == 2:
        return graph.add("Mul", [x, x], x.shape)
    return graph.add("Pow", [x, np.asarray(y, shape_of(eqn.outvars[0]).dtype)], x.shape)


def _round(graph: Graph, eqn: jex.JaxprEqn, ins: Sequence[Any]) -> Tensor:
    if parameters(eqn)["rounding_method"] != lax.RoundingMethod.TO_NEAREST_EVEN:
        raise refusal(eqn, "rounds halves away from zero; ONNX rounds them to even")
    return _entrywise("Round", graph, eqn, ins)


def _select(graph: Graph, eqn: jex.JaxprEqn, ins: Sequence[Any]) -> Any:
    if not isinstance(ins[0], Tensor) and np.size(ins[0]) == 1:
        return ins[1 + int(np.ravel(ins[0])[0])]
    which, *cases = map(graph.tensor, ins)
    if shape_of(eqn.invars[0]).dtype != bool:
        raise refusal(
            eqn, f"chooses among {len(cases)} by whole numbers; ONNX's Where takes truths"
        )
    return graph.add("Where", [which, cases[1], cases[0]], _joint([which, *cases]))


def _clamp(graph: Graph, eqn: jex.JaxprEqn, ins: Sequence[Any]) -> Tensor:
    lo, x, hi = map(graph.tensor, ins)
    if lo.shape == hi.shape == ():
        return graph.add("Clip", [x, lo, hi], x.shape)
    above = graph.add("Max", [x, lo], _joint([x, lo]))
    return graph.add("Min", [above, hi], _joint([above, hi]))


def _cast(graph: Graph, eqn: jex.JaxprEqn, ins: Sequence[Any]) -> Tensor:
    dtype = shape_of(eqn.outvars[0]).dtype
    return (
        graph.tensor(ins[0])
        if shape_of(eqn.invars[0]).dtype == dtype
        else graph.cast(ins[0], dtype)
    )


def _same(graph: Graph, eqn: jex.JaxprEqn, ins: Sequence[Any]) -> Any:
    return ins[0] if len(eqn.outvars) == 1 else list(ins)


def _broadcast(graph: Graph, eqn: jex.JaxprEqn, ins: Sequence[Any]) -> Tensor:
    value, axes = graph.tensor(ins[0]), parameters(eqn)["broadcast_dimensions"]
    sizes: list[Any] = [1] * len(shape_of(eqn.outvars[0]).shape)
    for axis, size in zip(axes, value.shape, strict=True):
        sizes[axis] = size
    return graph.reshape(value, sizes)


def _reshape(graph: Graph, eqn: jex.JaxprEqn, ins: Sequence[Any]) -> Tensor:
    if parameters(eqn).get("dimensions") is not None:
        raise refusal(eqn, "reorders axes")
    return graph.reshape(
        graph.full(ins[0], shape_of(eqn.invars[0]).shape), shape_of(eqn.outvars[0]).shape
    )


def _squeeze(graph: Graph, eqn: jex.JaxprEqn, ins: Sequence[Any]) -> Tensor:
    value, gone = graph.tensor(ins[0]), parameters(eqn)["dimensions"]
    return graph.reshape(value, [n for i, n in enumerate(value.shape) if i not in gone])


def _transpose(graph: Graph, eqn: jex.JaxprEqn, ins: Sequence[Any]) -> Tensor:
    return graph.transpose(ins[0], parameters(eqn)["permutation"])


def _concatenate(graph: Graph, eqn: jex.JaxprEqn, ins: Sequence[Any]) -> Tensor:
    whole = [graph.full(a, shape_of(v).shape) for a, v in zip(ins, eqn.invars, strict=True)]
    axis = parameters(eqn)["dimension"]
    return graph.add("Concat", whole, shape_of(eqn.outvars[0]).shape, axis=axis)


def _stack(graph: Graph, eqn: jex.JaxprEqn, ins: Sequence[Any]) -> Tensor:
    axis, shape = parameters(eqn)["axis"], list(shape_of(eqn.invars[0]).shape)
    one = [*shape[:axis], 1, *shape[axis:]]
    whole = [graph.reshape(graph.full(a, shape), one) for a in ins]
    return graph.add("Concat", whole, shape_of(eqn.outvars[0]).shape, axis=axis)


def _unstack(graph: Graph, eqn: jex.JaxprEqn, ins: Sequence[Any]) -> list[Tensor]:
    whole, axis = graph.full(ins[0], shape_of(eqn.invars[0]).shape), parameters(eqn)["axis"]
    out = list(shape_of(eqn.outvars[0]).shape)
    sizes = np.ones(len(eqn.outvars), np.int64)
    shapes = [(*out[:axis], 1, *out[axis:])] * len(sizes)
    parts = graph.add_several("Split", [whole, sizes], shapes, axis=axis)
    return [graph.reshape(part, out) for part in parts]


def _tile(graph: Graph, eqn: jex.JaxprEqn, ins: Sequence[Any]) -> Tensor:
    whole = graph.full(ins[0], shape_of(eqn.invars[0]).shape)
    reps = np.asarray(parameters(eqn)["reps"], np.int64)
    return graph.add("Tile", [whole, reps], shape_of(eqn.outvars[0]).shape)


def _split(graph: Graph, eqn: jex.JaxprEqn, ins: Sequence[Any]) -> list[Tensor]:
    params, whole = parameters(eqn), graph.full(ins[0], shape_of(eqn.invars[0]).shape)
    shapes = [shape_of(v).shape for v in eqn.outvars]
    sizes = np.asarray(params["sizes"], np.int64)
    return graph.add_several("Split", [whole, sizes], shapes, axis=params["axis"])


def _slice(graph: Graph, eqn: jex.JaxprEqn, ins: Sequence[Any]) -> Tensor:
    params, shape = parameters(eqn), shape_of(eqn.invars[0]).shape
    steps = params["strides"] or (1,) * len(shape)
    cut: list[tuple[int, int, int, int]] = []
    ends = zip(params["start_indices"], params["limit_indices"], steps, strict=True)
    for axis, (first, last, step) in enumerate(ends):
        if is_fixed(first) and first == 0 and step == 1 and str(last) == str(shape[axis]):
            continue
        if not (is_fixed(first) and is_fixed(last)):
            if str(last) != str(shape[axis]) or not is_fixed(first):
                raise refusal(eqn, f"cuts {first} to {last} of a size that is free")
            last = np.iinfo(np.int64).max
        cut.append((first, last, axis, step))
    whole = graph.full(ins[0], shape)
    if not cut:
        return whole
    columns = [np.asarray(column, np.int64) for column in zip(*cut, strict=True)]
    return graph.add("Slice", [whole, *columns], shape_of(eqn.outvars[0]).shape)


def _reverse(graph: Graph, eqn: jex.JaxprEqn, ins: Sequence[Any]) -> Tensor:
    axes = np.asarray(parameters(eqn)["dimensions"], np.int64)
    shape = shape_of(eqn.invars[0]).shape
    first, last = np.full(len(axes), -1), np.full(len(axes), np.iinfo(np.int64).min + 1)
    whole = graph.full(ins[0], shape)
    return graph.add("Slice", [whole, first, last, axes, np.full(len(axes), -1)], shape)


def _cut_at(
    graph: Graph, value: Tensor, starts: Any, axes: Sequence[int], sizes: Sequence[Any]
) -> Tensor:
    """Takes neighboring entries from places that are found, [axes] whole numbers, on."""
    lengths = graph.sizes(sizes)
    ends = graph.add("Add", [starts, lengths], (len(axes),))
    shape = list(value.shape)
    for axis, size in zip(axes, sizes, strict=True):
        shape[axis] = size
    return graph.add("Slice", [value, starts, ends, np.asarray(axes, np.int64)], shape)


def _dynamic_slice(graph: Graph, eqn: jex.JaxprEqn, ins: Sequence[Any]) -> Tensor:
    """Takes entries at a place that is found, moved to fit."""
    shape, sizes = shape_of(eqn.invars[0]).shape, parameters(eqn)["slice_sizes"]
    axes = [i for i, n in enumerate(sizes) if str(n) != str(shape[i])]
    starts: list[Tensor] = []
    for axis in axes:
        first = ins[1 + axis]
        if is_fixed(shape[axis]):
            first = graph.reshape(graph.cast(first, np.int64), (1,))
            ends = [np.int64(0), np.int64(shape[axis] - sizes[axis])]
            starts.append(graph.add("Clip", [first, *ends], (1,)))
        elif _zero(first) and is_fixed(sizes[axis]) and sizes[axis] == 1:
            starts.append(graph.constant(np.zeros(1, np.int64)))
        else:
            raise refusal(eqn, "cuts a size that is free at a place that is found")
    value = graph.full(ins[0], shape)
    if not axes:
        return value
    places = graph.add("Concat", starts, (len(axes),), axis=0)
    return _cut_at(graph, value, places, axes, [sizes[a] for a in axes])


def _pad(graph: Graph, eqn: jex.JaxprEqn, ins: Sequence[Any]) -> Tensor:
    config = parameters(eqn)["padding_config"]
    if any(inside or min(lo, hi) < 0 for lo, hi, inside in config):
        raise refusal(eqn, f"takes entries away or puts some between, by padding_config={config}")
    ends = np.asarray([lo for lo, _, _ in config] + [hi for _, hi, _ in config], np.int64)
    whole = graph.full(ins[0], shape_of(eqn.invars[0]).shape)
    return graph.add("Pad", [whole, ends, ins[1]], shape_of(eqn.outvars[0]).shape)


def _iota(graph: Graph, eqn: jex.JaxprEqn, ins: Sequence[Any]) -> Tensor:
    """Counts along an axis whose size is free."""
    out, axis = shape_of(eqn.outvars[0]), parameters(eqn)["dimension"]
    sizes = graph.sizes([out.shape[axis]])
    last = graph.add("Squeeze", [sizes], ())
    count = graph.add("Range", [np.int64(0), last, np.int64(1)], (out.shape[axis],))
    places = [out.shape[axis] if i == axis else 1 for i in range(len(out.shape))]
    return graph.reshape(graph.cast(count, out.dtype), places)


def _size(graph: Graph, eqn: jex.JaxprEqn, ins: Sequence[Any]) -> Tensor:
    """Reads a size that is free."""
    found = graph.add("Squeeze", [graph.sizes([parameters(eqn)["dim"]])], ())
    return graph.cast(found, shape_of(eqn.outvars[0]).dtype)


def _reduce(operator: str, graph: Graph, eqn: jex.JaxprEqn, ins: Sequence[Any]) -> Tensor:
    axes = np.asarray(parameters(eqn)["axes"], np.int64)
    whole = graph.full(ins[0], shape_of(eqn.invars[0]).shape)
    out = shape_of(eqn.outvars[0])
    if out.dtype != bool:
        return graph.add(operator, [whole, axes], out.shape, keepdims=0)
    numbers = graph.cast(whole, np.int32)
    return graph.cast(graph.add(operator, [numbers, axes], out.shape, keepdims=0), bool)


def _arg(operator: str, graph: Graph, eqn: jex.JaxprEqn, ins: Sequence[Any]) -> Tensor:
    params, out = parameters(eqn), shape_of(eqn.outvars[0])
    (axis,) = params["axes"]
    whole = graph.full(ins[0], shape_of(eqn.invars[0]).shape)
    found = graph.add(operator, [whole], out.shape, axis=axis, keepdims=0)
    return graph.cast(found, out.dtype)


def _cumulative_sum(graph: Graph, eqn: jex.JaxprEqn, ins: Sequence[Any]) -> Tensor:
    params, shape = parameters(eqn), shape_of(eqn.invars[0]).shape
    axis, reverse = np.int64(params["axis"]), int(params["reverse"])
    return graph.add("CumSum", [graph.full(ins[0], shape), axis], shape, reverse=reverse)


def _pool(operator: str, graph: Graph, eqn: jex.JaxprEqn, ins: Sequence[Any]) -> Tensor:
    """Takes maxima or sums of windows; two axes without windows stand for batch and features."""
    params = parameters(eqn)
    sizes, steps = params["window_dimensions"], params["window_strides"]
    padding, gaps = params["padding"], params["window_dilation"]
    if any(d != 1 for d in params["base_dilation"]):
        raise refusal(eqn, "puts entries between its inputs (base_dilation)")
    if any(end < 0 for pair in padding for end in pair):
        raise refusal(eqn, f"takes entries away by padding={tuple(padding)}")
    told = zip(sizes, steps, padding, strict=True)
    still = [i for i, (n, s, p) in enumerate(told) if n == s == 1 and not any(p)]
    if len(still) < 2:
        raise refusal(eqn, "has windows along all axes but one; ONNX leaves out two")
    ends = still[0], still[-1]
    inside = [i for i in range(len(sizes)) if i not in ends]
    order = [*ends, *inside]
    value = graph.transpose(graph.full(ins[0], shape_of(eqn.invars[0]).shape), order)
    out = shape_of(eqn.outvars[0])
    more: dict[str, Any] = {} if operator == "MaxPool" else {"count_include_pad": 1}
    made = graph.add(
        operator,
        [value],
        [out.shape[i] for i in order],
        kernel_shape=[sizes[i] for i in inside],
        strides=[steps[i] for i in inside],
        pads=[padding[i][0] for i in inside] + [padding[i][1] for i in inside],
        dilations=[gaps[i] for i in inside],
        **more,
    )
    if operator == "AveragePool":
        made = graph.add("Mul", [made, np.asarray(np.prod(sizes), out.dtype)], made.shape)
    return graph.transpose(made, np.argsort(order).tolist())


def _gather(graph: Graph, eqn: jex.JaxprEqn, ins: Sequence[Any]) -> Tensor:
    """Takes one cut, or whole slices along one axis, at places that are found."""
    params, ids = parameters(eqn), shape_of(eqn.invars[1]).shape
    numbers, mode = params["dimension_numbers"], params["mode"]
    if len(ids) == 1 and mode == lax.GatherScatterMode.PROMISE_IN_BOUNDS:
        axes = numbers.start_index_map
        starts = graph.cast(graph.full(ins[1], ids), np.int64)
        value = graph.full(ins[0], shape_of(eqn.invars[0]).shape)
        cut = _cut_at(graph, value, starts, axes, [params["slice_sizes"][a] for a in axes])
        gone = numbers.collapsed_slice_dims
        return graph.reshape(cut, [n for i, n in enumerate(cut.shape) if i not in gone])
    return _take(graph, eqn, ins)


def _take(graph: Graph, eqn: jex.JaxprEqn, ins: Sequence[Any]) -> Tensor:
    """Takes whole slices along one axis."""
    params, shape = parameters(eqn), shape_of(eqn.invars[0]).shape
    numbers, sizes, mode = params["dimension_numbers"], params["slice_sizes"], params["mode"]
    out, ids = shape_of(eqn.outvars[0]), shape_of(eqn.invars[1])
    axis = numbers.start_index_map[0]
    whole = all(i == axis or str(n) == str(shape[i]) for i, n in enumerate(sizes))
    if not whole or tuple(numbers.collapsed_slice_dims) != (axis,) or not is_fixed(shape[axis]):
        raise refusal(eqn, "takes other than whole slices along one axis")
    places = graph.reshape(graph.full(ins[1], ids.shape), ids.shape[:-1])
    inside, last = places, np.asarray(shape[axis] - 1, ids.dtype)
    if mode != lax.GatherScatterMode.PROMISE_IN_BOUNDS:
        inside = graph.add("Clip", [places, np.zeros_like(last), last], places.shape)
    taken = (*shape[:axis], *ids.shape[:-1], *shape[axis + 1 :])
    rows = graph.add("Gather", [graph.full(ins[0], shape), inside], taken, axis=axis)
    # places lie where the axis was; the equation says where theirs are to be
    width = len(ids.shape) - 1
    placed, kept = (
        iter(range(axis, axis + width)),
        iter((*range(axis), *range(axis + width, len(taken)))),
    )
    offset = numbers.offset_dims
    rows = graph.transpose(rows, [next(kept if i in offset else placed) for i in range(len(taken))])
    if mode != lax.GatherScatterMode.FILL_OR_DROP:
        return rows
    there = graph.add("Equal", [places, inside], places.shape)
    there = graph.reshape(there, [1 if i in offset else n for i, n in enumerate(out.shape)])
    fill = params["fill_value"]
    if fill is None:
        floats = jnp.issubdtype(out.dtype, jnp.inexact)
        fill = np.nan if floats else jnp.iinfo(out.dtype).min
    return graph.add("Where", [there, rows, np.asarray(fill, out.dtype)], out.shape)


def _entry(operator: str) -> Rule:
    return partial(_entrywise, operator)


RULES: Mapping[str, Rule] = {
    **{
        name: _entry(operator)
        for name, operator in {
            "abs": "Abs",
            "add": "Add",
            "add_any": "Add",
            "ceil": "Ceil",
            "cos": "Cos",
            "div": "Div",
            "eq": "Equal",
            "erf": "Erf",
            "exp": "Exp",
            "floor": "Floor",
            "ge": "GreaterOrEqual",
            "gt": "Greater",
            "le": "LessOrEqual",
            "log": "Log",
            "logistic": "Sigmoid",
            "lt": "Less",
            "min": "Min",
            "mul": "Mul",
            "neg": "Neg",
            "pow": "Pow",
            "sign": "Sign",
            "sin": "Sin",
            "sqrt": "Sqrt",
            "sub": "Sub",
            "tanh": "Tanh",
        }.items()
    },
    **{
        name: partial(_logical, operator)
        for name, operator in {"and": "And", "or": "Or", "xor": "Xor", "not": "Not"}.items()
    },
    **{
        name: partial(_reduce, operator)
        for name, operator in {
            "reduce_and": "ReduceMin",
            "reduce_max": "ReduceMax",
            "reduce_min": "ReduceMin",
            "reduce_or": "ReduceMax",
            "reduce_prod": "ReduceProd",
            "reduce_sum": "ReduceSum",
        }.items()
    },
    "argmax": partial(_arg, "ArgMax"),
    "argmin": partial(_arg, "ArgMin"),
    "broadcast_in_dim": _broadcast,
    "clamp": _clamp,
    "concatenate": _concatenate,
    "conv_general_dilated": contract,
    "convert_element_type": _cast,
    "cumsum": _cumulative_sum,
    "dim_as_value": _size,
    "dot_general": contract,
    "dynamic_slice": _dynamic_slice,
    "gather": _gather,
    "integer_pow": _integer_pow,
    "iota": _iota,
    "max": _max,
    "ne": _not_equal,
    "pad": _pad,
    "reduce_window_max": partial(_pool, "MaxPool"),
    "reduce_window_sum": partial(_pool, "AveragePool"),
    "rem": _remainder,
    "reshape": _reshape,
    "rev": _reverse,
    "round": _round,
    "select_n": _select,
    "slice": _slice,
    "split": _split,
    "squeeze": _squeeze,
    "stack": _stack,
    "tile": _tile,
    "transpose": _transpose,
    "unstack": _unstack,
    **dict.fromkeys(UNCHANGED, _same),
}
"""Rules by name of the primitive."""


def _log1p(x: Any) -> Any:
    # log(w) x / (w - 1) with w = 1 + x as it was rounded: Goldberg (1991), theorem 4
    w = 1 + x
    near = jnp.where(w == 1, x, jnp.log(w) * x / jnp.where(w == 1, 1, w - 1))
    return jnp.where(jnp.abs(x) > 0.5, jnp.log(w), near)


def _expm1(x: Any) -> Any:
    u = jnp.exp(x)
    log = jnp.where(u == 1, 1, jnp.log(jnp.where(u > 0, u, 1)))
    near = jnp.where(u == 1, x, (u - 1) * x / jnp.where(log == 0, 1, log))
    return jnp.where(jnp.abs(x) > 0.5, u - 1, near)


WORDS: Mapping[str, Callable[..., Any]] = {
    "cbrt": lambda x: jnp.sign(x) * jnp.abs(x) ** (1 / 3),
    "erfc": lambda x: 1 - lax.erf(x),
    "exp2": lambda x: jnp.exp(x * np.log(2).astype(x.dtype)),
    "expm1": _expm1,
    "is_finite": lambda x: jnp.abs(x) < jnp.inf,
    "log1p": _log1p,
    "rsqrt": lambda x: 1 / jnp.sqrt(x),
    "square": lambda x: x * x,
    "tan": lambda x: jnp.sin(x) / jnp.cos(x),
}
"""Primitives as functions made of others."""


def in_words(eqn: jex.JaxprEqn) -> Plan | None:
    """Equations that say a primitive by others; None where there are none.

    Args:
      eqn: Equation.
    """
    found = WORDS.get(eqn.primitive.name)
    if found is None:
        return None
    return plain_plan(found, *(shape_of(v) for v in eqn.invars))
