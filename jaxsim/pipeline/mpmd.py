"""A pipeline as one compiled programme for each stage, direction and device.

Python dispatches the programmes in the order of the schedule and waits for none of them; each
device runs its own in that order, as soon as what they need has arrived.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding
from jaxtyping import Array

from jaxsim.cores.partition import Parts
from jaxsim.network.network import Network
from jaxsim.network.stages import Stage, StageParams, Stages, run_stage, stage_params
from jaxsim.pipeline.microbatch import Batch
from jaxsim.pipeline.schedule import Schedule, run_through

Remat = Literal["boundary", "none"] | Callable[..., Any]


class Place(NamedTuple):
    """The devices of one stage: one, or several that share each micro-batch.

    Attributes:
      devices: of the stage.
    """

    devices: tuple[Any, ...]

    def __reduce__(self) -> Any:
        return _place, tuple((d.platform, d.id) for d in self.devices)

    @property
    def whole(self) -> Sharding:
        """Sharding of what every device of the stage holds."""
        if len(self.devices) == 1:
            return SingleDeviceSharding(self.devices[0])
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def mesh(self) -> Mesh:
        """The devices as a mesh of one axis."""
        return Mesh(np.asarray(self.devices), ("data",))

    def sharding(self, a: Any) -> Sharding:
        """Sharding of an activation: its first axis is divided where it can be."""
        if len(self.devices) > 1 and np.ndim(a) and np.shape(a)[0] % len(self.devices) == 0:
            return NamedSharding(self.mesh, PartitionSpec("data"))
        return self.whole

    def activation(self, a: Array) -> Array:
        """An activation, moved to the stage."""
        return jax.device_put(a, self.sharding(a))


def _place(*devices: tuple[str, int]) -> Place:
    """The place of a copy, on the devices of this process that have these platforms and numbers.

    Raises:
      ValueError: it has no such device.
    """
    here = {(d.platform, d.id): d for d in jax.devices(devices[0][0])}
    if missing := [f"{platform}:{at}" for platform, at in devices if (platform, at) not in here]:
        raise ValueError(f"devices: the pipeline runs on {missing[0]}, which this process has not")
    return Place(tuple(here[d] for d in devices))


class Work(NamedTuple):
    """What one task of a stage is given besides its parameters; a pytree.

    Attributes:
      arguments: the network's arguments that the stage reads.
      live: values from earlier stages.
      key: of the call, or None.
      part: number of the micro-batch.
    """

    arguments: list[Any]
    live: list[Any]
    key: Any
    part: Any


class Programme(NamedTuple):
    """One stage, compiled.

    Attributes:
      stage: what it runs.
      place: where.
      wanted: positions of its outputs that get a derivative.
      forward: `(held, work) -> outputs`.
      keep: `(held, work) -> (outputs, residuals)`.
      backward: `(held, work, residuals, cotangents, sums) -> (sums, cotangents of live)`, where
        sums are of the parameters' gradients.
      zeros: the sums to begin with.
      inside: `(held, work) -> shapes` of what its differentiation keeps beyond its inputs.
    """

    stage: Stage
    place: Place
    wanted: tuple[int, ...]
    forward: Any
    keep: Any
    backward: Any
    zeros: Any
    inside: Callable[..., Any]


def programmes(
    cut: Stages,
    places: Sequence[Place],
    *,
    remat: Remat,
    ranges: Literal["batch", "stored", "missing"],
    count: int,
    losses: Sequence[int],
) -> tuple[Programme, ...]:
    """The programmes of all stages; none is compiled before it is called.

    Args:
      cut: the stages.
      places: of each.
      remat: what is kept for the backward.
      ranges: `Network.ranges`.
      count: number of micro-batches.
      losses: which of the network's outputs the loss reads.
    """
    read = {source for stage in cut.stages for source in stage.sources}
    read |= {cut.outputs[i] for i in losses}
    made: list[Programme] = []
    for k, (stage, place) in enumerate(zip(cut.stages, places, strict=True)):
        wanted = tuple(i for i, y in enumerate(stage.outputs) if (k, i) in read and is_inexact(y))
        made.append(_programme(stage, place, wanted, remat, ranges, count))
    return tuple(made)


def forward(
    net: Network,
    cut: Stages,
    batch: Batch,
    arguments: Parts,
    key: Any,
    stages: Sequence[Programme],
) -> list[list[Array]]:
    """The network's outputs of each micro-batch.

    Args:
      net: the network.
      cut: its stages.
      batch: how the arguments divide.
      arguments: of the call.
      key: of the call.
      stages: the programmes.
    """
    flow = _Flow(net, cut, batch, arguments, key, stages)
    for m in range(batch.microbatches):
        for k in range(len(stages)):
            flow.forward(k, m)
    return flow.outputs


def value_and_grad(
    net: Network,
    cut: Stages,
    batch: Batch,
    arguments: Parts,
    targets: Sequence[Any],
    key: Any,
    stages: Sequence[Programme],
    schedule: Schedule,
    losses: Sequence[int],
    loss_of: Callable[[list[Array], list[Any]], tuple[Array, list[Array]]],
) -> tuple[Array, list[Array | None], list[list[Array]]]:
    """The sum of the losses of the micro-batches, and its gradients.

    Args:
      net: the network.
      cut: its stages.
      batch: how the arguments and targets divide.
      arguments: of the call.
      targets: arrays of the loss, divided like the arguments.
      key: of the call.
      stages: the programmes.
      schedule: order of the tasks.
      losses: which of the network's outputs the loss reads.
      loss_of: `(outputs, targets) -> (loss, cotangents of the inexact outputs)` of a micro-batch.

    Returns:
      The loss, the gradient of each leaf of the parameters (None where no stage reads it), and the
      outputs of each micro-batch.
    """
    flow = _Flow(net, cut, batch, arguments, key, stages)
    last, each = stages[-1].place, batch.parts(targets)
    total: Array | None = None
    ones = [1] * len(stages)
    for task in run_through(schedule, batch.microbatches, ones, [2] * len(stages)):
        k, m = task.stage, task.microbatch
        if task.backward:
            flow.backward(k, m)
            continue
        flow.keep(k, m)
        if k == len(stages) - 1:
            outputs = [last.activation(flow.outputs[m][i]) for i in losses]
            loss, cotangents = loss_of(outputs, [last.activation(t) for t in each[m]])
            total = loss if total is None else total + loss
            inexact = [i for i, y in zip(losses, outputs, strict=True) if is_inexact(y)]
            for i, cotangent in zip(inexact, cotangents, strict=True):
                flow.add(cut.outputs[i], m, cotangent)
    assert total is not None, "there is at least one micro-batch"
    grads: list[Array | None] = [None] * len(cut.equations.paths)
    for stage, sums in zip(stages, flow.sums, strict=True):
        for i, g in zip(stage.stage.params, sums.values(), strict=True):
            before = grads[i]
            grads[i] = g if before is None else before + jax.device_put(g, before.sharding)
    return total, grads, flow.outputs


def is_inexact(a: Any) -> bool:
    """Whether derivatives with respect to an array exist."""
    return jnp.issubdtype(a.dtype, jnp.inexact)


class _Flow:
    """What is where while a pipeline runs."""

    def __init__(
        self,
        net: Network,
        cut: Stages,
        batch: Batch,
        arguments: Parts,
        key: Any,
        stages: Sequence[Programme],
    ):
        self.cut, self.stages = cut, stages
        self.held = [
            jax.device_put(stage_params(net, cut, stage.stage), stage.place.whole)
            for stage in stages
        ]
        self.key = [None if key is None else jax.device_put(key, s.place.whole) for s in stages]
        self.arguments = batch.parts(arguments.arrays)
        self.outputs: list[list[Any]] = [
            [None] * len(cut.outputs) for _ in range(batch.microbatches)
        ]
        self.live: dict[tuple[int, int], list[Any]] = {
            (k, m): [None] * len(stage.stage.sources)
            for k, stage in enumerate(stages)
            for m in range(batch.microbatches)
        }
        self.kept: dict[tuple[int, int], tuple[Work, Any]] = {}
        self.cotangents: dict[tuple[int, int, int], Array] = {}
        self.sums: list[Any] = [None] * len(stages)

    def work(self, k: int, m: int) -> Work:
        """What the stage is given for a micro-batch."""
        stage, place = self.stages[k].stage, self.stages[k].place
        arguments = [place.activation(self.arguments[m][i]) for i in stage.arguments]
        return Work(arguments, self.live.pop((k, m)), self.key[k], np.int32(m))

    def forward(self, k: int, m: int) -> None:
        """Runs a stage, keeping nothing for a backward."""
        self.send(k, m, self.stages[k].forward(self.held[k], self.work(k, m)))

    def keep(self, k: int, m: int) -> None:
        """Runs a stage, keeping what its backward needs."""
        work = self.work(k, m)
        outputs, residuals = self.stages[k].keep(self.held[k], work)
        self.kept[k, m] = (work, residuals)
        self.send(k, m, outputs)

    def send(self, k: int, m: int, outputs: list[Array]) -> None:
        """Moves a stage's outputs to where they are read."""
        for j in range(k + 1, len(self.stages)):
            for i, (source, at) in enumerate(self.stages[j].stage.sources):
                if source == k:
                    self.live[j, m][i] = self.stages[j].place.activation(outputs[at])
        for i, (source, at) in enumerate(self.cut.outputs):
            if source == k:
                self.outputs[m][i] = outputs[at]

    def add(self, source: tuple[int, int], m: int, cotangent: Array) -> None:
        """Adds a cotangent of one of a stage's outputs, at that stage."""
        k, at = source
        moved = self.stages[k].place.activation(cotangent)
        before = self.cotangents.get((k, at, m))
        self.cotangents[k, at, m] = moved if before is None else before + moved

    def backward(self, k: int, m: int) -> None:
        """Differentiates a stage, adding to its sums."""
        programme = self.stages[k]
        if self.sums[k] is None:
            self.sums[k] = programme.zeros(self.held[k])
        work, residuals = self.kept.pop((k, m))
        given = [self.cotangents.pop((k, at, m)) for at in programme.wanted]
        self.sums[k], back = programme.backward(self.held[k], work, residuals, given, self.sums[k])
        inexact = [
            source
            for source, a in zip(programme.stage.sources, programme.stage.live, strict=True)
            if is_inexact(a)
        ]
        for source, cotangent in zip(inexact, back, strict=True):
            self.add(source, m, cotangent)


