"""Options that every command takes, and what it does with them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from jaxsim.cli.recipe import read_recipe, with_seed
from jaxsim.files import atomic
from jaxsim.numerics.checks import checked_seed

_FIGURES = ("plot", "picture")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Common:
    """Where results of a command go."""

    json: Path | None = None
    """File for the numbers."""
    quiet: bool = False
    """Print nothing but errors; files are written all the same."""
    config: Path | None = None
    """TOML file of options by their names; what the command line says goes before it."""

    def open(self) -> Console:
        """Checks the seed and where files are to go, before a long computation.

        Returns:
          The console to print to, silent with `--quiet`.

        Raises:
          ValueError: A seed out of range, or a file that could not be written.
        """
        if (seed := getattr(self, "seed", None)) is not None:
            checked_seed(seed)
        for name in ("json", *_FIGURES):
            atomic.check_target(name, getattr(self, name, None), image=name in _FIGURES)
        return Console(quiet=self.quiet)

    def write(self, numbers: Any) -> None:
        """Writes the numbers of a result, where a file for them is named.

        Args:
          numbers: Value that JSON can write.
        """
        if self.json is not None:
            atomic.write_json(self.json, numbers)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seeded(Common):
    """A command that draws."""

    seed: int = 0
    """Of all that is drawn, 0 to 2**32 - 1."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reseeded(Common):
    """A command whose recipe has a seed."""

    seed: int | None = None
    """Of what is drawn, 0 to 2**32 - 1; the recipe's unless said."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trusting(Reseeded):
    """A command whose recipe names a model."""

    trust_model: bool = False
    """Import the model that the recipe names and run its code, from wherever it comes; without,
    only classes of jaxsim.models."""


@dataclasses.dataclass(frozen=True)
class OfRecipe(Trusting):
    """A command of one recipe."""

    recipe: Annotated[Path, tyro.conf.Positional]
    """TOML file; docs/cli.md shows one."""

    def read(self, *parts: str) -> dict[str, Any]:
        """Reads the recipe, with the seed that the command line says.

        Args:
          *parts: Tables that it may have beside `model`, `transform` and `deploy`.

        Raises:
          ValueError: As `read_recipe` raises.
        """
        return with_seed(
            read_recipe(self.recipe, ("model", "transform", "deploy", *parts)), self.seed
        )
