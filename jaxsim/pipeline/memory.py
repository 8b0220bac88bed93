"""Tables of a pipeline: what each stage holds and computes, and its memory in a training step."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsim.console.table import render
from jaxsim.network.network import Network
from jaxsim.network.stages import Stages, stage_params
from jaxsim.pipeline.mpmd import Programme, Work
from jaxsim.pipeline.tables import memory_table, stages_table


class StageRow(NamedTuple):
    """One stage.

    Attributes:
      name: the site it begins with.
      equations: number of equations that an input reaches.
      flops: of the forward, a micro-batch.
      params: entries of the parameters it reads.
      boundary_bytes: of the activations that enter it, a micro-batch.
      devices: where it runs.
    """

    name: str
    equations: int
    flops: int
    params: int
    boundary_bytes: int
    devices: tuple[Any, ...]


class StageTable(NamedTuple):
    """The stages of a pipeline.

    Attributes:
      rows: in order of execution.
      micro: size of the micro-batch that they are counted for.
    """

    rows: tuple[StageRow, ...]
    micro: int

    def __str__(self) -> str:
        return render(self.__rich__())

    def __rich__(self) -> Any:
        return stages_table([tuple(row) for row in self.rows], micro=self.micro)


class StageMemory(NamedTuple):
    """Bytes of one stage in a training step.

    Attributes:
      params: of its parameters.
      gradients: of their gradients' sums.
      kept: from the forward to the backward of one micro-batch.
      in_flight: how many micro-batches it keeps at most.
      temporary: of the larger of its two programmes, while it runs.
      results: activations that the larger one returns.
    """

    params: int
    gradients: int
    kept: int
    in_flight: int
    temporary: int
    results: int

    @property
    def activations(self) -> int:
        """All but parameters and gradients."""
        return self.kept * self.in_flight + self.temporary + self.results

    @property
    def peak(self) -> int:
        """All of it."""
        return self.params + self.gradients + self.activations


class MemoryTable(NamedTuple):
    """Memory of a pipeline by stage.

    Attributes:
      rows: in order of execution.
      microbatches: their number.
      micro: size of each.
    """

    rows: tuple[StageMemory, ...]
    microbatches: int
    micro: int

    @property
    def peak(self) -> int:
        """Of the stage that needs most."""
        return max(row.peak for row in self.rows)

    def __str__(self) -> str:
        return render(self.__rich__())

    def __rich__(self) -> Any:
        return memory_table(
            [(*row, row.peak) for row in self.rows], count=self.microbatches, micro=self.micro
        )


def stage_memory(net: Network, cut: Stages, programme: Programme, in_flight: int) -> StageMemory:
    """Bytes of one stage, from its compiled programmes; nothing is run.

    Args:
      net: the network.
      cut: its stages.
      programme: of the stage.
      in_flight: how many micro-batches it keeps at most.
    """
    own, work = work_shapes(net, cut, programme)
    keep = programme.keep.lower(own, work)
    outputs, residuals = keep.out_info
    cotangents = [outputs[i] for i in programme.wanted]
    backward = programme.backward.lower(own, work, residuals, cotangents, own.params)
    first, second = (step.compile().memory_analysis() for step in (keep, backward))
    params = sum(map(nbytes, jax.tree.leaves(own.params)))
    kept = sum(map(nbytes, (*work.live, *work.arguments, *residuals)))
    into, back = (
        sum(map(nbytes, outputs)),
        sum(map(nbytes, jax.tree.leaves(backward.out_info[1]))),
    )
    larger = max((first.temp_size_in_bytes, into), (second.temp_size_in_bytes, back), key=sum)
    return StageMemory(params, params, kept, in_flight, *larger)


def work_shapes(net: Network, cut: Stages, programme: Programme) -> tuple[Any, Work]:
    """Shapes of what a stage is given for a micro-batch, on its devices."""
    place, stage = programme.place, programme.stage

    def shape(a: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(np.shape(a), jnp.result_type(a), sharding=sharding)

    own = jax.tree.map(lambda a: shape(a, place.whole), stage_params(net, cut, stage))
    line = cut.equations
    arguments = [line.arguments[i].aval for i in stage.arguments]
    key = jax.eval_shape(lambda: jax.random.key(0)) if net.cores else None
    return own, Work(
        [shape(a, place.sharding(a)) for a in arguments],
        [shape(a, place.sharding(a)) for a in stage.live],
        key,
        jax.ShapeDtypeStruct((), np.int32),
    )


def nbytes(a: Any) -> int:
    """Bytes of an array or of its shape."""
    dtype = a.dtype
    return math.prod(a.shape) * (dtype.itemsize if isinstance(dtype, np.dtype) else 8)
