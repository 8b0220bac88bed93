"""`jaxsim estimate`: what the network of a recipe spends on an accelerator."""

from __future__ import annotations

import dataclasses
from typing import Any

import jaxsim as js
from jaxsim.cli.hardware import accelerator_of
from jaxsim.cli.options import OfRecipe
from jaxsim.cli.recipe import chip_of


@dataclasses.dataclass(frozen=True)
class Estimate(OfRecipe):
    """Estimate energy, time and area of the network of a recipe on an accelerator.

    Nothing is measured: the model of docs/accelerator.md counts.

    Example: jaxsim estimate chip.toml --accelerator mixed
    """

    accelerator: str = "mixed"
    """`systolic_45nm`, `ax_bxp`, `isaac_like`, `mixed`, or a TOML file."""


def estimate(args: Estimate) -> Any:
    """Estimates the network of a recipe and prints a table.

    Args:
      args: Options of the command.

    Returns:
      What `js.estimate` found.

    Raises:
      ValueError: The recipe or the accelerator says what cannot be done.
    """
    console = args.open()
    accelerator = accelerator_of(args.accelerator)
    chip = chip_of(args.read(), args.recipe.parent, trust=args.trust_model)
    found = js.estimate(chip, accelerator)
    rows = {**found.sites, **found.rest}
    args.write(
        {
            "energy_pj": found.energy,
            "latency_s": found.latency,
            "area_mm2": found.area,
            "components_pj": found.components,
            "memory_pj": found.memory,
            "rows": {name: row._asdict() for name, row in rows.items()},
        }
    )
    console.print(found)
    return found
