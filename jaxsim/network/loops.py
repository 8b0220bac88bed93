"""Loops that read a stacked parameter by a counter, rewritten as scans over its slices.

`w[i]` in the body of a `fori_loop` is a slice of `w` that depends on the model's text alone. The
loop becomes a scan whose slices are what is read, in order of the turns: layers that are walked by
an index are to everything else what layers that are scanned are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.extend.core.primitives as prims
from jax import lax

from jaxsim import internals
from jaxsim.internals import Atom, bind, inner_jaxprs, parameters
from jaxsim.network.counters import Path, Reads, find_reads
from jaxsim.network.plan import Provenance


class Spliced(NamedTuple):
    """Equations that stand for another.

    Attributes:
      eqns: Equations, in order.
      consts: Their constants, by variable.
      outvars: What its results are.
    """

    eqns: list[jex.JaxprEqn]
    consts: dict[Any, Any]
    outvars: list[Atom]


def as_scans(eqn: jex.JaxprEqn, tags: Sequence[Provenance | None]) -> Spliced | None:
    """Rewrites a loop that reads parameters by its counter, or a `while` whose turns are known.

    Args:
      eqn: Any equation.
      tags: Provenance of its operands.

    Returns:
      Equations that compute the same by scans over what is read; None for any other equation.
    """
    loops = (prims.scan_p, prims.while_p)
    if eqn.primitive not in loops or not any(t is not None and t.param for t in tags):
        return None
    if not all(map(internals.is_value, eqn.invars)):
        return None
    reads = find_reads(eqn, tags)
    if any(map(internals.on_explicit_axes, eqn.invars)):
        # a model says of each move of a sharded array how its result is sharded, and no other can
        reads = reads._replace(slices={p: r for p, r in reads.slices.items() if r.is_plain})
    if not reads.slices and () not in reads.trips:
        return None

    def run(*operands: Any) -> list[Any]:
        stacks = {path: read.stack(operands) for path, read in reads.slices.items()}
        return _Rewriting(reads).equation(eqn, (), list(operands), stacks, 0)

    closed = jax.make_jaxpr(run)(*map(internals.abstract, eqn.invars))
    inside = closed.jaxpr
    stands_for = dict(zip(inside.invars, eqn.invars, strict=True))

    def at(atom: Atom) -> Atom:
        return atom if isinstance(atom, jex.Literal) else stands_for.get(atom, atom)

    return Spliced(
        [each.replace(invars=[at(v) for v in each.invars]) for each in inside.eqns],
        dict(zip(inside.constvars, closed.consts, strict=True)),
        [at(v) for v in inside.outvars],
    )


class _Rewriting:
    """Evaluates a loop whose reads are slices that scans hand out."""

    def __init__(self, reads: Reads):
        self.reads = reads

    def run(
        self,
        jaxpr: jex.Jaxpr,
        consts: Sequence[Any],
        ins: Sequence[Any],
        path: Path,
        slices: Mapping[Path, Any],
        depth: int,
    ) -> list[Any]:
        """Evaluates a jaxpr.

        Args:
          jaxpr: Jaxpr.
          consts: Its constants.
          ins: Its inputs.
          path: Its place.
          slices: What is read inside, with leading axes for the loops that are inside too.
          depth: Number of loops around it.
        """
        env: dict[Any, Any] = dict(zip(jaxpr.invars, ins, strict=True))
        env.update(zip(jaxpr.constvars, consts, strict=True))

        def read(atom: Atom) -> Any:
            return atom.val if isinstance(atom, jex.Literal) else env[atom]

        for i, eqn in enumerate(jaxpr.eqns):
            at = (*path, i)
            inside = {p: s for p, s in slices.items() if p[: len(at)] == at}
            if at in slices:
                outs = [slices[at]]
            elif inside:
                outs = self.equation(eqn, at, [read(v) for v in eqn.invars], inside, depth)
            else:
                outs = bind(eqn, [read(v) for v in eqn.invars])
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def equation(
        self,
        eqn: jex.JaxprEqn,
        path: Path,
        ins: list[Any],
        slices: Mapping[Path, Any],
        depth: int,
    ) -> list[Any]:
        """Evaluates an equation with reads inside; its other arguments are those of `run`."""
        inner = inner_jaxprs(eqn)
        match eqn.primitive:
            case prims.scan_p:
                return self.scan(eqn, path, ins, slices, depth)
            case prims.while_p:
                return self.loop(eqn, path, ins, slices, depth)
            case prims.cond_p:

                def branch(i: int, *operands: Any) -> list[Any]:
                    return self.run(*inner[i], operands, (*path, i), slices, depth)

                branches = [partial(branch, i) for i in range(len(inner))]
                return lax.switch(ins[0], branches, *ins[1:])
            case prims.remat_p:
                params = parameters(eqn)

                def body(*operands: Any) -> list[Any]:
                    return self.run(*inner[0], operands, path, slices, depth)

                again = jax.checkpoint(
                    body, prevent_cse=params["prevent_cse"], policy=params["policy"]
                )
                return again(*ins)
            case _:
                return self.run(*inner[0], ins, path, slices, depth)

    def handed_out(
        self, slices: Mapping[Path, Any], depth: int
    ) -> tuple[list[Path], list[Any], dict[Path, Any]]:
        """Tells what a loop hands out turn by turn (places, stacks) from what stays whole in it."""
        own = [path for path in slices if depth in self.reads.slices[path].over]
        whole = {path: s for path, s in slices.items() if path not in own}
        return own, [slices[path] for path in own], whole

    def scan(
        self,
        eqn: jex.JaxprEqn,
        path: Path,
        ins: list[Any],
        slices: Mapping[Path, Any],
        depth: int,
    ) -> list[Any]:
        loop, ((jaxpr, consts),) = internals.scan(eqn), inner_jaxprs(eqn)
        own, stacks, whole = self.handed_out(slices, depth)

        def body(carry: list[Any], turn: tuple[list[Any], list[Any]]) -> Any:
            xs, mine = turn
            here = {**whole, **dict(zip(own, mine, strict=True))}
            values = [*ins[: loop.consts], *carry, *xs]
            outs = self.run(jaxpr, consts, values, path, here, depth + 1)
            return outs[: loop.carry], outs[loop.carry :]

        carry, ys = lax.scan(
            body,
            ins[loop.consts : loop.first_slice],
            (ins[loop.first_slice :], stacks),
            length=loop.length,
            reverse=loop.reverse,
            unroll=loop.unroll,
        )
        return [*carry, *ys]

    def loop(
        self,
        eqn: jex.JaxprEqn,
        path: Path,
        ins: list[Any],
        slices: Mapping[Path, Any],
        depth: int,
    ) -> list[Any]:
        numbers, (test, (jaxpr, consts)) = internals.while_loop(eqn), inner_jaxprs(eqn)
        own, stacks, whole = self.handed_out(slices, depth)
        fixed = ins[numbers.test_consts : numbers.first_carry]

        def body(carry: list[Any], mine: Sequence[Any] = ()) -> list[Any]:
            here = {**whole, **dict(zip(own, mine, strict=True))}
            return self.run(jaxpr, consts, [*fixed, *carry], path, here, depth + 1)

        start = ins[numbers.first_carry :]
        if path in self.reads.trips:
            turns = self.reads.trips[path]
            return lax.scan(lambda c, m: (body(c, m), None), start, stacks, length=turns)[0]

        def goes_on(carry: list[Any]) -> Any:
            return self.run(*test, [*ins[: numbers.test_consts], *carry], path, {}, depth + 1)[0]

        return lax.while_loop(goes_on, body, start)
