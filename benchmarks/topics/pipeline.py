"""What does a pipeline gain in time and in memory?"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

import jaxsim as js
from benchmarks.common.record import Table, record
from benchmarks.common.settings import Settings
from jaxsim.console.timing import alternate
from jaxsim.models.resnet import ResNet
from jaxsim.staged.network import Staged

SHORT = ("--only time --microbatches 4",)

MIB = 2**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class PipelineSettings(Settings):
    """How much to measure.

    Attributes:
      runs: alternated steps of each alternative.
      microbatches: M, of each row of times.
      budget: MiB of one device in the table of largest models.
      only: "time", "memory" or "all".
    """

    runs: int = 5
    microbatches: tuple[int, ...] = (4, 8)
    budget: int = 2048
    only: str = "all"


SECONDS = 300  # a process that takes longer is given up

# One thread a device: what one of them computes cannot spill over to the other's core.
FLAGS = (
    "--xla_force_host_platform_device_count=2 --xla_cpu_multi_thread_eigen=false "
    "intra_op_parallelism_threads=1"
)
ENVIRONMENT = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": FLAGS}


def dense(batch: int) -> tuple[js.Network, Any, Callable[..., Any]]:
    """Eight equal blocks, 512 to 2048 and back."""

    def model(params, x):
        for up, down in params:
            x = x + jnp.tanh(x @ up) @ down
        return x

    keys = jax.random.split(jax.random.key(0), 8)
    params = [
        (jax.random.normal(k, (512, 2048)) / 23, jax.random.normal(k, (2048, 512)) / 90)
        for k in keys
    ]
    x = jax.random.normal(jax.random.key(1), (batch, 512))
    return js.trace(model, params, x), (x, jnp.cos(x)), squares


def convolutional(batch: int) -> tuple[js.Network, Any, Callable[..., Any]]:
    """A residual network of twelve blocks."""
    model = ResNet((4, 4, 4), 32)
    x = jax.random.normal(jax.random.key(1), (batch, 32, 32, 3))
    variables = jax.jit(model.init)(jax.random.key(0), x)
    labels = jnp.arange(batch) % 10
    return js.trace(model, variables, x), (x, labels), entropy


def squares(y, target):
    return jnp.mean((y - target) ** 2)


def entropy(logits, labels):
    return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels])


MODELS = {"dense": (dense, 128), "convolutional": (convolutional, 6)}  # examples of a micro-batch


def measure(name: str, microbatches: int, runs: int) -> dict[str, Any]:
    """Times of one step on one device and on two, in this process."""
    make, micro = MODELS[name]
    net, batch, loss = make(micro * microbatches)
    first, second = jax.devices()
    balance = "time" if name == "convolutional" else "flops"
    settings = {"microbatches": microbatches, "balance": balance}
    one = js.pipeline_shard(1, devices=[first], **settings)(net)
    two = js.pipeline_shard(2, devices=[first, second], **settings)(net)
    kept = js.pipeline_shard(2, devices=[first, second], remat="none", **settings)(net)
    early = js.pipeline_shard(2, devices=[first, second], schedule="1f1b", **settings)(net)
    pipes: dict[str, Any] = {"one": one, "two": two, "two, 1f1b": early, "two, kept": kept}
    pipes = {label: pipe.placed() for label, pipe in pipes.items()}
    alternatives = {
        label: partial(js.pipeline_value_and_grad(pipe, loss), pipe.params, batch)
        for label, pipe in pipes.items()
    }

    def whole(params, batch):
        return loss(dataclasses.replace(net, params=params)(batch[0]), batch[1])

    alternatives["plain"] = partial(jax.jit(jax.value_and_grad(whole)), net.params, batch)
    times = alternate(alternatives, runs=runs)
    stages = two.stages
    grads = [jax.device_get(alternatives[k]()[1]) for k in ("two", "plain")]
    error = max(
        float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))
        for a, b in zip(*map(jax.tree.leaves, grads), strict=True)
    )
    return {
        "name": name,
        "M": microbatches,
        "micro": micro,
        "stage ms": 1e3 * times["one"].median / microbatches / 2,
        "seconds": {label: t.median for label, t in times.items()},
        "bubble": js.simulate_schedule(two).bubble,
        "begins": stages.rows[1].name,
        "error": error,
    }


def alone(name: str, microbatches: int, runs: int) -> float:
    """Seconds of a step on one device, begun when a line arrives at standard input."""
    make, micro = MODELS[name]
    net, batch, loss = make(micro * microbatches)
    one = js.pipeline_shard(1, microbatches, devices=jax.devices()[:1])(net).placed()
    step = partial(js.pipeline_value_and_grad(one, loss), one.params, batch)
    jax.block_until_ready(step())
    print("ready", flush=True)
    sys.stdin.readline()
    return alternate({"one": step}, runs=runs)["one"].median


def cores(name: str, microbatches: int, runs: int) -> float:
    """How much faster two cores compute what two processes of one thread ask, than one core.

    Two cores that share their arithmetic units give a product of dense matrices little more than
    one does, and no schedule can change that.
    """
    command = [
        sys.executable,
        "-m",
        "benchmarks.topics.pipeline",
        name,
        str(microbatches),
        str(runs),
    ]

    def seconds(processes: int) -> float:
        asked = [
            subprocess.Popen(
                [*command, "alone"],
                env=ENVIRONMENT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(processes)
        ]
        for process in asked:
            assert process.stdout is not None
            process.stdout.readline()
        for process in asked:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        found = [float(process.communicate(timeout=SECONDS)[0]) for process in asked]
        return sum(found) / len(found)

    return min(2.0, max(1.0, 2 * seconds(1) / seconds(2)))


def timed(settings: PipelineSettings) -> Table:
    """Efficiency of two devices, each measured in a process with one thread a device."""
    columns = (
        *("model", "M", "ms a stage and micro-batch", "one device ms", "two devices ms"),
        *("gain", "ideal", "efficiency", "of 1f1b", "cores", "attainable", "share of it"),
        *("gain, remat none", "gain of no pipeline", "gradient error"),
    )
    rows = []
    for name in MODELS:
        for M in settings.microbatches:
            command = [sys.executable, "-m", "benchmarks.topics.pipeline", name, str(M)]
            try:
                done = subprocess.run(
                    [*command, str(settings.runs)],
                    env=ENVIRONMENT,
                    capture_output=True,
                    text=True,
                    check=True,
                    timeout=SECONDS,
                )
                both = cores(name, M, settings.runs)
            except subprocess.SubprocessError as error:
                rows.append([name, M, *[_failure(error)] * (len(columns) - 2)])
                continue
            found = json.loads(done.stdout.splitlines()[-1])
            seconds = found["seconds"]
            ideal = min(2, os.cpu_count() or 1) * M / (M + 1)
            attainable = M / (1 + (M - 1) / both)
            gains = {k: seconds["one"] / seconds[k] for k in seconds}
            rows.append(
                [
                    name,
                    M,
                    f"{found['stage ms']:.0f}",
                    f"{1e3 * seconds['one']:.0f}",
                    f"{1e3 * seconds['two']:.0f}",
                    f"{gains['two']:.2f}",
                    f"{ideal:.2f}",
                    f"{gains['two'] / ideal:.0%}",
                    f"{gains['two, 1f1b'] / ideal:.0%}",
                    f"{both:.2f}",
                    f"{attainable:.2f}",
                    f"{gains['two'] / attainable:.0%}",
                    f"{gains['two, kept']:.2f}",
                    f"{gains['plain']:.2f}",
                    f"{found['error']:.0e}",
                ]
            )
    return Table(columns, rows, title="time of a training step, two devices of one thread")


def _failure(error: Exception) -> str:
    """What stands in the cells of a measurement that failed."""
    output = str(getattr(error, "stderr", None) or error).strip()
    return f"failed: {output.splitlines()[-1][:80]}" if output else "failed"


def encoder(groups: int, each: int, width: int) -> tuple[Callable[..., Any], Any]:
    """Groups of scanned layers, attention and an MLP each, and the shapes of their parameters."""
    heads = width // 64

    def layer(x, w):
        y = normed(x)
        q, k, v = (split(part) for part in jnp.split(y @ w["qkv"], 3, -1))
        scores = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) / 8)
        x = x + jnp.einsum("bhqk,bkhd->bqhd", scores, v).reshape(x.shape) @ w["out"]
        return x + jax.nn.gelu(normed(x) @ w["up"]) @ w["down"], None

    def split(y):
        return y.reshape(*y.shape[:2], heads, 64)

    def normed(x):
        x = x - x.mean(-1, keepdims=True)
        return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)

    def model(params, x):
        for group in params:
            x, _ = jax.lax.scan(layer, x, group)
        return x

    shapes = {"qkv": (1, 3), "out": (1, 1), "up": (1, 4), "down": (4, 1)}
    group = {
        name: jax.ShapeDtypeStruct((each, a * width, b * width), jnp.float32)
        for name, (a, b) in shapes.items()
    }
    return model, [group] * groups


def pipelined(
    stages: int, each: int, *, width: int, batch: int, tokens: int, microbatches: int, remat: str
) -> Staged:
    """A pipeline of a model that is only shapes."""
    model, params = encoder(stages, each, width)
    x = jax.ShapeDtypeStruct((batch, tokens, width), jnp.float32)
    devices = jax.devices()[:1] * stages
    net = js.trace(model, params, x)
    return js.pipeline_shard(stages, microbatches, remat=remat, devices=devices)(net)


def most(peak: Callable[[int], int], budget: int, near: int | None) -> int:
    """The most layers within a budget, to 2 %: each guess from the two weighed last.

    Args:
      peak: bytes of so many layers.
      budget: bytes.
      near: an answer to begin with.
    """
    first = (1, 3) if near is None else (near, near + 1 + near // 50)
    weighed = {n: peak(n) for n in first}
    while True:
        fit = max((n for n, size in weighed.items() if size <= budget), default=0)
        over = min((n for n, size in weighed.items() if size > budget), default=None)
        if over is not None and over - fit <= 1 + fit // 50:
            return fit
        a, b = list(weighed)[-2:]
        slope = max(1, (weighed[b] - weighed[a]) / (b - a))
        guess = b + int((budget - weighed[b]) / slope)
        last = over - 1 if over is not None else 8 * max(fit, 1)
        guess = min(max(guess, fit + 1), last)
        weighed[guess] = peak(guess)


def largest(settings: PipelineSettings) -> Table:
    """The most layers whose training step fits a budget, by the compiled programs."""
    size: dict[str, Any] = {"width": 256, "batch": 64, "tokens": 128}
    budget, rows = settings.budget * MIB, []
    base = None
    found: dict[tuple[str, int], int] = {}  # stages of as many layers need about as much
    for remat in ("none", "boundary"):
        for K in (1, 2, 4, 8):
            M = 64 if remat == "boundary" else 1 if K == 1 else 64

            def peak(each: int, K: int = K, M: int = M, remat: str = remat) -> int:
                return pipelined(K, each, microbatches=M, remat=remat, **size).memory().peak

            try:
                each = most(peak, budget, found.get((remat, M)))
            except Exception as error:
                rows.append([remat, K, M, *[_failure(error)] * 3])
                continue
            found[remat, M] = each
            params = K * each * 12 * size["width"] ** 2
            base = base or params
            rows.append([remat, K, M, K * each, f"{params / 1e6:.1f} M", f"{params / base:.1f}x"])
    columns = ("remat", "K", "M", "layers", "parameters", "against the first")
    title = (
        f"largest model of {settings.budget} MiB a device: parameters, their gradients and "
        "activations; mini-batch of 64 sequences of 128 tokens, width 256"
    )
    return Table(columns, rows, title=title)


def absent() -> Table:
    """Memory by stage of a model of 557 million parameters that is never there."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pipe = pipelined(5, 7, width=1152, batch=128, tokens=128, microbatches=32, remat="boundary")
    table = pipe.memory()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    params = sum(row.params for row in table.rows) // 4  # bytes of a float
    rows = [
        [i, *(f"{n / MIB:.0f}" for n in (row.params, row.gradients, row.kept)), row.in_flight]
        + [f"{n / MIB:.0f}" for n in (row.temporary, row.peak)]
        for i, row in enumerate(table.rows)
    ]
    columns = ("stage", "parameters", "gradients", "kept", "in flight", "temporary", "peak")
    title = (
        f"MiB by stage of {params / 1e6:.0f} M parameters, 35 layers of width 1152, 128 sequences "
        f"of 128 tokens in 32 micro-batches; this process grew by {(after - before) // 1024} MiB"
    )
    return Table(columns, rows, title=title)


