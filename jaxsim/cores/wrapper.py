"""A function from core to core with its settings, as data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxsim.cores.core import Core, float_core, stored_core
from jaxsim.cores.partition import Partitioned
from jaxsim.cores.role import Role, role_of
from jaxsim.numerics.checks import is_traced
from jaxsim.values.value import PytreeValue


@partial(jax.tree_util.register_dataclass, data_fields=["parts"], meta_fields=["factory"])
@dataclasses.dataclass(frozen=True, eq=False)
class Wrapper(PytreeValue):
    """A `Core -> Core` function with its settings, as data; made by `Wrapper.of`.

    Floats and arrays among the settings are leaves, everything else is static: two wrappers that
    differ only in numbers share one compiled program.

    Attributes:
      factory: `(core, **settings) -> Core`.
      parts: the settings.

    Examples:
      >>> import jaxsim as js
      >>> def scaled(core, *, by):
      ...     return core._replace(read=lambda *args: by * core.read(*args))
      >>> js.Wrapper.of(scaled, by=2.0)
      scaled(by=2)
    """

    factory: Callable[..., Core]
    parts: Partitioned

    @classmethod
    def of(cls, factory: Callable[..., Core], **settings: Any) -> Wrapper:
        """A wrapper with settings."""
        return cls(factory, Partitioned.of(settings, _is_number))

    @property
    def settings(self) -> dict[str, Any]:
        """Keyword arguments of `factory`."""
        return self.parts.combine()

    def __call__(self, core: Core) -> Core:
        """Wraps a core."""
        return self.factory(core, **self.settings)

    def __repr__(self) -> str:
        shown = ", ".join(f"{k}={_short(v)}" for k, v in self.settings.items() if v is not None)
        return f"{factory_name(self.factory)}({shown})"

    def signature(self) -> str:
        """What is static of it, the same in every process and wherever jaxsim keeps the function.

        A function of jaxsim's is named alone, one from elsewhere with its module.
        """
        hidden = dataclasses.replace(self.parts, arrays=(math.nan,) * len(self.parts.arrays))
        shown = ", ".join(f"{k}={_short(v)}" for k, v in hidden.combine().items())
        module = self.factory.__module__
        place = "" if module.partition(".")[0] == "jaxsim" else f"{module}."
        name = getattr(self.factory, "at_rest", factory_name(self.factory))
        return f"{place}{name}({shown})"

    @property
    def name(self) -> str:
        """The name of the function."""
        return factory_name(self.factory)

    @property
    def formats(self) -> tuple[Any, Any]:
        """Formats of weights and inputs, of a wrapper whose role is "codes"; None for floats."""
        settings = self.settings
        return settings.get("weights"), settings.get("inputs")

    @property
    def role(self) -> Role:
        """The part of a chain that the function declares to be."""
        return role_of(self.factory)


def factory_name(factory: Callable[..., Core]) -> str:
    """The name of a function that wraps a core."""
    return getattr(factory, "__name__", repr(factory))


def first_of(chain: Sequence[Wrapper], role: Role) -> Wrapper | None:
    """The outermost wrapper of a role, None where a chain has none."""
    return next((wrapper for wrapper in chain if wrapper.role == role), None)


def place_of(chain: Sequence[Wrapper], role: Role) -> int:
    """Position of the outermost wrapper of a role, the chain's length where it has none."""
    return next((i for i, wrapper in enumerate(chain) if wrapper.role == role), len(chain))


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
    stored = any(wrapper.role in ("codes", "floats") for wrapper in wrappers)
    core = stored_core if stored else float_core
    for wrapper in reversed(wrappers):
        core = wrapper(core)
    return core
