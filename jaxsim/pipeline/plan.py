"""The stages of a pipeline for arguments of certain shapes, and how they run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsim.cores.partition import Partitioned
from jaxsim.network.arguments import call_arguments
from jaxsim.network.cuts import Cut, cuts, equations, select_cuts
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
from jaxsim.values.memo import memoized

if TYPE_CHECKING:
    from jaxsim.pipeline.pipeline import Pipeline


class Layout(NamedTuple):
    """How a pipeline runs.

    Attributes:
      cuts: Names of the sites that the stages but the first begin with.
      microbatches: Number of micro-batches, at least 1.
      schedule: Order of forwards and backwards.
      remat: What is kept for the backward.
      engine: "mpmd", a program for each stage, or "spmd", one program for all devices.
      devices: Devices of each stage.
    """

    cuts: tuple[str, ...]
    microbatches: int
    schedule: Schedule
    remat: Remat
    engine: Literal["mpmd", "spmd"]
    devices: tuple[StageDevices, ...]


class PipelinePlan(NamedTuple):
    """The stages of a pipeline for arguments of certain shapes.

    Attributes:
      cut: Its stages.
      cuts: Where they were cut.
      batch: How arguments divide.
      join: How outputs join.
      loss_tree: Structure of what the loss reads.
      loss_outputs: Which of the network's outputs those are.
      programs: Programs of the stages.
      blocks: For the engine "spmd", the equal blocks.
      compiled: Its programs, by what they compute.
    """

    cut: Stages
    cuts: tuple[Cut, ...]
    batch: BatchSplit
    join: OutputJoin
    loss_tree: Any
    loss_outputs: tuple[int, ...]
    programs: tuple[StageProgram, ...]
    blocks: Blocks | None
    compiled: dict[Any, Callable[..., Any]]


def layout_of(net: Pipeline) -> Layout:
    """Reads how a pipeline runs.

    Args:
      net: The pipeline.
    """
    assert net.layout is not None, "pipeline_shard sets it"
    return net.layout


def pipeline_plan(net: Pipeline, arguments: Partitioned) -> PipelinePlan:
    """Plans the stages of a call; the plan is kept for calls of the same shapes.

    Args:
      net: The pipeline.
      arguments: Arguments of the call; they may be shapes.

    Raises:
      ValueError: A batch that is not divisible, or a cut that is no more.
    """
    leaves, treedef = jax.tree.flatten((net, arguments))
    shapes = tuple(jax.ShapeDtypeStruct(np.shape(a), jnp.result_type(a)) for a in leaves)
    return memoized(net, _plan, treedef, shapes)


def _plan(treedef: Any, shapes: tuple[jax.ShapeDtypeStruct, ...]) -> PipelinePlan:
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
    alike = layout._replace(microbatches=count, schedule="gpipe")
    leaves, treedef = jax.tree.flatten((dataclasses.replace(net, layout=alike), micro))
    whole = jax.tree.flatten((dataclasses.replace(net, layout=None), arguments, micro))
    return PipelinePlan(
        batch=batch,
        join=memoized(net, _join, whole[1], tuple(whole[0])),
        **memoized(net, _stages, treedef, tuple(leaves)),
    )


def _join(treedef: Any, shapes: tuple[jax.ShapeDtypeStruct, ...]) -> OutputJoin:
    """The part of a plan that is the same for any stages: how outputs join."""
    return output_join(*jax.tree.unflatten(treedef, shapes))


def _stages(treedef: Any, shapes: tuple[jax.ShapeDtypeStruct, ...]) -> dict[str, Any]:
    """The part of a plan that is the same for any order of the micro-batches."""
    net, micro = jax.tree.unflatten(treedef, shapes)
    layout = layout_of(net)
    line = equations(net, micro)
    places = select_cuts(cuts(line), layout.cuts)
    cut = split(line, places)
    numbered = jax.tree.unflatten(line.out_tree, range(line.out_tree.num_leaves))
    losses, tree = jax.tree.flatten(numbered[0] if updates_buffers(micro) else numbered)
    return {
        "cut": cut,
        "cuts": places,
        "loss_tree": tree,
        "loss_outputs": tuple(losses),
        "programs": stage_programs(
            cut,
            layout.devices,
            remat=layout.remat,
            ranges=net.ranges,
            microbatches=layout.microbatches,
            loss_outputs=losses,
        ),
        "blocks": equal_blocks(line, len(layout.devices)) if layout.engine == "spmd" else None,
        "compiled": {},
    }


def example_of(net: Network, parts: int) -> Partitioned:
    """Shapes of the traced example as a mini-batch; it is one part where it is not divisible.

    Args:
      net: Any network.
      parts: Number of parts that a mini-batch divides into.
    """
    args, kwargs = net.example.combine()
    arguments = call_arguments(args, {**net.defaults.combine(), **kwargs})
    size = next((a.shape[0] for a in arguments.arrays if a.ndim), 0)
    if size % parts == 0:
        return arguments

    def enlarged(a: Any) -> Any:
        if not a.ndim or a.shape[0] != size:
            return a
        return jax.ShapeDtypeStruct((size * parts, *a.shape[1:]), a.dtype)

    return dataclasses.replace(arguments, arrays=tuple(map(enlarged, arguments.arrays)))
