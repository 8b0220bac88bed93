"""The benchmarks there are: one topic a module or package of `benchmarks.topics`."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from benchmarks import topics


def names() -> tuple[str, ...]:
    """Names of all topics, in the order of the alphabet; none is imported."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(topics.__path__)))


def load(name: str) -> ModuleType:
    """The module of a topic: `main(args)` runs it, `SHORT` lists its short forms.

    Args:
      name: Name of the topic, as `names` lists it.
    """
    return importlib.import_module(f"{topics.__name__}.{name}")


def short_lines() -> tuple[str, ...]:
    """Command lines of all short forms: a topic's name, then its options."""
    return tuple(f"{name} {line}".strip() for name in names() for line in load(name).SHORT)
