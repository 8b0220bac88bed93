"""A pipeline as one program for all devices: equal blocks, their parameters stacked.

Every device runs the same program on its own stage and hands its output to the next by `ppermute`.
What stands before and after the equal blocks is computed by all of them. Gradients are JAX's own,
so the backward runs through the same ticks in reverse.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from jaxsim.network.network import Network
from jaxsim.network.stages import (
    Stage,
    StageParams,
    run_stage,
    stage_params,
)
from jaxsim.pipeline.blocks import ARGUMENT, Blocks, input_sources
from jaxsim.pipeline.devices import StageDevices
from jaxsim.pipeline.schedule import Schedule
from jaxsim.staged.plan import Layout, PipelinePlan, layout_of

if TYPE_CHECKING:
    from jaxsim.staged.network import Staged


def check(devices: Sequence[StageDevices], schedule: Schedule) -> None:
    """Checks what the engine cannot do.

    Args:
      devices: Devices of each stage.
      schedule: Order of forwards and backwards.

    Raises:
      ValueError: A schedule other than "gpipe", or a device that is used twice.
    """
    if schedule != "gpipe":
        raise ValueError(
            f"schedule={schedule!r}: engine='spmd' differentiates its forward and runs 'gpipe' only"
        )
    used = [d for stage in devices for d in stage.devices]
    if len(set(used)) < len(used):
        raise ValueError("devices: engine='spmd' needs as many different devices as it uses")


def mesh_of(devices: Sequence[StageDevices]) -> Mesh:
    """Arranges the devices in a mesh, stages along the first axis.

    Args:
      devices: Devices of each stage.
    """
    return Mesh(np.asarray([stage.devices for stage in devices]), ("stage", "data"))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Copies arrays to each device of a mesh, those of other processes included.

    Args:
      tree: Arrays.
      mesh: Devices.
    """
    sharding = NamedSharding(mesh, PartitionSpec())

    def move(a: Any) -> Any:
        placed = getattr(a, "sharding", None)
        if isinstance(placed, NamedSharding) and placed.mesh == mesh:
            return a
        return jax.device_put(a if mesh.is_multi_process is False else np.asarray(a), sharding)

    return jax.tree.map(move, tree)


def outputs_of(net: Staged, plan: PipelinePlan, arguments: Sequence[Array]) -> list[Array]:
    """Computes the network's outputs.

    Args:
      net: The pipeline.
      plan: Its stages, for the share of a micro-batch that one device has.
      arguments: Arrays of the call, whole.
    """
    axes = plan.join.axes

    def gather(values: list[Array], _: Any) -> list[Array]:
        return [
            lax.pmean(jnp.mean(v, 0), "data") if axis is None else v
            for v, axis in zip(values, axes, strict=True)
        ]

    specs = [
        PartitionSpec() if axis is None else PartitionSpec(*[None] * (axis + 1), "data")
        for axis in axes
    ]
    values = _run_sharded(net, plan, arguments, [], finish=gather, out_specs=specs)
    return [v if axis is None else _unfold(v, axis) for v, axis in zip(values, axes, strict=True)]


def loss_of(
    net: Staged,
    plan: PipelinePlan,
    arguments: Sequence[Array],
    targets: Sequence[Array],
    loss: Callable[[list[Array], list[Array]], Array],
    *,
    mean: bool,
) -> Array:
    """Computes the loss of a mini-batch, to be differentiated.

    Args:
      net: The pipeline.
      plan: Its stages, for the share of a micro-batch that one device has.
      arguments: Arrays of the call, whole.
      targets: Arrays of the loss, whole.
      loss: `(outputs, targets) -> scalar` of one device's share of a micro-batch.
      mean: Average the losses of the micro-batches; otherwise they are added.
    """
    count = layout_of(net).microbatches
    divided = [plan.batch.divides(a) for a in targets]
    join = jnp.mean if mean else jnp.sum
    across = lax.pmean if mean else lax.psum

    def total(outputs: list[Array], targets: list[Array]) -> Array:
        each = lax.map(
            lambda part: loss(part[0], part[1]), (outputs, _rows(targets, divided, count))
        )
        return across(join(each), "data")

    return _run_sharded(net, plan, arguments, targets, finish=total, out_specs=PartitionSpec())


