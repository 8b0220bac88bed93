"""Arguments of a model's call, arrays apart from what is static."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsim.cores.partition import Partitioned
from jaxsim.network.leaves import is_array
from jaxsim.numerics.checks import MissingKeyError


def call_arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Partitioned:
    """Separates the arguments of a call into arrays and what is static.

    Args:
      args: Positional arguments, nested as the model takes them.
      kwargs: Keyword arguments by name.
    """
    return Partitioned.of((tuple(args), dict(kwargs)), is_array)


def abstract_arguments(arguments: Partitioned) -> Partitioned:
    """Replaces the arrays of a call's arguments by their shapes and dtypes.

    Args:
      arguments: Arguments of the call; their arrays may be shapes already.
    """
    shapes = tuple(jax.ShapeDtypeStruct(np.shape(a), a.dtype) for a in arguments.arrays)
    return dataclasses.replace(arguments, arrays=shapes)


def apply_call(arguments: Partitioned, fn: Callable[..., Any], *leading: Any, **more: Any) -> Any:
    """Calls a function with the arguments of a call, others before and after them.

    Args:
      arguments: Arguments of the call.
      fn: Function to call.
      *leading: Positional arguments that come before those of the call.
      **more: Further keyword arguments.
    """
    args, kwargs = arguments.combine()
    return fn(*leading, *args, **kwargs, **more)


def _shapes(arguments: Partitioned) -> str:
    return "(" + ", ".join(f"{a.dtype}{list(np.shape(a))}" for a in arguments.arrays) + ")"


def check_key(key: Any) -> None:
    """Checks that a random key comes from JAX, or is None.

    Args:
      key: Value given as `key`.

    Raises:
      ValueError: It is something else.
    """
    if key is None:
        return
    dtype = getattr(key, "dtype", None)
    if dtype is None or not (jnp.issubdtype(dtype, jax.dtypes.prng_key) or dtype == jnp.uint32):
        raise ValueError(f"key={key!r}: must come from jax.random.key")


def require_key(key: Any, drawn: str) -> None:
    """Checks that a random key is there and comes from JAX.

    Args:
      key: Value given as `key`.
      drawn: What is drawn by it, for the error.

    Raises:
      ValueError: It is None or something else.
    """
    if key is None:
        raise MissingKeyError(f"{drawn} are drawn; give a key, such as jax.random.key(0)")
    check_key(key)


@contextlib.contextmanager
def explained_call(example: Partitioned, arguments: Partitioned) -> Generator[None]:
    """Adds to an error that the model raises how these arguments differ from the traced ones.

    Args:
      example: Arguments the model was traced with, as shapes.
      arguments: Arguments of this call.

    Raises:
      ValueError: The model raised a `TypeError`, a `ValueError` or an error of Flax.
    """
    from flax.errors import FlaxError

    try:
        yield
    except jax.errors.JAXTypeError:
        raise
    except (FlaxError, TypeError, ValueError) as error:
        given, traced = _shapes(arguments), _shapes(example)
        was = "" if given == traced else f" (it was traced with {traced})"
        raise ValueError(f"args={given}{was}: the model raised: {error}") from error
