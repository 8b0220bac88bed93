"""Early exits: what every exit of a network says, and which one each row takes.

`simulate` computes all rows to the end and masks those that would have left; `run` (in
`exit_queue`) takes the same steps over batches of the rows that stay.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxsim.adaptive.heads import apply_head
from jaxsim.adaptive.rule import Exits, Rule, check_rule, pick_exits
from jaxsim.adaptive.tokens import check_levels
from jaxsim.cores.partition import Partitioned
from jaxsim.network.stages import stage_params
from jaxsim.pipeline.microbatch import example_of
from jaxsim.staged.exit_layout import ExitLayout, exit_layout
from jaxsim.staged.exit_step import StageInputs, advance, features_of, prepared
from jaxsim.staged.rows import find_rows
from jaxsim.staged.token_layout import TokenLayout
from jaxsim.staged.token_walk import TokenState, given_tokens

if TYPE_CHECKING:
    from jaxsim.staged.network import Staged


def require_exits(net: Staged) -> None:
    """Refuses a network that nothing leaves, or with a rule that does not fit its exits.

    Args:
      net: Network in stages.

    Raises:
      ValueError: It has neither exits nor tokens that leave, or a rule is out of range.
    """
    if not net.exits and net.tokens is None:
        raise ValueError("net: has no exits; js.exit_early(…)(net) makes them")
    if net.tokens is not None and np.ndim(net.tokens.level) == 1:
        check_levels(net.tokens.level, len(net.tokens.level))
    check_rule(net.rule, len(net.heads) + 1)


def simulate(net: Staged, arguments: Partitioned, key: Any) -> Exits:
    """Computes every row to the end, and the exit it would have taken: a pure function.

    Args:
      net: Network with exits.
      arguments: Arguments of the call.
      key: Random key of the call, or None.
    """
    return _simulate(with_array_threshold(net), arguments, key)


@jax.jit
def _simulate(net: Staged, arguments: Partitioned, key: Any) -> Exits:
    out = _outputs(net, arguments, key)
    _, batched = find_rows(arguments)
    layout = exit_layout(net, arguments, batched, net.exits, net.feature)
    there = None if out.tokens is None else out.tokens.there
    return take_exits(net.rule, layout, ExitOutputs(out.logits, there, out.kept))


class ExitOutputs(NamedTuple):
    """Outputs of every exit, no row leaving.

    Attributes:
      logits: Logits [B, C] of each exit, the network's own last.
      there: How many tokens there were, [B]; None where all stay.
      kept: How many each attention kept, [B] each.
    """

    logits: list[Float[Array, "B C"]]
    there: Int[Array, " B"] | None
    kept: list[Int[Array, " B"]]


@jax.jit
def exit_outputs(net: Staged, arguments: Partitioned, key: Any) -> ExitOutputs:
    """Computes what every exit returns of every row, and the tokens that are kept.

    Args:
      net: Network with exits, or whose tokens leave.
      arguments: Arguments of the call.
      key: Random key of the call, or None.
    """
    out = _outputs(net, arguments, key)
    return ExitOutputs(out.logits, None if out.tokens is None else out.tokens.there, out.kept)


def take_exits(rule: Rule, layout: ExitLayout, outputs: ExitOutputs) -> Exits:
    """Finds the exits that rows take from the outputs of every exit; cheap, to try thresholds.

    Args:
      rule: When a row leaves.
      layout: Costs of the stages.
      outputs: Outputs of its exits.
    """
    taken, layer, uncertainty = pick_exits(rule, outputs.logits)
    if outputs.there is None:
        return Exits(taken, layer, uncertainty, jnp.asarray(layout.flops, jnp.float32)[layer - 1])
    spent = flops_and_kept(layout, layer, outputs.there, outputs.kept)
    return Exits(taken, layer, uncertainty, *spent)


def flops_and_kept(
    layout: ExitLayout,
    layer: Int[Array, " B"],
    there: Int[Array, " B"],
    kept: Sequence[Int[Array, " B"]],
) -> tuple[Float[Array, " B"], Int[Array, "B A"]]:
    """Counts what rows cost whose tokens leave, and the tokens that each attention kept.

    Args:
      layout: Costs of the stages.
      layer: Exit that each row took, from 1.
      there: How many tokens there were.
      kept: How many each attention kept, or would have.

    Returns:
      Floating-point operations, and tokens: 0 where an attention was not computed.
    """
    tokens, exits = layout.tokens, (*layout.exits, len(layout.widths))
    assert tokens is not None
    flops, number = jnp.zeros(len(layer), jnp.float32), 0
    counts = [there, *kept]
    seen: list[Array] = []
    for at, (own, read, exit) in enumerate(zip(tokens.spent, tokens.read, exits, strict=True)):
        share = counts[tokens.layers[at]] / tokens.length
        computed = layer > number
        flops += computed * (own[0] + own[1] * share + own[2] * share**2 + read)
        upto = (*tokens.layers, len(kept))[at + 1]
        seen += [jnp.where(computed, k, 0) for k in kept[tokens.layers[at] : upto]]
        number += exit is not None
    return flops, jnp.stack(seen, 1).astype(jnp.int32)


@partial(jax.jit, static_argnums=(2, 3))
def taken_logits(
    threshold: Any, logits: Sequence[Float[Array, "B C"]], patience: int, first: int
) -> Float[Array, "B C"]:
    """Selects for each row the logits of the exit that it takes.

    Args:
      threshold: Uncertainty below which a row leaves.
      logits: What each exit says.
      patience: As in `Rule`.
      first: As in `Rule`.
    """
    return pick_exits(Rule(threshold, patience, first), logits)[0]


@jax.jit
def exit_logits(net: Staged, arguments: Partitioned, key: Any) -> Float[Array, "B L C"]:
    """Computes what every exit says of every row, in one program.

    Args:
      net: Network with exits.
      arguments: Arguments of the call.
      key: Random key of the call, or None.
    """
    return jnp.stack(_outputs(net, arguments, key).logits, 1)


@jax.jit
def features_and_logits(net: Staged, arguments: Partitioned, key: Any) -> list[Array]:
    """Computes what each classifier reads, [B, d], and the network's logits, [B, C].

    Args:
      net: Network with exits.
      arguments: Arguments of a call.
      key: Random key of the call, or None.
    """
    out = _outputs(net, arguments, key)
    return [*out.features, out.logits[-1]]


class _Outputs(NamedTuple):
    """Features and logits of every exit, the last of which is the network's own, and tokens."""

    features: list[Array]
    logits: list[Array]
    tokens: TokenState | None
    kept: list[Array]


