"""`jaxsim explore`: what each site of a recipe's model should become on an accelerator."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxsim as js
from jaxsim.cli.hardware import accelerator_of
from jaxsim.cli.keys import check_keys
from jaxsim.cli.options import OfRecipe
from jaxsim.cli.recipe import chip_of, data_of, deploy_key
from jaxsim.cli.steps import Given, compose_steps
from jaxsim.files import atomic
from jaxsim.files.toml import toml_value

_SETTINGS = {"minimize", "limits", "drop", "points", "steps", "baselines", "draws"}
_OPTION = {"name", "transform", "sites", "part"}


@dataclasses.dataclass(frozen=True)
class Explore(OfRecipe):
    """Find what each site of a model should become on an accelerator, from a recipe's options.

    Options are its tables [[option]], as docs/explore.md shows. The first half of the images of the
    recipe's data choose, the other half report. A run that was stopped goes on where `--out` is the
    same.

    Example: jaxsim explore chip.toml --accelerator mixed --out found
    """

    accelerator: str = "mixed"
    """`systolic_45nm`, `ax_bxp`, `isaac_like`, `mixed`, or a TOML file."""
    out: Path = Path("found")
    """Folder for the page, a recipe a point, and the scores from which a stopped run goes on."""


def explore(args: Explore) -> Any:
    """Explores the options of a recipe; writes `report.html` and a recipe for each point.

    Args:
      args: Options of the command.

    Returns:
      The front.

    Raises:
      ValueError: The recipe or the accelerator says what cannot be done.
    """
    from rich.table import Table

    console, recipe = args.open(), args.read("option", "explore")
    folder, key = args.recipe.parent, deploy_key(recipe)
    arrays, inputs = data_of(recipe, folder)
    if arrays is None:
        raise ValueError("[deploy]: data is missing; choices are measured on its images")
    settings = recipe.get("explore", {})
    check_keys("[explore]", settings, _SETTINGS)
    accelerator = accelerator_of(args.accelerator)
    options = options_of(recipe, Given(lambda: inputs, key))
    net = chip_of(recipe, folder, trust=args.trust_model)
    few = slice(recipe["deploy"].get("images"))
    images, labels = np.asarray(arrays["images"])[few], np.asarray(arrays["labels"])[few]
    half, reads = len(images) // 2, jax.random.fold_in(key, 1)

    def evaluate(chip: js.Network, rows: slice = slice(half)) -> float:
        return float(np.mean(js.classify(chip, images[rows], key=reads) == labels[rows]))

    args.out.mkdir(parents=True, exist_ok=True)
    try:
        front = js.explore(
            net,
            accelerator,
            options,
            inputs,
            evaluate,
            key=key,
            log=args.out / "scores.json",
            quiet=args.quiet,
            **settings,
        )
    except ValueError as error:
        named = str(error).startswith(tuple(_SETTINGS))
        raise ValueError(f"[explore] {error}") from None if named else error
    rest, table = (
        slice(half, None),
        Table("", "chosen on, right", "reported, right", "pJ", "recipe"),
    )
    reported: list[float] = []
    for i, point in enumerate(front.points):
        made = front.network(i)
        chip = js.deploy(made, calibrate=inputs, key=key) if made.cores else made
        reported.append(evaluate(chip, rest))
        path = args.out / f"point_{i}.toml"
        atomic.write_text(path, point_recipe(moved(recipe, folder, args.out), front, i))
        shown = (f"{point.accuracy:.4f}", f"{reported[-1]:.4f}", f"{point.energy:.4g}", path.name)
        table.add_row(str(i), *shown)
    page = args.out / "report.html"
    js.report(front, page, title=f"{args.recipe.stem} on {args.accelerator}")
    points = [
        {**point._asdict(), "reported": accuracy}
        for point, accuracy in zip(front.points, reported, strict=True)
    ]
    args.write({"exact": front.exact, "points": points})
    console.print(front, table, f"wrote {page} and {len(front.points)} recipes", sep="\n")
    return front


def options_of(recipe: Mapping[str, Any], given: Given) -> dict[str, js.Option]:
    """Makes the options of a recipe.

    Args:
      recipe: Recipe, from `read_recipe`.
      given: What transforms ask for.

    Raises:
      ValueError: No options, or one that is no table of an option.
    """
    listed = recipe.get("option", [])
    if not isinstance(listed, list) or not listed:
        raise ValueError("recipe: has no [[option]]; give at least one")
    found: dict[str, js.Option] = {}
    for i, table in enumerate(listed, 1):
        check_keys(f"option {i}", table, _OPTION)
        if "name" not in table:
            raise ValueError(f"option {i}: has no name")
        name, steps = str(table["name"]), table.get("transform", [])
        if name in found:
            raise ValueError(f"option {i}: {name!r} is there already")
        if not isinstance(steps, list) or not all(isinstance(s, dict) for s in steps):
            raise ValueError(f"option {i}, {name}: transform must be a list of tables with a name")
        made = compose_steps(steps, given) if steps else None
        found[name] = js.Option(made, table.get("sites", "*"), table.get("part"))
    return found


def moved(recipe: Mapping[str, Any], folder: Path, out: Path) -> dict[str, Any]:
    """Makes a recipe whose files are named from another folder.

    Args:
      recipe: Recipe, from `read_recipe`.
      folder: Folder that its relative paths start from.
      out: Folder that they are to start from.
    """
    found = dict(recipe)
    for table, name in (("model", "weights"), ("deploy", "data")):
        file = folder / str(recipe[table].get(name, ""))
        if name in recipe[table] and file.exists():
            relative = os.path.relpath(file, out)
            found[table] = recipe[table] | {name: Path(relative).as_posix()}
    return found


def point_recipe(recipe: Mapping[str, Any], front: Any, point: int) -> str:
    """Writes the recipe of a point, which `jaxsim transform` takes.

    Args:
      recipe: Recipe that was explored.
      front: What was found.
      point: Number of the point.
    """
    steps = {str(table["name"]): table.get("transform", []) for table in recipe["option"]}
    by_pattern = {pattern: _called(steps[name]) for name, pattern in front.patterns(point).items()}
    transforms = [*recipe["transform"]]
    if by_pattern:
        transforms.append({"name": "rules", "by_pattern": by_pattern})
    lines = ["[model]", *_lines(recipe["model"])]
    for table in transforms:
        lines += ["", "[[transform]]", *_lines(table)]
    if recipe["deploy"]:
        lines += ["", "[deploy]", *_lines(recipe["deploy"])]
    return "\n".join(lines) + "\n"


def _called(steps: list[dict[str, Any]]) -> dict[str, Any]:
    """Transforms as a table that names what makes them."""
    calls = [{s["name"]: {k: v for k, v in s.items() if k != "name"}} for s in steps]
    return calls[0] if len(calls) == 1 else {"compose": calls}


def _lines(table: Mapping[str, Any]) -> list[str]:
    return [f"{name} = {toml_value(value)}" for name, value in table.items()]
