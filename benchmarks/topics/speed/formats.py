"""Weights in formats: products in groups and by token, pruning, a decoder that writes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxsim as js
from benchmarks.common.files import MissingFileError
from benchmarks.topics.language.decoder import Decoder, random_decoder, smollm2
from benchmarks.topics.speed.row import OURS, Row

FOUR_BITS = js.Grid(4, per="group", rows=32)


def products(size: int) -> Iterator[Row]:
    """A product with weights in a format, beside that of floats."""
    w = jax.random.normal(jax.random.key(0), (size, size)) / size**0.5
    call, exact = jax.jit(lambda net, x: net(x)), jax.jit(lambda w, x: x @ w)
    kinds = {
        "4 bits in groups of 32": (FOUR_BITS, None, {256: 1.2, 1: 2.5}),
        "NVFP4": (js.nvfp4(), None, {256: 1.25, 1: None}),
        "8 bits, inputs by token": (js.Grid(8), js.Grid(8, per="token"), {256: 1.0, 1: None}),
    }
    for name, (of_weights, of_inputs, wanted) in kinds.items():
        for rows, limit in wanted.items():
            x = jax.random.normal(jax.random.key(rows), (rows, size))
            net = js.quantize(of_weights, of_inputs)(js.trace(lambda w, x: x @ w, w, x))
            coded = js.deploy(net, keep_floats=False)
            calls = {OURS: partial(call, coded, x), "float product": partial(exact, w, x)}
            yield Row(f"{name}, {rows} rows, {size} × {size}", calls, "float product", limit)


def pruning(size: int) -> Iterator[Row]:
    """Three tenths of the weights of 25 layers left out together, beside one partition."""
    rng = np.random.default_rng(0)
    params = [jnp.asarray(rng.standard_normal((size, size), np.float32)) for _ in range(25)]

    def model(params: Any, x: jax.Array) -> jax.Array:
        for w in params:
            x = jnp.tanh(x @ w)
        return x

    net = js.trace(model, params, jnp.ones((2, size)))

    def partition() -> np.ndarray:
        scores = np.concatenate([np.abs(np.asarray(w)).ravel() for w in params])
        last = int(0.3 * scores.size)
        return scores > np.partition(scores, last)[last]

    calls = {OURS: lambda: js.prune(0.3)(net).masks, "one partition": partition}
    yield Row(f"prune(0.3) of {25 * size**2 / 1e6:.0f} M weights", calls, "one partition", None)


def writing(count: int) -> Iterator[Row]:
    """Tokens written one by one with a cache, beside weights as floats (on a GPU bfloat16)."""
    try:
        decoder: Decoder = smollm2()
    except MissingFileError:
        decoder = random_decoder()
    held = {"params": decoder.params}
    if jax.default_backend() != "cpu":
        held = jax.tree.map(lambda w: w.astype(jnp.bfloat16), held)
    prompt = jnp.asarray(decoder.valid[None, :32])
    net, cache = js.trace(decoder.model, held, prompt), decoder.model.cache(1, 32 + count)
    write = partial(js.language.generate, prompt=prompt, cache=cache, count=count)
    layers = ("layers*",)
    for name, form, inputs in (
        ("8 bits", js.Grid(8), js.Grid(8, per="token")),
        ("4 bits in groups of 32", FOUR_BITS, None),
        ("NVFP4", js.nvfp4(), None),
    ):
        coded = js.deploy(js.quantize(form, inputs, sites=layers)(net), keep_floats=False)
        calls = {OURS: partial(write, coded), "floats": partial(write, net)}
        yield Row(f"{count} tokens of {decoder.name}, {name}", calls, "floats", None)
