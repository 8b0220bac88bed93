"""One site on its own: its core built from wrappers, written, calibrated and read."""

import jax
import numpy as np

from jaxsim.core import Conv, Dot, Op, Wrapper, build
from jaxsim.cores.quantized import quantized
from jaxsim.grid import Grid

DENSE = Dot((1,), (), (0,), (), 2, (20, 6))
PLAIN = ((0, 1, 2, 3),) * 3
CONV = Conv((2, 1), ((1, 2), (0, 1)), (1, 2), (2, 1), 2, *PLAIN, w_shape=(4, 3, 3, 2))
SHAPES = {DENSE: (5, 20), CONV: (2, 6, 7, 5)}


def quantize(weights=8, inputs=8, per="channel", **settings):
    """The outermost wrapper of a quantised site."""
    w, x = Grid(weights, per=per, **settings), Grid(inputs, **settings)
    return (quantized, {"weights": w, "inputs": x})


def operands(geometry, seed=0, x_shape=None):
    """A normal input and weight for a geometry."""
    rng = np.random.default_rng(seed)
    shapes = (x_shape or SHAPES[geometry], geometry.w_shape)
    return tuple(rng.normal(0.2, 1, shape).astype(np.float32) for shape in shapes)


def core_of(*pieces):
    """A core from functions, or (function, settings), the first one outermost."""
    pairs = [piece if isinstance(piece, tuple) else (piece, {}) for piece in pieces]
    return build([Wrapper.of(make, **settings) for make, settings in pairs])


def read(pieces, geometry, x, w, key=None, *, integer=True):
    """What an undeployed site computes."""
    op, core = Op(geometry, integer=integer), core_of(*pieces)
    return jax.jit(lambda x, w, key: core.read(op, core.write(op, w, key), x, key))(x, w, key)


def deployed(pieces, geometry, x, w, key=None):
    """The state of a site written and calibrated on an input."""
    op, core = Op(geometry, integer=True, ranges="stored"), core_of(*pieces)
    return jax.jit(lambda x, w, key: core.calibrate(op, core.write(op, w, key), x))(x, w, key)


def read_deployed(pieces, geometry, x, w, key=None, *, calibrate=None):
    """What a site computes that was written, and calibrated on `calibrate` or its own input."""
    state = deployed(pieces, geometry, x if calibrate is None else calibrate, w, key)
    op, core = Op(geometry, integer=True, ranges="stored"), core_of(*pieces)
    return jax.jit(lambda state, x, key: core.read(op, state, x, key))(state, x, key)
