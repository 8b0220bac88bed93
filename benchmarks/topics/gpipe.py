"""GPipe's tables: parameters by shapes, the largest model by memory, speed by simulation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxsim as js
from benchmarks.common.record import Table, record
from benchmarks.common.settings import Settings
from benchmarks.topics.pipeline import most
from jaxsim.models.efficientnet_lite import EfficientNetLite

SHORT = ("--stages 1 2 --budget 2 --width 256 --tokens 64",)

VOCABULARY, WIDTH, HIDDEN, HEADS = 32_000, 2048, 8192, 32

REPORTED_PARAMS = {3: 282.2e6, 13: 785.8e6, 103: 5.3e9, 415: 21.0e9, 1663: 83.9e9}
"""Parameters by layers of the paper's Transformers, as reported."""

REPORTED_LAYERS = {1: 13, 8: 103, 32: 415, 128: 1663}
"""Layers of its largest ones by stages, as reported."""

REPORTED_SPEED = {
    ("Transformer", 32): (1.8, 3.4, 6.3),
    ("AmoebaNet", 32): (1.21, 1.84, 3.48),
}
"""Throughput on 2, 4 and 8 devices by model and micro-batches, of 2 devices with M = 1, as
reported."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GpipeSettings(Settings):
    """Settings of the run."""

    stages: tuple[int, ...] = (1, 2, 4, 8)
    """K, of the largest models."""
    budget: int = 16
    """GiB of one device."""
    width: int = WIDTH
    """Of the decoder whose memory is counted; its hidden layers have four times as many."""
    tokens: int = 1024
    """Of a sequence; a micro-batch is one."""
    microbatches: int = 32
    """M, of the largest models."""


def decoder(layers: int, width: int, *, heads: int = HEADS) -> tuple[Callable[..., Any], Any]:
    """A decoder of equal layers in a scan, and the shapes of its parameters.

    Args:
      layers: How many.
      width: Features; hidden layers have four times as many.
      heads: Of attention.
    """

    def layer(x: Any, w: Any) -> tuple[Any, None]:
        y = normed(x, w["norm_1"])
        q, k, v = (
            (y @ w[name] + w[f"{name}_bias"]).reshape(*y.shape[:2], heads, width // heads)
            for name in ("query", "key", "value")
        )
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(width // heads)
        seen = jnp.tril(jnp.ones(scores.shape[-2:], bool))
        mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(jnp.where(seen, scores, -1e9)), v)
        x = x + mixed.reshape(x.shape) @ w["out"] + w["out_bias"]
        hidden = jax.nn.relu(normed(x, w["norm_2"]) @ w["up"] + w["up_bias"])
        return x + hidden @ w["down"] + w["down_bias"], None

    def normed(x: Any, w: Any) -> Any:
        x = x - x.mean(-1, keepdims=True)
        return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * w[0] + w[1]

    def model(params: Any, x: Any) -> Any:
        x = x @ params["embedding"]
        x, _ = jax.lax.scan(layer, x, params["layers"])
        return normed(x, params["norm"]) @ params["head"] + params["head_bias"]

    square, wide = (width, width), (width, 4 * width)
    shapes = dict.fromkeys(("query", "key", "value", "out"), square)
    shapes |= {f"{name}_bias": (width,) for name in ("query", "key", "value", "out", "down")}
    shapes |= {"up": wide, "up_bias": (4 * width,), "down": wide[::-1]}
    shapes |= {"norm_1": (2, width), "norm_2": (2, width)}
    params = {
        "embedding": _shape(VOCABULARY, width),
        "layers": {n: _shape(layers, *s) for n, s in shapes.items()},
        "norm": _shape(2, width),
        "head": _shape(width, VOCABULARY),
        "head_bias": _shape(VOCABULARY),
    }
    return model, params


def _shape(*sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def counted() -> Table:
    """Parameters of the paper's Transformers, from the shapes of one."""
    rows = []
    for layers, reported in REPORTED_PARAMS.items():
        _, params = decoder(layers, WIDTH)
        count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
        rows.append([layers, f"{count / 1e6:,.1f} M", f"{reported / 1e6:,.1f} M"])
    title = f"parameters: width {WIDTH}, hidden {HIDDEN}, {HEADS} heads, {VOCABULARY} words"
    return Table(["layers", "counted", "as reported"], rows, title)


