"""A pipeline as one compiled program for each stage, direction and device.

Python dispatches the programs in the order of the schedule and waits for none of them; each device
runs its own in that order, as soon as what they need has arrived.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxsim.cores.partition import Partitioned
from jaxsim.network.plan import Rows
from jaxsim.network.stages import stage_params
from jaxsim.pipeline.programs import TaskInputs, is_inexact
from jaxsim.pipeline.schedule import Durations, Part, run_through
from jaxsim.staged.plan import PipelinePlan, layout_of, tap_params

if TYPE_CHECKING:
    from jaxsim.staged.network import Staged


class Gradients(NamedTuple):
    """Gradients of what a pipeline reads.

    Attributes:
      leaves: Of each leaf of the parameters and then of `tap_params`; None where no stage reads it.
      numbers: Of what trains of the cores, as `trained_numbers`.
    """

    leaves: list[Array | None]
    numbers: dict[str, dict[str, Array]]


def forward(net: Staged, plan: PipelinePlan, arguments: Partitioned, key: Any) -> list[list[Array]]:
    """Computes the network's outputs of each micro-batch.

    Args:
      net: The pipeline.
      plan: Its stages for these arguments.
      arguments: Arguments of the call.
      key: Random key of the call, or None.
    """
    executor = _Executor(net, plan, arguments, key, tap_params(net))
    for m in range(plan.batch.microbatches):
        for k in range(len(plan.programs)):
            executor.forward(k, m)
    return executor.outputs


def value_and_grad(
    net: Staged,
    plan: PipelinePlan,
    arguments: Partitioned,
    key: Any,
    targets: Sequence[Any],
    loss_of: Callable[[list[Array], list[Any]], tuple[Array, list[Array]]],
    taps: Any,
) -> tuple[Array, Gradients, list[list[Array]]]:
    """Computes the sum of the losses of the micro-batches, and its gradients.

    Args:
      net: The pipeline.
      plan: Its stages for these arguments.
      arguments: Arguments of the call.
      key: Random key of the call, or None.
      targets: Arrays of the loss, divided like the arguments.
      loss_of: `(outputs, targets) -> (loss, cotangents of the inexact outputs)` of a micro-batch,
        of the outputs that the loss reads.
      taps: What stages read beside the network's parameters, as `tap_params`.

    Returns:
      The loss, its gradients, and the outputs of each micro-batch.
    """
    executor, count = _Executor(net, plan, arguments, key, taps), len(plan.programs)
    layout = layout_of(net)
    last, each = plan.programs[-1].devices, plan.batch.parts(targets)
    total: Array | None = None
    durations = Durations([1] * count, [2] * count, [1] * count)
    for task in run_through(layout.schedule, plan.batch.microbatches, durations, layout.chunks):
        k, m = task.stage, task.microbatch
        if task.backward:
            executor.backward(k, m, task.part)
            continue
        executor.keep(k, m)
        if k == count - 1:
            outputs = [last.move(executor.outputs[m][i]) for i in plan.loss_outputs]
            loss, cotangents = loss_of(outputs, [last.move(t) for t in each[m]])
            total = loss if total is None else total + loss
            inexact = [i for i, y in zip(plan.loss_outputs, outputs, strict=True) if is_inexact(y)]
            for i, cotangent in zip(inexact, cotangents, strict=True):
                executor.add(plan.cut.outputs[i], m, cotangent)
    assert total is not None, "there is at least one micro-batch"
    return total, executor.gradients(), executor.outputs


class _Executor:
    """State of a pipeline while it runs: activations, cotangents and sums of gradients.

    Stages are numbered by k and micro-batches by m.
    """

    def __init__(
        self, net: Staged, plan: PipelinePlan, arguments: Partitioned, key: Any, taps: Any
    ):
        """Moves each stage's parameters to it."""
        self.cut, self.programs = plan.cut, plan.programs
        self.tensors = [
            jax.device_put(
                stage_params(net, plan.cut, program.stage, taps),
                program.devices.replicated,
            )
            for program in plan.programs
        ]
        self.key = [
            None if key is None else jax.device_put(key, program.devices.replicated)
            for program in plan.programs
        ]
        self.arguments = plan.batch.parts(arguments.arrays)
        microbatches = range(plan.batch.microbatches)
        self.outputs: list[list[Any]] = [[None] * len(plan.cut.outputs) for _ in microbatches]
        self.live: dict[tuple[int, int], list[Any]] = {
            (k, m): [None] * len(program.stage.sources)
            for k, program in enumerate(plan.programs)
            for m in microbatches
        }
        self.kept: dict[tuple[int, int], tuple[TaskInputs, Any]] = {}
        self.halved: dict[tuple[int, int], tuple[Any, ...]] = {}
        self.cotangents: dict[tuple[int, int, int], Array] = {}
        self.sums: list[Any] = [None] * len(plan.programs)

    def inputs(self, k: int, m: int) -> TaskInputs:
        """Collects the inputs of a stage for a micro-batch."""
        stage, devices = self.programs[k].stage, self.programs[k].devices
        arguments = [devices.move(self.arguments[m][i]) for i in stage.arguments]
        return TaskInputs(arguments, self.live.pop((k, m)), self.key[k], np.int32(m))

    def forward(self, k: int, m: int) -> None:
        """Runs a stage, keeping nothing for a backward."""
        self.send(k, m, self.programs[k].forward(self.tensors[k], self.inputs(k, m)))

    def keep(self, k: int, m: int) -> None:
        """Runs a stage, keeping what its backward needs."""
        inputs = self.inputs(k, m)
        outputs, residuals = self.programs[k].keep(self.tensors[k], inputs)
        self.kept[k, m] = (inputs, residuals)
        self.send(k, m, outputs)

    def send(self, k: int, m: int, outputs: list[Array]) -> None:
        """Moves a stage's outputs to where they are read."""
        for j in range(k + 1, len(self.programs)):
            for i, (source, at) in enumerate(self.programs[j].stage.sources):
                if source == k:
                    self.live[j, m][i] = self.programs[j].devices.move(outputs[at])
        for i, (source, at) in enumerate(self.cut.outputs):
            if source == k:
                self.outputs[m][i] = outputs[at]

    def add(self, source: tuple[int, int], m: int, cotangent: Array) -> None:
        """Adds a cotangent of one of a stage's outputs, at that stage."""
        k, at = source
        moved = self.programs[k].devices.move(cotangent)
        before = self.cotangents.get((k, at, m))
        self.cotangents[k, at, m] = moved if before is None else before + moved

    def backward(self, k: int, m: int, part: Part) -> None:
        """Differentiates a stage, adding to its sums: by inputs, by weights, or by both."""
        program = self.programs[k]
        if self.sums[k] is None:
            self.sums[k] = program.zeros(self.tensors[k])
        if part == "weights":
            self.sums[k] = program.weights(self.tensors[k], *self.halved.pop((k, m)), self.sums[k])
            return
        inputs, residuals = self.kept.pop((k, m))
        given = [self.cotangents.pop((k, at, m)) for at in program.differentiated]
        if part == "inputs":
            back, crossing = program.inputs(self.tensors[k], inputs, residuals, given)
            self.halved[k, m] = (inputs, residuals, given, crossing)
        else:
            self.sums[k], back = program.backward(
                self.tensors[k], inputs, residuals, given, self.sums[k]
            )
        inexact = [
            source
            for source, a in zip(program.stage.sources, program.stage.live, strict=True)
            if is_inexact(a)
        ]
        for source, cotangent in zip(inexact, back, strict=True):
            self.add(source, m, cotangent)

    def gradients(self) -> Gradients:
        """The gradients that stages found, of a leaf or a number that several read their sum."""
        found: list[list[tuple[Rows | None, Array]]] = [[] for _ in self.cut.paths]
        numbers: dict[str, dict[str, Array]] = {}
        for program, sums in zip(self.programs, self.sums, strict=True):
            stage, own = program.stage, dict(sums)
            params = own.pop("params", {})
            for i, rows, name in zip(stage.params, stage.param_rows, stage.names, strict=True):
                if name in params:
                    found[i].append((rows, params[name]))
            for kind, values in own.items():
                total = numbers.setdefault(kind, {})
                for name, g in values.items():
                    parts = [total[name]] if name in total else []
                    total[name] = _joined([(None, part) for part in (*parts, g)])
        return Gradients([_joined(parts) if parts else None for parts in found], numbers)


def _joined(parts: Sequence[tuple[Rows | None, Array]]) -> Array:
    """The gradient of a leaf from those of it, or of its slices, that stages found."""
    (rows, total), *others = parts
    home = total.sharding
    if rows is not None:
        total = _at_rows(total, rows)
    for rows, g in others:
        moved = jax.device_put(g, home)
        total = total + (moved if rows is None else _at_rows(moved, rows))
    return total


def _at_rows(a: Array, rows: Rows) -> Array:
    """Slices of a stack among zeros for the others."""
    around = [(rows.first, rows.total - rows.last), *[(0, 0)] * (a.ndim - 1)]
    return jnp.pad(a, around)
