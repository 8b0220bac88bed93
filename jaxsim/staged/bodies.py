"""Equations of a call, with those inside of them that run as if they stood there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeGuard

import jax.extend.core as jex
import jax.extend.core.primitives as prims

from jaxsim import internals
from jaxsim.network.plan import Entry, Inner, Plan
from jaxsim.network.stacks import part_name
from jaxsim.sparsity.channels.propagate import EquationAxes
from jaxsim.staged.token_marks import Path


class Body(NamedTuple):
    """Equations that run one after another, with their meaning and axes.

    Attributes:
      path: Position of the equation that they are inside of; () for those of the call.
      eqns: Equations.
      entries: Meaning of each.
      axes: Axis groups of what each reads and makes.
      jaxpr: What holds them.
      stack: The scan whose only slice they are, with its meaning; None outside of stacks.
    """

    path: Path
    eqns: Sequence[jex.JaxprEqn]
    entries: Sequence[Entry]
    axes: Sequence[EquationAxes]
    jaxpr: jex.Jaxpr
    stack: tuple[jex.JaxprEqn, Inner] | None = None

    @classmethod
    def of(cls, plan: Plan, axes: Sequence[EquationAxes]) -> Body:
        """Takes the equations of a call.

        Args:
          plan: Equations of the call, with their meaning.
          axes: Axis groups of each, () where none is asked for.
        """
        return cls((), plan.jaxpr.eqns, plan.entries, axes, plan.jaxpr)

    def name(self, site: str) -> str:
        """Names a site, within a stack with its slice.

        Args:
          site: Name of the site.
        """
        return site if self.stack is None else part_name(*self.stack, site)

    def everywhere(self) -> Iterator[Body]:
        """Lists these equations, and those inside that run as if they stood there."""
        yield self
        for i, (eqn, entry, own) in enumerate(zip(self.eqns, self.entries, self.axes, strict=True)):
            if runs_in_place(entry, eqn):
                (plan,) = entry.plans
                if [len(axes) for axes in own.inner] == [len(plan.jaxpr.eqns)]:
                    stack = self.stack if entry.rows is None else (eqn, entry)
                    inside = Body.of(plan, own.inner[0])
                    yield from inside._replace(path=(*self.path, i), stack=stack).everywhere()


def runs_in_place(entry: Entry, eqn: jex.JaxprEqn) -> TypeGuard[Inner]:
    """Tells if the equations inside one may be run as if they stood in its place.

    Args:
      entry: Meaning of the equation.
      eqn: The equation.
    """
    if not isinstance(entry, Inner) or entry.rewritten or len(entry.plans) != 1:
        return False
    if eqn.primitive is prims.scan_p:
        return internals.scan(eqn).length == 1
    return eqn.primitive in (prims.jit_p, prims.closed_call_p, prims.remat_p)
