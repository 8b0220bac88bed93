"""A part of an accelerator, as pure functions of the work it is asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from jaxsim.accelerators.work import Spent, Work


class Runs(Protocol):
    """What runs work: `Part`, or jaxsim's own, whose settings are fields and go into files."""

    @property
    def area(self) -> float:
        """Area that all work shares, in mm²."""
        ...

    def accepts(self, work: Work, /) -> str:
        """Tells why the work cannot run here, in a phrase; "" where it can."""
        ...

    def spend(self, work: Work, /) -> Spent:
        """Computes what the work spends here."""
        ...


class Part(NamedTuple):
    """A part of one's own: what it runs, and what that spends.

    Attributes:
      accepts: `(work) -> why not`, a phrase, "" where the part can run it.
      spend: `(work) -> Spent`, for work that it accepts.
      area: Area that all work shares, in mm².

    Examples:
      >>> import jaxsim as js
      >>> from jaxsim.accelerators import Part, Spent
      >>> free = Part(lambda work: "", lambda work: Spent({}, 0, 0.0))
      >>> js.Accelerator({"free": free}).parts["free"].area
      0.0
    """

    accepts: Callable[[Work], str]
    spend: Callable[[Work], Spent]
    area: float = 0.0
