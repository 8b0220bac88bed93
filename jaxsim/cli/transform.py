"""`jaxsim transform`: a recipe to a deployed checkpoint and a report."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

import jaxsim as js
from jaxsim.cli.folders import folder_tokenizer
from jaxsim.cli.options import OfRecipe
from jaxsim.cli.recipe import build, cost_numbers, deploy_key
from jaxsim.files import atomic

_FORMATS: dict[str, tuple[Callable[..., Any], str]] = {
    "stablehlo": (js.export.stablehlo, ".npz"),
    "onnx": (js.export.onnx, ".onnx"),
    "gguf": (js.export.gguf, ".gguf"),
}
"""Formats that a recipe may ask for, and the endings of their files."""


@dataclasses.dataclass(frozen=True)
class Transform(OfRecipe):
    """Take a model through the transforms of a recipe, deploy it, save it and report on it.

    Example: jaxsim transform chip.toml --out chip
    """

    out: Path = Path("chip")
    """Folder to make, with the checkpoint and the report in it."""


def transform(args: Transform) -> js.Network:
    """Runs a recipe: writes `chip` (a checkpoint) and `report.txt` into a new folder.

    Args:
      args: Options of the command.

    Returns:
      The deployed network.

    Raises:
      ValueError: The folder exists, or the recipe says what cannot be done.
    """
    console = args.open()
    if args.out.exists():
        raise ValueError(f"out={str(args.out)!r} exists; choose a new folder")
    recipe = args.read()
    formats = _formats(recipe["deploy"].get("export", []))
    net, chip, data = build(recipe, args.recipe.parent, trust=args.trust_model)
    cost = chip.cost()
    report: list[Any] = [net, chip, cost]
    numbers: dict[str, Any] = {"cost": cost_numbers(cost)}
    if data is not None:
        few = slice(recipe["deploy"].get("images"))
        seen = data["images"][few], data["labels"][few]
        key = jax.random.fold_in(deploy_key(recipe), 1)
        table = js.compare(net, {"transformed": chip}, seen, key=key)
        report.append(table)
        numbers["accuracy"] = [row._asdict() for row in table.rows]
    args.out.mkdir(parents=True)
    js.save(args.out / "chip", chip)
    atomic.write_text(args.out / "report.txt", "\n".join(map(str, report)))
    for name in formats:  # last: what a format cannot say leaves the rest written
        shapes, more = chip.example.combine() if chip.cut_by else ((), {})
        if name == "gguf":
            model = recipe["model"]
            folder = args.recipe.parent / str(model["folder"]) if "folder" in model else None
            shapes, more = (), {"tokenizer": folder and folder_tokenizer(folder)}
        write, ending = _FORMATS[name]
        write(chip, args.out / f"chip{ending}", *shapes, **more)
    args.write(numbers)
    console.print(*report, sep="\n")
    console.print(f"wrote {args.out / 'chip'} and {args.out / 'report.txt'}")
    return chip


def _formats(names: Any) -> list[str]:
    """Formats to write beside the checkpoint, checked before the work begins."""
    if not isinstance(names, list) or not all(name in _FORMATS for name in names):
        known = ", ".join(map(repr, _FORMATS))
        raise ValueError(f"[deploy] export={names!r}: must be a list of some of {known}")
    return names
