"""Names that a recipe file may use: public things of jaxsim, and Flax models.

A file comes from anywhere, so a name in it reaches no attribute that a list of public names does
not hold, no module that is not jaxsim's, and nothing that reads or writes files.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any

import jaxsim as js
from jaxsim.cli.keys import meant


def public(name: str) -> Callable[..., Any]:
    """Finds a public class or function of jaxsim, such as `prune` or `cells.proportional`.

    Args:
      name: Name in `__all__` of jaxsim, or, after a dot, of a module that is listed there.

    Raises:
      ValueError: There is none of this name, or it reads or writes files.
    """
    found: Any = js
    for part in name.split("."):
        listed = isinstance(found, ModuleType) and _own(found.__name__)
        listed = listed and part in getattr(found, "__all__", ())
        found = getattr(found, part) if listed else None
    if not isinstance(found, FunctionType | type) or not _own(found.__module__):
        near = meant(name, js.__all__)
        raise ValueError(f"{name!r} is nothing of jaxsim's that a recipe can name{near}")
    if any("Path" in str(p.annotation) for p in inspect.signature(found).parameters.values()):
        raise ValueError(f"{name!r} reads or writes files, which a recipe cannot")
    return found


def model_maker(name: str, *, trust: bool) -> Callable[..., Any]:
    """Finds a class of Flax modules, Linen or NNX, or a function that makes one.

    Args:
      name: Name as `module:name`.
      trust: Whether modules other than those of `jaxsim.models` may be imported, which runs their
        code, and functions may be called.

    Raises:
      ValueError: There is none of this name, it is something else, or it needs trust.
    """
    what = f"[model] name={name!r}"
    module, _, attribute = name.partition(":")
    ours = module.startswith("jaxsim.models.")
    if not all(part.isidentifier() for part in (*module.split("."), attribute)):
        raise ValueError(f"{what}: must be module:name")
    if attribute.startswith("__") or module.split(".")[0] in sys.stdlib_module_names:
        raise ValueError(f"{what}: is no Flax module")
    if not (ours or trust):
        raise ValueError(
            f"{what}: importing {module} runs its code; if you know who wrote it, say so by "
            "--trust-model (classes of jaxsim.models need none)"
        )
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{what}: must be module:name: {error}") from None
    if isinstance(found, type) and issubclass(found, _modules()):
        if trust or _own(found.__module__):
            return found
    elif trust and isinstance(found, FunctionType):
        # A function that a module has from elsewhere was not what its name promised.
        if found.__module__.split(".")[0] == module.split(".")[0]:
            return found
    elif isinstance(found, FunctionType):
        raise ValueError(f"{what}: is a function, and calling it runs its code; see --trust-model")
    raise ValueError(f"{what}: is no class of Flax modules, and no function of {module}")


def is_model(value: Any) -> bool:
    """Tells a Flax module, of Linen or of NNX, from other values.

    Args:
      value: Any value.
    """
    return isinstance(value, _modules())


def _modules() -> tuple[type, ...]:
    from flax import linen, nnx

    return linen.Module, nnx.Module


def _own(module: str | None) -> bool:
    return module is not None and (module == "jaxsim" or module.startswith("jaxsim."))