def main(args: list[str]) -> None:
    """Times two devices and weighs models that are not there."""
    settings = PipelineSettings.read(args)
    tables = []
    if settings.only in ("all", "memory"):
        tables += [absent(), largest(settings)]
    if settings.only in ("all", "time"):
        tables = [timed(settings), *tables]
    record(
        "pipeline",
        *tables,
        question="What does a pipeline gain in time and in memory?",
        baseline="the same stages, micro-batches and re-materialization on one device",
        notes="*ideal* is min(K, cores)·M/(M+K-1). *cores* is how much faster than one process two "
        "processes together do the work of the one device, at most 2: what two cores of this "
        "machine are worth; *attainable* is M / (1 + (M-1) / cores): while both stages work they "
        "share that much, in the bubble one has a core alone. Both devices, and the one of the "
        "baseline, have one thread (`"
        + FLAGS
        + "`). *gain of no pipeline* is `jax.value_and_grad` of the "
        "whole mini-batch on one device, which computes nothing twice, against the baseline; "
        "*remat none* is two devices that compute nothing twice either. Memory is that of "
        "`compiled.memory_analysis()` on this backend: nothing is run or allocated.",
        settings=settings.recorded(),
    )


if __name__ == "__main__":
    name, *numbers = sys.argv[1:4]
    work = alone if sys.argv[4:] == ["alone"] else measure
    print(json.dumps(work(name, *map(int, numbers))))
