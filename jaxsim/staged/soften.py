"""Soft masks: tokens that would leave are scaled instead, so that their levels have a gradient.

Each layer's output is multiplied, token by token, by how far the token's importance lies above the
level. That is where the next layer begins, and behind the last attention before what pools tokens;
`simulate` and `run` let tokens leave earlier in the layer, which the scaled output stands for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.extend.core as jex
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxsim.adaptive.heads import apply_head
from jaxsim.adaptive.tokens import TokenRule, above, always_kept, soft_mask
from jaxsim.cores.core import State
from jaxsim.cores.partition import Partitioned
from jaxsim.cores.wrapper import Wrapper
from jaxsim.internals import jaxpr_of, shape_of
from jaxsim.network.cuts import Equations, active_equations, cuts, equations
from jaxsim.network.plan import Entry
from jaxsim.network.stacks import Place
from jaxsim.network.stages import Stages, run_stage, split, stage_params
from jaxsim.network.taps import live_at
from jaxsim.numerics.checks import check_range
from jaxsim.staged.attention import Attention, Mark, Marks, Values, marks_of
from jaxsim.staged.exit_step import check_heads
from jaxsim.staged.exits import tokens_given, with_array_threshold
from jaxsim.staged.rows import (
    ExitLayout,
    abstract_leaves,
    boundary_values,
    computed_rows,
    exit_layout,
    find_rows,
    known_tokens,
    select_union,
    without_exits,
)
from jaxsim.staged.token_walk import (
    TokenState,
    TokenWalk,
    along_tokens,
    by_rows,
    importance,
    tokens_attended,
)
from jaxsim.values.memo import memoized

if TYPE_CHECKING:
    from jaxsim.staged.network import Staged


class Softened(NamedTuple):
    """Outputs of a network whose tokens are scaled rather than left out.

    Attributes:
      logits: Logits [B, L, C] of every exit, the network's own last.
      shares: Mean, over the tokens present, of the fraction of each that an attention leaves, [A];
        1 leaves all.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jaxsim.staged import Softened
      >>> Softened(jnp.zeros((2, 1, 3)), jnp.array([1.0, 0.5])).shares.mean().item()
      0.75
    """

    logits: Float[Array, "B L C"]
    shares: Float[Array, " A"]


class Scaled(NamedTuple):
    """A value whose tokens are scaled.

    Attributes:
      layers: Numbers of the attentions that decided since the layer before.
      rows: Axis that holds the rows of the batch.
      tokens: Axis that holds the tokens.
    """

    layers: tuple[int, ...]
    rows: int
    tokens: int


class SoftPlan(NamedTuple):
    """Stages of a call in which layers end with what scales their tokens.

    Attributes:
      cut: Stages, between which classifiers read.
      marks: What equations do with tokens.
      scaled: By the identity of an equation, the value that it scales.
      layout: Batch axes, widths and costs.
      read: For each exit but the last the variables that its classifier reads.
    """

    cut: Stages
    marks: Marks
    scaled: Mapping[int, Scaled]
    layout: ExitLayout
    read: tuple[tuple[jex.Var, ...], ...]


class SoftWalk(TokenWalk):
    """Evaluates equations whose tokens are scaled where a layer ends."""

    def __init__(
        self,
        cores: Mapping[str, tuple[Wrapper, ...]],
        ranges: Literal["batch", "stored", "missing"],
        key: Key[Array, ""] | None,
        *,
        part: Any = None,
        rule: TokenRule,
        plan: SoftPlan,
        temperature: Any,
        masks: list[Float[Array, "B n"]],
        tokens: TokenState | None,
    ):
        """Prepares to evaluate.

        Args:
          cores: Wrappers of each transformed site, outermost first.
          ranges: Where cores take ranges from, as `Network.ranges`.
          key: Random key of the call, or None.
          part: Tells apart the read noise of parts of one call.
          rule: When a token leaves; its levels are thresholds.
          plan: Stages of the call.
          temperature: Temperature of the masks.
          masks: How much is left of each token by the attentions so far; those of this stage are
            added.
          tokens: Which are there, if known.
        """
        super().__init__(
            cores,
            ranges,
            key,
            part=part,
            rule=rule,
            marks=plan.marks,
            leave=None,
            layer=len(masks),
            tokens=tokens,
        )
        self.scaled, self.temperature, self.masks = plan.scaled, temperature, masks

    def decide(self, mark: Values, attention: Float[Array, "..."]) -> None:
        """Computes how much of each token this attention leaves.

        Args:
          mark: What the axes of the probabilities hold.
          attention: Probabilities.
        """
        given, rule = by_rows(mark, attention), self.rule
        tokens = tokens_attended(given) if self.tokens is None else self.tokens
        mask = soft_mask(importance(given, tokens), rule.level[self.layer], self.temperature)
        fixed = always_kept(tokens.present, rule.protect, rule.protect_last)
        self.masks.append(jnp.where(fixed, 1, mask))
        self.tokens, self.layer = tokens, self.layer + 1

    def step(
        self,
        eqn: jex.JaxprEqn,
        entry: Entry,
        ins: list[Any],
        states: dict[str, State],
        indices: tuple[Any, ...],
    ) -> Any:
        """Computes the results of an equation; one that ends a layer scales its tokens.

        Args:
          eqn: Equation.
          entry: Its meaning in the plan.
          ins: Values of its operands.
          states: States of the sites, by name.
          indices: Iteration of each loop around, outermost first.
        """
        own = self.scaled.get(id(eqn))
        if own is None:
            return super().step(eqn, entry, ins, states, indices)
        (x,) = ins
        for layer in own.layers:
            x = x * along_tokens(self.masks[layer], x.ndim, own.rows, own.tokens).astype(x.dtype)
        return [x]


def soften(net: Staged, arguments: Partitioned, temperature: Any, key: Any) -> Softened:
    """Computes everything, tokens scaled where they would leave: a pure function.

    Args:
      net: Network whose tokens leave.
      arguments: Arguments of the call.
      temperature: Temperature of the masks, above 0.
      key: Random key of the call, or None.

    Raises:
      ValueError: All tokens stay, levels that are no thresholds, a temperature that is not above 0,
        or a layer that ends with tokens along two axes.
    """
    require_soft(net)
    check_range("temperature", temperature, 0, above=True)
    return _soften(with_array_threshold(net), arguments, jnp.float32(temperature), key)


def require_soft(net: Staged) -> TokenRule:
    """Refuses a network whose tokens have no soft masks.

    Args:
      net: Network in stages.

    Raises:
      ValueError: All tokens stay, or they leave by another rule than a threshold.
    """
    if net.tokens is None:
        raise ValueError("net: all its tokens stay; js.prune_tokens(…)(net) lets some leave")
    if net.tokens.keeps is not above:
        raise ValueError(f"keeps={net.tokens.keeps!r}: soft masks are of thresholds, tokens.above")
    return net.tokens


@jax.jit
def _soften(net: Staged, arguments: Partitioned, temperature: Any, key: Any) -> Softened:
    rule, plan = require_soft(net), soft_plan(net, arguments)
    tokens, masks = tokens_given(net, arguments), list[Array]()
    known, logits = dict[Any, Array](), list[Array]()
    for at, stage in enumerate(plan.cut.stages):
        walks: list[SoftWalk] = []

        def walk(*settings: Any, part: Any, made: Any = walks, there: Any = tokens) -> SoftWalk:
            own = {"rule": rule, "plan": plan, "temperature": temperature, "masks": masks}
            made.append(SoftWalk(*settings, part=part, tokens=there, **own))
            return made[-1]

        outputs = run_stage(
            stage,
            stage_params(net, plan.cut, stage),
            [jnp.asarray(arguments.arrays[i]) for i in stage.arguments],
            [known[plan.cut.stages[s].plan.jaxpr.outvars[i]] for s, i in stage.sources],
            ranges=net.ranges,
            key=key,
            walk=walk,
        )
        tokens = walks[0].tokens
        known.update(zip(stage.plan.jaxpr.outvars, outputs, strict=True))
        number = (*plan.layout.exits, None)[at]
        if number is None:
            logits.append(outputs[plan.cut.outputs[0][1]])
        else:
            rows = [known[v] for v in plan.read[at]]
            logits.append(apply_head(net.heads[number], _feature(net, plan, at, rows, tokens)))
    assert tokens is not None
    dtype, there = jnp.dtype(plan.layout.dtype), jnp.sum(tokens.present)
    shares = jnp.stack([jnp.sum(mask * tokens.present) / there for mask in masks])
    return Softened(jnp.stack([y.astype(dtype) for y in logits], 1), shares)


def _feature(
    net: Staged, plan: SoftPlan, at: int, live: list[Array], tokens: TokenState | None
) -> Array:
    """What the classifier behind a stage reads."""
    found = plan.layout
    assert found.tokens is not None
    rows = computed_rows(live, found.axes[at], found.tokens.known[at])
    return net.feature(rows) if tokens is None else net.feature(rows, tokens.present)


def soft_plan(net: Staged, arguments: Partitioned) -> SoftPlan:
    """Builds the stages of a call, kept for calls of the same shapes.

    Args:
      net: Network whose tokens leave.
      arguments: Arguments of the call; they may be shapes.

    Raises:
      ValueError: A layer that ends with tokens along two axes, or what `exit_layout` raises.
    """
    leaves, treedef = jax.tree.flatten((net, arguments))
    return memoized(net, _soft_plan, treedef, abstract_leaves(leaves), find_rows(arguments)[1])


def _soft_plan(
    treedef: Any, shapes: tuple[jax.ShapeDtypeStruct, ...], batched: tuple[bool, ...]
) -> SoftPlan:
    net, arguments = jax.tree.unflatten(treedef, shapes)
    stay = (False,) * len(net.tokens.level)
    found = exit_layout(net, arguments, batched, net.exits, net.feature, (), stay)
    check_heads(net, found)
    assert found.tokens is not None
    line, attention = known_tokens(found.tokens, equations(without_exits(net), arguments))
    places = select_union(cuts(line), net.exits, ())
    plain = split(line, places)
    softened = _with_scales(line, attention)
    cut = split(softened.line, [place._replace(at=softened.at(place.at)) for place in places])
    read = tuple(
        tuple(softened.name(plain.stages[s].plan.jaxpr.outvars[i], place.at) for s, i in crossing)
        for place, crossing in zip(places, boundary_values(plain), strict=True)
    )
    return SoftPlan(cut, softened.marks, softened.scaled, found, read)


class _Softened(NamedTuple):
    """Equations with those that scale tokens among them.

    Attributes:
      line: Equations.
      before: Equations as they were.
      marks: What equations do with tokens.
      scaled: By the identity of an equation, the value that it scales.
      moved: New position of each equation as it was.
      names: For each position at which values are scaled, what each is called behind it.
    """

    line: Equations
    before: Equations
    marks: Marks
    scaled: dict[int, Scaled]
    moved: list[int]
    names: dict[int, dict[jex.Var, jex.Var]]

    def at(self, before: int) -> int:
        """Number of active equations before a place, from what it was."""
        return self.line.active.index(self.moved[self.before.active[before]])

    def name(self, v: Any, before: int) -> jex.Var:
        """What a value is called at a place, by the number of active equations before it."""
        here = self.before.active[before]
        for position in sorted(self.names):
            if position <= here:
                v = self.names[position].get(v, v)
        return v


def _with_scales(line: Equations, attention: Attention) -> _Softened:
    """Puts equations that scale tokens where layers end."""
    places: dict[int, tuple[int, ...]] = {}
    pending: tuple[int, ...] = ()
    for i, begin in enumerate(attention.at):
        pending = (*pending, i)
        if (place := layer_end(line, attention, i)) is not None and place > begin:
            places[place], pending = pending, ()
    jaxpr, old = line.plan.jaxpr, marks_of(line, attention)
    marks: dict[int, Mark] = {**old.of}
    scaled, names = dict[int, Scaled](), dict[int, dict[jex.Var, jex.Var]]()
    now: dict[Any, jex.Var] = {}
    eqns, entries, moved = list[jex.JaxprEqn](), list[Entry](), list[int]()
    origins = list[Place]()
    for i, (eqn, entry) in enumerate(zip(jaxpr.eqns, line.plan.entries, strict=True)):
        if i in places:
            names[i] = {}
            for v in _scalable(line, attention, line.active.index(i)):
                (rows,), (tokens,) = attention.row_axes(v), attention.token_axes(v)
                (copied,) = jax.make_jaxpr(jnp.copy)(shape_of(v)).jaxpr.eqns
                before, after = now.get(v, v), jex.Var(v.aval)
                made = copied.replace(invars=[before], outvars=[after])
                scaled[id(made)] = Scaled(places[i], rows, tokens)
                names[i][before] = now[v] = after
                origins.append((-1, 0, len(eqns)))  # of no equation of the model
                eqns.append(made)
                entries.append(None)
        read = [now.get(v, v) if isinstance(v, jex.Var) else v for v in eqn.invars]
        made = eqn.replace(invars=read)
        if id(eqn) in old.of:
            marks[id(made)] = old.of[id(eqn)]
        moved.append(len(eqns))
        origins.append(line.places[i])
        eqns.append(made)
        entries.append(entry)
    outvars = [now.get(v, v) if isinstance(v, jex.Var) else v for v in jaxpr.outvars]
    consts = dict(zip(jaxpr.constvars, line.plan.consts, strict=True))
    made = jaxpr_of(consts, jaxpr.invars, outvars, eqns, jaxpr)
    plan = line.plan._replace(jaxpr=made, entries=tuple(entries))
    active = sorted({*range(line.early), *active_equations(eqns, line.arguments)})
    return _Softened(
        line._replace(plan=plan, active=tuple(active), places=tuple(origins)),
        line,
        Marks(marks, old.inside),
        scaled,
        moved,
        names,
    )


def layer_end(line: Equations, attention: Attention, layer: int) -> int | None:
    """Finds where the layer of an attention ends: what its tokens are then is its output.

    That is, of the places before anything else mixes tokens, the last that fewest activations
    cross, and of those the one of fewest bytes.

    Args:
      line: Equations of a call.
      attention: Where it attends.
      layer: Number of the attention, from 0.

    Returns:
      Position of the equation that follows; None where nothing behind reads a token.

    Raises:
      ValueError: Tokens lie along two axes of a value there, or along one with something else.
    """
    begin = attention.at[layer]
    marked = (path[0] for path in attention.marks if path[0] > begin)
    end = min(marked, default=len(line.plan.jaxpr.eqns))
    found: list[tuple[int, int, int]] = []
    refused = False
    for order, i in enumerate(line.active):
        if not begin < i <= end:
            continue
        live = _computed(line, order)
        if not any(map(attention.holds_tokens, live)):
            continue
        scalable = _scalable(line, attention, order)
        plain = [v for v in live if attention.holds_tokens(v) and _is_float(v)]
        if len(scalable) < len(plain):
            refused = True
        elif scalable:
            size = sum(shape_of(v).size * shape_of(v).dtype.itemsize for v in live)
            found.append((len(live), size, -i))
    if not found and refused:
        raise ValueError(
            f"soften cannot scale the tokens behind {attention.names[layer]}: wherever its layer "
            "could end, they lie along two axes of a value, or along one with something else"
        )
    return -min(found)[2] if found else None


def _computed(line: Equations, order: int) -> list[jex.Var]:
    """What is live at a place, without what is known of tokens before anything is computed."""
    early = {v for eqn in line.plan.jaxpr.eqns[: line.early] for v in eqn.outvars}
    return [v for v in live_at(line, order) if v not in early]


def _scalable(line: Equations, attention: Attention, order: int) -> list[jex.Var]:
    """Floats that are live at a place and hold a number for each row and token."""
    return [
        v
        for v in _computed(line, order)
        if _is_float(v) and (len(attention.row_axes(v)), len(attention.token_axes(v))) == (1, 1)
    ]


def _is_float(v: jex.Var) -> bool:
    return jnp.issubdtype(shape_of(v).dtype, jnp.floating)
