"""Arguments of a model's call as arrays and a static rest."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsim.cores.partition import Parts
from jaxsim.network.leaves import is_array


def call_arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Parts:
    """Arguments of a call, arrays apart from what is static."""
    return Parts.of((tuple(args), dict(kwargs)), is_array)


def abstract_arguments(arguments: Parts) -> Parts:
    """Arguments of a call as shapes."""
    shapes = tuple(jax.ShapeDtypeStruct(np.shape(a), a.dtype) for a in arguments.arrays)
    return dataclasses.replace(arguments, arrays=shapes)


def apply_call(arguments: Parts, fn: Callable[..., Any], *leading: Any, **more: Any) -> Any:
    """Calls a function with the arguments of a call, others before and after them."""
    args, kwargs = arguments.whole()
    return fn(*leading, *args, **kwargs, **more)


def _shapes(arguments: Parts) -> str:
    return "(" + ", ".join(f"{a.dtype}{list(np.shape(a))}" for a in arguments.arrays) + ")"


def check_key(key: Any) -> None:
    """Checks that a key is one, or None."""
    if key is None:
        return
    dtype = getattr(key, "dtype", None)
    if dtype is None or not (jnp.issubdtype(dtype, jax.dtypes.prng_key) or dtype == jnp.uint32):
        raise ValueError(f"key={key!r}: must come from jax.random.key")


@contextlib.contextmanager
def explained_call(example: Parts, arguments: Parts) -> Generator[None]:
    """Adds to an error of the model's how these arguments differ from the traced ones."""
    from flax.errors import FlaxError

    try:
        yield
    except jax.errors.JAXTypeError:
        raise
    except (FlaxError, TypeError, ValueError) as error:
        given, traced = _shapes(arguments), _shapes(example)
        was = "" if given == traced else f" (it was traced with {traced})"
        raise ValueError(f"args={given}{was}: the model raised: {error}") from error
