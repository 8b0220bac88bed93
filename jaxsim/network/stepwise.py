"""A call of a network in small programs: one for each kind of site and of what lies between."""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.extend.core as jex
import jax.extend.core.primitives as prims

from jaxsim import internals
from jaxsim.cores.core import State
from jaxsim.cores.wrapper import Wrapper
from jaxsim.internals import equation_key, jaxpr_of
from jaxsim.network.interpreter import Walk
from jaxsim.network.plan import Contraction, Entry, Inner, Plan, contractions

ALIKE = 4
"""Sites of a kind, on average, from which on a program for each kind is compiled sooner."""


def mostly_alike(plan: Plan, cores: Mapping[str, tuple[Wrapper, ...]]) -> bool:
    """Tells if many transformed sites of a plan do the same as others, outside loops.

    Args:
      plan: Plan of a call.
      cores: Wrappers of each transformed site.
    """
    kinds = collections.Counter(
        (c.op, jax.tree.structure(cores[c.site.name]), str(c.x), str(c.w))
        for c in contractions(plan)
        if c.site.name in cores and c.site.kind != "lookup" and not c.site.lengths
    )
    return kinds.total() >= ALIKE * max(len(kinds), 1)


class Stepwise(Walk):
    """Evaluates a plan as many small programs, of which those that are alike are compiled once.

    For what is called a few times, such as a calibration: one program of everything takes longer to
    compile than to run. Values must be known, and no loop around.
    """

    def run(
        self,
        plan: Plan,
        values: Sequence[Any],
        states: Mapping[str, State],
        indices: tuple[Any, ...],
    ) -> tuple[list[Any], dict[str, State]]:
        """Evaluates a plan, as `Walk.run` does.

        Args:
          plan: Jaxpr with its constants and the meaning of each equation.
          values: Values of the jaxpr's inputs.
          states: States of the sites inside.
          indices: Nothing.
        """
        jaxpr, states = plan.jaxpr, dict(states)
        env = dict(zip(jaxpr.invars, values, strict=True))
        env.update(zip(jaxpr.constvars, plan.consts, strict=True))

        def read(atom: internals.Atom) -> Any:
            return atom.val if isinstance(atom, jex.Literal) else env[atom]

        blocks = cut_blocks(plan, self.cores)
        last = {v: n for n, block in enumerate(blocks) for v in block.read}
        for n, block in enumerate(blocks):
            outs, updated = self.block(block, read, states)
            states.update(updated)
            env.update(zip(block.given, outs, strict=True))
            for v in {*block.read, *block.given}:
                if last.get(v) == n and v not in jaxpr.outvars:
                    del env[v]  # its memory is free again
        return [read(atom) for atom in jaxpr.outvars], states

    def block(
        self, block: Block, read: Callable[[internals.Atom], Any], states: dict[str, State]
    ) -> tuple[list[Any], dict[str, State]]:
        """Evaluates a block: a site or the inside of a call by its parts, anything else at once.

        Args:
          block: Block.
          read: Gives the value of an operand.
          states: States of all sites.
        """
        held = {name: states[name] for name in block.names if name in states}
        ins, plan = [read(v) for v in block.read], block.plan
        if block.kind == "call":
            (eqn,), (entry,) = plan.jaxpr.eqns, plan.entries
            assert isinstance(entry, Inner)
            outs, after = self.run(entry.plans[0], [read(v) for v in eqn.invars], held, ())
            given = dict(zip(eqn.outvars, outs, strict=True))
            return [given[v] for v in block.given], after
        if block.kind == "site":
            return super().run(plan, ins, held, ())
        cores = {name: self.cores[name] for name in block.names}
        return _run_block(block, (self.ranges, self.calibrating), cores, held, ins)


@partial(jax.jit, static_argnums=(0, 1))
def _run_block(
    block: Block, how: tuple[Any, bool], cores: Any, states: Any, ins: list[Any]
) -> tuple[list[Any], dict[str, State]]:
    """Evaluates a block as one program."""
    ranges, calibrating = how
    return Walk(cores, ranges, None, calibrating=calibrating).run(block.plan, ins, states, ())


