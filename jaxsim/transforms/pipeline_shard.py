"""How a network's equations are run: in stages on several devices, micro-batch by micro-batch."""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Key

from jaxsim import mpmd, spmd
from jaxsim.core import Parts
from jaxsim.microbatch import Batch, Joint, batch_of, joint_of, updates_buffers
from jaxsim.mpmd import Place, Programme, Remat, Work, is_inexact, programmes
from jaxsim.network import Network, call_arguments, check_key, is_array, path_name
from jaxsim.numerics import checked_int, is_traced
from jaxsim.schedule import Schedule, Timeline, simulate
from jaxsim.stages import (
    Cut,
    Equations,
    Stage,
    Stages,
    balanced,
    blocks,
    candidates,
    chosen,
    cuts,
    equations,
    flops,
    held,
    signature,
    sizes,
    split,
)
from jaxsim.table import memory_table, render, stages_table
from jaxsim.transforms.compose import Transform

Balance = Literal["flops", "time", "bytes"] | Sequence[str]


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
    data_fields=["params", "buffers", "masks", "cores", "states"],
    meta_fields=[
        *("fn", "sites", "defaults", "example", "focus", "deployed", "calibrated"),
        "layout",
    ],
)
@dataclasses.dataclass(frozen=True, eq=False)
class Pipeline(Network):
    """A network whose calls run in stages; made by `pipeline_shard`.

    It is a network in every other way: it is composed, deployed, saved and counted like one, and
    its parameters keep their paths. Under `jit` and `grad` a call computes the same stages and
    micro-batches, as part of the one programme around it.

    Attributes:
      layout: how it runs.
    """

    layout: Layout | None = None

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
        check_key(key)
        arguments = call_arguments(args, {**self.defaults.whole(), **kwargs})
        plan = prepared(self, arguments)
        tree = plan.cut.equations.out_tree
        if layout_of(self).engine == "spmd":
            _check_spmd(arguments, key)
            return jax.tree.unflatten(tree, _spmd_call(self, plan, arguments))
        if any(map(is_traced, jax.tree.leaves((self, arguments, key)))):
            parts = _inline(self, plan, arguments, key)
        else:
            parts = mpmd.forward(self, plan.cut, plan.batch, arguments, key, plan.programmes)
        return jax.tree.unflatten(tree, plan.joint.join(parts))

    @property
    def stages(self) -> StageTable:
        """What each stage holds and computes, from shapes alone."""
        plan = prepared(self, _example(self))
        work = blocks(plan.places, flops(plan.cut.equations))
        params = jax.tree.leaves(self.params)
        rows = tuple(
            StageRow(
                name=stage.name,
                equations=stage.equations,
                flops=amount,
                params=sum(math.prod(np.shape(params[i])) for i in stage.params),
                boundary_bytes=sum(map(_nbytes, _entering(plan.cut, stage))),
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
        plan = prepared(self, _example(self))
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
                seen[alike] = _stage_memory(self, plan, programme, n)
            rows.append(seen[alike]._replace(in_flight=n))
        return MemoryTable(tuple(rows), layout.microbatches, plan.batch.micro)


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


def pipeline_shard(
    stages: int = 4,
    microbatches: int = 16,
    *,
    schedule: Schedule = "gpipe",
    remat: Remat = "boundary",
    engine: Literal["mpmd", "spmd", "auto"] = "auto",
    devices: Any = None,
    balance: Balance = "flops",
) -> Transform:
    """Runs a network in stages on several devices, on one micro-batch after the other.

    The model is cut between its sites where the fewest activations are live, so that the largest
    stage is as small as it can be. Outputs and gradients are those of the network, but for what
    looks across the batch: batch statistics, and ranges that are not stored, are of a micro-batch.

    Args:
      stages: number of stages K, at least 1.
      microbatches: number of equal parts M of a batch, at least 1.
      schedule: "gpipe", all forward and then all backward; "1f1b", each backward as early as it
        can run, which keeps fewer activations.
      remat: what a stage keeps for its backward. "boundary": its inputs, the rest is computed
        again; "none": all that the backward reads; or a policy of `jax.checkpoint_policies`.
      engine: "mpmd", a programme for each stage, for one process; "spmd", one programme for all,
        for equal blocks, on the devices of one or several processes; "auto", the first where this
        process has all the devices.
      devices: of the stages: K devices, repeated or not; [K, R] devices or a mesh of that shape
        for stages that R devices share, each with a part of every micro-batch; None for the first
        K there are.
      balance: what makes stages equal: "flops", "time" (measured: forward and backward of each
        block), "bytes" (of parameters and activations), or the names of the sites at which stages
        but the first begin.

    Raises:
      ValueError: an argument out of range; when applied, fewer cuts than stages, more stages than
        devices, an unknown cut, or a network that is a pipeline already.

    Source: Huang et al. (2019), arXiv 1811.06965; Narayanan et al. (2019), PipeDream.
    """
    stages = checked_int("stages", stages, 1)
    microbatches = checked_int("microbatches", microbatches, 1)
    if schedule not in ("gpipe", "1f1b"):
        raise ValueError(f"schedule={schedule!r}: must be 'gpipe' or '1f1b'")
    if remat not in ("boundary", "none") and not callable(remat):
        raise ValueError(
            f"remat={remat!r}: must be 'boundary', 'none' or one of jax.checkpoint_policies"
        )
    if engine not in ("mpmd", "spmd", "auto"):
        raise ValueError(f"engine={engine!r}: must be 'mpmd', 'spmd' or 'auto'")
    if isinstance(balance, str) and balance not in ("flops", "time", "bytes"):
        raise ValueError(
            f"balance={balance!r}: must be 'flops', 'time', 'bytes' or a list of cut names"
        )
    if not isinstance(balance, str) and len(balance) != stages - 1:
        raise ValueError(
            f"balance={list(balance)}: {stages} stages begin at {stages - 1} cuts, not "
            f"{len(balance)}"
        )

    def apply(net: Network) -> Network:
        if not isinstance(net, Network):
            raise ValueError(
                f"pipeline_shard takes a Network, not {type(net).__name__}: js.trace(model, …) "
                "makes one"
            )
        if isinstance(net, Pipeline):
            raise ValueError("pipeline_shard cannot follow pipeline_shard: the network is cut")
        places = _places(devices, stages)
        process = jax.process_index()
        local = all(d.process_index == process for place in places for d in place.devices)
        chosen_engine = ("mpmd" if local else "spmd") if engine == "auto" else engine
        if chosen_engine == "mpmd" and not local:
            raise ValueError("engine='mpmd': devices of other processes need engine='spmd'")
        replicas = len(places[0].devices)
        example = _example(net, microbatches * replicas)
        batch = batch_of(example, microbatches, replicas)
        micro = dataclasses.replace(example, arrays=tuple(map(batch.shape, example.arrays)))
        line = equations(net, micro)
        if chosen_engine == "spmd":
            spmd.check(places, schedule)
            names = tuple(cut.name for cut in spmd.equal_blocks(line, stages).begins)
        else:
            names = _balanced_cuts(net, line, stages, balance, places[0])
        layout = Layout(names, microbatches, schedule, remat, chosen_engine, places)
        fields = {f.name: getattr(net, f.name) for f in dataclasses.fields(net)}
        return Pipeline(**fields, layout=layout)

    return apply


def pipeline_value_and_grad(
    net: Network,
    loss_fn: Callable[[Any, Any], Array],
    *,
    reduction: Literal["mean", "sum"] = "mean",
) -> Callable[..., tuple[Any, Any]]:
    """A loss of a pipeline and its gradients, like `jax.value_and_grad` of the network.

    Args:
      net: from `pipeline_shard`, not deployed.
      loss_fn: `(outputs, targets) -> scalar`. It must be a mean (or sum) over the examples: it is
        called for each micro-batch, and nothing can tell whether it is.
      reduction: "mean" averages the losses of the micro-batches, "sum" adds them.

    Returns:
      `step(params, batch, *, key=None, **kwargs) -> (loss, grads)`. A batch is `(inputs, targets)`:
      inputs are an array, or a tuple of the network's arguments, targets any tree of arrays; those
      with the batch as their leading axis are divided. With `mutable=…` among the keyword arguments
      or the network's defaults, `loss_fn` gets the first output only and the step returns
      `((loss, updates), grads)`: batch statistics are those of a micro-batch, their moving averages
      are updated once, by those of the mini-batch. Gradients are where the parameters are. The step
      waits for its results, so that what a device raises comes out of the step.

    Raises:
      ValueError: no pipeline, or a deployed one; in a step, parameters of other shapes, a batch
        that is no pair or not divisible, or a loss that is no scalar.
    """
    if not isinstance(net, Pipeline):
        raise ValueError("net: is no pipeline; js.pipeline_shard(…)(net) makes one")
    if net.deployed:
        raise ValueError("net is deployed: its calls do not read the parameters any more")
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction={reduction!r}: must be 'mean' or 'sum'")
    layout = layout_of(net)
    scale = 1 / layout.microbatches if reduction == "mean" else 1.0

    def step(
        params: Any, batch: Any, *, key: Key[Array, ""] | None = None, **kwargs: Any
    ) -> tuple[Any, Any]:
        check_key(key)
        _check_like(net.params, params)
        if not isinstance(batch, tuple) or len(batch) != 2:
            raise ValueError("batch: must be a tuple of inputs and targets")
        inputs, targets = batch
        args = inputs if isinstance(inputs, tuple) else (inputs,)
        current = dataclasses.replace(net, params=params)
        arguments = call_arguments(args, {**net.defaults.whole(), **kwargs})
        plan = prepared(current, arguments)
        aims = Parts.of(targets, is_array)
        if layout.engine == "spmd":
            _check_spmd(arguments, key)
            loss, grads = _spmd_step(current, plan, arguments, aims, loss_fn, reduction)
            return loss, jax.tree.map(_gradient, grads, params)
        tree, losses = plan.losses

        def loss_of(outputs: list[Array], arrays: list[Any]) -> tuple[Array, list[Array]]:
            given = dataclasses.replace(aims, arrays=tuple(arrays))
            return _loss(outputs, given, loss_fn=loss_fn, scale=scale, tree=tree)

        loss, grads, parts = mpmd.value_and_grad(
            current,
            plan.cut,
            plan.batch,
            arguments,
            aims.arrays,
            key,
            plan.programmes,
            layout.schedule,
            losses,
            loss_of,
        )
        leaves, treedef = jax.tree.flatten(params)
        found = jax.tree.unflatten(
            treedef, [_gradient(g, p) for g, p in zip(grads, leaves, strict=True)]
        )
        if not updates_buffers(arguments):
            return jax.block_until_ready((loss, found))
        outputs = jax.tree.unflatten(plan.cut.equations.out_tree, plan.joint.join(parts))
        return jax.block_until_ready(((loss, outputs[1]), found))

    return step


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
        given = _work(net, plan, programme)
        more = sum(map(_nbytes, programme.inside(*given)))
        entering = sum(map(_nbytes, (*given[1].live, *given[1].arguments)))
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
    return Prepared(
        batch=batch, joint=joint_of(net, arguments, micro), **_compilable(treedef, tuple(leaves))
    )


@functools.lru_cache(maxsize=64)
def _compilable(treedef: Any, shapes: tuple[jax.ShapeDtypeStruct, ...]) -> dict[str, Any]:
    net, micro = jax.tree.unflatten(treedef, shapes)
    layout = layout_of(net)
    line = equations(net, micro)
    places = chosen(cuts(line), layout.cuts)
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


def _inline(net: Pipeline, plan: Prepared, arguments: Parts, key: Any) -> list[list[Array]]:
    """Every micro-batch through every stage, as part of the programme that is being traced."""
    layout, cut = layout_of(net), plan.cut
    owned = [held(net, cut, stage) for stage in cut.stages]
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


@partial(jax.jit, static_argnames=("loss_fn", "scale", "tree"))
def _loss(
    outputs: list[Array], targets: Parts, *, loss_fn: Any, scale: float, tree: Any
) -> tuple[Array, list[Array]]:
    """A micro-batch's share of the loss, and its derivatives by the inexact outputs."""
    inexact = [is_inexact(y) for y in outputs]

    def share(moving: list[Array]) -> Array:
        rest = iter(moving)
        leaves = [next(rest) if moves else y for y, moves in zip(outputs, inexact, strict=True)]
        return scale * _scalar(loss_fn(jax.tree.unflatten(tree, leaves), targets.whole()))

    return jax.value_and_grad(share)([y for y, m in zip(outputs, inexact, strict=True) if m])


def _scalar(loss: Any) -> Array:
    if jnp.shape(loss) != () or not jnp.issubdtype(jnp.result_type(loss), jnp.floating):
        raise ValueError(
            f"loss_fn: returned {jnp.result_type(loss)}{list(jnp.shape(loss))}; a loss is one float"
        )
    return loss


def _spmd_run(net: Pipeline, plan: Prepared) -> dict[str, Any]:
    """What both of the engine's programmes are given."""
    layout = layout_of(net)
    assert plan.blocks is not None, "prepared for this engine"
    return {
        "blocks": plan.blocks,
        "microbatches": layout.microbatches,
        "places": layout.places,
        "remat": layout.remat,
    }


def _spmd_call(net: Pipeline, plan: Prepared, arguments: Parts) -> list[Array]:
    divided = [plan.batch.divides(a) for a in arguments.arrays]
    options = _spmd_run(net, plan)

    def run(net: Pipeline, arrays: Any) -> list[Array]:
        return spmd.outputs_of(
            net, arguments=arrays, divided=divided, axes=plan.joint.axes, **options
        )

    given = (net, list(arguments.arrays))
    if any(map(is_traced, jax.tree.leaves(given))):
        return run(*given)
    mesh = spmd.mesh_of(layout_of(net).places)
    return _compiled(plan, ("call", layout_of(net).microbatches), run)(
        *spmd.everywhere(given, mesh)
    )


def _spmd_step(
    net: Pipeline,
    plan: Prepared,
    arguments: Parts,
    targets: Parts,
    loss_fn: Any,
    reduction: Literal["mean", "sum"],
) -> tuple[Array, Any]:
    tree, losses = plan.losses
    divided = [plan.batch.divides(a) for a in arguments.arrays]
    options = _spmd_run(net, plan)

    def loss(outputs: list[Array], arrays: list[Array]) -> Array:
        whole = dataclasses.replace(targets, arrays=tuple(arrays)).whole()
        return _scalar(loss_fn(jax.tree.unflatten(tree, [outputs[i] for i in losses]), whole))

    def run(net: Pipeline, arrays: Any, aims: Any) -> tuple[Array, Any]:
        def total(params: Any) -> Array:
            return spmd.loss_of(
                dataclasses.replace(net, params=params),
                arguments=arrays,
                targets=aims,
                loss=loss,
                divided=divided,
                divided_targets=[plan.batch.divides(a) for a in aims],
                mean=reduction == "mean",
                **options,
            )

        return jax.value_and_grad(total)(net.params)

    mesh = spmd.mesh_of(layout_of(net).places)
    given = spmd.everywhere((net, list(arguments.arrays), list(targets.arrays)), mesh)
    label = (
        "step",
        layout_of(net).microbatches,
        loss_fn,
        reduction,
        targets.treedef,
        targets.static,
    )
    return jax.block_until_ready(_compiled(plan, label, run)(*given))


def _compiled(plan: Prepared, label: Any, run: Callable[..., Any]) -> Callable[..., Any]:
    """The engine's programme of this label for these shapes; compiled once."""
    return plan.compiled.setdefault(label, jax.jit(run))


def _gradient(g: Array | None, p: Any) -> Array:
    """A gradient where its parameter is."""
    if g is None:
        return jnp.zeros_like(p)
    placed = getattr(p, "sharding", None)
    if not g.is_fully_addressable and (placed is None or placed.is_fully_addressable):
        g = g.addressable_data(0)  # every process has a copy
    return g if placed is None else jax.device_put(g, placed)


def _check_like(mine: Any, given: Any) -> None:
    if jax.tree.structure(mine) != jax.tree.structure(given):
        raise ValueError("params: not the tree that the network's parameters are")
    pairs = zip(jax.tree_util.tree_leaves_with_path(mine), jax.tree.leaves(given), strict=True)
    for (path, a), b in pairs:
        if np.shape(a) != np.shape(b):
            raise ValueError(
                f"params: {path_name(path)} is {list(np.shape(b))}, the network's is "
                f"{list(np.shape(a))}"
            )
        if not is_inexact(b):
            raise ValueError(f"params: {path_name(path)} is {b.dtype} and has no gradient")


def _check_spmd(arguments: Parts, key: Any) -> None:
    if key is not None or updates_buffers(arguments):
        raise ValueError("engine='spmd' takes no key and no mutable=…; use engine='mpmd'")


def _given(net: Pipeline, args: Sequence[Any], kwargs: Any) -> Parts:
    """Arguments of a call, or of the example where there are none."""
    if not args:
        return _example(net)
    return call_arguments(args, {**net.defaults.whole(), **kwargs})


def _example(net: Network, parts: int = 0) -> Parts:
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


def _places(devices: Any, stages: int) -> tuple[Place, ...]:
    """The devices of each stage."""
    if isinstance(devices, Mesh):
        devices = devices.devices
    given = list(jax.devices() if devices is None else devices)
    if devices is None:
        if len(given) < stages:
            raise ValueError(
                f"stages={stages}: there are {len(given)} devices; name them in devices=…, some of "
                "them more than once"
            )
        given = given[:stages]
    if len(given) != stages:
        raise ValueError(f"devices: {len(given)} of them for stages={stages}")
    rows = [tuple(row) if isinstance(row, list | tuple | np.ndarray) else (row,) for row in given]
    if any(len(row) != len(rows[0]) or len(set(row)) < len(row) or not row for row in rows):
        raise ValueError("devices: each stage needs equally many, and no device twice")
    return tuple(map(Place, rows))


def _balanced_cuts(
    net: Network, line: Equations, stages: int, balance: Balance, place: Place
) -> tuple[str, ...]:
    """The names of the cuts between stages."""
    places = cuts(line)
    if not isinstance(balance, str):
        return tuple(cut.name for cut in chosen(places, balance))
    found = candidates(places, stages)
    if balance == "time":
        weights = _block_seconds(net, line, found, place)
    else:
        weights = blocks(found, flops(line) if balance == "flops" else sizes(line))
    return tuple(found[i - 1].name for i in balanced(weights, stages))


def _block_seconds(
    net: Network, line: Equations, places: Sequence[Cut], place: Place
) -> list[float]:
    """Seconds of each block's forward and backward, the median of five."""
    cut = split(line, places)
    made = programmes(
        cut,
        [Place(place.devices[:1])] * len(cut.stages),
        remat="boundary",
        ranges=net.ranges,
        count=1,
        losses=range(len(cut.outputs)),
    )
    key = jax.random.key(0)
    seconds: list[float] = []
    for programme in made:
        stage = programme.stage
        own = held(net, cut, stage)
        arguments = [line.arguments[i].aval for i in stage.arguments]
        work = Work(_ones(arguments), _ones(stage.live), key, np.int32(0))
        cotangents = _ones([stage.outputs[i] for i in programme.wanted])

        def once(
            programme: Any = programme, own: Any = own, work: Any = work, c: Any = cotangents
        ) -> float:
            sums = jax.block_until_ready(programme.zeros(own))
            start = time.perf_counter()
            jax.block_until_ready(programme.keep(own, work))
            jax.block_until_ready(programme.backward(own, work, [], c, sums))
            return time.perf_counter() - start

        once()
        seconds.append(statistics.median(once() for _ in range(5)))
    return seconds


def _ones(shapes: Sequence[Any]) -> list[Array]:
    return [
        jax.random.key(0)
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key)
        else jnp.ones(a.shape, a.dtype)
        for a in shapes
    ]


def _nbytes(a: Any) -> int:
    dtype = a.dtype
    return math.prod(a.shape) * (dtype.itemsize if isinstance(dtype, np.dtype) else 8)


def _work(net: Pipeline, plan: Prepared, programme: Programme) -> tuple[Any, Work]:
    """Shapes of what a stage is given for a micro-batch, on its devices."""
    place, stage = programme.place, programme.stage

    def shape(a: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(np.shape(a), jnp.result_type(a), sharding=sharding)

    own = jax.tree.map(lambda a: shape(a, place.whole), held(net, plan.cut, stage))
    line = plan.cut.equations
    arguments = [line.arguments[i].aval for i in stage.arguments]
    key = jax.eval_shape(lambda: jax.random.key(0)) if net.cores else None
    return own, Work(
        [shape(a, place.sharding(a)) for a in arguments],
        [shape(a, place.sharding(a)) for a in stage.live],
        key,
        jax.ShapeDtypeStruct((), np.int32),
    )


def _stage_memory(
    net: Pipeline, plan: Prepared, programme: Programme, in_flight: int
) -> StageMemory:
    own, work = _work(net, plan, programme)
    keep = programme.keep.lower(own, work)
    outputs, residuals = keep.out_info
    cotangents = [outputs[i] for i in programme.wanted]
    backward = programme.backward.lower(own, work, residuals, cotangents, own.params)
    first, second = (step.compile().memory_analysis() for step in (keep, backward))
    params = sum(map(_nbytes, jax.tree.leaves(own.params)))
    kept = sum(map(_nbytes, (*work.live, *work.arguments, *residuals)))
    into, back = (
        sum(map(_nbytes, outputs)),
        sum(map(_nbytes, jax.tree.leaves(backward.out_info[1]))),
    )
    larger = max((first.temp_size_in_bytes, into), (second.temp_size_in_bytes, back), key=sum)
    return StageMemory(params, params, kept, in_flight, *larger)


def _entering(cut: Stages, stage: Stage) -> list[Any]:
    """Shapes of the activations and arguments that a stage is given."""
    return [*(cut.equations.arguments[i].aval for i in stage.arguments), *stage.live]
