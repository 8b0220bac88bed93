"""How a network's equations are run: in stages on several devices, micro-batch by micro-batch."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from jaxsim.network.cuts import (
    Cut,
    Equations,
    balance_blocks,
    blocks,
    candidate_cuts,
    cuts,
    equations,
    flops,
    select_cuts,
    sizes,
)
from jaxsim.network.network import Network, require_uncut
from jaxsim.network.stages import split, stage_params
from jaxsim.network.transform import require_network
from jaxsim.numerics.checks import checked_int
from jaxsim.pipeline.blocks import equal_blocks
from jaxsim.pipeline.devices import StageDevices
from jaxsim.pipeline.microbatch import batch_split, example_of
from jaxsim.pipeline.programs import Remat, TaskInputs, stage_programs
from jaxsim.pipeline.schedule import Schedule
from jaxsim.staged import spmd
from jaxsim.staged.exit_layout import exit_layout
from jaxsim.staged.merging import merging_leave
from jaxsim.staged.network import Staged
from jaxsim.staged.plan import Layout
from jaxsim.staged.rows import find_rows
from jaxsim.values.calls import shown_as_called
from jaxsim.values.memo import Memo

Balance = Literal["flops", "time", "bytes"] | Sequence[str]


@shown_as_called
def pipeline_shard(
    stages: int = 4,
    microbatches: int = 16,
    *,
    schedule: Schedule = "gpipe",
    chunks: int = 1,
    remat: Remat = "boundary",
    engine: Literal["mpmd", "spmd", "auto"] = "auto",
    devices: Any = None,
    balance: Balance = "flops",
) -> Callable[[Network], Staged]:
    """Runs a network in stages on several devices, on one micro-batch after the other.

    The model is cut between its sites where the fewest activations are live, so that the largest
    stage is as small as it can be. Outputs and gradients are those of the network, but for what
    looks across the batch: batch statistics, and ranges that are not stored, are of a micro-batch.

    Args:
      stages: number of stages K, at least 1.
      microbatches: number of equal parts M of a batch, at least 1.
      schedule: "gpipe", all forward and then all backward; "1f1b", each backward as early as it
        can run, which keeps fewer activations; "interleaved", that on devices which run several
        stages each; "zb-h1", that with backwards in two halves, of which only the first is waited
        for. The last two wait less.
      chunks: stages V that a device runs, a divisor of `stages`; 1 unless the schedule is
        "interleaved", for which it is 2 at least and M a multiple of the devices K/V.
      remat: what a stage keeps for its backward. "boundary": its inputs, the rest is computed
        again; "none": all that the backward reads; or a policy of `jax.checkpoint_policies`.
      engine: "mpmd", a program for each stage, for one process; "spmd", one program for all,
        for equal blocks, on the devices of one or several processes; "auto", the first where this
        process has all the devices.
      devices: of the stages: K/V devices, repeated or not; [K/V, R] devices or a mesh of that
        shape for stages that R devices share, each with a part of every micro-batch; None for the
        first K/V there are. Stage k runs on device k modulo K/V.
      balance: what makes stages equal: "flops", "time" (measured: forward and backward of each
        block), "bytes" (of parameters and activations), or the names of the sites at which stages
        but the first begin.

    Raises:
      ValueError: an argument out of range; when applied, fewer cuts than stages, more stages than
        devices, an unknown cut, or a network that is a pipeline already.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> keys = jax.random.split(jax.random.key(0), 3)
      >>> normal = jax.random.normal
      >>> params = {"a": normal(keys[0], (6, 8)), "b": normal(keys[1], (8, 3))}
      >>> x = jax.random.normal(keys[2], (4, 6))
      >>> net = js.trace(lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"], params, x)
      >>> line = js.pipeline_shard(2, 2, devices=jax.devices()[:1] * 2)(net)
      >>> bool(jnp.allclose(line(x), net(x), atol=1e-5))
      True

    Source: Huang et al. (2019), arXiv 1811.06965; Narayanan et al. (2019), PipeDream; Narayanan et
    al. (2021), arXiv 2104.04473; Qi et al. (2023), arXiv 2401.10241.
    """
    stages = checked_int("stages", stages, 1)
    microbatches = checked_int("microbatches", microbatches, 1)
    chunks = checked_int("chunks", chunks, 1)
    if schedule not in (known := get_args(Schedule)):
        raise ValueError(f"schedule={schedule!r}: must be one of {', '.join(map(repr, known))}")
    if (schedule == "interleaved") != (chunks > 1):
        raise ValueError(
            f"schedule={schedule!r}, chunks={chunks}: devices run 2 stages or more each in "
            "'interleaved', and 1 in the others"
        )
    if stages % chunks:
        raise ValueError(f"stages={stages}: must be a multiple of chunks={chunks}")
    if schedule == "interleaved" and microbatches % (stages // chunks):
        raise ValueError(
            f"microbatches={microbatches}: 'interleaved' takes them up in turns, and needs a "
            f"multiple of {stages // chunks} devices"
        )
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

    def apply(net: Network) -> Staged:
        require_network(net, "pipeline_shard")
        require_uncut(
            net,
            "pipeline_shard",
            allowed=("exit_early", "prune_tokens"),
            reason="it is a pipeline already",
        )
        where = _stage_devices(devices, stages, chunks)
        process = jax.process_index()
        local = all(d.process_index == process for stage in where for d in stage.devices)
        chosen_engine = ("mpmd" if local else "spmd") if engine == "auto" else engine
        if chosen_engine == "spmd" and net.cut_by:
            raise ValueError(
                f"pipeline_shard(engine='spmd') cannot follow {net.cut_by[0]}: it runs equal "
                "blocks, and classifiers and tokens that leave make them differ; engine='mpmd' "
                "runs unequal stages on the devices of one process"
            )
        if chosen_engine == "mpmd" and not local:
            raise ValueError("engine='mpmd': devices of other processes need engine='spmd'")
        replicas = len(where[0].devices)
        example = example_of(net, microbatches * replicas)
        batch = batch_split(example, microbatches, replicas)
        micro = dataclasses.replace(example, arrays=tuple(map(batch.shape, example.arrays)))
        line = equations(net, micro)
        if chosen_engine == "spmd":
            spmd.check(where, schedule)
            names = tuple(cut.name for cut in equal_blocks(line, stages).begins)
        else:
            names = _balanced_cuts(net, line, stages, balance, where[0])
        layout = Layout(names, microbatches, schedule, remat, chosen_engine, where, chunks)
        if isinstance(net, Staged):
            if net.tokens is not None:  # what is known of them comes first: no cut can be in it
                rowed = find_rows(example)[1]
                found = exit_layout(net, example, rowed, net.exits, net.feature, names)
                if net.tokens.merges and found.tokens is not None:
                    merging_leave(found.tokens, found.places, None)
            return dataclasses.replace(net, layout=layout, memo=Memo())
        fields = {f.name: getattr(net, f.name) for f in dataclasses.fields(Network)}
        return Staged(**fields, layout=layout)

    return apply


def _stage_devices(devices: Any, stages: int, chunks: int) -> tuple[StageDevices, ...]:
    """The devices of each stage, in turns where each runs several."""
    count = stages // chunks
    if isinstance(devices, Mesh):
        devices = devices.devices
    given = list(jax.devices() if devices is None else devices)
    if devices is None:
        if len(given) < count:
            raise ValueError(
                f"stages={stages}: there are {len(given)} devices; name them in devices=…, some of "
                "them more than once"
            )
        given = given[:count]
    if len(given) != count:
        each = f", chunks={chunks}" if chunks > 1 else ""
        raise ValueError(f"devices: {len(given)} of them for stages={stages}{each}")
    rows = [tuple(row) if isinstance(row, list | tuple | np.ndarray) else (row,) for row in given]
    if any(len(row) != len(rows[0]) or len(set(row)) < len(row) or not row for row in rows):
        raise ValueError("devices: each stage needs equally many, and no device twice")
    return tuple(map(StageDevices, rows)) * chunks


def _balanced_cuts(
    net: Network, line: Equations, stages: int, balance: Balance, devices: StageDevices
) -> tuple[str, ...]:
    """The names of the cuts between stages."""
    places = cuts(line)
    if not isinstance(balance, str):
        return tuple(cut.name for cut in select_cuts(places, balance))
    found = candidate_cuts(places, stages)
    if balance == "time":
        weights = _block_seconds(net, line, found, devices)
    else:
        weights = blocks(found, flops(line) if balance == "flops" else sizes(line))
    return tuple(found[i - 1].name for i in balance_blocks(weights, stages))


def _block_seconds(
    net: Network, line: Equations, places: Sequence[Cut], devices: StageDevices
) -> list[float]:
    """Seconds of each block's forward and backward, the median of five."""
    cut = split(line, places)
    programs = stage_programs(
        cut,
        [StageDevices(devices.devices[:1])] * len(cut.stages),
        remat="boundary",
        ranges=net.ranges,
        microbatches=1,
        loss_outputs=range(len(cut.outputs)),
    )
    key = jax.random.key(0)
    seconds: list[float] = []
    for program in programs:
        stage = program.stage
        own = stage_params(net, cut, stage)
        arguments = [line.arguments[i].aval for i in stage.arguments]
        inputs = TaskInputs(_ones(arguments), _ones(stage.live), key, np.int32(0))
        cotangents = _ones([stage.outputs[i] for i in program.differentiated])

        def once(
            program: Any = program, own: Any = own, inputs: Any = inputs, c: Any = cotangents
        ) -> float:
            sums = jax.block_until_ready(program.zeros(own))
            start = time.perf_counter()
            jax.block_until_ready(program.keep(own, inputs))
            jax.block_until_ready(program.backward(own, inputs, [], c, sums))
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
