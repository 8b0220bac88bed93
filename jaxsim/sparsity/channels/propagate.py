"""Channel propagation: which axes of a network run over the same channels.

Every axis of every value carries an axis group; each equation says which groups are equal. What a
rule does not understand is frozen, with the primitive, the line of the model and the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.extend.core.primitives as prims
import numpy as np

from jaxsim import internals
from jaxsim.internals import Atom, inner_jaxprs, parameters, shape_of
from jaxsim.network.leaves import path_name
from jaxsim.network.moves import UNCHANGED
from jaxsim.network.network import Network
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


class Leaf(NamedTuple):
    """Axis groups of a parameter or buffer.

    Attributes:
      path: Path: `params/Conv_0/kernel`, `buffers/batch_stats/…`.
      axes: Group of each axis.
      roles: Role of each axis: "out" where a site makes it, "in" where a site sums over it, else
        "".
    """

    path: str
    axes: tuple[AxisGroup, ...]
    roles: tuple[str, ...]


class ChannelPropagation(NamedTuple):
    """Axis groups of all values of a network.

    Attributes:
      leaves: Parameters and buffers, in order.
      grouped: Symbols of the groups of grouped convolutions, by path of the kernel.
      made: Axis groups of the results of every equation, those inside others first.
    """

    leaves: tuple[Leaf, ...]
    grouped: dict[str, AxisGroup]
    made: tuple[tuple[AxisGroup, ...], ...]


class EquationAxes(NamedTuple):
    """Axis groups of what an equation reads and makes.

    Attributes:
      operands, results: For each the group of each axis.
      inner: Those of the equations of each jaxpr inside it.
    """

    operands: tuple[tuple[AxisGroup, ...], ...]
    results: tuple[tuple[AxisGroup, ...], ...]
    inner: tuple[tuple[EquationAxes, ...], ...]


class _Value(NamedTuple):
    """Axis groups of a value, and the parameter whose axes they are in some order, if it is one."""

    axes: tuple[AxisGroup, ...]
    path: str = ""
    order: tuple[int, ...] = ()


def propagate_channels(net: Network, jaxpr: jex.Jaxpr) -> ChannelPropagation:
    """Follows the axes of a network's parameters and buffers through a call.

    Args:
      net: Network; only shapes count.
      jaxpr: Equations of a call; its inputs are the leaves of `(params, buffers, arguments)`.
    """
    tree = {"params": net.params, "buffers": net.buffers}
    paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree["params"])]
    paths = [f"params/{path}" for path in paths]
    for path, _ in jax.tree_util.tree_leaves_with_path(tree["buffers"]):
        paths.append(f"buffers/{path_name(path)}")
    values = [
        _Value(tuple(map(Symbol, shape_of(v).shape)), path, tuple(range(len(shape_of(v).shape))))
        for path, v in zip(paths, jaxpr.invars, strict=False)
    ]
    given = [
        _make_frozen(shape_of(v).shape, "an input of the model") for v in jaxpr.invars[len(paths) :]
    ]
    follow = _Follow()
    for value in follow.run(jaxpr, [*values, *given]):
        _freeze(value, "an output of the model")
    leaves = tuple(
        Leaf(v.path, v.axes, tuple(follow.roles.get((v.path, i), "") for i in range(len(v.axes))))
        for v in values
    )
    return ChannelPropagation(leaves, follow.grouped, tuple(follow.made))


def equation_axes(
    jaxpr: jex.Jaxpr, inputs: Sequence[Sequence[AxisGroup]]
) -> tuple[EquationAxes, ...]:
    """Follows the axes of the inputs of a jaxpr through its equations.

    Args:
      jaxpr: Equations.
      inputs: For each input the group of each axis.
    """
    follow = _Follow()
    follow.run(jaxpr, [_Value(tuple(axes)) for axes in inputs])
    (found,) = follow.inside
    return found


def _make_frozen(shape: Sequence[int], reason: str) -> _Value:
    return _Value(tuple(Symbol(n, reason) for n in shape))


def _freeze(value: _Value, reason: str) -> None:
    for label in value.axes:
        freeze(label, reason)


class _Follow:
    """Follows the axis groups of the values of a jaxpr, equation by equation."""

    def __init__(self):
        self.roles: dict[tuple[str, int], str] = {}
        self.grouped: dict[str, AxisGroup] = {}
        self.made: list[tuple[AxisGroup, ...]] = []
        self.inside: list[tuple[EquationAxes, ...]] = []

    def run(
        self, jaxpr: jex.Jaxpr, values: Sequence[_Value], around: jex.JaxprEqn | None = None
    ) -> list[_Value]:
        """Finds the axis groups of a jaxpr's outputs; `around` is the equation that runs it."""
        env: dict[Any, _Value] = dict(zip(jaxpr.invars, values, strict=True))
        for v in jaxpr.constvars:
            env[v] = _make_frozen(shape_of(v).shape, "a constant of the model")

        def read(atom: Atom) -> _Value:
            if isinstance(atom, jex.Literal):
                return _make_frozen(np.shape(atom.val), "a constant of the model")
            return env[atom]

        around_this, rows = self.inside, list[EquationAxes]()
        for inside in jaxpr.eqns:
            eqn = inside
            if around is not None and not internals.source_line(eqn):
                eqn = eqn.replace(source_info=around.source_info)
            ins = [read(atom) for atom in eqn.invars]
            self.inside = []
            outs = self.step(eqn, ins)
            made = tuple(value.axes for value in outs)
            rows.append(EquationAxes(tuple(v.axes for v in ins), made, tuple(self.inside)))
            self.made += made
            env.update(zip(eqn.outvars, outs, strict=True))
        self.inside = [*around_this, tuple(rows)]
        return [read(atom) for atom in jaxpr.outvars]

    def step(self, eqn: jex.JaxprEqn, ins: list[_Value]) -> Sequence[_Value]:
        """Finds the axis groups of the results of an equation."""
        name = eqn.primitive.name
        if inner := inner_jaxprs(eqn):
            return self.inner(eqn, [jaxpr for jaxpr, _ in inner], ins)
        if eqn.primitive is prims.dot_general_p:
            return [self.dot(eqn, *ins)]
        if eqn.primitive is prims.conv_general_dilated_p:
            return [self.conv(eqn, *ins)]
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
        return _freeze_equation(eqn, ins, "is not understood")

    def role(self, value: _Value, axes: Sequence[int], role: str) -> None:
        """Notes what a site does along axes of an operand, if that is a parameter."""
        if value.path:
            for axis in axes:
                self.roles.setdefault((value.path, value.order[axis]), role)

    def dot(self, eqn: jex.JaxprEqn, a: _Value, b: _Value) -> _Value:
        """Contracts: the axes that are summed over are equal, and so are batch axes."""
        (a_sum, b_sum), (a_batch, b_batch) = parameters(eqn)["dimension_numbers"]
        for axes in ((a_sum, b_sum), (a_batch, b_batch)):
            for i, j in zip(*axes, strict=True):
                unify(a.axes[i], b.axes[j])
        a_free = [i for i in range(len(a.axes)) if i not in (*a_sum, *a_batch)]
        b_free = [i for i in range(len(b.axes)) if i not in (*b_sum, *b_batch)]
        for value, summed, free in ((a, a_sum, a_free), (b, b_sum, b_free)):
            self.role(value, summed, "in")
            self.role(value, free, "out")
        batch = [a.axes[i] for i in a_batch]
        free = [*(a.axes[i] for i in a_free), *(b.axes[j] for j in b_free)]
        return _Value((*batch, *free))

    def conv(self, eqn: jex.JaxprEqn, x: _Value, w: _Value) -> _Value:
        """Convolves: features are those of its groups, one after another."""
        params, numbers = parameters(eqn), parameters(eqn)["dimension_numbers"]
        if params["batch_group_count"] != 1:
            return _freeze_equation(eqn, [x, w], "runs over groups of the batch")[0]
        groups = params["feature_group_count"]
        features = w.axes[numbers.rhs_spec[0]]
        channels = w.axes[numbers.rhs_spec[1]]
        if groups > 1:
            group = Symbol(groups)
            each = features.size // groups
            unify(features, product([group, Symbol(each)]))
            unify(x.axes[numbers.lhs_spec[1]], product([group, channels]))
            if w.path:
                self.grouped[w.path] = group
        else:
            unify(x.axes[numbers.lhs_spec[1]], channels)
        self.role(w, [numbers.rhs_spec[0]], "out")
        self.role(w, [numbers.rhs_spec[1]], "in")
        for value, spec in ((x, numbers.lhs_spec), (w, numbers.rhs_spec)):
            for axis in spec[2:]:
                freeze(value.axes[axis], "a place in an image or a window")
        out: list[AxisGroup] = [
            Symbol(n, "a place in an image or a window") for n in shape_of(eqn.outvars[0]).shape
        ]
        out[numbers.out_spec[0]] = x.axes[numbers.lhs_spec[0]]
        out[numbers.out_spec[1]] = features
        return _Value(tuple(out))

    def inner(
        self, eqn: jex.JaxprEqn, jaxprs: list[jex.Jaxpr], ins: list[_Value]
    ) -> Sequence[_Value]:
        """Follows an equation that runs others."""
        if eqn.primitive is prims.scan_p:
            loop = internals.scan(eqn)
            fixed, first = loop.consts, loop.first_slice
            for value in ins[first:]:
                freeze(value.axes[0], "a turn of a scan")
            rows = [
                _Value(v.axes[1:], v.path, v.order[1:]) if v.path else _Value(v.axes[1:])
                for v in ins[first:]
            ]
            outs = self.run(jaxprs[0], [*ins[:first], *rows], eqn)
            for before, after in zip(ins[fixed:first], outs[: loop.carry], strict=True):
                _unify(before, after)
            turn = Symbol(loop.length, "a turn of a scan")
            return [*ins[fixed:first], *(_Value((turn, *v.axes)) for v in outs[loop.carry :])]
        if eqn.primitive is prims.while_p:
            loop = internals.while_loop(eqn)
            carry = ins[loop.first_carry :]
            self.run(jaxprs[0], [*ins[: loop.test_consts], *carry], eqn)
            body = ins[loop.test_consts : loop.first_carry]
            outs = self.run(jaxprs[1], [*body, *carry], eqn)
            for before, after in zip(carry, outs, strict=True):
                _unify(before, after)
            return carry
        if eqn.primitive is prims.cond_p:
            outs, *others = [self.run(jaxpr, ins[1:], eqn) for jaxpr in jaxprs]
            for other in others:
                for one, same in zip(outs, other, strict=True):
                    _unify(one, same)
            return outs
        return self.run(jaxprs[0], ins, eqn)


