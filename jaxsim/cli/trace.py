"""`jaxsim trace`: the sites of a model, and what a call costs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import tyro

from jaxsim.cli.options import Trusting
from jaxsim.cli.recipe import (
    cost_numbers,
    data_of,
    deploy_key,
    model_of,
    read_recipe,
    with_seed,
)
from jaxsim.cli.steps import Given, compose_steps


@dataclasses.dataclass(frozen=True)
class Trace(Trusting):
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


def show(args: Trace) -> None:
    """Prints the sites and the cost of a model, or of both ends of a recipe.

    Args:
      args: Options of the command.

    Raises:
      ValueError: No such model, or one that cannot be traced.
    """
    console = args.open()
    if args.model.endswith(".toml"):
        recipe = with_seed(read_recipe(args.model), args.seed)
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
        table |= {} if args.seed is None else {"seed": args.seed}
        # Who types the name of a model means to run it.
        shown = {"model": model_of(table, Path(), trust=True)}
    costs = {name: net.cost() for name, net in shown.items()}
    args.write({name: cost_numbers(cost) for name, cost in costs.items()})
    for name, net in shown.items():
        console.rule(name)
        console.print(net)
        console.print(costs[name])
