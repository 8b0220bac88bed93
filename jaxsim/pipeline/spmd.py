"""A pipeline as one programme for all devices: equal blocks, their parameters stacked.

Every device runs the same programme on its own stage and hands its output to the next by
`ppermute`. What stands before and after the equal blocks is computed by all of them. Gradients are
JAX's own, so the backward runs through the same ticks in reverse.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from jaxsim.cores.conv import Conv
from jaxsim.network.cuts import Cut, Equations, cuts
from jaxsim.network.network import Network
from jaxsim.network.plan import contractions
from jaxsim.network.stages import (
    Stage,
    StageParams,
    Stages,
    run_stage,
    signature,
    split,
    stage_params,
)
from jaxsim.pipeline.mpmd import Place, Remat
from jaxsim.pipeline.schedule import Schedule


class Blocks(NamedTuple):
    """A network as a run of equal blocks, with what comes before and after.

    Attributes:
      cut: the network cut at each block.
      first: position of the first block among its stages.
      number: of blocks.
      begins: the cut at which each group of blocks but the first begins.
    """

    cut: Stages
    first: int
    number: int
    begins: tuple[Cut, ...]

    @property
    def block(self) -> Stage:
        """The block that stands for all: the second, which takes what a block gives."""
        return self.cut.stages[self.first + 1]

    @property
    def carried(self) -> list[int]:
        """Which of its inputs it takes from the block before; the others are the same for all."""
        return [i for i, (s, _) in enumerate(_inputs(self.block)) if s == self.first]

    @property
    def handed(self) -> list[int]:
        """The outputs that these are of the block before."""
        inputs = _inputs(self.block)
        return [inputs[i][1] for i in self.carried]


def equal_blocks(line: Equations, stages: int) -> Blocks:
    """The longest run of equal blocks that divides into so many stages.

    Args:
      line: a network's equations.
      stages: number of groups of blocks.

    Raises:
      ValueError: no such run, convolutions on a CPU, or blocks that hand on more than the next
        block takes.
    """
    places = [cut for cut in cuts(line) if cut.minimal]
    whole = split(line, places)
    if jax.default_backend() == "cpu" and any(
        isinstance(c.op.geometry, Conv) for c in contractions(line.plan)
    ):
        raise ValueError(
            "engine='spmd': the network has convolutions, and XLA's CPU backend runs those in a "
            "loop 10 to 100 times slower than outside; use engine='mpmd'"
        )
    marks = [signature(stage) for stage in whole.stages]
    ats = [0, *(place.at for place in places), len(line.active)]
    best = (0, 0, 0, 0)  # equations covered, where from, equations a block, blocks
    for period in range(1, len(marks)):
        for start in range(len(marks) - period):
            same = 0
            while (
                start + same + period < len(marks)
                and marks[start + same] == marks[start + same + period]
            ):
                same += 1
            begin, length, count = ats[start], ats[start + period] - ats[start], same // period + 1
            if not same:
                continue
            # What precedes the first cut and follows the last may hold a block and more.
            if count % stages and _same(line, begin, begin + count * length, length):
                count += 1
            if count % stages and _same(line, begin, begin - length, length):
                begin, count = begin - length, count + 1
            count = count // stages * stages
            if count > 1 and count * length > best[0]:
                best = (count * length, begin, length, count)
    _, begin, length, count = best
    if not count:
        raise ValueError(
            f"engine='spmd': the network has no run of equal blocks for stages={stages}; use "
            "engine='mpmd'"
        )
    known = {place.at: place for place in places}
    begins = [begin + i * length for i in range(count + 1)]
    inner = [
        known.get(at, Cut("", at, 0, 0, minimal=True)) for at in begins if 0 < at < len(line.active)
    ]
    groups = [known[begins[i]] for i in range(count // stages, count, count // stages)]
    blocks = Blocks(split(line, inner), 1 if begin else 0, count, tuple(groups))
    _check_links(blocks)
    return blocks


def check(places: Sequence[Place], schedule: Schedule) -> None:
    """Checks what the engine cannot do.

    Raises:
      ValueError: a schedule other than "gpipe", or a device that is used twice.
    """
    if schedule != "gpipe":
        raise ValueError(
            f"schedule={schedule!r}: engine='spmd' differentiates its forward and runs 'gpipe' only"
        )
    devices = [d for place in places for d in place.devices]
    if len(set(devices)) < len(devices):
        raise ValueError("devices: engine='spmd' needs as many different devices as it uses")


def mesh_of(places: Sequence[Place]) -> Mesh:
    """The devices, stages along the first axis."""
    return Mesh(np.asarray([place.devices for place in places]), ("stage", "data"))


def everywhere(tree: Any, mesh: Mesh) -> Any:
    """Arrays with a copy on each device of a mesh, those of other processes included."""
    sharding = NamedSharding(mesh, PartitionSpec())

    def move(a: Any) -> Any:
        placed = getattr(a, "sharding", None)
        if isinstance(placed, NamedSharding) and placed.mesh == mesh:
            return a
        return jax.device_put(a if mesh.is_multi_process is False else np.asarray(a), sharding)

    return jax.tree.map(move, tree)


def outputs_of(
    net: Network,
    blocks: Blocks,
    arguments: Sequence[Array],
    *,
    divided: Sequence[bool],
    axes: Sequence[int | None],
    microbatches: int,
    places: Sequence[Place],
    remat: Remat,
) -> list[Array]:
    """The network's outputs.

    Args:
      net: the network.
      blocks: it, cut, for the share of a micro-batch that one device has.
      arguments: of the call, whole.
      divided: which of them have the batch as leading axis.
      axes: for each output, the axis that holds the batch; None if it does not.
      microbatches: number of micro-batches.
      places: of the stages.
      remat: what is kept for the backward.
    """

    def gather(values: list[Array], _: Any) -> list[Array]:
        return [
            lax.pmean(jnp.mean(v, 0), "data") if axis is None else v
            for v, axis in zip(values, axes, strict=True)
        ]

    specs = [
        PartitionSpec() if axis is None else PartitionSpec(*[None] * (axis + 1), "data")
        for axis in axes
    ]
    run = _shared(net, blocks, divided, microbatches, places, remat, finish=gather, out_specs=specs)
    values = run(arguments, [])
    return [v if axis is None else _unfold(v, axis) for v, axis in zip(values, axes, strict=True)]


def loss_of(
    net: Network,
    blocks: Blocks,
    arguments: Sequence[Array],
    targets: Sequence[Array],
    loss: Callable[[list[Array], list[Array]], Array],
    *,
    divided: Sequence[bool],
    divided_targets: Sequence[bool],
    microbatches: int,
    places: Sequence[Place],
    remat: Remat,
    mean: bool,
) -> Array:
    """The loss of a mini-batch, to be differentiated.

    Args:
      net: the network.
      blocks: it, cut, for the share of a micro-batch that one device has.
      arguments: of the call, whole.
      targets: arrays of the loss, whole.
      loss: `(outputs, targets) -> scalar` of one device's share of a micro-batch.
      divided: which arguments have the batch as leading axis.
      divided_targets: which targets have it.
      microbatches: number of micro-batches.
      places: of the stages.
      remat: what is kept for the backward.
      mean: whether losses are averaged or added.
    """
    join = jnp.mean if mean else jnp.sum
    across = lax.pmean if mean else lax.psum

    def total(outputs: list[Array], targets: list[Array]) -> Array:
        each = lax.map(
            lambda part: loss(part[0], part[1]),
            (outputs, _rows(targets, divided_targets, microbatches)),
        )
        return across(join(each), "data")

    run = _shared(
        net,
        blocks,
        divided,
        microbatches,
        places,
        remat,
        finish=total,
        out_specs=PartitionSpec(),
        divided_targets=divided_targets,
    )
    return run(arguments, targets)


def _shared(
    net: Network,
    blocks: Blocks,
    divided: Sequence[bool],
    microbatches: int,
    places: Sequence[Place],
    remat: Remat,
    *,
    finish: Callable[..., Any],
    out_specs: Any,
    divided_targets: Sequence[bool] = (),
) -> Callable[..., Any]:
    """The whole pipeline under `shard_map`, and `finish` of its outputs [M, ...] and targets."""
    cut, first, count, block = blocks.cut, blocks.first, blocks.number, blocks.block
    stages, M = len(places), microbatches
    all_held = [stage_params(net, cut, stage) for stage in cut.stages]
    same = [
        _renamed(cut, block, stage, own)
        for stage, own in zip(cut.stages, all_held, strict=True)
        if stage in cut.stages[first : first + count]
    ]
    try:
        stacked = jax.tree.map(lambda *a: jnp.stack(a), *same)
    except ValueError as error:
        raise ValueError(f"engine='spmd': the blocks differ in their hardware: {error}") from None
    stacked = jax.tree.map(lambda a: a.reshape(stages, -1, *a.shape[1:]), stacked)
    outer = [own for i, own in enumerate(all_held) if not first <= i < first + count]
    carried, handed = blocks.carried, blocks.handed

    def run(stage: Stage, own: StageParams, values: Sequence[Array]) -> list[Array]:
        return run_stage(stage, own, [], values, ranges=net.ranges)

    def local(stacked: Any, outer: Any, arguments: Any, targets: Any) -> Any:
        rest, mine = iter(outer), jax.tree.map(lambda a: a[0], stacked)
        rows = _rows(arguments, divided, M)
        given: dict[int, list[Array]] = {}  # outputs by stage, [M, ...] each

        def inputs(stage: Stage, but: Sequence[int] = ()) -> dict[int, Array]:
            return {
                i: rows[at] if s == _ARGUMENT else given[s][at]
                for i, (s, at) in enumerate(_inputs(stage))
                if i not in but
            }

        def alone(at: int) -> list[Array]:
            stage, own = cut.stages[at], next(rest)
            return lax.map(lambda values: run(stage, own, list(values.values())), inputs(stage))

        if first:
            given[0] = alone(0)
        entry = inputs(cut.stages[first])
        start, sides = [entry[i] for i in carried], inputs(block, carried)
        me = lax.axis_index("stage")

        def through(values: list[Array], m: Array) -> list[Array]:
            now = {i: a[m] for i, a in sides.items()}
            for i in range(count // stages):
                own = jax.tree.map(lambda a, i=i: a[i], mine)
                taken = {**now, **dict(zip(carried, values, strict=True))}
                outputs = run(block, own, [taken[j] for j in sorted(taken)])
                values = [outputs[j] for j in handed]
            return values

        if remat != "none":
            through = jax.checkpoint(through, policy=remat if callable(remat) else None)

        def tick(values: list[Array], t: Array) -> tuple[list[Array], list[Array]]:
            new = [a[jnp.minimum(t, M - 1)] for a in start]
            values = [jnp.where(me == 0, a, b) for a, b in zip(new, values, strict=True)]
            values = through(values, jnp.clip(t - me, 0, M - 1))
            ring = [(i, i + 1) for i in range(stages - 1)]
            return [lax.ppermute(a, "stage", ring) for a in values], values

        # Stages that wait compute on the first micro-batch: its derivatives are finite.
        _, seen = lax.scan(tick, [a[0] for a in start], jnp.arange(M + stages - 1))
        last = [jnp.where(me == stages - 1, a[stages - 1 :], 0) for a in seen]
        done = dict(zip(handed, (lax.psum(a, "stage") for a in last), strict=True))
        given[first + count - 1] = [done[i] for i in sorted(done)]
        if first + count < len(cut.stages):
            given[len(cut.stages) - 1] = alone(len(cut.stages) - 1)
        return finish([given[s][i] for s, i in cut.outputs], targets)

    def spec(flags: Sequence[bool]) -> list[PartitionSpec]:
        return [PartitionSpec(None, "data") if flag else PartitionSpec() for flag in flags]

    def call(arguments: Sequence[Array], targets: Sequence[Array]) -> Any:
        shared = jax.shard_map(
            local,
            mesh=mesh_of(places),
            in_specs=(
                PartitionSpec("stage"),
                PartitionSpec(),
                spec(divided),
                spec(divided_targets),
            ),
            out_specs=out_specs,
            check_vma=False,  # equations are bound as they are, without the casts it asks for
        )
        fold = [_fold(a, M) if d else a for a, d in zip(arguments, divided, strict=True)]
        aims = [_fold(a, M) if d else a for a, d in zip(targets, divided_targets, strict=True)]
        return shared(stacked, outer, fold, aims)

    return call


_ARGUMENT = -1  # stands for the network's arguments among the stages that inputs come from


def _inputs(stage: Stage) -> list[tuple[int, int]]:
    """Where a stage's arguments and live values come from, in its order."""
    return [*((_ARGUMENT, i) for i in stage.arguments), *stage.sources]


