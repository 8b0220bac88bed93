"""Work of the equations that are no sites: additions, functions, moves."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.extend.core.primitives as prims
import numpy as np

from jaxsim import internals
from jaxsim.accelerators.sites import float_bits
from jaxsim.accelerators.work import Work
from jaxsim.internals import inner_jaxprs, parameters, shape_of
from jaxsim.network.plan import Contraction, Entry, Inner, Plan, Traced

FREE = {
    *("reshape", "squeeze", "expand_dims", "broadcast_in_dim", "convert_element_type", "copy"),
    *("copy_p", "stop_gradient", "device_put", "sharding_constraint", "bitcast_convert_type"),
    *("optimization_barrier", "reshard", "pvary", "name", "reduce_precision"),
}
"""Primitives that name their operands anew: nothing is computed and nothing moves."""

MOVES = {
    *("transpose", "slice", "dynamic_slice", "gather", "concatenate", "pad", "rev", "split"),
    *("stack", "all_gather", "all_gather_invariant", "ppermute", "all_to_all"),
}
"""Primitives that read as many entries as they write, and compute nothing."""

UPDATES = {"dynamic_update_slice": 1, "scatter": 2, "scatter-add": 2}
"""Primitives that write part of their first operand in place: position of what is written."""

KINDS = {
    "add": {
        *("add", "sub", "max", "min", "neg", "abs", "sign", "floor", "ceil", "round", "eq", "ne"),
        *("lt", "le", "gt", "ge", "eq_to", "le_to", "lt_to", "and", "or", "xor", "not", "clamp"),
        *("select_n", "shift_left", "shift_right_logical", "shift_right_arithmetic", "is_finite"),
        *("add_any", "population_count", "clz", "psum", "psum_invariant", "pmax", "pmin"),
    },
    "multiply": {"mul", "square"},
    "divide": {"div", "rem", "sqrt", "rsqrt", "cbrt"},
    "function": {
        *("exp", "exp2", "log", "log1p", "expm1", "tanh", "logistic", "erf", "erfc", "erf_inv"),
        *("sin", "cos", "tan", "asin", "acos", "atan", "atan2", "sinh", "cosh", "pow", "lgamma"),
    },
}
"""Primitives that compute each entry of their result by one operation, by its kind."""

REDUCES = {
    *("reduce_sum", "reduce_max", "reduce_min", "reduce_and", "reduce_or", "reduce_xor"),
    *("argmax", "argmin", "cumsum", "cummax", "cummin"),
}
"""Primitives that take one addition for each entry of their operand."""

WINDOWS = {"reduce_window_sum", "reduce_window_max", "reduce_window_min"}
"""Primitives that take one addition for each entry of each window."""


class Asked(NamedTuple):
    """What the equations of a call ask, whatever hardware they run on.

    Attributes:
      work: Work of each kind of equation, with the number of times that it is asked.
      uncounted: Number of equations that are not counted, by primitive.
      loops: Number of while loops, whose turns are counted once.
    """

    work: tuple[tuple[Work, float], ...]
    uncounted: dict[str, float]
    loops: int


class _Value:
    """A value in the walk.

    Attributes:
      size, dtype: Its entries.
      known: True if no input reaches it, so that it is computed once and for all.
      registers: True if an equation of the SIMD unit makes it.
      readers: Number of equations that read it; those that need it in memory count for two.
    """

    def __init__(self, size: int, dtype: Any, *, known: bool = False, registers: bool = False):
        """Is not read yet."""
        self.size, self.dtype, self.known, self.registers = size, dtype, known, registers
        self.readers = 0

    @property
    def in_memory(self) -> bool:
        """Whether it goes through memory: one that a single equation reads is handed on."""
        return not (self.registers and self.readers == 1)


class _Event(NamedTuple):
    primitive: str
    times: float
    operations: tuple[tuple[str, float], ...]
    read: tuple[tuple[_Value, int], ...]
    written: tuple[tuple[_Value, int], ...]


def equation_work(traced: Traced, fixed: int, activations: int | None) -> Asked:
    """Collects the work of all equations that are no sites, in one call.

    A value that one equation makes and one other reads, both on the SIMD unit, stays in its
    registers; every other one is written to memory once, and read from there by each reader. What
    no input reaches is computed once and for all, and not counted. Branches are all counted.

    Args:
      traced: The call.
      fixed: Number of its first values that no input reaches: parameters and buffers.
      activations: Bits in which floats lie in memory; None for their own.
    """
    walk, plan = _Walk(), traced.plan
    ins = [_new(v, known=i < fixed) for i, v in enumerate(plan.jaxpr.invars)]
    for out in walk.run(plan, ins, 1.0):
        out.readers += 2
    found: Counter[tuple[Any, ...]] = Counter()
    for event in walk.events:
        read, written = (
            sum(n * float_bits(v.dtype, activations) for v, n in moved if v.in_memory)
            for moved in (event.read, event.written)
        )
        found[event.primitive, event.operations, read, written] += event.times
    work = (
        (
            Work(
                name,
                "elements",
                bits=(1, 1, 1),
                sizes=(read, 0, written),
                operations=dict(operations),
            ),
            times,
        )
        for (name, operations, read, written), times in found.items()
    )
    return Asked(tuple(work), dict(walk.uncounted), walk.loops)


class _Walk:
    """Follows the values of a call through its equations."""

    def __init__(self) -> None:
        self.events: list[_Event] = []
        self.uncounted: Counter[str] = Counter()
        self.loops = 0

    def run(self, plan: Plan, ins: Sequence[_Value], times: float) -> list[_Value]:
        """Walks through a plan; gives the values of its outputs."""
        return self.jaxpr(plan.jaxpr, plan.entries, ins, times)

    def jaxpr(
        self, jaxpr: jex.Jaxpr, entries: Sequence[Entry], ins: Sequence[_Value], times: float
    ) -> list[_Value]:
        env: dict[Any, _Value] = dict(zip(jaxpr.invars, ins, strict=True))
        for v in jaxpr.constvars:
            env[v] = _new(v, known=True)

        def value(atom: Any) -> _Value:
            return _new(atom, known=True) if isinstance(atom, jex.Literal) else env[atom]

        for eqn, entry in zip(jaxpr.eqns, entries, strict=True):
            outs = self.equation(eqn, entry, [value(a) for a in eqn.invars], times)
            env.update(zip(eqn.outvars, outs, strict=True))
        return [value(atom) for atom in jaxpr.outvars]

    def equation(
        self, eqn: jex.JaxprEqn, entry: Entry, ins: list[_Value], times: float
    ) -> list[_Value]:
        name = eqn.primitive.name
        if all(v.known for v in ins):
            return [_new(v, known=True) for v in eqn.outvars]
        if isinstance(entry, Contraction) or (isinstance(entry, Inner) and entry.rewritten):
            for v in ins:
                v.readers += 2  # a site's part reads it from memory
            return [_new(v) for v in eqn.outvars]
        if isinstance(entry, Inner):
            inner = [(plan.jaxpr, plan.entries) for plan in entry.plans]
        elif (local := internals.shard_map(eqn)) is not None:
            inner = [(local.body[0], [None] * len(local.body[0].eqns))]
        else:
            inner = [(jaxpr, [None] * len(jaxpr.eqns)) for jaxpr, _ in inner_jaxprs(eqn)]
        if inner:
            return self.inner(eqn, inner, ins, times)
        if name in FREE:
            return [*ins[: len(eqn.outvars)]]
        return self.elements(eqn, ins, times)

    def inner(
        self,
        eqn: jex.JaxprEqn,
        inner: Sequence[tuple[jex.Jaxpr, Sequence[Entry]]],
        ins: list[_Value],
        times: float,
    ) -> list[_Value]:
        """Walks through the jaxprs of a loop, a branch or a call."""
        local = internals.shard_map(eqn)
        if local is not None:
            return self._body(eqn, *inner[0], ins, times * math.prod(local.sizes))
        if eqn.primitive is prims.scan_p:
            loop, body = internals.scan(eqn), inner[0][0]
            carry = range(loop.consts, loop.first_slice)
            changed = [i for i in carry if body.outvars[i - loop.consts] is not body.invars[i]]
            return self._body(eqn, *inner[0], ins, times * loop.length, changed)
        if eqn.primitive is prims.while_p:
            self.loops += 1
            numbers = internals.while_loop(eqn)
            given, carry = ins[numbers.test_consts :], ins[numbers.first_carry :]
            tested = [*ins[: numbers.test_consts], *carry]
            for (body, entries), operands, consts in zip(
                inner, (tested, given), (numbers.test_consts, numbers.body_consts), strict=True
            ):
                changed = range(consts, len(operands))
                self._body(eqn, body, entries, operands, times, changed)
            return [_new(v) for v in eqn.outvars]
        if eqn.primitive is prims.cond_p:
            ins[0].readers += 2
            for body, entries in inner:
                self._body(eqn, body, entries, ins[1:], times)
            return [_new(v) for v in eqn.outvars]
        (jaxpr, entries), *_ = inner
        return self.jaxpr(jaxpr, entries, ins, times)

    def _body(
        self,
        eqn: jex.JaxprEqn,
        jaxpr: jex.Jaxpr,
        entries: Sequence[Entry],
        ins: Sequence[_Value],
        times: float,
        changed: Sequence[int] = (),
    ) -> list[_Value]:
        """Walks through a body whose operands and results lie in memory.

        Args:
          eqn: Equation of the body.
          jaxpr: The body.
          entries: Meaning of its equations.
          ins: Values of its operands.
          times: Number of turns in one call.
          changed: Positions of operands that are known only in the first turn.
        """
        for v in ins:
            v.readers += 2
        inside = [
            _new(v, known=given.known and i not in changed)
            for i, (v, given) in enumerate(zip(jaxpr.invars, ins, strict=True))
        ]
        for out in self.jaxpr(jaxpr, entries, inside, times):
            out.readers += 2
        return [_new(v) for v in eqn.outvars]

    def elements(self, eqn: jex.JaxprEqn, ins: list[_Value], times: float) -> list[_Value]:
        """Counts an equation without inner jaxprs."""
        name = eqn.primitive.name
        outs = [_new(v, registers=True) for v in eqn.outvars]
        if name in UPDATES:
            update = ins[UPDATES[name]]
            adds = (("add", float(update.size)),) if "add" in name else ()
            for v in ins[1:]:
                v.readers += 1
            ins[0].readers += 2
            out = outs[0]
            out.registers = False
            read = tuple((v, v.size) for v in ins[1:])
            self.events.append(_Event(name, times, adds, read, ((out, update.size),)))
            return outs
        operations = _operations(eqn, ins)
        if operations is None:
            self.uncounted[name] += times
            for v in ins:
                v.readers += 2
            for v in outs:
                v.registers = False
            return outs
        made = sum(v.size for v in outs)
        read: list[tuple[_Value, int]] = []
        for v in ins:
            if v.known and v.size == 1:
                continue  # a constant is part of the instruction
            v.readers += 1
            # what moves takes out of an operand no more than it writes
            read.append((v, min(v.size, made) if name in MOVES else v.size))
        self.events.append(
            _Event(name, times, operations, tuple(read), tuple((v, v.size) for v in outs))
        )
        return outs


def _operations(eqn: jex.JaxprEqn, ins: list[_Value]) -> tuple[tuple[str, float], ...] | None:
    """Element operations of an equation by kind; None where it is not known what it computes."""
    name = eqn.primitive.name
    made = float(sum(math.prod(shape_of(v).shape) for v in eqn.outvars))
    if name in MOVES:
        return ()
    kind = next((kind for kind, names in KINDS.items() if name in names), None)
    if kind is not None:
        return ((kind, made),)
    if name == "integer_pow":
        power = abs(parameters(eqn)["y"])
        steps = max(power.bit_length() + power.bit_count() - 2, 0)
        return (("multiply", steps * made),)
    if name in REDUCES:
        return (("add", float(ins[0].size)),)
    if name == "reduce_prod":
        return (("multiply", float(ins[0].size)),)
    if name in WINDOWS:
        return (("add", made * math.prod(parameters(eqn)["window_dimensions"])),)
    if name in ("sort", "top_k", "approx_top_k"):
        shape = shape_of(eqn.invars[0]).shape
        length = shape[parameters(eqn)["dimension"]] if name == "sort" else shape[-1]
        return (("add", ins[0].size * max(1, math.ceil(math.log2(max(length, 2))))),)
    if name == "dot_general":
        contracted = parameters(eqn)["dimension_numbers"][0][0]
        shape = shape_of(eqn.invars[0]).shape
        products = made * math.prod(shape[a] for a in contracted)
        return (("multiply", products), ("add", products))
    return None


def _new(atom: Any, *, known: bool = False, registers: bool = False) -> _Value:
    shape = shape_of(atom)
    return _Value(
        math.prod(shape.shape), np.dtype(_plain(shape.dtype)), known=known, registers=registers
    )


def _plain(dtype: Any) -> Any:
    """A dtype that numpy has; random keys are four bytes twice."""
    return np.uint64 if jax.dtypes.issubdtype(dtype, jax.dtypes.extended) else dtype
