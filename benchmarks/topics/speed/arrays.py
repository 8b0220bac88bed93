"""Analog arrays: a training step through noise, deployed reads, first calls, wires."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxsim as js
from benchmarks.topics.crossbar import ON_OFF, settled, weights
from benchmarks.topics.speed.row import OURS, Row
from jaxsim.cores import wires
from jaxsim.models.resnet import ResNet
from tests.oracles import relaxation

CELLS = js.cells.independent(0.05)


def mlp(params: Any, x: jax.Array) -> jax.Array:
    """Three dense layers."""
    for w in params[:-1]:
        x = jax.nn.relu(x @ w)
    return x @ params[-1]


def layers(size: int) -> tuple[js.Network, jax.Array]:
    """Three square layers of random weights, and 256 inputs."""
    *keys, last = jax.random.split(jax.random.key(0), 4)
    params = [jax.random.normal(key, (size, size)) / size**0.5 for key in keys]
    x = jax.random.normal(last, (256, size))
    return js.trace(mlp, params, x), x


def chip(net: js.Network, rows: int) -> js.Network:
    """Pairs of cells that are off by 5 %, behind 8-bit converters."""
    return js.compose(js.quantize(8, 8), js.analog(rows=rows, adc=8, cells=CELLS))(net)


def training(size: int) -> Iterator[Row]:
    """A gradient step through cells that are drawn anew."""
    net, x = layers(size)
    y, key = jnp.tanh(x[::-1]), jax.random.key(1)

    def loss(params: Any, net: js.Network, key: Any) -> jax.Array:
        return jnp.mean((net.with_params(params)(x, key=key) - y) ** 2)

    @jax.jit
    def step(net: js.Network, key: Any) -> Any:
        slope = jax.grad(loss)(net.params, net, key)
        return jax.tree.map(lambda w, g: w - 1e-3 * g, net.params, slope)

    exact = partial(step, net, key)
    for rows in (1152, 512):
        calls = {OURS: partial(step, chip(net, rows), key), "float step": exact}
        yield Row(f"noise-aware step, 3 layers, {rows} rows", calls, "float step", 2.5)


def deployed(size: int) -> Iterator[Row]:
    """The same chip, written once."""
    net, x = layers(size)
    call = jax.jit(lambda net, x: net(x))
    for rows, wanted in ((1152, 1.4), (512, 1.6)):
        written = js.deploy(chip(net, rows), calibrate=x, key=jax.random.key(2))
        calls = {OURS: partial(call, written, x), "float call": partial(call, net, x)}
        yield Row(f"deployed, 3 layers, {rows} rows", calls, "float call", wanted)


def first_calls() -> Iterator[Row]:
    """What a CNN of four layers takes until its first answer, compiled anew each time."""
    model, x = ResNet(stages=(1,)), jnp.ones((8, 28, 28, 1))
    variables = jax.jit(model.init)(jax.random.key(0), x)
    net = js.trace(model, variables, x)
    written = js.deploy(chip(net, 128), calibrate=x, key=jax.random.key(2))

    def fresh(call: Callable[..., Any], *args: Any) -> Callable[[], Any]:
        def run() -> Any:
            jax.clear_caches()
            return jax.jit(lambda *args: call(*args))(*args)

        return run

    calls = {OURS: fresh(lambda n, x: n(x), written, x), "model": fresh(model.apply, variables, x)}
    yield Row("first call of an analog CNN", calls, "model", 3.0, first=True)


def parasitic(n: int) -> Iterator[Row]:
    """Currents of a pair of arrays whose wires have resistance, for 16 inputs."""
    g, rng, r = weights(n), np.random.default_rng(1), 1e-4
    v = rng.uniform(-1, 1, (16, n)).astype(np.float32)
    ends = np.full(n, r, np.float32)
    gamma, source = settled(g, v, ends, ends), wires.input_source(r)

    @jax.jit
    def solve(g: jax.Array, v: jax.Array) -> jax.Array:
        plus, minus = wires.solve(g, v, source, tolerance=3e-2).current
        return plus - minus

    def fixed_point() -> np.ndarray:
        relax = partial(relaxation.solve, gamma=gamma, iterations=500)
        plus, minus = (relax(a, v, ends, ends).current for a in g)
        return plus - minus

    calls = {OURS: partial(solve, jnp.asarray(g), jnp.asarray(v)), "fixed point": fixed_point}
    yield Row(f"wires of a pair, {n} × {n}, on/off {ON_OFF:g}", calls, "fixed point", 0.1)
