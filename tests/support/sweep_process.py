"""A sweep of chips and an exploration on two devices, beside loops on one, printed as numbers."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

import jaxsim as js
from jaxsim.evaluate.sweep import _programs
from tests.support.networks import X, cnn

CELLS = js.compose(
    js.quantize(3, 8), js.analog(adc=8, cells=js.cells.proportional(0.1, noise=0.02))
)
OPTIONS = {"8": js.quantize(8, 8), "cells": CELLS}


def outputs(chip, x, key):
    return chip(x, key=key)


def closeness(chip):
    return -jnp.sum((chip(X, key=jax.random.key(5)) - 0.5) ** 2)


def main():
    mesh, key = Mesh(np.array(jax.devices()), ("m",)), jax.random.key(7)
    chips = [js.deploy(CELLS(cnn()), calibrate=X, key=jax.random.key(i)) for i in range(5)]
    loop = jax.jit(outputs)
    expected = np.stack([loop(chip, X, key) for chip in chips])
    off = {}
    for way in ("map", "vmap"):
        for count in (5, 3, 4):
            found = js.sweep(outputs, chips[:count], X, key, way=way, at_once=2, mesh=mesh)
            off[f"{way} {count}"] = float(np.abs(found - expected[:count]).max())
    programs = _programs(outputs, mesh).compiled._cache_size()
    calls = (cnn(), js.accelerators.mixed(), OPTIONS, X)
    setting = {"points": 2, "steps": 0, "draws": 2, "key": key, "quiet": True}
    alone = js.explore(*calls, closeness, **setting)
    both = js.explore(*calls, closeness, traced=True, mesh=mesh, **setting)
    report = {
        "devices": len(jax.devices()),
        "off": off,
        "apart": float(np.abs(expected[0] - expected[1]).max()),
        "programs": programs,
        "choices": [p.by_place for p in alone.tried] == [p.by_place for p in both.tried],
        "errors": float(np.abs(alone.errors / both.errors - 1).max()),
        "accuracies": max(
            abs(a.accuracy - b.accuracy) for a, b in zip(alone.tried, both.tried, strict=True)
        ),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
