"""Functions shown by the call that made them, as `quantize(weights=8, inputs=8)`."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar, cast

import numpy as np

from jaxsim.numerics.arrays import own_promotion

P = ParamSpec("P")
F = TypeVar("F", bound=Callable[..., Any])


class Made:
    """A function that a factory made.

    Attributes:
      run: the function.
      shown: the call of the factory.
    """

    def __init__(self, run: Callable[..., Any], shown: str):
        """Takes the function and the text that stands for it."""
        self.run = run
        self.shown = shown

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the function returns."""
        with own_promotion():
            return self.run(*args, **kwargs)

    def __repr__(self) -> str:
        return self.shown


def shown_as_called(factory: Callable[P, F]) -> Callable[P, F]:
    """Makes the functions that a factory returns print as its call.

    Args:
      factory: returns a function; the names of its parameters are those shown.
    """

    @functools.wraps(factory)
    def make(*args: P.args, **kwargs: P.kwargs) -> F:
        run = factory(*args, **kwargs)
        bound = inspect.signature(factory).bind(*args, **kwargs)
        return cast("F", Made(run, f"{factory.__name__}({', '.join(_arguments(bound))})"))

    return make


def _arguments(bound: inspect.BoundArguments) -> list[str]:
    found: list[str] = []
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            found += map(brief, value)
        elif kind is inspect.Parameter.VAR_KEYWORD:
            found += [f"{k}={brief(v)}" for k, v in value.items()]
        else:
            found.append(f"{name}={brief(value)}")
    return found


def brief(value: Any) -> str:
    """A value in few letters: arrays by type and shape, functions by name."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        if value.shape == () and isinstance(value, np.number):
            return repr(value.item())
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, Made | type):
        return repr(value) if isinstance(value, Made) else value.__name__
    if isinstance(value, functools.partial):
        given = [*map(brief, value.args), *(f"{k}={brief(v)}" for k, v in value.keywords.items())]
        return f"{brief(value.func)}({', '.join(given)})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{brief(k)}: {brief(v)}" for k, v in value.items()) + "}"
    if dataclasses.is_dataclass(value):
        if type(value).__repr__ is not object.__repr__ and not _is_plain(value):
            return repr(value)
        fields = [f for f in dataclasses.fields(value) if getattr(value, f.name) is not f.default]
        inside = (f"{f.name}={brief(getattr(value, f.name))}" for f in fields)
        return f"{type(value).__name__}({', '.join(inside)})"
    if hasattr(value, "_fields") and type(value).__repr__.__module__ != "collections":
        return repr(value)
    if isinstance(value, tuple | list):
        inside = ", ".join(map(brief, value[:8])) + (", …" if len(value) > 8 else "")
        if hasattr(value, "_fields"):
            return f"{type(value).__name__}({inside})"
        return f"[{inside}]" if isinstance(value, list) else f"({inside})"
    if callable(value) and hasattr(value, "__name__"):
        return value.__name__
    shown = repr(value)
    return shown if len(shown) <= 80 else f"<{type(value).__name__}>"


def _is_plain(value: Any) -> bool:
    """Whether a dataclass is shown as dataclasses are, by its fields."""
    params = getattr(type(value), "__dataclass_params__", None)
    return params is not None and params.repr