Kind = Literal["site", "call", "scan", "rest"]
"""How a block is evaluated."""


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
    """Consecutive equations, equal to others that do the same.

    Attributes:
      kind: "site" for a product that is one, "call" for a jaxpr that holds some, "scan" for a scan
        that does where it was asked for, or "rest".
      plan: Plan of the equations, whose operands are variables of the plan around.
      names: Names of the transformed sites inside.
      key: What the equations do and which of their operands is which.
    """

    kind: Kind
    plan: Plan
    names: tuple[str, ...]
    key: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Block) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    @property
    def read(self) -> Sequence[jex.Var]:
        """Variables that are read."""
        return self.plan.jaxpr.invars

    @property
    def given(self) -> Sequence[Any]:
        """Variables that are computed and read later."""
        return self.plan.jaxpr.outvars


def cut_blocks(plan: Plan, sites: Container[str], *, scans: bool = False) -> list[Block]:
    """Cuts a plan at some of its sites, and at calls that hold some.

    Args:
      plan: Plan of a call.
      sites: Names of the sites to cut at.
      scans: If True, also cuts at scans that hold some, as "scan".
    """
    steps = [
        (eqn, entry if any(c.site.name in sites for c in inside(entry)) else None)
        for eqn, entry in zip(plan.jaxpr.eqns, plan.entries, strict=True)
    ]
    kinds = [_kind(*step, scans=scans) for step in steps]
    turns = itertools.groupby(range(len(steps)), lambda i: i if kinds[i] != "rest" else -1)
    runs = [[steps[i] for i in turn] for _, turn in turns]
    needed = {v for v in plan.jaxpr.outvars if isinstance(v, jex.Var)}
    blocks: list[Block] = []
    for run in reversed(runs):
        made = list(dict.fromkeys(v for eqn, _ in run for v in eqn.outvars))
        own = {*made}
        operands = [v for eqn, _ in run for v in eqn.invars if isinstance(v, jex.Var)]
        read = list(dict.fromkeys(v for v in operands if v not in own))
        given = [v for v in made if v in needed]
        needed |= {*read}
        place = {v: i for i, v in enumerate([*read, *made])}
        key = (
            tuple((_does(eqn, entry), _places(eqn, place)) for eqn, entry in run),
            tuple(place[v] for v in given),
        )
        held = [entry for _, entry in run if entry is not None]
        names = [c.site.name for e in held for c in inside(e) if c.site.name in sites]
        part = Plan(
            jaxpr_of({}, read, given, [eqn for eqn, _ in run], plan.jaxpr),
            (),
            tuple(entry for _, entry in run),
            (None,) * len(given),
        )
        blocks.append(Block(_kind(*run[0], scans=scans), part, tuple(names), key))
    return blocks[::-1]


def _kind(eqn: jex.JaxprEqn, entry: Entry, *, scans: bool) -> Kind:
    """How an equation is evaluated; what holds no transformed site has no entry."""
    if isinstance(entry, Contraction):
        return "rest" if entry.site.kind == "lookup" else "site"
    loops = (prims.scan_p, prims.while_p, prims.cond_p)
    if scans and entry is not None and not entry.rewritten and eqn.primitive is prims.scan_p:
        return "scan"
    if entry is None or entry.rewritten or eqn.primitive in loops:
        return "rest"
    return "rest" if internals.shard_map(eqn) is not None else "call"


def inside(entry: Entry) -> Iterator[Contraction]:
    """Lists the sites that an equation is or holds.

    Args:
      entry: Meaning of the equation.
    """
    if isinstance(entry, Contraction):
        yield entry
    elif entry is not None:
        for plan in entry.plans:
            yield from contractions(plan)


def _does(eqn: jex.JaxprEqn, entry: Entry) -> Any:
    """What an equation does; one that holds sites is like no other."""
    return equation_key(eqn) if entry is None else eqn


def _places(eqn: jex.JaxprEqn, place: Mapping[jex.Var, int]) -> tuple[int | None, ...]:
    """Which variables of a block an equation reads; None for literals."""
    return tuple(None if isinstance(v, jex.Literal) else place[v] for v in eqn.invars)
