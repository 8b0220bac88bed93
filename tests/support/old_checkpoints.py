"""Small networks as they are composed and deployed, by the name of their checkpoint."""

import jax
import numpy as np

import jaxsim as js

X = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)


def network():
    """A perceptron of two layers, drawn by numpy so that no version of JAX draws it otherwise."""
    rng = np.random.default_rng(1)
    params = {
        "hidden": rng.normal(size=(8, 6)).astype(np.float32) / 3,
        "out": rng.normal(size=(6, 4)).astype(np.float32) / 2,
    }
    return js.trace(lambda p, x: jax.nn.relu(x @ p["hidden"]) @ p["out"], params, X)


CODES = js.quantize(8, 8)
COMPOSED = {
    "masks": js.prune(0.5),
    "codes": CODES,
    "clipped": js.quantize(
        js.Grid(4, per="channel", clip=js.clipping.percentile(99.0)),
        js.Grid(8, symmetric=False, clip=js.clipping.least_squares()),
    ),
    "table": js.quantize(js.nf4(), None),
    "floats": js.quantize(js.Floating("float8_e4m3fn"), js.Floating("float8_e4m3fn")),
    "groups": js.quantize(js.Grid(4, per="group", rows=4), js.Grid(8, per="token")),
    "blocks": js.compose(CODES, js.block(4, 2, 1)),
    "analog": js.compose(CODES, js.slice_bits(4), js.analog(adc=8, rows=4)),
    "offset": js.compose(
        CODES,
        js.analog(mapping="offset", adc=8, input_bits=2, cells=js.cells.proportional(0.0)),
    ),
    "wires": js.compose(
        CODES,
        js.analog(adc=None, cells=js.cells.proportional(0.0), wires=js.wires.input_source(1e-3)),
    ),
    "smoothed": js.compose(CODES, js.smooth(X), js.correct_bias(X)),
    "rounded": js.compose(js.quantize(4, 8), js.round_weights(js.rounding.gptq(), X)),
    "learned": js.compose(js.quantize(4, 8), js.learn_ranges(X)),
    "exits": js.exit_early(2),
}
NETWORKS = tuple(COMPOSED)
FLOAT = ("masks", "learned", "exits")
"""Those that are saved without being deployed."""


def composed(name):
    """The network as it was saved."""
    net = COMPOSED[name](network())
    return net if name in FLOAT else js.deploy(net, calibrate=X, key=jax.random.key(0))
