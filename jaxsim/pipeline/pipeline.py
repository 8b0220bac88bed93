"""A network whose calls run in stages on several devices, micro-batch by micro-batch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import jax
import numpy as np
from jaxtyping import Array, Key

from jaxsim.cores.partition import Partitioned
from jaxsim.network.arguments import call_arguments
from jaxsim.network.cuts import blocks, flops
from jaxsim.network.leaves import is_array
from jaxsim.network.network import DATA, META, Network
from jaxsim.network.stages import Stage, Stages, signature, stage_params
from jaxsim.network.tables import cuts_table
from jaxsim.numerics.checks import is_traced
from jaxsim.pipeline import mpmd, spmd
from jaxsim.pipeline.memory import (
    MemoryTable,
    StageMemory,
    StageRow,
    StageTable,
    input_shapes,
    nbytes,
    stage_memory,
)
from jaxsim.pipeline.microbatch import updates_buffers
from jaxsim.pipeline.plan import Layout, PipelinePlan, example_of, layout_of, pipeline_plan
from jaxsim.pipeline.programs import TaskInputs
from jaxsim.pipeline.schedule import Timeline, simulate
from jaxsim.values.memo import Memo, Memoizing


@partial(
    jax.tree_util.register_dataclass,
    data_fields=[*DATA],
    meta_fields=[*META, "layout", "memo"],
)
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Pipeline(Memoizing, Network):
    """A network whose calls run in stages; made by `pipeline_shard`.

    It is a network in every other way: it is composed, deployed, saved and counted like one, and
    its parameters keep their paths. Under `jit` and `grad` a call computes the same stages and
    micro-batches, as part of the one program around it.

    Attributes:
      layout: How it runs.
      memo: Refers to the stages and programs that were made for it.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> def model(params, x):
      ...     for w in params:
      ...         x = jnp.tanh(x @ w)
      ...     return x
      >>> net = js.trace(model, [0.5 * jnp.eye(4)] * 4, jnp.ones((8, 4)))
      >>> pipe = js.pipeline_shard(2, 4, devices=jax.devices()[:1] * 2)(net)
      >>> pipe(jnp.ones((8, 4))).shape
      (8, 4)
      >>> [row.params for row in pipe.stages.rows]
      [32, 32]
    """

    cut_by: ClassVar[str] = "pipeline_shard"

    layout: Layout | None = None
    memo: Memo = dataclasses.field(default_factory=Memo)

    def __rich__(self) -> Any:
        from rich.console import Group

        layout = layout_of(self)
        begins = ("the start", *layout.cuts)
        devices = (", ".join(map(str, stage.devices)) for stage in layout.devices)
        rows = zip(range(1, len(begins) + 1), begins, devices, strict=True)
        title = f"stages · {layout.microbatches} micro-batches, {layout.schedule}, {layout.engine}"
        table = cuts_table(title, ("stage", "begins at", "devices"), rows)
        return Group(super().__rich__(), table)

    def __call__(self, *args: Any, key: Key[Array, ""] | None = None, **kwargs: Any) -> Any:
        """Computes the outputs of the network in stages.

        Args:
          *args: Inputs of the network; the leading axis of the first array is the batch, and is
            divided in every array that has it. Arrays without it go to each micro-batch as they
            are, random keys folded with its number.
          key: Random key, needed where cores draw random numbers at every call.
          **kwargs: Keyword arguments of the network.

        Returns:
          What the network returns, on the last stage's devices.

        Raises:
          ValueError: The batch is not divisible, or what the network raises.
        """
        arguments = self.arguments(args, kwargs, key)
        plan = pipeline_plan(self, arguments)
        tree = plan.cut.equations.out_tree
        if layout_of(self).engine == "spmd":
            check_spmd(arguments, key)
            return jax.tree.unflatten(tree, _spmd_call(self, plan, arguments))
        if any(map(is_traced, jax.tree.leaves((self, arguments, key)))):
            parts = _inline(self, plan, arguments, key)
        else:
            parts = mpmd.forward(self, plan, arguments, key)
        return jax.tree.unflatten(tree, plan.join.join(parts))

    @property
    def stages(self) -> StageTable:
        """Parameters, FLOPs and boundary bytes of each stage, from shapes alone."""
        plan = pipeline_plan(self, _example(self))
        work = blocks(plan.cuts, flops(plan.cut.equations))
        own = jax.eval_shape(lambda: [stage_params(self, plan.cut, s) for s in plan.cut.stages])
        rows = tuple(
            StageRow(
                name=stage.name,
                equations=stage.equations,
                flops=amount,
                params=sum(math.prod(a.shape) for a in read.params.values()),
                boundary_bytes=sum(map(nbytes, _entering(plan.cut, stage))),
                devices=where.devices,
            )
            for stage, amount, where, read in zip(
                plan.cut.stages, work, layout_of(self).devices, own, strict=True
            )
        )
        return StageTable(rows, plan.batch.microbatch_size)

    def placed(self) -> Pipeline:
        """Moves each parameter and state to the devices of the stage that reads it.

        Calls then move nothing but activations. A parameter that several stages read is on those
        of the first, and so is a stack that is cut between its slices, which calls go on to move.
        Programs of one device, such as a jitted optimizer step over all parameters at once, cannot
        take arrays of several.
        """
        plan = pipeline_plan(self, _example(self))
        params, treedef = jax.tree.flatten(self.params)
        buffers, structure = jax.tree.flatten(self.buffers)
        states = dict(self.states)
        for stage, where in reversed(
            list(zip(plan.cut.stages, layout_of(self).devices, strict=True))
        ):
            for leaves, positions in ((params, stage.params), (buffers, stage.buffers)):
                for i in positions:
                    leaves[i] = jax.device_put(leaves[i], where.replicated)
            for name in stage.sites:
                if name in states:
                    states[name] = jax.device_put(states[name], where.replicated)
        return dataclasses.replace(
            self,
            params=jax.tree.unflatten(treedef, params),
            buffers=jax.tree.unflatten(structure, buffers),
            states=states,
        )

    def memory(self, *args: Any, **kwargs: Any) -> MemoryTable:
        """Counts the bytes of one training step by stage, from the compiled programs alone.

        Args:
          *args: Inputs of a mini-batch (only shapes count); without any, those of the traced
            example.
          **kwargs: Keyword arguments, as in a call.

        Raises:
          ValueError: A batch that is not divisible, or engine "spmd".
        """
        arguments = _given(self, args, kwargs)
        layout = layout_of(self)
        if layout.engine == "spmd":
            raise ValueError("memory: engine='spmd' has one program and no stages of its own")
        plan = pipeline_plan(self, arguments)
        flights = simulate_schedule(self, *args, **kwargs).in_flight
        rows: list[StageMemory] = []
        seen: dict[Any, StageMemory] = {}  # equal stages are compiled once
        for program, n in zip(plan.programs, flights, strict=True):
            stage = program.stage
            named = (stage.sites, stage.params) if self.cores or self.masks else ()
            alike = (signature(stage), program.differentiated, bool(stage.sources), named)
            if alike not in seen:
                seen[alike] = stage_memory(self, plan.cut, program, n)
            rows.append(seen[alike]._replace(in_flight=n))
        return MemoryTable(tuple(rows), layout.microbatches, plan.batch.microbatch_size)


def simulate_schedule(net: Network, *args: Any, **kwargs: Any) -> Timeline:
    """Simulates a training step of a pipeline; stages take as long as their FLOPs say.

    A backward counts as two forwards, and as three where it computes the forward again. With equal
    stages the bubble is (K-1)/(M+K-1), for K stages and M micro-batches.

    Args:
      net: A pipeline, from `pipeline_shard`.
      *args: Inputs of a mini-batch (only shapes count); without any, those of the traced example.
      **kwargs: Keyword arguments, as in a call.

    Returns:
      When each stage runs which micro-batch, and what it keeps.

    Raises:
      ValueError: Any other network, or a batch that is not divisible.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> net = js.trace(lambda p, x: x @ p[0] @ p[1], [jnp.eye(4)] * 2, jnp.ones((8, 4)))
      >>> pipe = js.pipeline_shard(2, 4, devices=jax.devices()[:1] * 2)(net)
      >>> timeline = js.simulate_schedule(pipe)
      >>> round(timeline.bubble, 3), timeline.in_flight
      (0.2, (4, 4))
    """
    if not isinstance(net, Pipeline):
        raise ValueError("net: is no pipeline; js.pipeline_shard(…)(net) makes one")
    plan = pipeline_plan(net, _given(net, args, kwargs))
    layout = layout_of(net)
    forward = [max(1, n) for n in blocks(plan.cuts, flops(plan.cut.equations))]
    backward = [n * (2 if layout.remat == "none" else 3) for n in forward]
    kept: list[int] = []
    inside: list[int] = []
    for program in plan.programs:
        shapes = input_shapes(net, plan.cut, program)
        more = sum(map(nbytes, program.residual_shapes(*shapes)))
        entering = sum(map(nbytes, (*shapes[1].live, *shapes[1].arguments)))
        kept.append(entering if layout.remat == "boundary" else entering + more)
        inside.append(more if layout.remat == "boundary" else 0)
    return simulate(layout.schedule, layout.microbatches, forward, backward, kept, inside)


def _example(net: Pipeline) -> Partitioned:
    """The traced example as a mini-batch of this pipeline."""
    layout = layout_of(net)
    return example_of(net, layout.microbatches * len(layout.devices[0].devices))


def _given(net: Pipeline, args: Sequence[Any], kwargs: Any) -> Partitioned:
    """Arguments of a call, or of the example where there are none."""
    if not any(map(is_array, jax.tree.leaves((args, kwargs)))):
        return _example(net)
    return call_arguments(args, {**net.defaults.combine(), **kwargs})


def _inline(
    net: Pipeline, plan: PipelinePlan, arguments: Partitioned, key: Any
) -> list[list[Array]]:
    """Every micro-batch through every stage, as part of the program that is being traced."""
    layout, cut = layout_of(net), plan.cut
    owned = [stage_params(net, cut, stage) for stage in cut.stages]
    results: list[list[Array]] = []
    for m, row in enumerate(plan.batch.parts(arguments.arrays)):
        outputs: list[list[Array]] = []
        for program, own in zip(plan.programs, owned, strict=True):
            stage = program.stage
            live = [outputs[s][i] for s, i in stage.sources]
            inputs = TaskInputs([row[i] for i in stage.arguments], live, key, np.int32(m))
            run = program.forward
            if layout.remat != "none":
                policy = layout.remat if callable(layout.remat) else None
                run = jax.checkpoint(run, policy=policy)
            outputs.append(run(own, inputs))
        results.append([outputs[s][i] for s, i in cut.outputs])
    return results


def check_spmd(arguments: Partitioned, key: Any) -> None:
    """Checks what a call or step of engine "spmd" cannot take.

    Args:
      arguments: Arguments of the call.
      key: Random key of the call, or None.

    Raises:
      ValueError: A key, or updates of buffers.
    """
    if key is not None or updates_buffers(arguments):
        raise ValueError("engine='spmd' takes no key and no mutable=…; use engine='mpmd'")


def run_everywhere(
    net: Pipeline, plan: PipelinePlan, label: tuple[Any, ...], run: Callable[..., Any], given: Any
) -> Any:
    """Runs a program of engine "spmd" on all its devices.

    Args:
      net: The pipeline.
      plan: Its stages; keeps the compiled program.
      label: What the program computes, for these shapes.
      run: The program.
      given: Its arguments.
    """
    layout = layout_of(net)
    program = plan.compiled.setdefault((*label, layout.microbatches), jax.jit(run))
    return program(*spmd.replicate(given, spmd.mesh_of(layout.devices)))


def _spmd_call(net: Pipeline, plan: PipelinePlan, arguments: Partitioned) -> list[Array]:
    def run(net: Pipeline, arrays: Any) -> list[Array]:
        return spmd.outputs_of(net, plan, arrays)

    given = (net, list(arguments.arrays))
    if any(map(is_traced, jax.tree.leaves(given))):
        return run(*given)
    return run_everywhere(net, plan, ("call",), run, given)


def _entering(cut: Stages, stage: Stage) -> list[Any]:
    """Shapes of the activations and arguments that a stage is given."""
    return [*(cut.equations.arguments[i].aval for i in stage.arguments), *stage.live]