def _same(line: Equations, known: int, at: int, length: int) -> bool:
    """Whether the equations from `at` are the same block as those from `known`."""
    if at < 0 or at + length > len(line.active):
        return False
    marks: list[Any] = []
    for begin in (known, at):
        ends = [end for end in (begin, begin + length) if 0 < end < len(line.active)]
        pieces = split(line, [Cut("", end, 0, 0, minimal=True) for end in ends])
        marks.append(signature(pieces.stages[1 if begin else 0]))
    return marks[0] == marks[1]


def _check_links(blocks: Blocks) -> None:
    cut, first, count = blocks.cut, blocks.first, blocks.number
    carried, handed = blocks.carried, blocks.handed
    expected = _inputs(blocks.block)
    for j in range(1, count):
        links = list(expected)
        for i, at in zip(carried, handed, strict=True):
            links[i] = (first + j - 1, at)
        if _inputs(cut.stages[first + j]) != links:
            raise ValueError(
                f"engine='spmd': the block at {cut.stages[first + j].name} reads other values than "
                "the one before it; use engine='mpmd'"
            )
    sources = [s for s, _ in cut.outputs]
    sources += [s for stage in cut.stages[first + count :] for s, _ in stage.sources]
    if any(first <= s < first + count - 1 for s in sources):
        raise ValueError(
            "engine='spmd': what is inside the equal blocks is read after them; use engine='mpmd'"
        )
    if len(cut.stages[first + count - 1].outputs) != len(handed):
        raise ValueError(
            "engine='spmd': the last block hands on other values than the others; use engine='mpmd'"
        )


