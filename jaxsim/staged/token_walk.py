"""Walk that lets tokens leave: masks those that have left, and decides who leaves next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.extend.core as jex
import jax.extend.core.primitives as prims
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxsim import internals
from jaxsim.adaptive.tokens import TokenRule, token_importance
from jaxsim.cores.core import State
from jaxsim.cores.partition import Partitioned
from jaxsim.cores.wrapper import Wrapper
from jaxsim.internals import parameters
from jaxsim.network.interpreter import Walk
from jaxsim.network.plan import Entry, Inner, contractions
from jaxsim.staged.token_marks import Last, Marks, Pool, Scores, Values


class TokenState(NamedTuple):
    """Which tokens are there.

    Attributes:
      present: True for each that has not left, [B, n].
      there: How many there were before any left, [B].
      size: How many each stands for, [B, n], where tokens are merged; None where they leave.
    """

    present: Bool[Array, "B n"]
    there: Int[Array, " B"]
    size: Float[Array, "B n"] | None = None


class TokenWalk(Walk):
    """Evaluates equations in which tokens leave.

    Attributes:
      tokens: Which are there, None as long as it is not known.
      kept: How many each attention has kept, [B] each.
      into: For each token the one that it is to be merged into at the next cut, [B, n].
    """

    def __init__(
        self,
        cores: Mapping[str, tuple[Wrapper, ...]],
        ranges: Literal["batch", "stored", "missing"],
        key: Key[Array, ""] | None,
        *,
        part: Any = None,
        rule: TokenRule,
        marks: Marks,
        leave: tuple[bool, ...] | None,
        layer: int,
        tokens: TokenState | None,
    ):
        """Prepares to evaluate.

        Args:
          cores: Wrappers of each transformed site, outermost first.
          ranges: Where cores take ranges from, as `Network.ranges`.
          key: Random key of the call, or None.
          part: Tells apart the read noise of parts of one call, such as microbatches.
          rule: When a token leaves.
          marks: What equations do with tokens.
          leave: For each attention, False where no token leaves; None where any may.
          layer: Number of the next attention, from 0.
          tokens: Which are there, if known.
        """
        super().__init__(cores, ranges, key, part=part)
        self.rule, self.marks, self.leave, self.layer = rule, marks, leave, layer
        self.tokens: TokenState | None = tokens
        self.kept: list[Int[Array, " B"]] = []
        self.into: Int[Array, "B n"] | None = None
        self.keys: Float[Array, "B n d"] | None = None

    def step(
        self,
        eqn: jex.JaxprEqn,
        entry: Entry,
        ins: list[Any],
        states: dict[str, State],
        indices: tuple[Any, ...],
    ) -> Sequence[Any]:
        """Computes the results of an equation, with what it does with tokens.

        Args:
          eqn: Equation.
          entry: Its meaning in the plan.
          ins: Values of its operands.
          states: States of the sites, by name.
          indices: Iteration of each loop around, outermost first.
        """
        if isinstance(entry, Inner) and self.marks.holds(entry):
            return self.in_place(eqn, entry, ins, states, indices)
        mark = self.marks.of.get(id(eqn))
        if isinstance(mark, Scores) and self.rule.merges:
            self.keys = mean_keys(eqn, mark, ins)
        if isinstance(mark, Values):
            ins = [*ins]
            ins[mark.operand] = self.by_size(mark, ins[mark.operand])
            self.decide(mark, ins[mark.operand])
        if self.tokens is None or mark is None or isinstance(mark, Values):
            return super().step(eqn, entry, ins, states, indices)
        if isinstance(mark, Last):
            return [_last(mark, self.tokens.present, ins[0])]
        if isinstance(mark, Pool):
            x, size = ins[mark.operand], self.tokens.size
            here = along_tokens(self.tokens.present, x.ndim, mark.rows, mark.tokens)
            if mark.how == "sum" and size is not None:
                x = x * along_tokens(size, x.ndim, mark.rows, mark.tokens).astype(x.dtype)
            ins = [*ins]
            ins[mark.operand] = jnp.where(here, x, _nothing(mark.how, x.dtype))
        (y,) = super().step(eqn, entry, ins, states, indices)
        if isinstance(mark, Scores):
            here = along_tokens(self.tokens.present, y.ndim, mark.rows, mark.keys)
            # Far below any score, and not so far that a mask of the model on top overflows.
            return [jnp.where(here, y, jnp.asarray(jnp.finfo(y.dtype).min / 4, y.dtype))]
        averaged = mark.how == "sum" and self.tokens.size is None
        if averaged and jnp.issubdtype(y.dtype, jnp.floating):
            share = self.tokens.there / jnp.sum(self.tokens.present, -1)
            axes = tuple(i for i in range(y.ndim) if i != mark.rows_after)
            return [y * jnp.expand_dims(share, axes).astype(y.dtype)]
        return [y]

    def decide(self, mark: Values, attention: Float[Array, "..."]) -> None:
        """Decides which tokens stay behind this attention.

        Args:
          mark: What the axes of the probabilities hold.
          attention: Probabilities.
        """
        given = by_rows(mark, attention)
        tokens = tokens_attended(given) if self.tokens is None else self.tokens
        count = jnp.sum(tokens.present, -1)
        leave = self.leave is None or self.leave[self.layer]
        if self.rule.merges:
            tokens = sized(tokens)
            if leave:
                assert self.keys is not None
                self.into = self.rule.match(self.layer, self.keys, tokens.present)
                count = jnp.sum(self.into == jnp.arange(self.into.shape[1]), -1)
                count -= jnp.sum(~tokens.present, -1)
        elif leave:
            present = self.rule.keep(self.layer, importance(given, tokens), tokens.present)
            tokens, count = tokens._replace(present=present), jnp.sum(present, -1)
        self.tokens = tokens
        self.kept.append(count)
        self.layer += 1

    def by_size(self, mark: Values, attention: Float[Array, "..."]) -> Float[Array, "..."]:
        """Gives each token as much attention as those that it stands for: log size in the scores.

        Args:
          mark: What the axes of the probabilities hold.
          attention: Probabilities.
        """
        if self.tokens is None or self.tokens.size is None:
            return attention
        size = along_tokens(self.tokens.size, attention.ndim, mark.rows, mark.keys)
        more = jnp.sum(attention * (size - 1), mark.keys, keepdims=True)
        return (attention * size / (1 + more)).astype(attention.dtype)

    def in_place(
        self,
        eqn: jex.JaxprEqn,
        entry: Inner,
        ins: list[Any],
        states: dict[str, State],
        indices: tuple[Any, ...],
    ) -> Sequence[Any]:
        """Runs the equations inside one as if they stood in its place.

        Args:
          eqn: Equation, such as a part of a scan that is one slice of a stack.
          entry: Its meaning in the plan.
          ins: Values of its operands.
          states: States of the sites, by name.
          indices: Iteration of each loop around, outermost first.
        """
        (plan,) = entry.plans
        if eqn.primitive is not prims.scan_p:
            outs, after = self.run(plan, ins, states, indices)
            states.update(after)
            return outs
        loop, first = internals.scan(eqn), 0 if entry.rows is None else entry.rows.first
        stacked = {c.site.name: c.site.stacked[len(indices)] for c in contractions(plan)}
        consts, carry = ins[: loop.consts], ins[loop.consts : loop.first_slice]
        turns = range(loop.length)
        gathered: dict[int, list[Any]] = {}
        for i in reversed(turns) if loop.reverse else turns:
            own = {
                name: jax.tree.map(lambda a, i=i: a[i], state) if stacked[name] else state
                for name, state in states.items()
                if name in stacked
            }
            sliced = [x[i] for x in ins[loop.first_slice :]]
            values, index = [*consts, *carry, *sliced], jnp.int32(first + i)
            outs, _ = self.run(plan, values, own, (*indices, index))
            carry, gathered[i] = outs[: loop.carry], outs[loop.carry :]
        columns = zip(*(gathered[i] for i in turns), strict=True)
        return [*carry, *(jnp.stack(column) for column in columns)]


def mean_keys(eqn: jex.JaxprEqn, mark: Scores, operands: Sequence[Array]) -> Float[Array, "B n d"]:
    """Averages the keys of a product of queries and keys over heads.

    Args:
      eqn: The product.
      mark: What its axes hold.
      operands: Its operands.
    """
    summed, batch = parameters(eqn)["dimension_numbers"]
    free = [
        [i for i in range(a.ndim) if i not in (*summed[side], *batch[side])]
        for side, a in enumerate(operands)
    ]
    # a product's axes are those of the batch, then what is left of the first, and of the second
    at = mark.keys - len(batch[0])
    side = 0 if at < len(free[0]) else 1
    keys = free[side][at - side * len(free[0])]
    along = list(summed[side])
    first = [batch[side][mark.rows], keys, *along]
    x = jnp.moveaxis(operands[side], first, [0, 1, *range(-len(along), 0)])
    fine = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    heads = jnp.mean(fine, tuple(range(2, x.ndim - len(along))))
    return heads.reshape(*heads.shape[:2], -1)


def by_rows(mark: Values, attention: Float[Array, "..."]) -> Float[Array, "B H n n"]:
    """Brings probabilities into the order of rows, heads, queries and keys.

    Args:
      mark: What their axes hold.
      attention: Probabilities.
    """
    n = attention.shape[mark.keys]
    given = jnp.moveaxis(attention, (mark.rows, mark.queries, mark.keys), (0, -2, -1))
    return given.reshape(given.shape[0], -1, n, n)


def tokens_attended(attention: Float[Array, "B H n n"]) -> TokenState:
    """Finds the tokens that any other attends to: the others are padding.

    Args:
      attention: Probabilities.
    """
    valid = jnp.any(attention > 0, (1, 2))
    return state_of(valid)


def state_of(present: Bool[Array, "B n"]) -> TokenState:
    """Counts the tokens that are there before any has left.

    Args:
      present: Which there are.
    """
    return TokenState(present, jnp.sum(present, -1))


def sized(tokens: TokenState) -> TokenState:
    """Says how many tokens each stands for, itself alone where none has been merged.

    Args:
      tokens: Which are there.
    """
    if tokens.size is not None:
        return tokens
    return tokens._replace(size=jnp.ones(tokens.present.shape, jnp.float32))


def given_tokens(rule: TokenRule, arguments: Partitioned) -> TokenState | None:
    """Computes which tokens there are, where the rule says so.

    Args:
      rule: When a token leaves.
      arguments: Arguments of the call.

    Raises:
      ValueError: What it says is no mask of tokens.
    """
    if rule.present is None:
        return None
    args, kwargs = arguments.combine()
    present = jnp.asarray(rule.present(*args, **kwargs))
    if present.ndim != 2 or present.dtype != bool:
        raise ValueError(
            f"present: gives {present.dtype}{list(present.shape)}; must be which tokens there are, "
            "bool [B, n]"
        )
    return state_of(present)


def importance(attention: Float[Array, "B H n n"], tokens: TokenState) -> Float[Array, "B n"]:
    """Computes the attention that each token receives, in float32 or finer.

    Args:
      attention: Probabilities.
      tokens: Which are there.
    """
    fine = jnp.promote_types(attention.dtype, jnp.float32)
    return token_importance(attention.astype(fine), tokens.present)


def along_tokens(present: Array, ndim: int, rows: int, tokens: int) -> Array:
    """Shapes what there is of each token, [B, n], to broadcast to a value.

    Args:
      present: Truth or number of each token.
      ndim: Number of axes of the value.
      rows: Its axis that holds the rows of the batch.
      tokens: Its axis that holds the tokens.
    """
    here = present if rows < tokens else present.T
    return jnp.expand_dims(here, tuple(i for i in range(ndim) if i not in (rows, tokens)))


def _nothing(how: str, dtype: Any) -> Any:
    if how == "sum":
        return jnp.zeros((), dtype)
    info = jnp.finfo(dtype) if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo(dtype)
    return jnp.asarray(info.min if how == "max" else info.max, dtype)


def _last(mark: Last, present: Array, x: Array) -> Array:
    """The last tokens that are there."""
    n = present.shape[-1]
    order = jnp.where(present, jnp.arange(n), -1)
    index = jnp.sort(order, -1)[:, n - mark.number :]
    index = jnp.maximum(index, 0)
    rest = tuple(i for i in range(x.ndim) if i not in (mark.rows, mark.tokens))
    index = index if mark.rows < mark.tokens else index.T
    return jnp.take_along_axis(x, jnp.expand_dims(index, rest), mark.tokens)


def marked_equation(reads: Sequence[jex.Var], gives: Sequence[jex.Var]) -> jex.JaxprEqn:
    """An equation that a walk evaluates by its mark, and nothing else can.

    Args:
      reads: Operands.
      gives: Results.
    """
    (like,) = jax.make_jaxpr(jnp.copy)(0.0).jaxpr.eqns
    return like.replace(invars=[*reads], outvars=[*gives])
