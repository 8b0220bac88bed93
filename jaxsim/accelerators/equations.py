"""Work of the equations that are no sites: additions, functions, moves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.extend.core.primitives as prims
import jax.numpy as jnp
import numpy as np

from jaxsim import internals
from jaxsim.accelerators.primitives import FREE, MOVES, UPDATES, operations_of
from jaxsim.accelerators.sites import float_bits
from jaxsim.accelerators.work import Work
from jaxsim.internals import inner_jaxprs, shape_of
from jaxsim.network.plan import Contraction, Entry, Inner, Plan
from jaxsim.network.portions import Portion


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
      taken: Event that took it out of parameters by integers; None for any other value.
    """

    def __init__(self, size: int, dtype: Any, *, known: bool = False, registers: bool = False):
        """Is not read yet."""
        self.size, self.dtype, self.known, self.registers = size, dtype, known, registers
        self.readers = 0
        self.taken: int | None = None

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


def equation_work(portion: Portion, activations: int | None) -> Asked:
    """Collects the work of all equations that are no sites, in a portion of a call.

    A value that one equation makes and one other reads, both on the SIMD unit, stays in its
    registers; every other one is written to memory once, and read from there by each reader. What
    no input reaches is computed once and for all, and not counted. Branches are all counted.

    Args:
      portion: Portion of the call.
      activations: Bits in which floats lie in memory; None for their own.
    """
    walk, plan = _Walk(), portion.plan
    ins = [_new(v, known=i < portion.fixed) for i, v in enumerate(plan.jaxpr.invars)]
    for out in walk.run(plan, ins, 1.0):
        out.readers += 2
    found: dict[tuple[Any, ...], float] = {}
    for event in walk.events.values():
        read, written = (
            sum(n * float_bits(v.dtype, activations) for v, n in moved if v.in_memory)
            for moved in (event.read, event.written)
        )
        key = (event.primitive, event.operations, read, written)
        found[key] = found.get(key, 0) + event.times
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
    return Asked(tuple(work), walk.uncounted, walk.loops)


class _Walk:
    """Follows the values of a call through its equations."""

    def __init__(self) -> None:
        self.events: dict[int, _Event] = {}
        self.uncounted: dict[str, float] = {}
        self.loops = 0

    def add(self, event: _Event) -> int:
        """Notes an event; gives its number."""
        number = next(reversed(self.events), -1) + 1
        self.events[number] = event
        return number

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
                if v.taken is not None:  # weights that integers choose are read where they lie
                    self.events.pop(v.taken, None)
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
            given = tuple((v, v.size) for v in ins[1:])
            self.add(_Event(name, times, adds, given, ((out, update.size),)))
            return outs
        operations = operations_of(eqn)
        if operations is None:
            self.uncounted[name] = self.uncounted.get(name, 0) + times
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
        written = tuple((v, v.size) for v in outs)
        number = self.add(_Event(name, times, operations, tuple(read), written))
        if name in ("gather", "dynamic_slice") and ins[0].known:
            outs[0].taken = number
        return outs


def _new(atom: Any, *, known: bool = False, registers: bool = False) -> _Value:
    shape = shape_of(atom)
    return _Value(
        math.prod(shape.shape), np.dtype(_plain(shape.dtype)), known=known, registers=registers
    )


def _plain(dtype: Any) -> Any:
    """A dtype that numpy has; random keys are four bytes twice."""
    return np.uint64 if jnp.issubdtype(dtype, jax.dtypes.extended) else dtype
