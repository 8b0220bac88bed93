"""Shapes of the call that is exported: those of the trace with the batch free, or given ones."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import export

from jaxsim.cores.partition import Partitioned
from jaxsim.network.arguments import abstract_arguments, call_arguments
from jaxsim.network.leaves import is_array
from jaxsim.network.network import Network

BATCH = "batch"
"""Name of the size that is free where no shapes are given."""


def call_shapes(net: Network, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Partitioned:
    """Shapes and static values of the arguments of the call to export.

    Args:
      net: Network.
      args: Positional arguments as arrays or shapes, whose sizes may be symbols of `jax.export`;
        without any array, those of the traced example, in which the first axis of every array that
        is as long as that of the first array is free.
      kwargs: Keyword arguments, likewise.
    """
    if any(map(is_array, jax.tree.leaves((args, kwargs)))):
        return abstract_arguments(call_arguments(args, {**net.defaults.combine(), **kwargs}))
    example = net.example
    rows = np.shape(example.arrays[0])[:1]
    (batch,) = export.symbolic_shape(BATCH)

    def freed(a: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        shape = (batch, *a.shape[1:]) if rows and a.shape[:1] == rows else a.shape
        return jax.ShapeDtypeStruct(shape, a.dtype)

    arguments = dataclasses.replace(example, arrays=tuple(map(freed, example.arrays)))
    if not kwargs:
        return arguments
    traced, defaults = arguments.combine()
    return call_arguments(traced, {**defaults, **kwargs})


@contextlib.contextmanager
def explained_sizes(arguments: Partitioned) -> Generator[None]:
    """Says of an error that a size is free, which the model may not allow.

    Args:
      arguments: Shapes of the call that is traced.

    Raises:
      ValueError: Something was raised, and a size is free.
    """
    try:
        yield
    except Exception as error:
        if not is_free(arguments):
            raise
        raise ValueError(
            "args: the model cannot be traced for sizes that are free; give arrays or shapes of "
            f"the call, fixed or with constraints of jax.export.symbolic_shape: {error}"
        ) from error


def is_free(arguments: Partitioned) -> bool:
    """Whether a size of an argument is free.

    Args:
      arguments: Shapes of a call.
    """
    return any(not isinstance(n, int) for a in arguments.arrays for n in a.shape)
