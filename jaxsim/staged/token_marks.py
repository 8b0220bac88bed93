"""What equations of a traced model do with tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax.extend.core.primitives as prims

from jaxsim import internals
from jaxsim.network.plan import Entry, Inner, Plan

Path = tuple[int, ...]
"""Position of an equation among those of a call, and of those inside it."""


class Scores(NamedTuple):
    """A product of queries and keys.

    Attributes:
      rows: Axis of its result that holds the rows of the batch.
      keys: Axis that holds the tokens that are attended to.
    """

    rows: int
    keys: int


class Values(NamedTuple):
    """A product of probabilities and values, where tokens may leave.

    Attributes:
      operand: Position of the probabilities among its operands.
      rows: Their axis that holds the rows of the batch.
      queries: That which holds the tokens that attend.
      keys: That which holds the tokens that are attended to.
    """

    operand: int
    rows: int
    queries: int
    keys: int


class Pool(NamedTuple):
    """A reduction over tokens outside of attention.

    Attributes:
      how: "sum", "max" or "min".
      operand: Position of the operand whose tokens are reduced.
      rows: Its axis that holds the rows of the batch.
      tokens: Its axis that holds the tokens.
      rows_after: Axis of the result that holds the rows.
    """

    how: str
    operand: int
    rows: int
    tokens: int
    rows_after: int


class Last(NamedTuple):
    """A slice that takes the last tokens.

    Attributes:
      number: How many.
      rows: Axis that holds the rows of the batch.
      tokens: Axis that holds the tokens.
    """

    number: int
    rows: int
    tokens: int


Mark = Scores | Values | Pool | Last
"""What an equation does with tokens."""


class Marks(NamedTuple):
    """What equations do with tokens, by identity: they stay the same objects where a call is cut.

    Attributes:
      of: Mark of an equation.
      inside: Jaxprs that hold marked equations.
    """

    of: Mapping[int, Mark]
    inside: frozenset[int]

    def holds(self, entry: Entry) -> bool:
        """Tells if the equations inside one are marked.

        Args:
          entry: Meaning of the equation.
        """
        return isinstance(entry, Inner) and any(id(p.jaxpr) in self.inside for p in entry.plans)

    def attentions(self, plan: Plan) -> int:
        """Counts the attentions of a stage.

        Args:
          plan: Equations of the stage.
        """
        count = 0
        for eqn, entry in zip(plan.jaxpr.eqns, plan.entries, strict=True):
            count += isinstance(self.of.get(id(eqn)), Values)
            if self.holds(entry):
                assert isinstance(entry, Inner)
                turns = internals.scan(eqn).length if eqn.primitive is prims.scan_p else 1
                count += turns * self.attentions(entry.plans[0])
        return count
