"""Tests that need a process of their own, or several that belong together."""

import hashlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

# Compiling dominates; what is compiled is small.
FLAGS = "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count="


def environment(devices=None):
    """What a process finds set that compiles as the caller does.

    Where it has so many devices of the host, it is compiled in haste.
    """
    hasty = str(jax.config.read("jax_disable_most_optimizations"))
    found = os.environ | {
        "COLUMNS": "120",
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": hasty,
    }
    if devices is not None:
        found["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}{devices}"
    return found


def start(module, *arguments, devices=None):
    """A process that runs a module in the `environment` of so many devices."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=Path(__file__).parents[2],
        env=environment(devices),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process):
    """The words that a process printed."""
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error[-3000:]
    return out.split()


def free_port():
    """A port of this machine that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def of_two_and_of_one(module):
    """What a module prints after "result": of two processes with a device each, of one with two."""
    port = free_port()
    pair = [start(module, port, 2, i, devices=1) for i in range(2)]
    found = [*map(finished, pair), finished(start(module, port, 1, 0, devices=2))]
    # collectives may print too
    return [words[words.index("result") + 1 :] for words in found]


def joined(port, processes, index):
    """Makes this process one of several; before anything else touches a device."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if int(processes) > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", int(processes), int(index))
    assert len(jax.devices()) == 2


def report(value, tree):
    """Prints a number and a digest of arrays, exact to the bit."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        digest.update(np.asarray(leaf).tobytes())
    print("result", float(value), digest.hexdigest(), flush=True)
