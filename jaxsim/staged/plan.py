"""The stages of a pipeline for arguments of certain shapes, and how they run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxsim.adaptive.tokens import check_level_count
from jaxsim.cores.partition import Partitioned
from jaxsim.network.cuts import Equations, cuts, equations, select_cuts
from jaxsim.network.interpreter import Walk
from jaxsim.network.network import Network
from jaxsim.network.stages import Stages, split
from jaxsim.pipeline.blocks import Blocks, equal_blocks
from jaxsim.pipeline.devices import StageDevices
from jaxsim.pipeline.microbatch import (
    BatchSplit,
    OutputJoin,
    batch_split,
    output_join,
    updates_buffers,
)
from jaxsim.pipeline.programs import Remat, StageProgram, stage_programs
from jaxsim.pipeline.schedule import Schedule
from jaxsim.staged.attention import marks_of
from jaxsim.staged.exit_layout import exit_layout
from jaxsim.staged.exit_step import check_heads
from jaxsim.staged.merging import insert_merges, merging_leave
from jaxsim.staged.rows import find_rows
from jaxsim.staged.soften import soft_stages
from jaxsim.staged.token_layout import cuts_of, known_tokens
from jaxsim.staged.token_stages import exit_reads, exit_taps, hand_on_tokens
from jaxsim.values.memo import memoized

if TYPE_CHECKING:
    from jaxsim.staged.network import Staged


class Layout(NamedTuple):
    """How a pipeline runs.

    Attributes:
      cuts: Names of the sites that the stages but the first begin with.
      microbatches: Number of micro-batches, at least 1.
      schedule: Order of forwards and backwards.
      remat: What is kept for the backward.
      engine: "mpmd", a program for each stage, or "spmd", one program for all devices.
      devices: Devices of each stage.
      chunks: Stages that a device runs.
    """

    cuts: tuple[str, ...]
    microbatches: int
    schedule: Schedule
    remat: Remat
    engine: Literal["mpmd", "spmd"]
    devices: tuple[StageDevices, ...]
    chunks: int = 1


class PipelinePlan(NamedTuple):
    """The stages of a pipeline for arguments of certain shapes.

    Attributes:
      cut: Its stages; classifiers of exits are taps of them, and tokens are handed on.
      out_tree: Structure of what they return: the network's outputs, or the logits of each exit.
      batch: How arguments divide.
      join: How outputs join.
      loss_tree: Structure of what the loss reads.
      loss_outputs: Which of the network's outputs those are.
      programs: Programs of the stages.
      blocks: For the engine "spmd", the equal blocks.
      compiled: Its programs, by what they compute.
    """

    cut: Stages
    out_tree: Any
    batch: BatchSplit
    join: OutputJoin
    loss_tree: Any
    loss_outputs: tuple[int, ...]
    programs: tuple[StageProgram, ...]
    blocks: Blocks | None
    compiled: dict[Any, Callable[..., Any]]


NO_PIPELINE = "net: is no pipeline; js.pipeline_shard(…)(net) makes one"


def layout_of(net: Staged) -> Layout:
    """Reads how a pipeline runs.

    Args:
      net: The pipeline.

    Raises:
      ValueError: The network runs on one device.
    """
    if net.layout is None:
        raise ValueError(NO_PIPELINE)
    return net.layout


def require_layout(net: Network) -> Staged:
    """Refuses a network that is no pipeline.

    Args:
      net: Network of any kind.

    Raises:
      ValueError: It runs on one device.
    """
    if getattr(net, "layout", None) is None:
        raise ValueError(NO_PIPELINE)
    return cast("Staged", net)


def pipeline_plan(net: Staged, arguments: Partitioned, *, soft: bool = False) -> PipelinePlan:
    """Plans the stages of a call; the plan is kept for calls of the same shapes.

    Args:
      net: The pipeline.
      arguments: Arguments of the call; they may be shapes.
      soft: True if its tokens are scaled by soft masks, not left out. Outputs are then the logits
        of each exit, and what `Shares` gives.

    Raises:
      ValueError: A batch that is not divisible, or a cut that is no more.
    """
    leaves, treedef = jax.tree.flatten((net, arguments))
    shapes = tuple(jax.ShapeDtypeStruct(np.shape(a), jnp.result_type(a)) for a in leaves)
    return memoized(net, _plan, treedef, shapes, soft)


def _plan(treedef: Any, shapes: tuple[jax.ShapeDtypeStruct, ...], soft: bool) -> PipelinePlan:
    net, arguments = jax.tree.unflatten(treedef, shapes)
    layout = layout_of(net)
    replicas = len(layout.devices[0].devices)
    if layout.engine == "spmd":  # its stages see one device's share of a micro-batch
        batch = batch_split(arguments, layout.microbatches * replicas, 1)
    else:
        batch = batch_split(arguments, layout.microbatches, replicas)
    micro = dataclasses.replace(arguments, arrays=tuple(map(batch.shape, arguments.arrays)))
    # What is compiled depends on the number of micro-batches only where they draw their own
    # numbers, and never on their order.
    draws = net.cores or any(jnp.issubdtype(a.dtype, jax.dtypes.prng_key) for a in micro.arrays)
    count = min(layout.microbatches, 2) if draws else 1
    alike = layout._replace(microbatches=count, schedule="gpipe", chunks=1)
    leaves, treedef = jax.tree.flatten((dataclasses.replace(net, layout=alike), micro))
    whole = jax.tree.flatten((dataclasses.replace(net, layout=None), arguments, micro))
    return PipelinePlan(
        batch=batch,
        join=memoized(net, _join, whole[1], tuple(whole[0])),
        **memoized(net, _stages, treedef, tuple(leaves), soft),
    )


def _join(treedef: Any, shapes: tuple[jax.ShapeDtypeStruct, ...]) -> OutputJoin:
    """The part of a plan that is the same for any stages: how outputs join."""
    net, arguments, micro = jax.tree.unflatten(treedef, shapes)
    if net.exits:  # logits, whose rows are the batch
        return OutputJoin((0,) * (len(net.exits) + 1), {})
    return output_join(net, arguments, micro)


def _stages(treedef: Any, shapes: tuple[jax.ShapeDtypeStruct, ...], soft: bool) -> dict[str, Any]:
    """The part of a plan that is the same for any order of the micro-batches."""
    net, micro = jax.tree.unflatten(treedef, shapes)
    layout, line = layout_of(net), equations(net, micro)
    cut, walk = soft_stages(net, micro, layout.cuts) if soft else _cut(net, line, micro)
    listed = net.exits or soft
    out_tree = jax.tree.structure([0] * len(cut.outputs)) if listed else line.out_tree
    numbered = jax.tree.unflatten(out_tree, range(out_tree.num_leaves))
    losses, tree = jax.tree.flatten(numbered[0] if updates_buffers(micro) else numbered)
    return {
        "cut": cut,
        "out_tree": out_tree,
        "loss_tree": tree,
        "loss_outputs": tuple(losses),
        "programs": stage_programs(
            cut,
            layout.devices,
            remat=layout.remat,
            ranges=net.ranges,
            microbatches=layout.microbatches,
            loss_outputs=losses,
            deployed=net.deployed,
            walk=walk,
        ),
        "blocks": equal_blocks(line, len(layout.devices)) if layout.engine == "spmd" else None,
        "compiled": {},
    }


def _cut(
    net: Staged, line: Equations, arguments: Partitioned
) -> tuple[Stages, Callable[..., Walk]]:
    """The stages of a call, classifiers and tokens among them, and what evaluates them.

    Raises:
      ValueError: Classifiers or levels that do not fit, or a cut that is no more.
    """
    places, rule = layout_of(net).cuts, net.tokens
    if not net.exits and rule is None:
        return split(line, select_cuts(cuts(line), places)), Walk
    rows, batched = find_rows(arguments)
    # masked tokens leave at no cut of their own
    stay = None if rule is None else (False,) * len(rule.level)
    found = exit_layout(net, arguments, batched, net.exits, net.feature, places, stay)
    check_heads(net, found)
    if rule is None or found.tokens is None:
        taps = exit_taps(net, found, line, [reading.of for reading in exit_reads(net, found)])
        return split(line, select_cuts(cuts(line), places), taps), Walk
    check_level_count(rule.level, len(found.tokens.attention.names))
    line, attention = known_tokens(found.tokens, line)
    marks, leave = marks_of(line, attention), None
    if rule.merges:
        leave = merging_leave(found.tokens, found.places, None)
        names = cuts_of(found.tokens, leave)
        line, marks = insert_merges(line, marks, attention, names)
    reads, length = exit_reads(net, found), found.tokens.length
    taps = exit_taps(
        net, found, line, [partial(reading.of_all, (rows, length)) for reading in reads]
    )
    cut = split(line, select_cuts(cuts(line), places), taps)
    return hand_on_tokens(cut, marks, rule, arguments, reads, length, leave)


def tap_params(net: Staged, temperature: Any = None) -> Any:
    """Collects what stages read beside the network's parameters: classifiers, levels of tokens.

    Args:
      net: Network in stages.
      temperature: Temperature of soft masks, where they scale tokens; None where these leave.
    """
    return net.heads, None if net.tokens is None else net.tokens.level, temperature
