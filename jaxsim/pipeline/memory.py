"""Tables of a pipeline: what each stage reads and computes, and its memory in a training step."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsim.console.table import shown_as_table
from jaxsim.network.network import Network
from jaxsim.network.stages import Stages, stage_params
from jaxsim.pipeline.programs import StageProgram, TaskInputs
from jaxsim.pipeline.tables import memory_table, stages_table


class StageRow(NamedTuple):
    """One stage.

    Attributes:
      name: Name of the site it begins with.
      equations: Number of equations that an input reaches.
      flops: Floating-point operations of the forward, a micro-batch.
      params: Entries of the parameters it reads.
      boundary_bytes: Bytes of the activations that enter it, a micro-batch.
      devices: Devices it runs on.
    """

    name: str
    equations: int
    flops: int
    params: int
    boundary_bytes: int
    devices: tuple[Any, ...]


@shown_as_table
class StageTable(NamedTuple):
    """The stages of a pipeline.

    Attributes:
      rows: One a stage, in order of execution.
      micro: Rows of the micro-batch that they are counted for.
    """

    rows: tuple[StageRow, ...]
    micro: int

    def __rich__(self) -> Any:
        return stages_table([tuple(row) for row in self.rows], micro=self.micro)


class StageMemory(NamedTuple):
    """Bytes of one stage in a training step.

    Attributes:
      params: Bytes of its parameters.
      gradients: Bytes of the sums of their gradients.
      kept: Bytes kept from the forward to the backward of one micro-batch.
      in_flight: Number of micro-batches it keeps at most.
      temporary: Bytes of the larger of its two programs, while it runs.
      results: Bytes of the activations that the larger one returns.
    """

    params: int
    gradients: int
    kept: int
    in_flight: int
    temporary: int
    results: int

    @property
    def activations(self) -> int:
        """Bytes of all but parameters and gradients."""
        return self.kept * self.in_flight + self.temporary + self.results

    @property
    def peak(self) -> int:
        """Bytes of all of it."""
        return self.params + self.gradients + self.activations


@shown_as_table
class MemoryTable(NamedTuple):
    """Memory of a pipeline by stage.

    Attributes:
      rows: One a stage, in order of execution.
      microbatches: Number of micro-batches.
      micro: Rows of each.
    """

    rows: tuple[StageMemory, ...]
    microbatches: int
    micro: int

    @property
    def peak(self) -> int:
        """Bytes of the stage that needs most."""
        return max(row.peak for row in self.rows)

    def __rich__(self) -> Any:
        return memory_table(
            [(*row, row.peak) for row in self.rows], count=self.microbatches, micro=self.micro
        )


def stage_memory(
    net: Network, cut: Stages, program: StageProgram, in_flight: int, taps: Any = ()
) -> StageMemory:
    """Counts the bytes of one stage from its compiled programs; nothing is run.

    Args:
      net: The network.
      cut: Its stages.
      program: Program of the stage.
      in_flight: Number of micro-batches it keeps at most.
      taps: Parameters of the taps it was cut with.
    """
    own, inputs = input_shapes(net, cut, program, taps)
    keep = program.keep.lower(own, inputs)
    outputs, residuals = keep.out_info
    cotangents = [outputs[i] for i in program.differentiated]
    sums = jax.eval_shape(program.zeros, own)
    backward = program.backward.lower(own, inputs, residuals, cotangents, sums)
    first, second = (step.compile().memory_analysis() for step in (keep, backward))
    params = sum(map(nbytes, jax.tree.leaves(own.params)))
    kept = sum(map(nbytes, (*inputs.live, *inputs.arguments, *residuals)))
    into, back = (
        sum(map(nbytes, outputs)),
        sum(map(nbytes, jax.tree.leaves(backward.out_info[1]))),
    )
    larger = max((first.temp_size_in_bytes, into), (second.temp_size_in_bytes, back), key=sum)
    gradients = sum(map(nbytes, jax.tree.leaves(sums)))
    return StageMemory(params, gradients, kept, in_flight, *larger)


def input_shapes(
    net: Network, cut: Stages, program: StageProgram, taps: Any = ()
) -> tuple[Any, TaskInputs]:
    """Lists the shapes of what a stage is given for a micro-batch, on its devices.

    Args:
      net: The network.
      cut: Its stages.
      program: Program of the stage.
      taps: Parameters of the taps it was cut with.

    Returns:
      Shapes of what it reads of the network, and of the inputs of a task.
    """
    devices, stage = program.devices, program.stage

    def shape(a: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(np.shape(a), jnp.result_type(a), sharding=sharding)

    read = jax.eval_shape(lambda: stage_params(net, cut, stage, taps))
    own = jax.tree.map(lambda a: shape(a, devices.replicated), read)
    line = cut.equations
    arguments = [line.arguments[i].aval for i in stage.arguments]
    key = jax.eval_shape(lambda: jax.random.key(0)) if net.cores else None
    return own, TaskInputs(
        [shape(a, devices.sharding(a)) for a in arguments],
        [shape(a, devices.sharding(a)) for a in stage.live],
        key,
        jax.ShapeDtypeStruct((), np.int32),
    )


def nbytes(a: Any) -> int:
    """Counts the bytes of an array.

    Args:
      a: Array, or its shape and dtype.
    """
    dtype = a.dtype
    return math.prod(a.shape) * (dtype.itemsize if isinstance(dtype, np.dtype) else 8)