def _renamed(cut: Stages, block: Stage, stage: Stage, own: StageParams) -> StageParams:
    """What a block holds, under the names of the one that stands for all."""
    paths = cut.equations.paths
    names = {paths[a]: paths[b] for a, b in zip(stage.params, block.params, strict=True)}
    sites = dict(zip(stage.sites, block.sites, strict=True))
    return StageParams(
        params={names[k]: v for k, v in own.params.items()},
        masks={names[k]: v for k, v in own.masks.items()},
        buffers=own.buffers,
        cores={sites[k]: v for k, v in own.cores.items()},
        states={sites[k]: v for k, v in own.states.items()},
    )


def _rows(arrays: Sequence[Array], divided: Sequence[bool], count: int) -> list[Array]:
    """Arrays by micro-batch [M, ...]; those that are not divided are the same for all."""
    return [
        a if d else jnp.broadcast_to(a, (count, *a.shape))
        for a, d in zip(arrays, divided, strict=True)
    ]


def _fold(a: Array, count: int) -> Array:
    return a.reshape(count, a.shape[0] // count, *a.shape[1:])


def _unfold(a: Array, axis: int) -> Array:
    """Micro-batches [M, ...] joined along an axis."""
    a = jnp.moveaxis(a, 0, axis)
    return a.reshape(*a.shape[:axis], -1, *a.shape[axis + 2 :])
