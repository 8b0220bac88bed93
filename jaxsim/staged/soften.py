"""Soft masks: tokens that would leave are scaled instead, so that their levels have a gradient.

Each layer's output is multiplied, token by token, by how far the token's importance lies above the
level. That is where the next layer begins, and behind the last attention before what pools tokens;
`simulate` and `run` let tokens leave earlier in the layer, which the scaled output stands for.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxsim.adaptive.tokens import TokenRule, above, always_kept, soft_mask
from jaxsim.cores.core import State
from jaxsim.cores.partition import Partitioned
from jaxsim.internals import jaxpr_of, shape_of
from jaxsim.network.cuts import (
    Cut,
    Equations,
    active_equations,
    cuts,
    equations,
    select_cuts,
)
from jaxsim.network.plan import Entry
from jaxsim.network.stacks import Place
from jaxsim.network.stages import run_stage, split, stage_params
from jaxsim.network.taps import Tap, live_at
from jaxsim.numerics.checks import check_range
from jaxsim.staged.attention import Attention, marks_of
from jaxsim.staged.exit_layout import exit_layout
from jaxsim.staged.exit_step import check_heads
from jaxsim.staged.exits import with_array_threshold
from jaxsim.staged.rows import abstract_leaves, find_rows, without_exits
from jaxsim.staged.token_layout import known_tokens
from jaxsim.staged.token_marks import Marks, Values
from jaxsim.staged.token_stages import (
    ReadExit,
    Shares,
    StageWalk,
    TokenStages,
    exit_reads,
    exit_taps,
    hand_on_tokens,
)
from jaxsim.staged.token_walk import (
    TokenState,
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


class SoftWalk(StageWalk):
    """Evaluates a stage whose tokens are scaled where a layer ends.

    Attributes:
      masks: How much is left of each token by the attentions so far, [B, n] each.
    """

    def __init__(self, *args: Any, dtype: Any, **settings: Any):
        """Prepares to evaluate.

        Args:
          *args: As of `TokenWalk`.
          dtype: Dtype of the masks.
          **settings: As of `TokenWalk`.
        """
        super().__init__(*args, **settings)
        self.dtype = dtype
        self.masks: list[Float[Array, "B n"]] = []

    def set(self, settings: Sequence[Array]) -> None:
        """Takes the settings by which tokens are scaled.

        Args:
          settings: Levels, and the temperature of the masks.
        """
        super().set(settings[:1])
        self.temperature = settings[1]

    def hear(self, told: Sequence[Array]) -> None:
        """Takes what the stage before says of tokens.

        Args:
          told: As `told` gives it.
        """
        super().hear(told[:2])
        self.masks = [masks[:, i] for masks in told[2:] for i in range(masks.shape[1])]

    def told(self, tokens: TokenState) -> list[Array]:
        """What the next stage is told; masks have derivatives.

        Args:
          tokens: Which are there.
        """
        masks = [jnp.stack(self.masks, 1)] if self.masks else []
        return [tokens.present, tokens.there, *masks]

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
        self.masks.append(jnp.where(fixed, 1, mask).astype(self.dtype))
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
        mark: Any = self.marks.of.get(id(eqn))
        match mark:
            case Scaled():
                (x,) = ins
                for layer in mark.layers:
                    left = along_tokens(self.masks[layer], x.ndim, mark.rows, mark.tokens)
                    x = x * left.astype(x.dtype)
                return [x]
            case Shares():
                assert self.tokens is not None
                present = self.tokens.present
                sums = [jnp.sum(mask * present) for mask in self.masks]
                return [jnp.stack(sums), jnp.sum(present, dtype=jnp.int32)]
            case _:
                return super().step(eqn, entry, ins, states, indices)


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
    leaves, treedef = jax.tree.flatten((net, arguments))
    made = memoized(net, _on_one_device, treedef, abstract_leaves(leaves))
    (stage,) = made.cut.stages
    settings = net.heads, require_soft(net).level, temperature
    outputs = run_stage(
        stage,
        stage_params(net, made.cut, stage, settings),
        [jnp.asarray(arguments.arrays[i]) for i in stage.arguments],
        [],
        ranges=net.ranges,
        key=key,
        walk=made.walk,
    )
    *logits, sums, there = (outputs[i] for _, i in made.cut.outputs)
    dtype = logits[-1].dtype
    return Softened(jnp.stack([y.astype(dtype) for y in logits], 1), sums / there)


def _on_one_device(treedef: Any, shapes: tuple[jax.ShapeDtypeStruct, ...]) -> TokenStages:
    return soft_stages(*jax.tree.unflatten(treedef, shapes))


def soft_stages(net: Staged, arguments: Partitioned, places: Sequence[str] = ()) -> TokenStages:
    """Makes the stages of a call whose tokens are scaled where layers end.

    Their outputs are the logits of each exit, and what `Shares` gives.

    Args:
      net: Network whose tokens leave at thresholds; its arrays may be shapes.
      arguments: Arguments of the call; they may be shapes.
      places: Names of the sites that stages but the first begin with.

    Raises:
      ValueError: A layer that ends with tokens along two axes, or what `exit_layout` raises.
    """
    rule, (rows, batched) = require_soft(net), find_rows(arguments)
    stay = (False,) * len(rule.level)
    found = exit_layout(net, arguments, batched, net.exits, net.feature, places, stay)
    check_heads(net, found)
    assert found.tokens is not None
    line, attention = known_tokens(found.tokens, equations(without_exits(net), arguments))
    softened = _with_scales(line, attention)
    reads, length = list[ReadExit](), found.tokens.length
    taps = list[Tap]()
    plain = exit_reads(net, found)
    for read, tap in zip(plain, exit_taps(net, found, line, [r.of for r in plain]), strict=True):
        reads.append(softened.reading(read, tap.cut))
        of_all = partial(reads[-1].of_all, (rows, length))
        taps.append(tap._replace(cut=softened.moved_cut(tap.cut), read=of_all))
    begins = [softened.moved_cut(place) for place in select_cuts(cuts(line), places)]
    fine = jnp.promote_types(jnp.result_type(rule.level), jnp.float32)
    dtype = jnp.promote_types(fine, found.dtype)
    return hand_on_tokens(
        split(softened.line, begins, taps),
        softened.marks,
        rule,
        arguments,
        reads,
        length,
        walk=partial(SoftWalk, dtype=dtype),
        masks=dtype,
    )


class _Softened(NamedTuple):
    """Equations with those that scale tokens among them.

    Attributes:
      line: Equations.
      before: Equations as they were.
      marks: What equations do with tokens, `Scaled` where they scale a value's.
      moved: New position of each equation as it was.
      names: For each position at which values are scaled, what each is called behind it.
    """

    line: Equations
    before: Equations
    marks: Marks
    moved: list[int]
    names: dict[int, dict[jex.Var, jex.Var]]

    def moved_cut(self, cut: Cut) -> Cut:
        """A cut of the equations as they were in these."""
        at = self.line.active.index(self.moved[self.before.active[cut.at]])
        return cut._replace(at=at)

    def reading(self, read: ReadExit, cut: Cut) -> ReadExit:
        """What a classifier at a cut of the equations as they were reads of these."""
        now = live_at(self.line, self.moved_cut(cut).at)
        order = (now.index(self.name(v, cut.at)) for v in live_at(self.before, cut.at))
        return read._replace(order=tuple(order))

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
    marks: dict[int, Any] = {**old.of}
    names = dict[int, dict[jex.Var, jex.Var]]()
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
                marks[id(made)] = Scaled(places[i], rows, tokens)
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
