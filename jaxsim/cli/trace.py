"""`jaxsim trace`: the sites of a model, and what a call costs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import tyro

from jaxsim.cli.recipe import cost_numbers, data_of, deploy_key, model_of, read_recipe
from jaxsim.cli.steps import Given, compose_steps
from jaxsim.files import atomic


@dataclasses.dataclass(frozen=True)
class Trace:
    """Show the sites of a model and what a call of it costs.

    Example: jaxsim trace jaxsim.models.resnet:ResNet --input 1 28 28 1
    """

    model: Annotated[str, tyro.conf.Positional]
    """`module:name` of a Flax module class or of a function that makes one; a recipe file; or a
    folder of Hugging Face."""
    input: tuple[int, ...] = (1, 28, 28, 1)
    """Shape of an input, with its batch."""
    settings: str = "{}"
    """Keyword arguments of the model, as JSON."""
    json: Path | None = None
    """File for the numbers."""
    quiet: bool = False
    """Print nothing but errors; files are written all the same."""
    trust_model: bool = False
    """Import the model that the recipe names and run its code, from wherever it comes; without,
    only classes of jaxsim.models."""


def show(args: Trace) -> None:
    """Prints the sites and the cost of a model, or of both ends of a recipe.

    Args:
      args: Options of the command.

    Raises:
      ValueError: No such model, or one that cannot be traced.
    """
    from rich.console import Console

    atomic.check_target("json", args.json)
    if args.model.endswith(".toml"):
        recipe = read_recipe(args.model)
        folder = Path(args.model).parent
        steps = compose_steps(
            recipe["transform"], Given(lambda: data_of(recipe, folder).inputs, deploy_key(recipe))
        )
        net = model_of(recipe["model"], folder, trust=args.trust_model)
        shown = {"model": net, "transformed": steps(net)}
    else:
        try:
            settings = json.loads(args.settings)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"settings={args.settings!r}: not JSON: {error}") from None
        kind = "folder" if Path(args.model).is_dir() else "name"
        table = {kind: args.model, "settings": settings, "input": list(args.input)}
        # Who types the name of a model means to run it.
        shown = {"model": model_of(table, Path(), trust=True)}
    costs = {name: net.cost() for name, net in shown.items()}
    if args.json is not None:
        atomic.write_json(args.json, {name: cost_numbers(cost) for name, cost in costs.items()})
    console = Console(quiet=args.quiet)
    for name, net in shown.items():
        console.rule(name)
        console.print(net)
        console.print(costs[name])
