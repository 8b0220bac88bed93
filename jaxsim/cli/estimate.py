"""`jaxsim estimate`: what the network of a recipe spends on an accelerator."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import tyro

import jaxsim as js
from jaxsim.cli.hardware import accelerator_of
from jaxsim.cli.recipe import chip_of, read_recipe, with_seed
from jaxsim.files import atomic


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Estimate energy, time and area of the network of a recipe on an accelerator.

    Nothing is measured: the model of docs/accelerator.md counts.

    Example: jaxsim estimate chip.toml --accelerator mixed
    """

    recipe: Annotated[Path, tyro.conf.Positional]
    """TOML file; docs/cli.md shows one."""
    accelerator: str = "mixed"
    """`systolic_45nm`, `ax_bxp`, `isaac_like`, `mixed`, or a TOML file."""
    seed: int | None = None
    """Of what transforms draw, the recipe's unless said."""
    json: Path | None = None
    """File for the numbers."""
    quiet: bool = False
    """Print nothing but errors; files are written all the same."""
    trust_model: bool = False
    """Import the model that the recipe names and run its code, from wherever it comes; without,
    only classes of jaxsim.models."""


def estimate(args: Estimate) -> Any:
    """Estimates the network of a recipe and prints a table.

    Args:
      args: Options of the command.

    Returns:
      What `js.estimate` found.

    Raises:
      ValueError: The recipe or the accelerator says what cannot be done.
    """
    from rich.console import Console

    atomic.check_target("json", args.json)
    accelerator = accelerator_of(args.accelerator)
    recipe = with_seed(read_recipe(args.recipe), args.seed)
    chip = chip_of(recipe, args.recipe.parent, trust=args.trust_model)
    found = js.estimate(chip, accelerator)
    if args.json is not None:
        rows = {**found.sites, **found.rest}
        atomic.write_json(
            args.json,
            {
                "energy_pj": found.energy,
                "latency_s": found.latency,
                "area_mm2": found.area,
                "components_pj": found.components,
                "memory_pj": found.memory,
                "rows": {name: row._asdict() for name, row in rows.items()},
            },
        )
    Console(quiet=args.quiet).print(found)
    return found
