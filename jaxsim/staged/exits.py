"""Early exits: what every exit of a network says, and which one each row takes.

`simulate` computes all rows to the end and masks those that would have left; `run` (in
`exit_queue`) takes the same steps over batches of the rows that stay.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxsim.adaptive.heads import apply_head
from jaxsim.adaptive.rule import Exits, Rule, check_rule, pick_exits
from jaxsim.cores.partition import Partitioned
from jaxsim.network.stages import stage_params
from jaxsim.staged.exit_step import advance, prepared
from jaxsim.staged.rows import batch_first, exit_layout, find_rows

if TYPE_CHECKING:
    from jaxsim.staged.network import Staged


def require_exits(net: Staged) -> None:
    """Refuses a network without exits, or with a rule that does not fit them.

    Args:
      net: Network in stages.

    Raises:
      ValueError: It has none, or the rule is out of range.
    """
    if not net.exits:
        raise ValueError("net: has no exits; js.exit_early(…)(net) makes them")
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
    _, logits = _outputs(net, arguments, key)
    _, batched = find_rows(arguments)
    layout = exit_layout(net, arguments, batched, net.exits, net.feature)
    taken, layer, uncertainty = pick_exits(net.rule, logits)
    flops = jnp.asarray(layout.flops, jnp.float32)[layer - 1]
    return Exits(taken, layer, uncertainty, flops)


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
    return jnp.stack(_outputs(net, arguments, key)[1], 1)


def at_exits(net: Staged, arguments: Partitioned, batch_size: int, key: Any) -> list[Array]:
    """Computes what each classifier reads, [n, d], and the network's logits, [n, C].

    Args:
      net: Network with exits.
      arguments: Arguments of a call, with any number of rows.
      batch_size: Number of rows computed at once.
      key: Random key for cores that draw.
    """
    rows, batched = find_rows(arguments)
    parts: list[list[np.ndarray]] = []
    for start in range(0, rows, batch_size):
        which = np.arange(start, start + min(batch_size, rows)) % rows
        few = dataclasses.replace(
            arguments,
            arrays=tuple(
                a[which] if own else a for a, own in zip(arguments.arrays, batched, strict=True)
            ),
        )
        found = _read(with_array_threshold(net), few, jax.random.fold_in(key, start))
        parts.append([np.asarray(a)[: rows - start] for a in found])
    return [jnp.asarray(np.concatenate(column)) for column in zip(*parts, strict=True)]


@jax.jit
def _read(net: Staged, arguments: Partitioned, key: Any) -> list[Array]:
    features, logits = _outputs(net, arguments, key)
    return [*features, logits[-1]]


def _outputs(net: Staged, arguments: Partitioned, key: Any) -> tuple[list[Array], list[Array]]:
    """Features and logits of every exit, the last of which is the network's own."""
    plan = prepared(net, arguments, find_rows(arguments)[1])
    live, features, logits = list[Array](), list[Array](), list[Array]()
    for at, stage in enumerate(plan.cut.stages):
        own = stage_params(net, plan.cut, stage)
        given = [arguments.arrays[i] for i in stage.arguments]
        live = advance(plan, at, own, given, live, key, None)
        if at < len(net.heads):
            features.append(plan.feature(batch_first(live, plan.layout.axes[at])))
            logits.append(apply_head(net.heads[at], features[-1]))
    dtype = jnp.dtype(plan.layout.dtype)
    return features, [y.astype(dtype) for y in (*logits, *live)]


def with_array_threshold(net: Staged) -> Staged:
    """Makes the threshold an array, so that numbers and arrays share a program.

    Args:
      net: Network with exits.
    """
    return dataclasses.replace(net, threshold=jnp.asarray(net.threshold, jnp.float32))
