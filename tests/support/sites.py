"""One site on its own: its core built from wrappers, written, calibrated and read."""

import functools

import jax
import numpy as np

from jaxsim.cores.conv import Conv
from jaxsim.cores.geometry import Dot
from jaxsim.cores.op import Op
from jaxsim.cores.quantized import quantized
from jaxsim.cores.wrapper import Wrapper, build
from jaxsim.formats.grid import Grid

DENSE = Dot((1,), (), (0,), (), 2, (20, 6))
PLAIN = ((0, 1, 2, 3),) * 3
CONV = Conv((2, 1), ((1, 2), (0, 1)), (1, 2), (2, 1), 2, *PLAIN, w_shape=(4, 3, 3, 2))
SHAPES = {DENSE: (5, 20), CONV: (2, 6, 7, 5)}


def quantize(weights=8, inputs=8, per="channel", **settings):
    """The outermost wrapper of a quantized site."""
    w, x = Grid(weights, per=per, **settings), Grid(inputs, **settings)
    return (quantized, {"weights": w, "inputs": x})


def operands(geometry, seed=0, x_shape=None):
    """A normal input and weight for a geometry."""
    rng = np.random.default_rng(seed)
    shapes = (x_shape or SHAPES[geometry], geometry.w_shape)
    return tuple(rng.normal(0.2, 1, shape).astype(np.float32) for shape in shapes)


def wrappers(pieces):
    """From functions, or (function, settings), the first one outermost."""
    pairs = [piece if isinstance(piece, tuple) else (piece, {}) for piece in pieces]
    return tuple(Wrapper.of(make, **settings) for make, settings in pairs)


def core_of(*pieces):
    """The core of pieces."""
    return build(wrappers(pieces))


# Wrappers are data, so the examples of a property share what they compile.
@functools.partial(jax.jit, static_argnums=(1, 2))
def _read(wrapped, geometry, integer, x, w, key):
    op, core = Op(geometry, integer=integer), build(wrapped)
    return core.read(op, core.write(op, w, key), x, key)


@functools.partial(jax.jit, static_argnums=1)
def _deployed(wrapped, geometry, x, w, key):
    op, core = Op(geometry, integer=True, ranges="stored"), build(wrapped)
    return core.calibrate(op, core.write(op, w, key), x)


@functools.partial(jax.jit, static_argnums=1)
def _read_state(wrapped, geometry, state, x, key):
    return build(wrapped).read(Op(geometry, integer=True, ranges="stored"), state, x, key)


def read(pieces, geometry, x, w, key=None, *, integer=True):
    """What an undeployed site computes."""
    return _read(wrappers(pieces), geometry, integer, x, w, key)


def deployed(pieces, geometry, x, w, key=None):
    """The state of a site written and calibrated on an input."""
    return _deployed(wrappers(pieces), geometry, x, w, key)


def read_deployed(pieces, geometry, x, w, key=None, *, calibrate=None):
    """What a site computes that was written, and calibrated on `calibrate` or its own input."""
    state = deployed(pieces, geometry, x if calibrate is None else calibrate, w, key)
    return _read_state(wrappers(pieces), geometry, state, x, key)
