"""What does the first call of a decoder of many unrolled layers cost the processor?"""

from __future__ import annotations

import dataclasses
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxsim as js
from benchmarks.common.record import Table, record
from benchmarks.common.settings import Settings

SHORT = ("--layers 2 --runs 1",)

WIDTH, INNER, TOKENS = 32, 64, 16

SECONDS = 600
"""Limit of one process."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FirstCallSettings(Settings):
    """Settings of the run."""

    layers: int = 24
    """Layers of seven weights each."""
    runs: int = 5
    """Processes of each kind, in turns."""


def decoder(params: list[dict[str, jax.Array]], x: jax.Array) -> jax.Array:
    """Layers of attention with one head and a gated MLP, written out."""

    def norm(x: jax.Array) -> jax.Array:
        return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6)

    for p in params:
        h = norm(x)
        scores = (h @ p["q"]) @ jnp.swapaxes(h @ p["k"], -1, -2)
        x = x + jax.nn.softmax(scores / np.sqrt(WIDTH)) @ (h @ p["v"]) @ p["o"]
        h = norm(x)
        x = x + (jax.nn.silu(h @ p["gate"]) * (h @ p["up"])) @ p["down"]
    return x


def weights(layers: int) -> tuple[list[dict[str, jax.Array]], jax.Array]:
    """Random weights, and two sequences."""
    rng = np.random.default_rng(0)
    shapes = dict.fromkeys(("q", "k", "v", "o"), (WIDTH, WIDTH))
    shapes |= {"gate": (WIDTH, INNER), "up": (WIDTH, INNER), "down": (INNER, WIDTH)}
    params = [
        {
            name: jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[0]), jnp.float32)
            for name, shape in shapes.items()
        }
        for _ in range(layers)
    ]
    return params, jnp.asarray(rng.normal(size=(2, TOKENS, WIDTH)), jnp.float32)


def jaxpr(layers: int) -> Callable[[], Any]:
    """JAX's own trace of the model."""
    params, x = weights(layers)
    return lambda: jax.make_jaxpr(decoder)(params, x)


def traced(layers: int) -> Callable[[], Any]:
    """Ours."""
    params, x = weights(layers)
    js.trace(lambda w, x: x @ w, jnp.eye(2), jnp.ones((1, 2)))  # imports, which a process does once
    return lambda: js.trace(decoder, params, x)


def model(layers: int) -> Callable[[], Any]:
    """The model's first call under jit."""
    params, x = weights(layers)
    return lambda: jax.jit(decoder)(params, x).block_until_ready()


def quantized(layers: int) -> Callable[[], Any]:
    """That of the network with 8-bit weights and inputs."""
    params, x = weights(layers)
    net = js.quantize(8, 8)(js.trace(decoder, params, x))
    return lambda: jax.jit(lambda net, x: net(x))(net, x).block_until_ready()


def deployed(layers: int) -> Callable[[], Any]:
    """Writing it into arrays, setting its ranges, and the first call."""
    params, x = weights(layers)
    hardware = js.compose(js.quantize(8, 8), js.slice_bits(2), js.analog(rows=32))
    net = hardware(js.trace(decoder, params, x))

    def run() -> Any:
        chip = js.deploy(net, calibrate=x)
        return jax.jit(lambda net, x: net(x))(chip, x).block_until_ready()

    return run


KINDS = {
    "jax.make_jaxpr": jaxpr,
    "js.trace": traced,
    "model, first call": model,
    "quantized 8/8, first call": quantized,
    "analog: deployed and first call": deployed,
}
BASES = {
    "js.trace": "jax.make_jaxpr",
    "quantized 8/8, first call": "model, first call",
    "analog: deployed and first call": "model, first call",
}


def seconds(kind: str, layers: int) -> float:
    """Processor seconds of one of them, in a process of its own that has compiled nothing."""
    command = [sys.executable, "-m", "benchmarks.topics.first_calls", kind, str(layers)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=SECONDS)
    return float(done.stdout.splitlines()[-1])


def main(args: list[str]) -> None:
    """Times each in turns."""
    settings = FirstCallSettings.read(args)
    spent: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(settings.runs):
        for kind, found in spent.items():
            found.append(seconds(kind, settings.layers))
    middle = {kind: statistics.median(found) for kind, found in spent.items()}
    rows = [
        [
            kind,
            f"{middle[kind]:.2f}",
            f"{min(found):.2f} to {max(found):.2f}",
            f"{middle[kind] / middle[BASES[kind]]:.1f}" if kind in BASES else "",
        ]
        for kind, found in spent.items()
    ]
    record(
        "first_calls",
        Table(("what", "processor s", "least to most", "times its baseline"), rows),
        question=f"What does the first call of {settings.layers} unrolled layers "
        f"({7 * settings.layers} sites) cost?",
        baseline="`jax.make_jaxpr` of the model for the trace, the model's own first call under "
        "`jax.jit` for the others",
        notes="Medians of processes that compile everything anew, in turns. Sites that are alike "
        "are traced once; XLA compiles the operations of each all the same.",
        settings=settings.recorded(),
    )


if __name__ == "__main__":
    run = KINDS[sys.argv[1]](int(sys.argv[2]))
    began = time.process_time()
    run()
    print(time.process_time() - began)
