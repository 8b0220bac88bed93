"""Seconds that the stages of `run` take on this machine, and what rows would take by them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jaxsim.adaptive.rows import check_rows
from jaxsim.adaptive.rule import Buckets, check_buckets
from jaxsim.console.timing import alternate
from jaxsim.inputs.batches import batch_of
from jaxsim.network.arguments import call_arguments
from jaxsim.network.network import Network
from jaxsim.staged.exit_layout import ExitLayout
from jaxsim.staged.exit_queue import run_layout, run_tokens, stage_calls
from jaxsim.staged.exits import require_exits
from jaxsim.staged.lengths import can_be_short
from jaxsim.staged.network import Staged


class StageSeconds(NamedTuple):
    """Seconds that stages take for a full batch, by the number of tokens that its rows hold.

    Attributes:
      places: Names of the sites that the stages but the first begin with.
      rows: Number of rows of a batch.
      tokens: Numbers of tokens that were measured, rising; (0,) where all stay.
      seconds: Of each stage at each number of tokens, [S, T].

    Examples:
      >>> from jaxsim.staged import StageSeconds
      >>> StageSeconds(("b",), 8, (0,), [[2e-3], [1e-3]]).places
      ('b',)
    """

    places: tuple[str, ...]
    rows: int
    tokens: tuple[int, ...]
    seconds: Float[np.ndarray, "S T"] | Sequence[Sequence[float]]


def stage_seconds(
    net: Network,
    inputs: Any,
    *,
    buckets: Buckets = Buckets(),  # noqa: B008
    runs: int = 5,
    key: Key[Array, ""] | None = None,
    **kwargs: Any,
) -> StageSeconds:
    """Measures how long each stage of `Staged.run` takes here, for `sweep(seconds=…)`.

    Stages are called warm and in turn, as `run` calls them, with full batches and each number of
    tokens; a time is the median, with what is done on the host behind the stage.

    Args:
      net: Network in stages, deployed as it will be used; at levels above 0 where tokens may leave.
      inputs: A batch (an array, a tuple of positional arguments, or a dict of keyword arguments),
        of whose first row a batch is made.
      buckets: Numbers of rows and tokens that `run` will be given.
      runs: How often each is timed, at least 5.
      key: Random key, needed where cores draw at every call.
      **kwargs: Keyword arguments of the network.

    Raises:
      ValueError: A pipeline, whose stages overlap in time; or what `Staged.run` raises.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> from jaxsim.staged import stage_seconds
      >>> params, x = {"a": jnp.eye(3), "b": jnp.eye(3)}, jnp.eye(3)
      >>> net = js.trace(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], params, x)
      >>> table = stage_seconds(js.exit_early(["b"])(net), x, buckets=js.Buckets(max_batch=8))
      >>> table.places, table.rows, table.seconds.shape
      (('b',), 8, (2, 1))
    """
    if not isinstance(net, Staged):
        raise ValueError("net: has no exits; js.exit_early(…)(net) makes them")
    require_exits(net)
    if net.layout is not None:
        raise ValueError("net: stages of a pipeline overlap in time; measure it on one device")
    check_buckets(buckets)
    check_rows(net)
    batch = batch_of(inputs, "inputs")
    arguments = call_arguments(batch.args, {**net.defaults.combine(), **kwargs, **batch.kwargs})
    found = run_layout(net, arguments)
    counts, rows = run_tokens(found, buckets), buckets.max_batch // buckets.batch * buckets.batch
    calls = {
        (call.at, call.tokens): call.again
        for call in stage_calls(net, arguments, buckets, key, rows)
    }
    timed = alternate({str(place): again for place, again in calls.items()}, runs=runs)
    # a stage that is never computed with so few tokens takes as long as with the next that it is
    measured = [
        [min(place for place in calls if place[0] == at and place[1] >= count) for count in counts]
        for at in range(len(found.places) + 1)
    ]
    seconds = np.array([[timed[str(place)].median for place in row] for row in measured])
    return StageSeconds(found.places, rows, counts, seconds)


def check_seconds(table: StageSeconds, found: ExitLayout) -> None:
    """Refuses times of other stages.

    Args:
      table: Times.
      found: Stages of a network.

    Raises:
      ValueError: They are of others, or not one of each stage and number of tokens.
    """
    if tuple(table.places) != found.places:
        raise ValueError(
            f"seconds: of stages that begin at {list(table.places)}; the network's begin at "
            f"{list(found.places)}, at the levels that it has"
        )
    shape = len(found.places) + 1, len(table.tokens)
    if np.shape(table.seconds) != shape:
        raise ValueError(
            f"seconds{list(np.shape(table.seconds))}: must be of each stage and number of tokens, "
            f"{list(shape)}"
        )
    length = 0 if found.tokens is None else found.tokens.length
    if max(table.tokens) < length:
        raise ValueError(f"seconds: of {max(table.tokens)} tokens at most; rows have {length}")


def row_seconds(
    net: Staged,
    found: ExitLayout,
    table: StageSeconds,
    layer: Int[Array, " B"],
    there: Int[Array, " B"] | None,
    kept: Sequence[Int[Array, " B"]],
) -> Float[Array, " B"]:
    """Estimates the seconds that `run` takes for rows, each as its share of full batches.

    Args:
      net: Network in stages.
      found: Its stages, as `run` computes them.
      table: How long these take.
      layer: Exit that each row took, from 1.
      there: How many tokens there were; None where all stay.
      kept: How many each attention kept, or would have.
    """
    seconds = jnp.asarray(table.seconds, jnp.float32) / table.rows
    spent, number = jnp.zeros(len(layer), jnp.float32), 0
    for at, exit in enumerate((*found.exits, len(found.widths))):
        place = jnp.zeros(len(layer), int)
        if found.tokens is not None:
            assert there is not None
            held = [there, *kept][found.tokens.layers[at]]
            known = net.tokens is not None and net.tokens.present is not None
            if not (found.tokens.layers[at] or (known and (at or can_be_short(net, found.tokens)))):
                held = jnp.full(len(layer), found.tokens.length)
            place = jnp.searchsorted(jnp.asarray(table.tokens), held)
        spent += (layer > number) * seconds[at][place]
        number += exit is not None
    return spent