def _unify(a: _Value, b: _Value) -> None:
    for one, other in zip(a.axes, b.axes, strict=True):
        unify(one, other)


def describe_place(eqn: jex.JaxprEqn) -> str:
    """Writes the primitive of an equation and the line of the model that it comes from.

    Args:
      eqn: Equation.
    """
    where = internals.source_line(eqn)
    return f"{eqn.primitive.name} at {where}" if where else eqn.primitive.name


def _freeze_equation(eqn: jex.JaxprEqn, ins: Sequence[_Value], why: str) -> list[_Value]:
    """Freezes all that an equation touches."""
    reason = f"{describe_place(eqn)} {why}"
    for value in ins:
        _freeze(value, reason)
    return [_make_frozen(shape_of(v).shape, reason) for v in eqn.outvars]


def _elementwise(eqn: jex.JaxprEqn, ins: Sequence[_Value]) -> list[_Value]:
    """Operands of one shape; axes of size 1 and scalars are repeated."""
    shape = shape_of(eqn.outvars[0]).shape
    whole = [value for value in ins if value.axes]
    if any(len(value.axes) != len(shape) for value in whole):
        return _freeze_equation(eqn, ins, "has operands of several ranks")
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
    return [_Value(tuple(axes)) for _ in eqn.outvars]


