"""A network run in stages on several devices, micro-batch by micro-batch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Array, Float

from jaxsim.cores.partition import Partitioned
from jaxsim.network.arguments import call_arguments
from jaxsim.network.leaves import is_array
from jaxsim.network.network import Network
from jaxsim.network.stages import Stage, Stages, signature, stage_params
from jaxsim.numerics.checks import is_traced
from jaxsim.pipeline.memory import (
    MemoryTable,
    StageMemory,
    StageRow,
    StageTable,
    input_shapes,
    nbytes,
    stage_memory,
)
from jaxsim.pipeline.microbatch import example_of, updates_buffers
from jaxsim.pipeline.programs import TaskInputs, is_inexact
from jaxsim.pipeline.schedule import Timeline, simulate
from jaxsim.staged import mpmd, spmd
from jaxsim.staged.plan import (
    PipelinePlan,
    layout_of,
    pipeline_plan,
    require_layout,
    tap_params,
)

if TYPE_CHECKING:
    from jaxsim.staged.network import Staged


def call(net: Staged, arguments: Partitioned, key: Any) -> Any:
    """Computes the outputs of a network in stages.

    Args:
      net: Network with a layout and without exits.
      arguments: Arguments of the call.
      key: Random key of the call, or None.

    Raises:
      ValueError: The batch is not divisible, or what the network raises.
    """
    plan = pipeline_plan(net, arguments)
    if layout_of(net).engine == "spmd":
        check_spmd(arguments, key)
        return jax.tree.unflatten(plan.out_tree, _spmd_call(net, plan, arguments))
    if any(map(is_traced, jax.tree.leaves((net, arguments, key)))):
        parts = _inline(net, plan, arguments, key)
    else:
        parts = mpmd.forward(net, plan, arguments, key)
    return jax.tree.unflatten(plan.out_tree, plan.join.join(parts))


def exit_logits(net: Staged, arguments: Partitioned, key: Any) -> list[Float[Array, "B C"]]:
    """Computes what every exit says of every row, each in the stage that it stands in.

    Args:
      net: Network with a layout, and exits or tokens that leave.
      arguments: Arguments of the call.
      key: Random key of the call, or None.

    Returns:
      Logits of each exit, the network's own last, on the last stage's devices.
    """
    out = call(net, arguments, key)
    logits: list[Any] = out if net.exits else jax.tree.leaves(out)
    if not any(map(is_traced, logits)):
        logits = [*map(layout_of(net).devices[-1].move, logits)]
    return logits


def stage_table(net: Staged) -> StageTable:
    """Counts parameters, FLOPs and boundary bytes of each stage, from shapes alone.

    Args:
      net: Network with a layout.
    """
    plan = pipeline_plan(net, _example(net))
    own = jax.eval_shape(
        lambda: [stage_params(net, plan.cut, s, tap_params(net)) for s in plan.cut.stages]
    )
    rows = tuple(
        StageRow(
            name=stage.name,
            equations=stage.equations,
            flops=stage.flops,
            params=sum(math.prod(a.shape) for a in read.params.values()),
            boundary_bytes=sum(map(nbytes, _entering(plan.cut, stage))),
            devices=where.devices,
        )
        for stage, where, read in zip(plan.cut.stages, layout_of(net).devices, own, strict=True)
    )
    return StageTable(rows, plan.batch.microbatch_size)


def placed(net: Staged) -> Staged:
    """Moves each parameter and state to the devices of the stage that reads it.

    Args:
      net: Network with a layout.
    """
    plan = pipeline_plan(net, _example(net))
    params, treedef = jax.tree.flatten((net.params, tap_params(net)))
    buffers, structure = jax.tree.flatten(net.buffers)
    states = dict(net.states)
    for stage, where in reversed(list(zip(plan.cut.stages, layout_of(net).devices, strict=True))):
        for leaves, positions in ((params, stage.params), (buffers, stage.buffers)):
            for i in positions:
                leaves[i] = jax.device_put(leaves[i], where.replicated)
        for name in stage.sites:
            if name in states:
                states[name] = jax.device_put(states[name], where.replicated)
    moved, (heads, _, _) = jax.tree.unflatten(treedef, params)
    return dataclasses.replace(
        net,
        params=moved,
        heads=heads,
        buffers=jax.tree.unflatten(structure, buffers),
        states=states,
    )


def memory_table(net: Staged, args: Sequence[Any], kwargs: Any) -> MemoryTable:
    """Counts the bytes of one training step by stage, from the compiled programs alone.

    Args:
      net: Network with a layout.
      args: Inputs of a mini-batch (only shapes count); without any, those of the traced example.
      kwargs: Keyword arguments, as in a call.

    Raises:
      ValueError: A batch that is not divisible, or engine "spmd".
    """
    layout, arguments = layout_of(net), _given(net, args, kwargs)
    if layout.engine == "spmd":
        raise ValueError("memory: engine='spmd' has one program and no stages of its own")
    plan = pipeline_plan(net, arguments)
    flights = simulate_schedule(net, *args, **kwargs).in_flight
    rows: list[StageMemory] = []
    seen: dict[Any, StageMemory] = {}  # equal stages are compiled once
    for program, n in zip(plan.programs, flights, strict=True):
        stage = program.stage
        named = (stage.sites, stage.params) if net.cores or net.masks else ()
        alike = (signature(stage), program.differentiated, bool(stage.sources), named)
        if alike not in seen:
            seen[alike] = stage_memory(net, plan.cut, program, n, tap_params(net))
        rows.append(seen[alike]._replace(in_flight=n))
    return MemoryTable(tuple(rows), layout.microbatches, plan.batch.microbatch_size)


def simulate_schedule(net: Network, *args: Any, **kwargs: Any) -> Timeline:
    """Simulates a training step of a pipeline; stages take as long as their FLOPs say.

    A backward counts as two forwards, one of them that of the weights, and as three where it
    computes the forward again. With equal stages the bubble is (K-1)/(M+K-1), for K stages and M
    micro-batches, and less where devices run several stages or backwards are in two halves.

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
    pipe = require_layout(net)
    plan = pipeline_plan(pipe, _given(pipe, args, kwargs))
    layout = layout_of(pipe)
    forward = [max(1, stage.flops) for stage in plan.cut.stages]
    backward = [n * (2 if layout.remat == "none" else 3) for n in forward]
    kept: list[int] = []
    inside: list[int] = []
    for program in plan.programs:
        shapes = input_shapes(pipe, plan.cut, program, tap_params(pipe))
        more = sum(map(nbytes, program.residual_shapes(*shapes)))
        entering = sum(map(nbytes, (*shapes[1].live, *shapes[1].arguments)))
        kept.append(entering if layout.remat == "boundary" else entering + more)
        inside.append(more if layout.remat == "boundary" else 0)
    return simulate(
        layout.schedule,
        layout.microbatches,
        forward,
        backward,
        kept,
        inside,
        weights=[
            whole if not any(map(is_inexact, program.stage.live)) else n
            for n, whole, program in zip(forward, backward, plan.programs, strict=True)
        ],
        chunks=layout.chunks,
    )


