"""Old names of what has been renamed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any


def old_names(module: str, new: Mapping[str, Any]) -> Callable[[str], Any]:
    """Makes a module's `__getattr__` that knows old names for one release, with a warning.

    Args:
      module: Name of the module, its `__name__`.
      new: What each old name stands for now, an object with a `__name__`.

    Returns:
      A function to assign to `__getattr__` in that module.
    """

    def lookup(name: str) -> Any:
        if name not in new:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        found = new[name]
        warnings.warn(
            f"{module}.{name} is now called {found.__name__}; the old name goes in the next "
            "release",
            DeprecationWarning,
            stacklevel=2,
        )
        return found

    return lookup