def _broadcast(eqn: jex.JaxprEqn, ins: Sequence[_Value]) -> _Value:
    shape, to = parameters(eqn)["shape"], parameters(eqn)["broadcast_dimensions"]
    axes: list[AxisGroup] = [Symbol(n) for n in shape]
    for label, axis in zip(ins[0].axes, to, strict=True):
        if label.size == shape[axis]:
            axes[axis] = label
    return _Value(tuple(axes))


def _transpose(eqn: jex.JaxprEqn, ins: Sequence[_Value]) -> _Value:
    order, value = parameters(eqn)["permutation"], ins[0]
    axes = tuple(value.axes[i] for i in order)
    return _Value(axes, value.path, tuple(value.order[i] for i in order) if value.path else ())


def _squeeze(eqn: jex.JaxprEqn, ins: Sequence[_Value]) -> _Value:
    return _Value(
        tuple(a for i, a in enumerate(ins[0].axes) if i not in parameters(eqn)["dimensions"])
    )


def _reshape(eqn: jex.JaxprEqn, ins: Sequence[_Value]) -> _Value:
    reason = f"{describe_place(eqn)} mixes axes that are laid out in different ways"
    if parameters(eqn).get("dimensions") is not None:
        return _freeze_equation(eqn, ins, "transposes")[0]
    return _Value(tuple(reshape_groups(ins[0].axes, shape_of(eqn.outvars[0]).shape, reason)))


def _slice(eqn: jex.JaxprEqn, ins: Sequence[_Value]) -> _Value:
    params, axes = parameters(eqn), list[AxisGroup]()
    strides = params["strides"] or (1,) * len(ins[0].axes)
    bounds = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    for label, (start, stop, stride) in zip(ins[0].axes, bounds, strict=True):
        axes.append(_part(eqn, label, start, stop, stride))
    return _Value(tuple(axes))


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


