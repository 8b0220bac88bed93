"""A network whose calls run in stages on several devices, micro-batch by micro-batch."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from jaxsim.cores.partition import Parts
from jaxsim.network.arguments import call_arguments
from jaxsim.network.cuts import Cut, blocks, cuts, equations, flops, select_cuts
from jaxsim.network.leaves import is_array
from jaxsim.network.network import DATA, META, Network
from jaxsim.network.stages import Stage, Stages, signature, split, stage_params
from jaxsim.network.tables import cuts_table
from jaxsim.numerics.checks import is_traced
from jaxsim.pipeline import mpmd, spmd
from jaxsim.pipeline.memory import (
    MemoryTable,
    StageMemory,
    StageRow,
    StageTable,
    nbytes,
    stage_memory,
    work_shapes,
)
from jaxsim.pipeline.microbatch import Batch, Joint, batch_of, joint_of, updates_buffers
from jaxsim.pipeline.mpmd import Place, Programme, Remat, Work, programmes
from jaxsim.pipeline.schedule import Schedule, Timeline, simulate


class Layout(NamedTuple):
    """How a pipeline runs.

    Attributes:
      cuts: the sites that the stages but the first begin with.
      microbatches: number of micro-batches.
      schedule: order of forwards and backwards.
      remat: what is kept for the backward.
      engine: "mpmd" or "spmd".
      places: devices of each stage.
    """

    cuts: tuple[str, ...]
    microbatches: int
    schedule: Schedule
    remat: Remat
    engine: Literal["mpmd", "spmd"]
    places: tuple[Place, ...]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=[*DATA],
    meta_fields=[*META, "layout"],
)
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Pipeline(Network):
    """A network whose calls run in stages; made by `pipeline_shard`.

    It is a network in every other way: it is composed, deployed, saved and counted like one, and
    its parameters keep their paths. Under `jit` and `grad` a call computes the same stages and
    micro-batches, as part of the one programme around it.

    Attributes:
      layout: how it runs.
    """

    cut_by: ClassVar[str] = "pipeline_shard"

    layout: Layout | None = None

    def __rich__(self) -> Any:
        from rich.console import Group

        layout = layout_of(self)
        begins = ("the start", *layout.cuts)
        devices = (", ".join(map(str, place.devices)) for place in layout.places)
        rows = zip(range(1, len(begins) + 1), begins, devices, strict=True)
        title = f"stages · {layout.microbatches} micro-batches, {layout.schedule}, {layout.engine}"
        table = cuts_table(title, ("stage", "begins at", "devices"), rows)
        return Group(super().__rich__(), table)

    def __call__(self, *args: Any, key: Key[Array, ""] | None = None, **kwargs: Any) -> Any:
        """The outputs of the network, computed in stages.

        Args:
          *args: as of the network; the leading axis of the first array is the batch, and is divided
            in every array that has it. Arrays without it go to each micro-batch as they are,
            random keys folded with its number.
          key: as of the network.
          **kwargs: as of the network.

        Returns:
          What the network returns, on the last stage's devices.

        Raises:
          ValueError: the batch is not divisible, or what the network raises.
        """
        arguments = self.arguments(args, kwargs, key)
        plan = prepared(self, arguments)
        tree = plan.cut.equations.out_tree
        if layout_of(self).engine == "spmd":
            check_spmd(arguments, key)
            return jax.tree.unflatten(tree, _spmd_call(self, plan, arguments))
        if any(map(is_traced, jax.tree.leaves((self, arguments, key)))):
            parts = _inline(self, plan, arguments, key)
        else:
            parts = mpmd.forward(self, plan.cut, plan.batch, arguments, key, plan.programmes)
        return jax.tree.unflatten(tree, plan.joint.join(parts))

    @property
    def stages(self) -> StageTable:
        """What each stage holds and computes, from shapes alone."""
        plan = prepared(self, example_of(self))
        work = blocks(plan.places, flops(plan.cut.equations))
        params = jax.tree.leaves(self.params)
        rows = tuple(
            StageRow(
                name=stage.name,
                equations=stage.equations,
                flops=amount,
                params=sum(math.prod(np.shape(params[i])) for i in stage.params),
                boundary_bytes=sum(map(nbytes, _entering(plan.cut, stage))),
                devices=place.devices,
            )
            for stage, amount, place in zip(
                plan.cut.stages, work, layout_of(self).places, strict=True
            )
        )
        return StageTable(rows, plan.batch.micro)

    def placed(self) -> Pipeline:
        """This network with each parameter and state on the devices of the stage that reads it.

        Calls then move nothing but activations. A parameter that several stages read is on those
        of the first. Programmes of one device, such as a jitted optimiser step over all parameters
        at once, cannot take arrays of several.
        """
        plan = prepared(self, example_of(self))
        params, treedef = jax.tree.flatten(self.params)
        buffers, structure = jax.tree.flatten(self.buffers)
        states = dict(self.states)
        for stage, place in reversed(
            list(zip(plan.cut.stages, layout_of(self).places, strict=True))
        ):
            for leaves, positions in ((params, stage.params), (buffers, stage.buffers)):
                for i in positions:
                    leaves[i] = jax.device_put(leaves[i], place.whole)
            for name in stage.sites:
                if name in states:
                    states[name] = jax.device_put(states[name], place.whole)
        return dataclasses.replace(
            self,
            params=jax.tree.unflatten(treedef, params),
            buffers=jax.tree.unflatten(structure, buffers),
            states=states,
        )

    def memory(self, *args: Any, **kwargs: Any) -> MemoryTable:
        """Bytes of one training step by stage, from the compiled programmes; nothing is run.

        Args:
          *args: inputs of a mini-batch (only shapes count); without any, those of the traced
            example.
          **kwargs: keyword arguments, as in a call.

        Raises:
          ValueError: a batch that is not divisible, or engine "spmd".
        """
        arguments = _given(self, args, kwargs)
        layout = layout_of(self)
        if layout.engine == "spmd":
            raise ValueError("memory: engine='spmd' has one programme and no stages of its own")
        plan = prepared(self, arguments)
        flights = simulate_schedule(self, *args, **kwargs).in_flight
        rows: list[StageMemory] = []
        seen: dict[Any, StageMemory] = {}  # equal stages are compiled once
        for programme, n in zip(plan.programmes, flights, strict=True):
            stage = programme.stage
            named = (stage.sites, stage.params) if self.cores or self.masks else ()
            alike = (signature(stage), programme.wanted, bool(stage.sources), named)
            if alike not in seen:
                seen[alike] = stage_memory(self, plan.cut, programme, n)
            rows.append(seen[alike]._replace(in_flight=n))
        return MemoryTable(tuple(rows), layout.microbatches, plan.batch.micro)


def simulate_schedule(net: Network, *args: Any, **kwargs: Any) -> Timeline:
    """A training step of a pipeline, simulated: stages take as long as their FLOPs say.

    A backward counts as two forwards, and as three where it computes the forward again. With equal
    stages the bubble is (K-1)/(M+K-1).

    Args:
      net: from `pipeline_shard`.
      *args: inputs of a mini-batch (only shapes count); without any, those of the traced example.
      **kwargs: keyword arguments, as in a call.

    Raises:
      ValueError: no pipeline, or a batch that is not divisible.
    """
    if not isinstance(net, Pipeline):
        raise ValueError("net: is no pipeline; js.pipeline_shard(…)(net) makes one")
    plan = prepared(net, _given(net, args, kwargs))
    layout = layout_of(net)
    forward = [max(1, n) for n in blocks(plan.places, flops(plan.cut.equations))]
    backward = [n * (2 if layout.remat == "none" else 3) for n in forward]
    kept: list[int] = []
    inside: list[int] = []
    for programme in plan.programmes:
        given = work_shapes(net, plan.cut, programme)
        more = sum(map(nbytes, programme.inside(*given)))
        entering = sum(map(nbytes, (*given[1].live, *given[1].arguments)))
        kept.append(entering if layout.remat == "boundary" else entering + more)
        inside.append(more if layout.remat == "boundary" else 0)
    return simulate(layout.schedule, layout.microbatches, forward, backward, kept, inside)


class Prepared(NamedTuple):
    """A pipeline for arguments of certain shapes.

    Attributes:
      cut: its stages.
      places: where they were cut.
      batch: how arguments divide.
      joint: how outputs join.
      losses: structure of what the loss reads, and which outputs those are.
      programmes: of the stages.
      blocks: for the engine "spmd", the equal blocks.
      compiled: its programmes, by what they compute.
    """

    cut: Stages
    places: tuple[Cut, ...]
    batch: Batch
    joint: Joint
    losses: tuple[Any, tuple[int, ...]]
    programmes: tuple[Programme, ...]
    blocks: spmd.Blocks | None
    compiled: dict[Any, Callable[..., Any]]


def layout_of(net: Pipeline) -> Layout:
    """How a pipeline runs."""
    assert net.layout is not None, "pipeline_shard sets it"
    return net.layout


def prepared(net: Pipeline, arguments: Parts) -> Prepared:
    """The stages of a call, kept for calls of the same shapes."""
    leaves, treedef = jax.tree.flatten((net, arguments))
    shapes = tuple(jax.ShapeDtypeStruct(np.shape(a), jnp.result_type(a)) for a in leaves)
    return _prepared(treedef, shapes)


@functools.lru_cache(maxsize=64)
def _prepared(treedef: Any, shapes: tuple[jax.ShapeDtypeStruct, ...]) -> Prepared:
    net, arguments = jax.tree.unflatten(treedef, shapes)
    layout = layout_of(net)
    replicas = len(layout.places[0].devices)
    if layout.engine == "spmd":  # its stages see one device's share of a micro-batch
        batch = batch_of(arguments, layout.microbatches * replicas, 1)
    else:
        batch = batch_of(arguments, layout.microbatches, replicas)
    micro = dataclasses.replace(arguments, arrays=tuple(map(batch.shape, arguments.arrays)))
    # What is compiled depends on the number of micro-batches only where they draw their own
    # numbers, and never on their order.
    draws = net.cores or any(jnp.issubdtype(a.dtype, jax.dtypes.prng_key) for a in micro.arrays)
    count = min(layout.microbatches, 2) if draws else 1
    alike = layout._replace(microbatches=count, schedule="gpipe")
    leaves, treedef = jax.tree.flatten((dataclasses.replace(net, layout=alike), micro))
    whole = jax.tree.flatten((dataclasses.replace(net, layout=None), arguments, micro))
    return Prepared(
        batch=batch,
        joint=_joined(whole[1], tuple(whole[0])),
        **_compilable(treedef, tuple(leaves)),
    )


@functools.lru_cache(maxsize=64)
def _joined(treedef: Any, shapes: tuple[jax.ShapeDtypeStruct, ...]) -> Joint:
    """How outputs join; the same for any stages."""
    return joint_of(*jax.tree.unflatten(treedef, shapes))


@functools.lru_cache(maxsize=64)
def _compilable(treedef: Any, shapes: tuple[jax.ShapeDtypeStruct, ...]) -> dict[str, Any]:
    net, micro = jax.tree.unflatten(treedef, shapes)
    layout = layout_of(net)
    line = equations(net, micro)
    places = select_cuts(cuts(line), layout.cuts)
    cut = split(line, places)
    numbered = jax.tree.unflatten(line.out_tree, range(line.out_tree.num_leaves))
    losses, tree = jax.tree.flatten(numbered[0] if updates_buffers(micro) else numbered)
    made = programmes(
        cut,
        layout.places,
        remat=layout.remat,
        ranges=net.ranges,
        count=layout.microbatches,
        losses=losses,
    )
    return {
        "cut": cut,
        "places": places,
        "losses": (tree, tuple(losses)),
        "programmes": made,
        "blocks": spmd.equal_blocks(line, len(layout.places)) if layout.engine == "spmd" else None,
        "compiled": {},
    }


def example_of(net: Network, parts: int = 0) -> Parts:
    """The traced example as a mini-batch; as one of its parts where it is not divisible."""
    if isinstance(net, Pipeline):
        layout = layout_of(net)
        parts = layout.microbatches * len(layout.places[0].devices)
    args, kwargs = net.example.whole()
    arguments = call_arguments(args, {**net.defaults.whole(), **kwargs})
    size = next((a.shape[0] for a in arguments.arrays if a.ndim), 0)
    if size % parts == 0:
        return arguments

    def enlarged(a: Any) -> Any:
        if not a.ndim or a.shape[0] != size:
            return a
        return jax.ShapeDtypeStruct((size * parts, *a.shape[1:]), a.dtype)

    return dataclasses.replace(arguments, arrays=tuple(map(enlarged, arguments.arrays)))


def _given(net: Pipeline, args: Sequence[Any], kwargs: Any) -> Parts:
    """Arguments of a call, or of the example where there are none."""
    if not any(map(is_array, jax.tree.leaves((args, kwargs)))):
        return example_of(net)
    return call_arguments(args, {**net.defaults.whole(), **kwargs})


def _inline(net: Pipeline, plan: Prepared, arguments: Parts, key: Any) -> list[list[Array]]:
    """Every micro-batch through every stage, as part of the programme that is being traced."""
    layout, cut = layout_of(net), plan.cut
    owned = [stage_params(net, cut, stage) for stage in cut.stages]
    results: list[list[Array]] = []
    for m, row in enumerate(plan.batch.parts(arguments.arrays)):
        given: list[list[Array]] = []
        for programme, own in zip(plan.programmes, owned, strict=True):
            stage = programme.stage
            live = [given[s][i] for s, i in stage.sources]
            work = Work([row[i] for i in stage.arguments], live, key, np.int32(m))
            run = programme.forward
            if layout.remat != "none":
                policy = layout.remat if callable(layout.remat) else None
                run = jax.checkpoint(run, policy=policy)
            given.append(run(own, work))
        results.append([given[s][i] for s, i in cut.outputs])
    return results


def check_spmd(arguments: Parts, key: Any) -> None:
    """Checks what a call or step of engine "spmd" cannot take.

    Raises:
      ValueError: a key, or updates of buffers.
    """
    if key is not None or updates_buffers(arguments):
        raise ValueError("engine='spmd' takes no key and no mutable=…; use engine='mpmd'")


def spmd_options(net: Pipeline, plan: Prepared) -> dict[str, Any]:
    """What each programme of engine "spmd" is given."""
    layout = layout_of(net)
    assert plan.blocks is not None, "prepared for this engine"
    return {
        "blocks": plan.blocks,
        "microbatches": layout.microbatches,
        "places": layout.places,
        "remat": layout.remat,
    }


def run_everywhere(
    net: Pipeline, plan: Prepared, label: tuple[Any, ...], run: Callable[..., Any], given: Any
) -> Any:
    """Runs a programme of engine "spmd" on all its devices.

    Args:
      net: the pipeline.
      plan: of it; keeps the compiled programme.
      label: what the programme computes, for these shapes.
      run: the programme.
      given: its arguments.
    """
    layout = layout_of(net)
    programme = plan.compiled.setdefault((*label, layout.microbatches), jax.jit(run))
    return programme(*spmd.everywhere(given, spmd.mesh_of(layout.places)))


def _spmd_call(net: Pipeline, plan: Prepared, arguments: Parts) -> list[Array]:
    divided = [plan.batch.divides(a) for a in arguments.arrays]
    options = spmd_options(net, plan)

    def run(net: Pipeline, arrays: Any) -> list[Array]:
        return spmd.outputs_of(
            net, arguments=arrays, divided=divided, axes=plan.joint.axes, **options
        )

    given = (net, list(arguments.arrays))
    if any(map(is_traced, jax.tree.leaves(given))):
        return run(*given)
    return run_everywhere(net, plan, ("call",), run, given)


def _entering(cut: Stages, stage: Stage) -> list[Any]:
    """Shapes of the activations and arguments that a stage is given."""
    return [*(cut.equations.arguments[i].aval for i in stage.arguments), *stage.live]
