"""Options of a run: read from the command line, and recorded beside what was measured.

A topic's settings inherit `Settings`, or those of the classes below it whose options they have; a
default of their own overrides the one here, and the help text stays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import tyro

from jaxsim.cli.demo import Demo

CACHE = Demo.cache
"""Folder that benchmarks share with the demo, so that each network is trained once."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the run."""

    @classmethod
    def read(cls, args: Sequence[str]) -> Self:
        """The settings that command-line options ask for.

        Args:
          args: options, as the shell splits them.

        Raises:
          SystemExit: an option is not known or has no such value, or help was asked for.
        """
        return tyro.cli(cls, args=args)

    def recorded(self, **others: Any) -> dict[str, Any]:
        """The settings by name, for a record: paths of this machine are left out.

        Args:
          **others: entries to set or to add.
        """
        values = dataclasses.asdict(self)
        return {k: None if isinstance(v, Path) else v for k, v in values.items()} | others


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained(Settings):
    """Settings of the run: networks trained from scratch, kept in a cache."""

    seeds: int = 3
    """Networks trained from scratch."""
    cache: Annotated[Path, tyro.conf.arg(help="folder of trained weights")] = CACHE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Logged(Settings):
    """Settings of the run: what is measured over seeds is logged, and a stopped run goes on."""

    seeds: int = 3
    """Models trained from scratch."""
    log: Path
    """What was measured so far: a stopped run goes on."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpointed(Logged):
    """Settings of the run: trained weights are kept too."""

    checkpoints: Path
    """Folder of trained weights, from which a stopped run goes on."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timed(Settings):
    """Settings of the run: alternatives are timed in turn."""

    runs: int
    """Rounds of each timing."""