def _outputs(net: Staged, arguments: Partitioned, key: Any) -> _Outputs:
    plan = prepared(net, arguments, find_rows(arguments)[1])
    live, features, logits = list[Array](), list[Array](), list[Array]()
    tokens, kept = tokens_given(net, arguments), list[Array]()
    for at, stage in enumerate(plan.cut.stages):
        own = stage_params(net, plan.cut, stage)
        given = [arguments.arrays[i] for i in stage.arguments]
        read = StageInputs(own, given, live, key, rule=net.tokens, tokens=tokens)
        live, tokens, more, _ = advance(plan, at, read)
        kept += more
        number = (*plan.layout.exits, None)[at]
        if number is not None:
            features.append(features_of(plan, at, live, tokens))
            logits.append(apply_head(net.heads[number], features[-1]))
    dtype = jnp.dtype(plan.layout.dtype)
    return _Outputs(features, [y.astype(dtype) for y in (*logits, *live)], tokens, kept)


def tokens_given(net: Staged, arguments: Partitioned) -> TokenState | None:
    """Computes which tokens there are, where the rule says so.

    Args:
      net: Network in stages.
      arguments: Arguments of the call.
    """
    return None if net.tokens is None else given_tokens(net.tokens, arguments)


def attentions_of(net: Staged) -> TokenLayout:
    """Finds where a network attends and where its tokens leave.

    Args:
      net: Network whose tokens leave.

    Raises:
      ValueError: All its tokens stay, or what `find_attention` raises.
    """
    arguments = example_of(net, 2)
    tokens = exit_layout(net, arguments, find_rows(arguments)[1], net.exits, net.feature).tokens
    if tokens is None:
        raise ValueError("net: all its tokens stay; js.prune_tokens(…)(net) lets some leave")
    return tokens


def with_array_threshold(net: Staged) -> Staged:
    """Makes the threshold an array, so that numbers and arrays share a program.

    Args:
      net: Network with exits.
    """
    return dataclasses.replace(net, threshold=jnp.asarray(net.threshold, jnp.float32))