def _run_sharded(
    net: Staged,
    plan: PipelinePlan,
    arguments: Sequence[Array],
    targets: Sequence[Array],
    *,
    finish: Callable[[list[Array], list[Array]], Any],
    out_specs: Any,
) -> Any:
    """The whole pipeline under `shard_map`, and `finish` of its outputs [M, ...] and targets."""
    layout, blocks = layout_of(net), plan.blocks
    assert blocks is not None, "planned for this engine"
    stacked, outer = _stacked_params(net, blocks, len(layout.devices))
    divided, divided_targets = (
        [plan.batch.divides(a) for a in arrays] for arrays in (arguments, targets)
    )

    def local(stacked: Any, outer: Any, arguments: Any, targets: Any) -> Any:
        program = _DeviceProgram(
            blocks, layout, net.ranges, _rows(arguments, divided, layout.microbatches), iter(outer)
        )
        return finish(program.run(jax.tree.map(lambda a: a[0], stacked)), targets)

    def specs(flags: Sequence[bool]) -> list[PartitionSpec]:
        return [PartitionSpec(None, "data") if flag else PartitionSpec() for flag in flags]

    def fold(arrays: Sequence[Array], flags: Sequence[bool]) -> list[Array]:
        M = layout.microbatches
        return [_fold(a, M) if flag else a for a, flag in zip(arrays, flags, strict=True)]

    sharded = jax.shard_map(
        local,
        mesh=mesh_of(layout.devices),
        in_specs=(PartitionSpec("stage"), PartitionSpec(), specs(divided), specs(divided_targets)),
        out_specs=out_specs,
        check_vma=False,  # equations are bound as they are, without the casts it asks for
    )
    return sharded(stacked, outer, fold(arguments, divided), fold(targets, divided_targets))


def _stacked_params(
    net: Network, blocks: Blocks, stages: int
) -> tuple[StageParams, list[StageParams]]:
    """Stacks what blocks read [stages, blocks a stage, ...], and lists it for other stages.

    Raises:
      ValueError: The blocks' cores differ, or have settings of each slice of a stack.
    """
    cut, last = blocks.cut, blocks.first + blocks.number
    for name, rows in zip(blocks.block.sites, blocks.block.site_rows, strict=True):
        chain = net.cores.get(name, ()) if rows is not None else ()
        if own := [w for w in chain if any(np.ndim(a) for a in jax.tree.leaves(w))]:
            raise ValueError(
                f"engine='spmd': {own[0].name} at {name} has settings of each slice of a stack, "
                "and the slices share one program; use engine='mpmd'"
            )
    each = [stage_params(net, cut, stage) for stage in cut.stages]
    same = [_with_names_of(blocks.block, cut.stages[i], each[i]) for i in range(blocks.first, last)]
    try:
        stacked = jax.tree.map(lambda *a: jnp.stack(a), *same)
    except ValueError as error:
        raise ValueError(f"engine='spmd': the blocks differ in their hardware: {error}") from None
    stacked = jax.tree.map(lambda a: a.reshape(stages, -1, *a.shape[1:]), stacked)
    return stacked, [own for i, own in enumerate(each) if not blocks.first <= i < last]


def _with_names_of(block: Stage, stage: Stage, own: StageParams) -> StageParams:
    """Parameters of a block under the names of the one that stands for all."""
    names = dict(zip(stage.names, block.names, strict=True))
    sites = dict(zip(stage.sites, block.sites, strict=True))
    return StageParams(
        params={names[k]: v for k, v in own.params.items()},
        masks={names[k]: v for k, v in own.masks.items()},
        buffers=own.buffers,
        cores={sites[k]: v for k, v in own.cores.items()},
        states={sites[k]: v for k, v in own.states.items()},
    )