def _example(net: Staged) -> Partitioned:
    """The traced example as a mini-batch of this pipeline."""
    layout = layout_of(net)
    return example_of(net, layout.microbatches * len(layout.devices[0].devices))


def _given(net: Staged, args: Sequence[Any], kwargs: Any) -> Partitioned:
    """Arguments of a call, or of the example where there are none."""
    if not any(map(is_array, jax.tree.leaves((args, kwargs)))):
        return _example(net)
    return call_arguments(args, {**net.defaults.combine(), **kwargs})


def _inline(net: Staged, plan: PipelinePlan, arguments: Partitioned, key: Any) -> list[list[Array]]:
    """Every micro-batch through every stage, as part of the program that is being traced."""
    layout, cut = layout_of(net), plan.cut
    owned = [stage_params(net, cut, stage, tap_params(net)) for stage in cut.stages]
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
    net: Staged, plan: PipelinePlan, label: tuple[Any, ...], run: Callable[..., Any], given: Any
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


def _spmd_call(net: Staged, plan: PipelinePlan, arguments: Partitioned) -> list[Array]:
    def run(net: Staged, arrays: Any) -> list[Array]:
        return spmd.outputs_of(net, plan, arrays)

    given = (net, list(arguments.arrays))
    if any(map(is_traced, jax.tree.leaves(given))):
        return run(*given)
    return run_everywhere(net, plan, ("call",), run, given)


def _entering(cut: Stages, stage: Stage) -> list[Any]:
    """Shapes of the activations and arguments that a stage is given."""
    return [*(cut.equations.arguments[i].aval for i in stage.arguments), *stage.live]
