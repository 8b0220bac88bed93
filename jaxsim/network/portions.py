"""Portions of a call: equations that run for the same rows."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from jaxsim.network.plan import Plan


class Portion(NamedTuple):
    """Equations of a call that run for the same rows of its batch.

    Attributes:
      plan: The equations, for as many rows.
      fixed: Number of the plan's first inputs that no input of the call reaches.
      rows: Number of rows; None where it is that of the call. A plan of no rows is one of a row.
      slices: Fraction of the slices of its stack that each site runs, by name; all where it is not
        named.
      classifier: Sizes (features, classes) of the classifier that decides behind it which rows go
        on; None where there is none.
      exit: Name of that exit.
      batches: Number of batches of so many rows that run one after the other.
      devices: Number of devices that run it at once, each for as many rows.
      stage: Number of the stage, from 0.
      device: Number of the devices that run it, from 0, in order of execution.
      again: Whether an earlier portion holds its weights: other rows of the same stage.
    """

    plan: Plan
    fixed: int
    rows: int | None = None
    slices: Mapping[str, float] = MappingProxyType({})
    classifier: tuple[int, int] | None = None
    exit: str = ""
    batches: int = 1
    devices: int = 1
    stage: int = 0
    device: int = 0
    again: bool = False
