"""A core whose steps are compiled as a whole: one by one, each of their operations is a program."""

import jax

from tests.support import sites


def compiled(core):
    """The same core; `write`, `calibrate` and `read` are one program each."""

    def write(op, w, key):
        return jax.jit(lambda w, key: core.write(op, w, key))(w, key)

    def calibrate(op, state, x):
        return jax.jit(lambda state, x: core.calibrate(op, state, x))(state, x)

    def read(op, state, x, key):
        return jax.jit(lambda state, x, key: core.read(op, state, x, key))(state, x, key)

    return core._replace(write=write, calibrate=calibrate, read=read)


def core_of(*pieces):
    """The compiled core of pieces."""
    return compiled(sites.core_of(*pieces))
