"""What do blocked products cost to simulate?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.common.record import Table, record
from benchmarks.common.settings import Timed
from jaxsim.console.timing import alternate
from jaxsim.cores.blocked import blocked, pair_set, product_set
from jaxsim.cores.geometry import Dot
from jaxsim.cores.op import Op
from jaxsim.cores.wrapper import Wrapper, build

SHORT = ("--runs 5",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockedSettings(Timed):
    """Settings of the run."""

    runs: int = 15


def main(args: list[str]) -> None:
    """Times the kernels."""
    settings = BlockedSettings.read(args)
    record(
        "blocked",
        *kernels(settings),
        question="What do blocked products cost to simulate?",
        baseline="an int8 product of the same operands",
        notes="Pair sets read activations cut in the same call.",
        settings=settings.recorded(),
    )


def kernels(settings: BlockedSettings) -> list[Table]:
    """Times of one product on this machine."""
    products, grouped = [], []
    for size in (512, 1024):
        keys = jax.random.split(jax.random.key(size))
        x, w = (jax.random.randint(k, (size, size), -127, 128).astype(jnp.int8) for k in keys)
        floats = (x.astype(jnp.float32), w.astype(jnp.float32))
        alternatives: dict[str, Callable[[], Any]] = {
            "int8": partial(_plain, x, w),
            "float32": partial(jax.jit(jnp.matmul), *floats),
        }
        for K, n in ((4, 1), (3, 2), (2, 3)):
            for mode in ("static", "dynamic"):
                blocks = product_set(
                    (8, 8), K, (n, n), dynamic=(mode == "dynamic",) * 2, rounding="rounded"
                )
                name = f"K={K}, {n} × {n} {mode}"
                cuts = [
                    jax.jit(partial(c, bits=8))(a)
                    for c, a in zip(blocks.rows[0], (x, w), strict=True)
                ]
                alternatives[f"{name}: both cut before"] = partial(_plain, *cuts)
                alternatives[f"{name}: inputs cut in the call"] = _kernel(blocks, x, w)
        times = alternate(alternatives, runs=settings.runs)
        base = times["int8"].median
        products += [
            [size, name, f"{1e3 * t.median:.2f}", f"{t.median / base:.2f}"]
            for name, t in times.items()
        ]
    size = 512
    alternatives = {"int8": partial(_plain, x[:size, :size], w[:size, :size])}
    counts = {"int8": 1}
    for K in (2, 3, 4):
        N = -(-7 // K)
        pairs = tuple((i, j) for i in range(N) for j in range(N) if i + j >= N - 1)
        blocks = pair_set((8, 8), K, pairs, dynamic=(False, False))
        name = f"K={K}, {len(pairs)} of {N * N} pairs"
        alternatives[f"{name}: grouped"] = _kernel(blocks, x[:size, :size], w[:size, :size])
        alternatives[f"{name}: one by one"] = _one_by_one(
            K, pairs, x[:size, :size], w[:size, :size]
        )
        counts |= {f"{name}: grouped": len(blocks.rows), f"{name}: one by one": len(pairs)}
    times = alternate(alternatives, runs=settings.runs)
    for name, t in times.items():
        grouped.append(
            [name, counts[name], f"{1e3 * t.median:.2f}", f"{t.median / times['int8'].median:.2f}"]
        )
    return [
        Table(["size", "product", "ms", "of int8"], products, "Product sets"),
        Table(
            ["pairs, size 512", "products", "ms", "of int8"], grouped, "Pair sets, i + j ≥ N - 1"
        ),
    ]


@jax.jit
def _plain(x: jax.Array, w: jax.Array) -> jax.Array:
    return lax.dot(x, w, preferred_element_type=jnp.int32)


def _kernel(blocks: Any, x: jax.Array, w: jax.Array) -> Callable[[], Any]:
    """A core's read, its weights written before."""
    op = Op(Dot((1,), (), (0,), (), 2, w.shape), integer=True)
    wrapper = Wrapper.of(blocked, blocks=blocks, bits=(8, 8))
    state = jax.jit(lambda wrapper, w: build([wrapper]).write(op, w, None))(wrapper, w)
    read = jax.jit(lambda wrapper, state, x: build([wrapper]).read(op, state, x, None))
    return partial(read, wrapper, state, x)


def _one_by_one(K: int, pairs: Any, x: jax.Array, w: jax.Array) -> Callable[[], Any]:
    """Every pair a product of its own, as the definition has it."""

    def blocks_of(q: jax.Array) -> list[jax.Array]:
        size = jnp.abs(q)
        return [jnp.sign(q) * ((size >> (K * i)) & (2**K - 1)) for i in range(-(-7 // K))]

    @jax.jit
    def run(x: jax.Array, w: list[jax.Array]) -> jax.Array:
        parts = blocks_of(x)
        return sum((_plain(parts[i], w[j]) << (K * (i + j)) for i, j in pairs), start=jnp.int32(0))

    return partial(run, x, jax.jit(blocks_of)(w))
