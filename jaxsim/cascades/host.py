"""Loops that numba compiles for the host, where it is installed and the input is there."""

import functools
import importlib.util
import os
from types import ModuleType
from typing import Any

import jax

from jaxsim.numerics.checks import is_traced

# that this process may run on
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("numba") is not None


def loops_for(*inputs: Any) -> ModuleType | None:
    """The compiled loops, or None where they cannot serve: JAX's engines then give the same result.

    Args:
      inputs: Trees of arrays.

    Returns:
      `jaxsim.cascades.loops`, unless numba is not installed, JAX runs on an accelerator, or an
      input is known only inside a compiled program.
    """
    traced = any(is_traced(x) for x in jax.tree.leaves(inputs))
    if traced or jax.default_backend() != "cpu" or not _installed():
        return None
    from jaxsim.cascades import loops  # numba takes a third of a second

    return loops
