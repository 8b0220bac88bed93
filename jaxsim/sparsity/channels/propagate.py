"""Channel propagation: which axes of a network run over the same channels.

Every axis of every value carries an axis group; each equation says which groups are equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.extend.core.primitives as prims
import numpy as np

from jaxsim import internals
from jaxsim.internals import Atom, inner_jaxprs, parameters, shape_of
from jaxsim.network.leaves import path_name
from jaxsim.network.network import Network
from jaxsim.sparsity.channels.axes import AxisGroup, Symbol, freeze, product, unify
from jaxsim.sparsity.channels.axis_rules import (
    ValueAxes,
    freeze_equation,
    freeze_value,
    frozen_axes,
    result_axes,
    unify_values,
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
        ValueAxes(tuple(map(Symbol, shape_of(v).shape)), path, tuple(range(len(shape_of(v).shape))))
        for path, v in zip(paths, jaxpr.invars, strict=False)
    ]
    given = [
        frozen_axes(shape_of(v).shape, "an input of the model") for v in jaxpr.invars[len(paths) :]
    ]
    follow = _Follow()
    for value in follow.run(jaxpr, [*values, *given]):
        freeze_value(value, "an output of the model")
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
    follow.run(jaxpr, [ValueAxes(tuple(axes)) for axes in inputs])
    (found,) = follow.inside
    return found


class _Follow:
    """Follows the axis groups of the values of a jaxpr, equation by equation."""

    def __init__(self):
        self.roles: dict[tuple[str, int], str] = {}
        self.grouped: dict[str, AxisGroup] = {}
        self.made: list[tuple[AxisGroup, ...]] = []
        self.inside: list[tuple[EquationAxes, ...]] = []

    def run(
        self, jaxpr: jex.Jaxpr, values: Sequence[ValueAxes], around: jex.JaxprEqn | None = None
    ) -> list[ValueAxes]:
        """Finds the axis groups of a jaxpr's outputs; `around` is the equation that runs it."""
        env: dict[Any, ValueAxes] = dict(zip(jaxpr.invars, values, strict=True))
        for v in jaxpr.constvars:
            env[v] = frozen_axes(shape_of(v).shape, "a constant of the model")

        def read(atom: Atom) -> ValueAxes:
            if isinstance(atom, jex.Literal):
                return frozen_axes(np.shape(atom.val), "a constant of the model")
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

    def step(self, eqn: jex.JaxprEqn, ins: list[ValueAxes]) -> Sequence[ValueAxes]:
        """Finds the axis groups of the results of an equation."""
        if inner := inner_jaxprs(eqn):
            return self.inner(eqn, [jaxpr for jaxpr, _ in inner], ins)
        if eqn.primitive is prims.dot_general_p:
            return [self.dot(eqn, *ins)]
        if eqn.primitive is prims.conv_general_dilated_p:
            return [self.conv(eqn, *ins)]
        return result_axes(eqn, ins)

    def role(self, value: ValueAxes, axes: Sequence[int], role: str) -> None:
        """Notes what a site does along axes of an operand, if that is a parameter."""
        if value.path:
            for axis in axes:
                self.roles.setdefault((value.path, value.order[axis]), role)

    def dot(self, eqn: jex.JaxprEqn, a: ValueAxes, b: ValueAxes) -> ValueAxes:
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
        return ValueAxes((*batch, *free))

    def conv(self, eqn: jex.JaxprEqn, x: ValueAxes, w: ValueAxes) -> ValueAxes:
        """Convolves: features are those of its groups, one after another."""
        params, numbers = parameters(eqn), parameters(eqn)["dimension_numbers"]
        if params["batch_group_count"] != 1:
            return freeze_equation(eqn, [x, w], "runs over groups of the batch")[0]
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
        return ValueAxes(tuple(out))

    def inner(
        self, eqn: jex.JaxprEqn, jaxprs: list[jex.Jaxpr], ins: list[ValueAxes]
    ) -> Sequence[ValueAxes]:
        """Follows an equation that runs others."""
        if eqn.primitive is prims.scan_p:
            loop = internals.scan(eqn)
            fixed, first = loop.consts, loop.first_slice
            for value in ins[first:]:
                freeze(value.axes[0], "a turn of a scan")
            rows = [
                ValueAxes(v.axes[1:], v.path, v.order[1:]) if v.path else ValueAxes(v.axes[1:])
                for v in ins[first:]
            ]
            outs = self.run(jaxprs[0], [*ins[:first], *rows], eqn)
            for before, after in zip(ins[fixed:first], outs[: loop.carry], strict=True):
                unify_values(before, after)
            turn = Symbol(loop.length, "a turn of a scan")
            return [*ins[fixed:first], *(ValueAxes((turn, *v.axes)) for v in outs[loop.carry :])]
        if eqn.primitive is prims.while_p:
            loop = internals.while_loop(eqn)
            carry = ins[loop.first_carry :]
            self.run(jaxprs[0], [*ins[: loop.test_consts], *carry], eqn)
            body = ins[loop.test_consts : loop.first_carry]
            outs = self.run(jaxprs[1], [*body, *carry], eqn)
            for before, after in zip(carry, outs, strict=True):
                unify_values(before, after)
            return carry
        if eqn.primitive is prims.cond_p:
            outs, *others = [self.run(jaxpr, ins[1:], eqn) for jaxpr in jaxprs]
            for other in others:
                for one, same in zip(outs, other, strict=True):
                    unify_values(one, same)
            return outs
        return self.run(jaxprs[0], ins, eqn)
