"""Keys of tables that people write: unknown ones are named, with what was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


def check_keys(what: str, table: Any, allowed: set[str]) -> None:
    """Checks that a table has no other keys than some.

    Args:
      what: The table, for the error.
      table: Value of TOML.
      allowed: Keys that it may have.

    Raises:
      ValueError: It has another, or is no table.
    """
    if not isinstance(table, dict):
        raise ValueError(f"{what}={table!r}: must be a table")
    for key in sorted(table.keys() - allowed):
        listed = ", ".join(sorted(allowed)) or "none"
        raise ValueError(f"{what}: {key!r} is unknown{meant(key, allowed)}; it may have {listed}")


def meant(name: str, known: Iterable[str]) -> str:
    """Asks whether the nearest of some names was meant; empty where none is near.

    Args:
      name: What was written.
      known: Names there are.

    Examples:
      >>> from jaxsim.cli.keys import meant
      >>> meant("quantise", ["prune", "quantize"])
      ' (did you mean quantize?)'
      >>> meant("x", ["prune"])
      ''
    """
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.7)
    return f" (did you mean {near[0]}?)" if near else ""
