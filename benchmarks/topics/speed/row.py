"""A row of the table: something jaxsim does, beside what it is measured by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

OURS = "jaxsim"
"""The name of jaxsim's own alternative."""


class Row(NamedTuple):
    """Alternatives that do the same work.

    Attributes:
      work: What they do.
      calls: By name; one is jaxsim's, one the base, others are peers.
      base: Name of what jaxsim's time is divided by.
      wanted: Largest ratio that was aimed at, None for none.
      first: Whether a call drops what was compiled before it, so that it measures first calls.
    """

    work: str
    calls: dict[str, Callable[[], Any]]
    base: str
    wanted: float | None
    first: bool = False