@dataclasses.dataclass
class _DeviceProgram:
    """Program of one device, inside `shard_map`; M is the number of micro-batches.

    Attributes:
      blocks: The network, cut.
      layout: How the pipeline runs.
      ranges: Where cores take ranges from.
      rows: The device's share of each argument, [M, ...].
      outer: What the stages outside of the blocks read, in their order.
      outputs: Outputs by stage, [M, ...] each, once they are computed.
    """

    blocks: Blocks
    layout: Layout
    ranges: Any
    rows: list[Array]
    outer: Iterator[StageParams]
    outputs: dict[int, list[Array]] = dataclasses.field(default_factory=dict)

    def run(self, tensors: StageParams) -> list[Array]:
        """The network's outputs [M, ...], from what the device's own blocks read."""
        cut, first, count = self.blocks.cut, self.blocks.first, self.blocks.number
        if first:
            self.run_alone(0)
        done = self.run_blocks(tensors)
        self.outputs[first + count - 1] = [done[i] for i in sorted(done)]
        if first + count < len(cut.stages):
            self.run_alone(len(cut.stages) - 1)
        return [self.outputs[s][i] for s, i in cut.outputs]

    def inputs(self, stage: Stage, but: Sequence[int] = ()) -> dict[int, Array]:
        """Inputs of a stage by their number, [M, ...] each, some left out."""
        return {
            i: self.rows[at] if s == ARGUMENT else self.outputs[s][at]
            for i, (s, at) in enumerate(input_sources(stage))
            if i not in but
        }

    def run_alone(self, at: int) -> None:
        """Runs a stage outside of the blocks on all micro-batches."""
        stage, own = self.blocks.cut.stages[at], next(self.outer)
        self.outputs[at] = lax.map(
            lambda values: self.run_stage(stage, own, list(values.values())), self.inputs(stage)
        )

    def run_stage(self, stage: Stage, own: StageParams, values: Sequence[Array]) -> list[Array]:
        """The outputs of a stage for one micro-batch."""
        return run_stage(stage, own, [], values, ranges=self.ranges)

    def run_blocks(self, tensors: StageParams) -> dict[int, Array]:
        """The outputs of the last block [M, ...], by their number."""
        M, stages = self.layout.microbatches, len(self.layout.devices)
        entry = self.inputs(self.blocks.cut.stages[self.blocks.first])
        start = [entry[i] for i in self.blocks.boundary_inputs]
        me = lax.axis_index("stage")
        through = self.group(tensors)
        ring = [(i, i + 1) for i in range(stages - 1)]

        def tick(values: list[Array], t: Array) -> tuple[list[Array], list[Array]]:
            new = [a[jnp.minimum(t, M - 1)] for a in start]
            values = [jnp.where(me == 0, a, b) for a, b in zip(new, values, strict=True)]
            values = through(values, jnp.clip(t - me, 0, M - 1))
            return [lax.ppermute(a, "stage", ring) for a in values], values

        # Stages that wait compute on the first micro-batch: its derivatives are finite.
        _, seen = lax.scan(tick, [a[0] for a in start], jnp.arange(M + stages - 1))
        last = [jnp.where(me == stages - 1, a[stages - 1 :], 0) for a in seen]
        gathered = (lax.psum(a, "stage") for a in last)
        return dict(zip(self.blocks.boundary_outputs, gathered, strict=True))

    def group(self, tensors: StageParams) -> Callable[[list[Array], Array], list[Array]]:
        """A function of boundary activations and a micro-batch: the device's blocks in turn."""
        block, into, out_of = (
            self.blocks.block,
            self.blocks.boundary_inputs,
            self.blocks.boundary_outputs,
        )
        sides = self.inputs(block, into)

        def through(values: list[Array], m: Array) -> list[Array]:
            now = {i: a[m] for i, a in sides.items()}
            for i in range(self.blocks.number // len(self.layout.devices)):
                own = jax.tree.map(lambda a, i=i: a[i], tensors)
                taken = {**now, **dict(zip(into, values, strict=True))}
                outputs = self.run_stage(block, own, [taken[j] for j in sorted(taken)])
                values = [outputs[j] for j in out_of]
            return values

        remat = self.layout.remat
        if remat == "none":
            return through
        return jax.checkpoint(through, policy=remat if callable(remat) else None)


def _rows(arrays: Sequence[Array], divided: Sequence[bool], count: int) -> list[Array]:
    """Arrays by micro-batch [M, ...]; those that are not divided are the same for all."""
    return [
        a if d else jnp.broadcast_to(a, (count, *a.shape))
        for a, d in zip(arrays, divided, strict=True)
    ]


def _fold(a: Array, count: int) -> Array:
    """Micro-batches [M, ...] of an array."""
    return a.reshape(count, a.shape[0] // count, *a.shape[1:])


def _unfold(a: Array, axis: int) -> Array:
    """Micro-batches [M, ...] joined along an axis."""
    a = jnp.moveaxis(a, 0, axis)
    return a.reshape(*a.shape[:axis], -1, *a.shape[axis + 2 :])
