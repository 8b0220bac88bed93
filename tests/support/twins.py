"""A model of stacked layers in a scan, and the same layers written out one after another."""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np

import jaxsim as js
from tests.support.models import normal

X = normal(6, 4, seed=7)


class Block(nn.Module):
    """Two sites, a ReLU between them, beside a residual; with a norm if asked."""

    norm: bool = False

    @nn.compact
    def __call__(self, x, _):
        hidden = nn.Dense(6, name="up")(x)
        hidden = nn.BatchNorm(True, name="norm")(hidden) if self.norm else hidden
        return x + nn.Dense(4, name="down")(nn.relu(hidden)), None


class Scanned(nn.Module):
    """A stack of blocks."""

    layers: int
    norm: bool = False

    @nn.compact
    def __call__(self, x):
        axes = {"params": 0, "batch_stats": 0}
        stack = nn.scan(Block, variable_axes=axes, split_rngs={"params": True}, length=self.layers)
        return stack(self.norm, name="layers")(x, None)[0]


class Unrolled(nn.Module):
    """The blocks one after another."""

    layers: int
    norm: bool = False

    @nn.compact
    def __call__(self, x):
        for i in range(self.layers):
            x, _ = Block(self.norm, name=f"layers_{i}")(x, None)
        return x


def block(p, x):
    """What `Block` computes, as a function."""
    hidden = jax.nn.relu(x @ p["up"]["kernel"] + p["up"]["bias"])
    return x + (hidden @ p["down"]["kernel"] + p["down"]["bias"])


class Twins(NamedTuple):
    """Networks of one model: its layers in a scan, and written out."""

    scanned: js.Network
    unrolled: js.Network
    layers: int

    def of_slices(self, tree):
        """Entries by path of the scanned network, as those of the network that is written out."""
        return {
            name.replace("layers/", f"layers_{i}/"): jax.tree.map(lambda a, i=i: a[i], value)
            for name, value in tree.items()
            for i in range(self.layers)
        }


@functools.cache
def twins(kind="linen", layers=2):
    """Twins of layers that differ, by Linen's scan ("norms": with batch norms) or by JAX's own."""

    def filled(*shape, seed):
        return normal(layers, *shape, seed=seed) * np.float32(0.5) + np.float32(0.1)

    stacked = {
        "up": {"kernel": filled(4, 6, seed=1), "bias": filled(6, seed=2)},
        "down": {"kernel": filled(6, 4, seed=3), "bias": filled(4, seed=4)},
    }
    stats = {}
    if kind == "norms":
        stacked["norm"] = {"scale": filled(6, seed=5), "bias": filled(6, seed=6)}
        stats = {"norm": {"mean": filled(6, seed=8), "var": 0.5 + filled(6, seed=9) ** 2}}
    each, apart = (
        {f"layers_{i}": jax.tree.map(lambda a, i=i: a[i], tree) for i in range(layers)}
        for tree in (stacked, stats)
    )
    if kind != "plain":
        norm = kind == "norms"
        whole = {"params": {"layers": stacked}, "batch_stats": {"layers": stats}}
        written = {"params": each, "batch_stats": apart}
        scanned = js.trace(Scanned(layers, norm), whole, X)
        return Twins(scanned, js.trace(Unrolled(layers, norm), written, X), layers)

    def scan(params, x):
        return jax.lax.scan(lambda x, p: (block(p, x), None), x, params["layers"])[0]

    def loop(params, x):
        for i in range(layers):
            x = block(params[f"layers_{i}"], x)
        return x

    unrolled = js.trace(loop, each, X)
    return Twins(js.trace(scan, {"layers": stacked}, X), unrolled, layers)


def assert_close(found, expected, tol=1e-5):
    """Checks that trees have the same entries, within a share of the largest of each."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol=0, atol=tol * max(np.abs(b).max(initial=0), 1e-30))
