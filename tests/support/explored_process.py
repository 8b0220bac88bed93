"""An exploration that kills its own process (SIGKILL) at one of its evaluations."""

import os
import signal
import sys

import jax.numpy as jnp
import numpy as np

import jaxsim as js

X = np.linspace(-1, 1, 32, dtype=np.float32).reshape(8, 4)


def explored(log, kill=None):
    """The front, and how often `evaluate` was called here."""
    w = jnp.sin(jnp.arange(16.0)).reshape(4, 4)
    net = js.trace(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], {"a": w, "b": w + 1}, X)
    y, calls = np.asarray(net(X)), []

    def evaluate(chip):
        calls.append(chip)
        if len(calls) == kill:
            os.kill(os.getpid(), signal.SIGKILL)
        return -float(np.abs(np.asarray(chip(X)) - y).max())

    options = {"8": js.quantize(8, 8), "4": js.quantize(4, 8), "2": js.quantize(2, 8)}
    hardware = js.accelerators.systolic_45nm()
    front = js.explore(net, hardware, options, X, evaluate, points=3, log=log, quiet=True)
    return front, len(calls)


if __name__ == "__main__":
    explored(sys.argv[1], int(sys.argv[2]))