def largest(settings: GpipeSettings) -> Table:
    """The most layers a device's memory holds, by the compiled programs of every stage."""
    rows, first = [], 0
    near: int | None = None
    for stages in settings.stages:

        def peak(each: int, stages: int = stages) -> int:
            return _peak(stages, stages * each, settings)

        near = each = most(peak, settings.budget * 2**30, near)
        layers, first = stages * each, first or stages * each
        _, params = decoder(layers, settings.width)
        count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
        reported = REPORTED_LAYERS.get(stages)
        shown = "" if reported is None else f"{reported} ({reported / REPORTED_LAYERS[1]:.1f})"
        rows.append([stages, f"{layers} ({layers / first:.1f})", f"{count / 1e6:,.0f} M", shown])
    title = (
        f"largest model of {settings.budget} GiB a device at 12 bytes a parameter, float32: "
        "layers, and how many times those of one device"
    )
    return Table(["K", "layers", "parameters", "layers as reported"], rows, title)


def _peak(stages: int, layers: int, settings: GpipeSettings) -> int:
    """Bytes of the fullest device: parameters, gradients, one number more of each, activations."""
    model, params = decoder(layers, settings.width)
    # what is looked up is one row here, and its table is counted apart
    words = _shape(settings.microbatches, settings.tokens, 1)
    params["embedding"] = _shape(1, settings.width)
    net = js.trace(model, params, words)
    devices = jax.devices()[:1] * stages
    pipe = js.pipeline_shard(stages, settings.microbatches, devices=devices)(net)
    table = pipe.memory()
    looked_up = 12 * VOCABULARY * settings.width
    held = [row.peak + row.params for row in table.rows]
    held[0] += looked_up
    return max(held)


def simulated() -> Table:
    """Throughput by simulation, of one device that runs the same stages one after the other."""
    rows = []
    net = js.trace(*_abstract(EfficientNetLite(), (1, 224, 224, 3)))
    for microbatches in (1, 4, 32):
        for model in ("equal stages", "EfficientNet-lite0"):
            speeds = [
                _speed(None if model == "equal stages" else net, stages, microbatches)
                for stages in (2, 4, 8)
            ]
            theirs = "Transformer" if model == "equal stages" else "AmoebaNet"
            reported = REPORTED_SPEED.get((theirs, microbatches), ("", "", ""))
            rows.append([model, microbatches, *(f"{s:.2f}" for s in speeds), theirs, *reported])
    columns = ["model", "M", "K = 2", "K = 4", "K = 8", "theirs"]
    columns += [f"K = {stages}, as reported" for stages in (2, 4, 8)]
    return Table(columns, rows, "throughput, of one device")


def _abstract(model: Any, shape: tuple[int, ...]) -> tuple[Any, Any, Any]:
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    return model, jax.eval_shape(model.init, jax.random.key(0), x), x


def _speed(net: js.Network | None, stages: int, microbatches: int) -> float:
    if net is None:
        equal = [jnp.eye(8)] * stages
        net = js.trace(lambda p, x: _chain(p, x), equal, jnp.ones((microbatches, 8)))
        timeline = _timeline(net, stages, microbatches, ())
    else:
        x = jax.ShapeDtypeStruct((microbatches, 224, 224, 3), jnp.float32)
        timeline = _timeline(net, stages, microbatches, (x,))
    work = sum(task.end - task.start for task in timeline.tasks)
    return float(work / max(task.end for task in timeline.tasks))


def _chain(params: Any, x: Any) -> Any:
    for w in params:
        x = x @ w
    return x


def _timeline(net: js.Network, stages: int, microbatches: int, inputs: tuple[Any, ...]) -> Any:
    devices = jax.devices()[:1] * stages
    return js.simulate_schedule(
        js.pipeline_shard(stages, microbatches, devices=devices)(net), *inputs
    )


def main(args: list[str]) -> None:
    """Counts, weighs and simulates; nothing is allocated."""
    settings = GpipeSettings.read(args)
    record(
        "gpipe",
        counted(),
        largest(settings),
        simulated(),
        question="Do GPipe's tables follow from shapes, memory and the schedule?",
        baseline="the paper's figures, as reported, from its own hardware",
        notes=f"Largest models: a mini-batch of {settings.microbatches} sequences of "
        f"{settings.tokens} tokens in as many micro-batches, re-materialization inside each stage, "
        f"width {settings.width}, layers shared out by their FLOPs; bytes of XLA's CPU programs. "
        "Throughput: stages take as long as their FLOPs say and nothing is spent on "
        "communication; that of K stages is bounded by KM/(M + K − 1). The paper relates its "
        "figures to two devices at M = 1, whose stages wait for one another, and its row of M = 4 "
        "has another mini-batch, so that only M = 32 can stand beside ours.",
        settings=settings.recorded(),
    )
