"""What a loop reads of parameters by its counters, found by following integers through it.

Indices that depend on the model's text alone are evaluated on the host, for all turns at once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.extend.core as jex
import jax.extend.core.primitives as prims
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsim import internals
from jaxsim.internals import Atom, bind, inner_jaxprs, parameters, shape_of
from jaxsim.network.integers import evaluate, integers
from jaxsim.network.plan import Provenance

LONGEST = 2**16
"""Most turns of a `while` that are counted."""

MOST_REPEATED = 64
"""Most copies of a parameter that the slices of one read may be, as each turn has its own."""

Path = tuple[int, ...]
"""Place of an equation in a loop: its position in each jaxpr around it, and of branches theirs."""


class Known(NamedTuple):
    """Integers that depend on constants and counters alone.

    Attributes:
      values: Entries, with a leading axis for each loop around: its turns, or one if they are the
        same at all of them.
      over: Depths of the loops on whose turn they depend.
    """

    values: np.ndarray
    over: frozenset[int]


@dataclasses.dataclass(frozen=True, eq=False)
class Fixed:
    """Value that is the same at all turns of the outermost loop, as an expression of its operands.

    Attributes:
      eqn: Equation that computes it; None for an operand or a constant.
      ins: Operands of the equation; for a constant, its value alone.
      at: Position among the equation's results, or among the loop's operands.
      weighted: True if it comes from a parameter.
    """

    eqn: jex.JaxprEqn | None
    ins: tuple[Any, ...]
    at: int
    weighted: bool

    def value(self, operands: Sequence[Any]) -> Any:
        """Computes the value.

        Args:
          operands: Operands of the outermost loop.
        """
        if self.eqn is None:
            return self.ins[0] if self.ins else operands[self.at]
        return bind(self.eqn, [each.value(operands) for each in self.ins])[self.at]


class Read(NamedTuple):
    """Slices of a parameter that an equation in a loop takes, turn by turn.

    Attributes:
      table: What is read.
      whole: Shape of the table.
      starts: First index of each slice along each axis of the table, [*lengths, axes].
      sizes: Sizes of a slice.
      shape: Shape of the equation's result, which has the entries of a slice in their order.
      over: Depths of the loops on whose turn the slice depends, ascending.
    """

    table: Fixed
    whole: tuple[int, ...]
    starts: np.ndarray
    sizes: tuple[int, ...]
    shape: tuple[int, ...]
    over: tuple[int, ...]

    @property
    def is_plain(self) -> bool:
        """True if slice after slice is taken along the first axis of the table, all of it."""
        first = self.starts[..., 0]
        one = first.shape == self.whole[:1] and self.sizes == (1, *self.whole[1:])
        return one and np.array_equal(first, np.arange(len(first)))

    def stack(self, operands: Sequence[Any]) -> Any:
        """Stacks the slices, [*lengths, *shape]: the table itself, if they are all of it in order.

        Args:
          operands: Operands of the outermost loop.
        """
        table, lengths = self.table.value(operands), self.starts.shape[:-1]
        cut = [i for i, (n, m) in enumerate(zip(table.shape, self.sizes, strict=True)) if m < n]
        first, after = (cut[0], cut[-1] + 1) if cut else (0, 0)
        *single, block = [self.sizes[i] for i in range(first, after)] or [1]
        within = table.shape[first:after]
        turns = math.prod(lengths)
        if math.prod(single) == 1 and math.prod(within) == turns * block:
            begins = np.zeros(turns, int)
            for axis, n in zip(range(first, after), within, strict=True):
                begins = begins * n + self.starts[..., axis].ravel()
            if np.array_equal(begins, np.arange(turns) * block):
                split = (*table.shape[:first], *lengths, block, *table.shape[after:])
                axes = range(first, first + len(lengths))
                rows = jnp.moveaxis(table.reshape(split), axes, range(len(lengths)))
                return rows.reshape(*lengths, *self.shape)
        every = tuple(range(table.ndim))
        numbers = lax.GatherDimensionNumbers(tuple(1 + i for i in every), (), every)
        slices = lax.gather(
            table,
            self.starts.reshape(turns, table.ndim).astype(np.int32),
            numbers,
            self.sizes,
            mode=lax.GatherScatterMode.PROMISE_IN_BOUNDS,
        )
        return slices.reshape(*lengths, *self.shape)


class Reads(NamedTuple):
    """What a loop reads by its counters.

    Attributes:
      slices: Slices of parameters that depend on the turn of the outermost loop, by place.
      trips: Turns of the `while` loops whose number is known, by place.
    """

    slices: dict[Path, Read]
    trips: dict[Path, int]


def find_reads(eqn: jex.JaxprEqn, tags: Sequence[Provenance | None]) -> Reads:
    """Finds what a loop reads of parameters by its counters.

    Args:
      eqn: Equation of a `scan` or a `while`, whose place is ().
      tags: Provenance of its operands.
    """
    search = _Search()
    search.equation(eqn, [_operand(i, t) for i, t in enumerate(tags)], (), ())
    return Reads(search.slices, search.trips)


def _operand(i: int, tag: Provenance | None) -> Known | Fixed | None:
    if tag is None:
        return None
    if tag.integers is not None:
        return Known(tag.integers, frozenset())
    return Fixed(None, (), i, bool(tag.param))


_Value = Known | Fixed | None


class _Search:
    """Follows integers, and what is the same at all turns, through loops; see `Reads`."""

    def __init__(self) -> None:
        self.slices: dict[Path, Read] = {}
        self.trips: dict[Path, int] = {}

    def walk(
        self,
        jaxpr: jex.Jaxpr,
        consts: Sequence[Any],
        ins: Sequence[_Value],
        path: Path | None,
        lengths: tuple[int, ...],
    ) -> list[_Value]:
        """Follows values through a jaxpr.

        Args:
          jaxpr: Jaxpr.
          consts: Its constants.
          ins: What is known of its inputs.
          path: Its place; None where nothing is to be noted.
          lengths: Turns of the loops around, outermost first.
        """
        env: dict[Any, _Value] = dict(zip(jaxpr.invars, ins, strict=True))
        for var, value in zip(jaxpr.constvars, consts, strict=True):
            env[var] = _constant(value, len(lengths))

        def read(atom: Atom) -> _Value:
            if isinstance(atom, jex.Literal):
                return _constant(np.asarray(atom.val, shape_of(atom).dtype), len(lengths))
            return env[atom]

        for i, eqn in enumerate(jaxpr.eqns):
            at = None if path is None else (*path, i)
            outs = self.equation(eqn, [read(v) for v in eqn.invars], at, lengths)
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def equation(
        self,
        eqn: jex.JaxprEqn,
        ins: Sequence[_Value],
        path: Path | None,
        lengths: tuple[int, ...],
    ) -> list[_Value]:
        """Follows values through an equation at a place; other arguments are those of `walk`."""
        unknown: list[_Value] = [None] * len(eqn.outvars)
        match eqn.primitive:
            case prims.scan_p:
                return self.scan(eqn, ins, path, lengths) or unknown
            case prims.while_p:
                return self.loop(eqn, ins, path, lengths)
            case prims.cond_p:
                for i, (branch, consts) in enumerate(inner_jaxprs(eqn)):
                    self.walk(
                        branch, consts, ins[1:], None if path is None else (*path, i), lengths
                    )
                return unknown
            case prims.jit_p | prims.closed_call_p | prims.remat_p:
                ((body, consts),) = inner_jaxprs(eqn)
                return self.walk(body, consts, ins, path, lengths)
            case _:
                return self.integers(eqn, ins, path, lengths)

    def integers(
        self,
        eqn: jex.JaxprEqn,
        ins: Sequence[_Value],
        path: Path | None,
        lengths: tuple[int, ...],
    ) -> list[_Value]:
        """Follows values through an equation that runs no jaxpr, and notes what it reads."""
        unknown: list[_Value] = [None] * len(eqn.outvars)
        known = [v for v in ins if isinstance(v, Known)]
        over = frozenset[int]().union(*(v.over for v in known))
        if len(known) == len(ins):
            found = evaluate(eqn, [v.values for v in known], len(lengths))
            return unknown if found is None else [Known(found, over)]
        if None in ins:
            return unknown
        if not over:
            operands = tuple(_as_fixed(v, len(lengths)) for v in ins if v is not None)
            weighted = any(v.weighted for v in operands)
            return [Fixed(eqn, operands, i, weighted) for i in range(len(eqn.outvars))]
        table, *indices = ins
        if path is not None and isinstance(table, Fixed) and table.weighted and 0 in over:
            taken = _read(eqn, table, indices, lengths, over)
            if taken is not None:
                self.slices[path] = taken
        return unknown

    def scan(
        self,
        eqn: jex.JaxprEqn,
        ins: Sequence[_Value],
        path: Path | None,
        lengths: tuple[int, ...],
    ) -> list[_Value] | None:
        loop, ((body, consts),) = internals.scan(eqn), inner_jaxprs(eqn)
        if loop.length == 0:
            return None
        depth, first = len(lengths), loop.consts
        fixed = [_lifted(v, depth) for v in ins[:first]]
        start = ins[first : loop.first_slice]
        carry = _carried(body, fixed, start, depth, loop.length, reverse=loop.reverse)
        slices = [
            v._replace(over=v.over | {depth}) if isinstance(v, Known) else None
            for v in ins[loop.first_slice :]
        ]
        self.walk(body, consts, [*fixed, *carry, *slices], path, (*lengths, loop.length))
        kept = _kept(body, first, start)
        return [*kept, *[None] * (len(eqn.outvars) - loop.carry)]

    def loop(
        self,
        eqn: jex.JaxprEqn,
        ins: Sequence[_Value],
        path: Path | None,
        lengths: tuple[int, ...],
    ) -> list[_Value]:
        numbers, (_, (body, consts)) = internals.while_loop(eqn), inner_jaxprs(eqn)
        depth, start = len(lengths), ins[numbers.first_carry :]
        trips = None if eqn.effects else self.turns(eqn, ins, lengths)
        if trips and path is not None:
            self.trips[path] = trips
        if trips != 0:
            fixed = [_lifted(v, depth) for v in ins[numbers.test_consts : numbers.first_carry]]
            carry = _carried(body, fixed, start, depth, trips)
            self.walk(body, consts, [*fixed, *carry], path, (*lengths, trips or 1))
        return _kept(body, numbers.body_consts, start)

    def turns(
        self, eqn: jex.JaxprEqn, ins: Sequence[_Value], lengths: tuple[int, ...]
    ) -> int | None:
        """Counts the turns of a `while`; None where they depend on more than counters."""
        numbers, depth = internals.while_loop(eqn), len(lengths)
        (test, test_consts), (body, _) = inner_jaxprs(eqn)
        outer = [_lifted(v, depth) for v in ins[: numbers.test_consts]]
        fixed = [_lifted(v, depth) for v in ins[numbers.test_consts : numbers.first_carry]]
        for most in (64, LONGEST):
            start = ins[numbers.first_carry :]
            carry = _carried(body, fixed, start, depth, most)
            (goes_on,) = self.walk(test, test_consts, [*outer, *carry], None, (*lengths, most))
            if not isinstance(goes_on, Known):
                return None
            stops = ~goes_on.values
            if stops.any(depth).all():
                first = np.unique(stops.argmax(depth))
                return int(first[0]) if len(first) == 1 else None
        return None


def _constant(value: Any, turns: int) -> _Value:
    known = integers(value)
    if known is None:
        return Fixed(None, (value,), 0, weighted=False)
    return Known(known.reshape((*[1] * turns, *known.shape)), frozenset())


def _as_fixed(value: Known | Fixed, turns: int) -> Fixed:
    if isinstance(value, Fixed):
        return value
    return Fixed(None, (value.values.reshape(value.values.shape[turns:]),), 0, weighted=False)


def _lifted(value: _Value, depth: int) -> _Value:
    """Adds the axis of one more loop to a value of its surroundings."""
    if not isinstance(value, Known):
        return value
    return value._replace(values=np.expand_dims(value.values, depth))


def _kept(body: jex.Jaxpr, first: int, start: Sequence[_Value]) -> list[_Value]:
    """What a loop leaves in its carry, where each turn hands on what it was given."""
    before = body.invars[first : first + len(start)]
    pairs = zip(before, body.outvars, start, strict=False)
    return [value if a is b else None for a, b, value in pairs]


def _carried(
    body: jex.Jaxpr,
    fixed: Sequence[_Value],
    start: Sequence[_Value],
    depth: int,
    turns: int | None,
    *,
    reverse: bool = False,
) -> list[_Value]:
    """Follows the carry of a loop into its body: what stays as it is, and counters.

    Args:
      body: Its body.
      fixed: What is known of the operands that every turn reads whole.
      start: What is known of the carry at first.
      depth: Number of loops around it.
      turns: Its turns, None if unknown.
      reverse: If True, the last slice is the first turn's.
    """
    found: list[_Value] = []
    constant = dict(zip(body.invars, fixed, strict=False))
    makers = {v: eqn for eqn in body.eqns for v in eqn.outvars}
    carried = body.invars[len(fixed) : len(fixed) + len(start)]
    for before, after, value in zip(carried, body.outvars, start, strict=False):
        if before is after:
            found.append(_lifted(value, depth))
            continue
        step = _step(
            makers.get(after) if isinstance(after, jex.Var) else None, before, constant, depth
        )
        if turns is None or not isinstance(value, Known) or step is None:
            found.append(None)
            continue
        steps = np.arange(turns)[::-1] if reverse else np.arange(turns)
        values = value.values[..., None].astype(np.int64) + step.values * steps
        over = value.over | step.over | {depth}
        found.append(Known(values.astype(value.values.dtype), over))
    return found


def _step(
    eqn: jex.JaxprEqn | None, counter: jex.Var, constant: Mapping[Any, _Value], depth: int
) -> Known | None:
    """What an equation adds to a counter at each turn."""
    if eqn is None or eqn.primitive.name not in ("add", "sub") or shape_of(counter).shape:
        return None
    a, b = eqn.invars
    if eqn.primitive.name == "add" and b is counter:
        a, b = b, a
    if a is not counter:
        return None
    step = constant.get(b) if isinstance(b, jex.Var) else None
    if isinstance(b, jex.Literal):
        step = _constant(np.asarray(b.val, shape_of(b).dtype), depth + 1)
    if not isinstance(step, Known):
        return None
    return step if eqn.primitive.name == "add" else step._replace(values=-step.values)


def _read(
    eqn: jex.JaxprEqn,
    table: Fixed,
    indices: Sequence[_Value],
    lengths: tuple[int, ...],
    over: frozenset[int],
) -> Read | None:
    """Finds which slices an equation takes; None where it takes something else than one a turn."""
    taken = [v.values for v in indices if isinstance(v, Known)]
    if len(taken) < len(indices) or eqn.primitive not in (prims.dynamic_slice_p, prims.gather_p):
        return None
    params, turns = parameters(eqn), len(lengths)
    shape, sizes = shape_of(eqn.invars[0]).shape, tuple(params["slice_sizes"])
    room = np.array(shape) - np.array(sizes)
    lead = tuple(n if depth in over else 1 for depth, n in enumerate(lengths))
    starts = np.zeros((*lead, len(shape)), np.int64)
    if eqn.primitive is prims.dynamic_slice_p:
        for axis, values in enumerate(taken):
            starts[..., axis] = values
        inside = True
    else:
        numbers, (index,) = params["dimension_numbers"], taken
        if numbers.operand_batching_dims or math.prod(index.shape[turns:-1]) != 1:
            return None
        rows = index.reshape((*index.shape[:turns], -1))
        for i, axis in enumerate(numbers.start_index_map):
            starts[..., axis] = rows[..., i]
        inside = params["mode"] == lax.GatherScatterMode.CLIP
    outside = ((starts < 0) | (starts > room)).any()
    copies = math.prod(lead) * math.prod(sizes) / max(math.prod(shape), 1)
    if (outside and not inside) or copies > MOST_REPEATED:
        return None
    loops = tuple(sorted(over))
    starts = np.clip(starts, 0, room).reshape(*(lengths[depth] for depth in loops), len(shape))
    return Read(table, shape, starts, sizes, shape_of(eqn.outvars[0]).shape, loops)