def _programme(
    stage: Stage,
    place: Place,
    wanted: tuple[int, ...],
    remat: Remat,
    ranges: Literal["batch", "stored", "missing"],
    count: int,
) -> Programme:
    movable = [is_inexact(a) for a in stage.live]

    def run(tensors: StageParams, work: Work) -> list[Array]:
        part = work.part if count > 1 else None
        arguments = [_own_key(a, part) for a in work.arguments]
        return run_stage(
            stage, tensors, arguments, work.live, ranges=ranges, key=work.key, part=part
        )

    def differentiable(tensors: StageParams, work: Work) -> tuple[Callable[..., Any], list[Array]]:
        """The wanted outputs, and all of them, from the parameters and the inexact live values."""

        def call(params: dict[str, Array], live: list[Array]) -> tuple[list[Array], list[Array]]:
            moved = iter(live)
            values = [
                next(moved) if moves else a for a, moves in zip(work.live, movable, strict=True)
            ]
            outputs = run(tensors._replace(params=params), work._replace(live=values))
            return [outputs[i] for i in wanted], outputs

        live = [a for a, moves in zip(work.live, movable, strict=True) if moves]
        if callable(remat):
            call = jax.checkpoint(call, policy=remat)
        return call, live

    shape: dict[str, Any] = {}  # how residuals were taken apart when `keep` was traced

    def apart(tensors: StageParams, work: Work) -> tuple[list[Array], list[Array]]:
        call, live = differentiable(tensors, work)
        _, pull, outputs = jax.vjp(call, tensors.params, live, has_aux=True)
        leaves, treedef = jax.tree.flatten(pull)
        inputs = {id(a): i for i, a in enumerate(jax.tree.leaves((tensors, work)))}
        shape["treedef"], shape["from"] = treedef, [inputs.get(id(a)) for a in leaves]
        return outputs, [a for a in leaves if id(a) not in inputs]

    def together(tensors: StageParams, work: Work, residuals: list[Array]) -> Callable[..., Any]:
        inputs, rest = jax.tree.leaves((tensors, work)), iter(residuals)
        leaves = [next(rest) if i is None else inputs[i] for i in shape["from"]]
        return jax.tree.unflatten(shape["treedef"], leaves)

    def backward(
        tensors: StageParams,
        work: Work,
        residuals: list[Array],
        cotangents: list[Array],
        sums: Any,
    ) -> tuple[Any, list[Array]]:
        if remat == "boundary":
            call, live = differentiable(tensors, work)
            _, pull, _ = jax.vjp(call, tensors.params, live, has_aux=True)
        else:
            pull = together(tensors, work, residuals)
        grads, back = pull(cotangents)
        return jax.tree.map(jnp.add, sums, grads), back

    def inside(tensors: StageParams, work: Work) -> list[jax.ShapeDtypeStruct]:
        return jax.eval_shape(apart, tensors, work)[1]

    keep = (lambda tensors, work: (run(tensors, work), [])) if remat == "boundary" else apart
    return Programme(
        stage=stage,
        place=place,
        wanted=wanted,
        forward=jax.jit(run),
        keep=jax.jit(keep),
        backward=jax.jit(backward, donate_argnums=4, out_shardings=(place.whole, None)),
        zeros=jax.jit(
            lambda tensors: jax.tree.map(jnp.zeros_like, tensors.params),
            out_shardings=place.whole,
        ),
        inside=inside,
    )


def _own_key(a: Any, part: Any) -> Any:
    """An argument as its micro-batch sees it: random keys differ."""
    if part is not None and a.ndim == 0 and jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        return jax.random.fold_in(a, part)
    return a