def _split(eqn: jex.JaxprEqn, value: _Value) -> list[_Value]:
    axis, sizes = parameters(eqn)["axis"], parameters(eqn)["sizes"]
    start, outs = 0, list[_Value]()
    for size in sizes:
        axes = list(value.axes)
        axes[axis] = _part(eqn, axes[axis], start, start + size, 1)
        outs.append(_Value(tuple(axes)))
        start += size
    return outs


def _dynamic_slice(eqn: jex.JaxprEqn, ins: Sequence[_Value]) -> _Value:
    axes = list[AxisGroup]()
    for label, size in zip(ins[0].axes, parameters(eqn)["slice_sizes"], strict=True):
        axes.append(label if label.size == size else _look_up(eqn, label, size))
    return _Value(tuple(axes))


def _look_up(eqn: jex.JaxprEqn, label: AxisGroup, size: int) -> AxisGroup:
    reason = f"{describe_place(eqn)} looks entries up by number"
    freeze(label, reason)
    return Symbol(size, reason)


def _update(eqn: jex.JaxprEqn, ins: Sequence[_Value]) -> _Value:
    for whole, part in zip(ins[0].axes, ins[1].axes, strict=True):
        if whole.size == part.size:
            unify(whole, part)
        else:
            freeze(part, f"{describe_place(eqn)} looks entries up by number")
            freeze(whole, f"{describe_place(eqn)} looks entries up by number")
    return _Value(ins[0].axes)


def _gather(eqn: jex.JaxprEqn, ins: Sequence[_Value]) -> _Value:
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
    return _Value(tuple(kept[i] if i in kept else next(batch) for i in range(rank)))


def _concatenate(eqn: jex.JaxprEqn, ins: Sequence[_Value]) -> _Value:
    at = parameters(eqn)["dimension"]
    axes = list(ins[0].axes)
    for other in ins[1:]:
        for axis, label in enumerate(other.axes):
            if axis != at:
                unify(axes[axis], label)
    axes[at] = concatenate([value.axes[at] for value in ins])
    return _Value(tuple(axes))


def _stack(eqn: jex.JaxprEqn, ins: Sequence[_Value]) -> _Value:
    for other in ins[1:]:
        _unify(ins[0], other)
    at, axes = parameters(eqn)["axis"], ins[0].axes
    number = Symbol(len(ins), f"{describe_place(eqn)} counts them")
    return _Value((*axes[:at], number, *axes[at:]))


def _unstack(eqn: jex.JaxprEqn, value: _Value) -> list[_Value]:
    at, axes = parameters(eqn)["axis"], value.axes
    freeze(axes[at], f"{describe_place(eqn)} counts them")
    return [_Value((*axes[:at], *axes[at + 1 :])) for _ in eqn.outvars]


def _tile(eqn: jex.JaxprEqn, ins: Sequence[_Value]) -> _Value:
    reason = f"{describe_place(eqn)} repeats them"
    pairs = zip(parameters(eqn)["reps"], ins[0].axes, strict=True)
    return _Value(tuple(a if n == 1 else product([Symbol(n, reason), a]) for n, a in pairs))


def _pad(eqn: jex.JaxprEqn, ins: Sequence[_Value]) -> _Value:
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
    return _Value(tuple(axes))


def _iota(eqn: jex.JaxprEqn, ins: Sequence[_Value]) -> _Value:
    counted = parameters(eqn)["dimension"]
    shape = enumerate(shape_of(eqn.outvars[0]).shape)
    return _Value(
        tuple(Symbol(n, f"{describe_place(eqn)} counts" * (i == counted)) for i, n in shape)
    )


def _reduce(eqn: jex.JaxprEqn, value: _Value, why: str) -> _Value:
    """Reduces along axes; `why` says how one over zeros differs from one over fewer entries."""
    axes = parameters(eqn)["axes"]
    if why:
        for axis in axes:
            freeze(value.axes[axis], f"{describe_place(eqn)} {why}")
    return _Value(tuple(a for i, a in enumerate(value.axes) if i not in axes))


def _along(
    eqn: jex.JaxprEqn, ins: Sequence[_Value], of: Callable[[Any], Sequence[int]]
) -> list[_Value]:
    """Passes axis groups but along those axes where the order of the entries counts."""
    for axis in of(parameters(eqn)):
        for value in ins:
            freeze(value.axes[axis], f"{describe_place(eqn)} goes along it")
    for other in ins[1:]:
        _unify(ins[0], other)
    return [_Value(ins[0].axes) for _ in eqn.outvars]


def _window(eqn: jex.JaxprEqn, ins: Sequence[_Value]) -> _Value:
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
    return _Value(tuple(axes))


_MOVES: dict[str, Callable[[jex.JaxprEqn, Sequence[_Value]], _Value]] = {
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
