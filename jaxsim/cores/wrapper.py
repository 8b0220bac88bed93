"""A function from core to core with its settings, as data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxsim.cores.core import Core, float_core
from jaxsim.cores.partition import Parts
from jaxsim.numerics.checks import is_traced
from jaxsim.values.value import PytreeValue


@partial(jax.tree_util.register_dataclass, data_fields=["parts"], meta_fields=["make"])
@dataclasses.dataclass(frozen=True, eq=False)
class Wrapper(PytreeValue):
    """A `Core -> Core` function with its settings, as data; made by `Wrapper.of`.

    Floats and arrays among the settings are leaves, everything else is static: two wrappers that
    differ only in numbers share one compiled programme.

    Attributes:
      make: `(core, **settings) -> Core`.
      parts: the settings.
    """

    make: Callable[..., Core]
    parts: Parts

    @classmethod
    def of(cls, make: Callable[..., Core], **settings: Any) -> Wrapper:
        """A wrapper with settings."""
        return cls(make, Parts.of(settings, _is_number))

    @property
    def settings(self) -> dict[str, Any]:
        """Keyword arguments of `make`."""
        return self.parts.whole()

    def __call__(self, core: Core) -> Core:
        """Wraps a core."""
        return self.make(core, **self.settings)

    def __repr__(self) -> str:
        shown = ", ".join(f"{k}={_short(v)}" for k, v in self.settings.items() if v is not None)
        return f"{made_by(self.make)}({shown})"

    def signature(self) -> str:
        """What is static of it, the same in every process and wherever jaxsim keeps the function.

        A function of jaxsim's is named alone, one from elsewhere with its module.
        """
        hidden = dataclasses.replace(self.parts, arrays=(math.nan,) * len(self.parts.arrays))
        shown = ", ".join(f"{k}={_short(v)}" for k, v in hidden.whole().items())
        module = self.make.__module__
        place = "" if module.partition(".")[0] == "jaxsim" else f"{module}."
        return f"{place}{made_by(self.make)}({shown})"


def made_by(make: Callable[..., Core]) -> str:
    """The name of a function that wraps a core."""
    return getattr(make, "__name__", repr(make))


def _is_number(value: Any) -> bool:
    return isinstance(value, float | np.floating | jax.Array | np.ndarray)


def _short(value: Any) -> str:
    if _is_number(value) and np.ndim(value) == 0:
        return "traced" if is_traced(value) else f"{value:.4g}"
    if _is_number(value):
        return f"array{list(np.shape(value))}"
    if isinstance(value, str) or not callable(value):
        return str(value)
    return getattr(value, "__name__", repr(value))


def build(wrappers: Sequence[Wrapper]) -> Core:
    """The core that a chain of wrappers makes, the first one outermost."""
    core = float_core
    for wrapper in reversed(wrappers):
        core = wrapper(core)
    return core
