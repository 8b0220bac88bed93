"""Recipes: a model by its name, transforms from a file.

A recipe is TOML. A value that is a table with one key, the name of something public in jaxsim, is
what that makes: `inputs = {Grid = {bits = 8, symmetric = false}}`, `cells = {"cells.proportional" =
0.02}`. What can be named is told by `jaxsim.cli.vocabulary`.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Key

import jaxsim as js
from jaxsim.cli.folders import folder_model
from jaxsim.cli.keys import check_keys
from jaxsim.cli.steps import Given, arguments, compose_steps, construct
from jaxsim.cli.vocabulary import is_model, model_maker
from jaxsim.data import fashion_mnist
from jaxsim.data.safetensors import read_safetensors
from jaxsim.files.npz import read_npz
from jaxsim.files.text import read_text
from jaxsim.network.cost import Cost
from jaxsim.network.leaves import path_name
from jaxsim.numerics.checks import checked_int, checked_seed

_MODEL = {"name", "folder", "settings", "input", "weights", "seed", "call"}
_DEPLOY = {"seed", "data", "calibrate", "images", "export"}
_PARTS = ("model", "transform", "deploy")
_COUNTS = ("calibrate", "images")


class Data(NamedTuple):
    """What a recipe names as its data; None where it names none.

    Attributes:
      arrays: `train`, `images` and `labels`.
      inputs: Training inputs that set the ranges, and that transforms ask for.
    """

    arrays: Mapping[str, np.ndarray] | None
    inputs: np.ndarray | None


class Built(NamedTuple):
    """Network of a recipe before and after its transforms.

    Attributes:
      net: Network of the model, not transformed.
      chip: The same transformed, and deployed where it has cores.
      data: Arrays `train`, `images` and `labels`, where the recipe names data; else None.
    """

    net: js.Network
    chip: js.Network
    data: Mapping[str, np.ndarray] | None


def build(recipe: Mapping[str, Any], folder: Path, *, trust: bool = False) -> Built:
    """Builds the network of a recipe, transforms it and deploys it.

    Args:
      recipe: Recipe, from `read_recipe`.
      folder: Folder that relative paths start from.
      trust: Whether a model outside `jaxsim.models` may be imported, which runs its code.

    Raises:
      ValueError: The recipe says what cannot be done.
    """
    arrays, inputs = data_of(recipe, folder)
    steps = compose_steps(recipe["transform"], Given(lambda: inputs, deploy_key(recipe)))
    net = model_of(recipe["model"], folder, trust=trust)
    chip = steps(net)
    if chip.cores:
        try:
            chip = js.deploy(chip, key=deploy_key(recipe), calibrate=inputs)
        except ValueError as error:
            if inputs is not None or "calibrate" not in str(error):
                raise
            raise ValueError(
                "[deploy]: data is missing; ranges of inputs are set by it: name an npz of train, "
                'images and labels, or "fashion_mnist"'
            ) from error
    return Built(net, chip, arrays)


def chip_of(recipe: Mapping[str, Any], folder: Path, *, trust: bool = False) -> js.Network:
    """Builds the network of a recipe and transforms it; it is not deployed.

    Args:
      recipe: Recipe, from `read_recipe`.
      folder: Folder that relative paths start from.
      trust: Whether a model outside `jaxsim.models` may be imported, which runs its code.

    Raises:
      ValueError: The recipe says what cannot be done.
    """
    given = Given(lambda: data_of(recipe, folder).inputs, deploy_key(recipe))
    steps = compose_steps(recipe["transform"], given)
    return steps(model_of(recipe["model"], folder, trust=trust))


def data_of(recipe: Mapping[str, Any], folder: Path) -> Data:
    """Reads the data that a recipe names.

    Args:
      recipe: Recipe, from `read_recipe`.
      folder: Folder that relative paths start from.

    Raises:
      ValueError: There is no such data, or a count of it out of range.
    """
    settings = recipe["deploy"]
    counts = {k: checked_int(f"[deploy] {k}", settings[k], 1) for k in _COUNTS if k in settings}
    if "data" in settings:
        arrays = _arrays(settings["data"], folder)
        return Data(arrays, arrays["train"][: counts.get("calibrate", 256)])
    if counts:
        raise ValueError(f"[deploy]: {next(iter(counts))} is of data, and data is missing")
    return Data(None, None)


def read_recipe(path: str | Path, parts: Iterable[str] = _PARTS) -> dict[str, Any]:
    """Reads a recipe and checks its form.

    Args:
      path: TOML file.
      parts: Tables that it may have; `model` is one that it then must have.

    Returns:
      `model` and `deploy`, tables, and `transform`, a list of tables with a name each.

    Raises:
      ValueError: Not TOML, a part that is missing, or a key that is unknown.
    """
    try:
        recipe = tomllib.loads(read_text(path))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ValueError(f"recipe={str(path)!r}: not TOML: {error}") from None
    check_keys("recipe", recipe, {*parts})
    if "model" in parts and "model" not in recipe:
        raise ValueError(f"recipe={str(path)!r}: has no [model]")
    steps = recipe.setdefault("transform", [])
    recipe.setdefault("deploy", {})
    for name, allowed in (("model", _MODEL), ("deploy", _DEPLOY)):
        check_keys(f"[{name}]", recipe.get(name, {}), allowed)
    if not isinstance(steps, list) or not all(isinstance(s, dict) and "name" in s for s in steps):
        raise ValueError(f"recipe={str(path)!r}: each [[transform]] is a table with a name")
    return recipe


def model_of(table: Mapping[str, Any], folder: Path, *, trust: bool = False) -> js.Network:
    """Makes the network of a `[model]` table, not transformed.

    Args:
      table: Table `[model]`; see docs/cli.md.
      folder: Folder that relative paths start from.
      trust: Whether a model outside `jaxsim.models` may be imported, which runs its code.

    Raises:
      ValueError: No such model, one that needs trust, or weights that do not fit it.
    """
    if ("name" in table) == ("folder" in table):
        said = "both are there" if "name" in table else "name is missing"
        raise ValueError(f"[model]: {said}; must have a name, or a folder of Hugging Face")
    if "input" not in table:
        raise ValueError("[model]: input is missing")
    shape = table["input"]
    if not isinstance(shape, list) or not all(isinstance(n, int) and n > 0 for n in shape):
        raise ValueError(f"[model] input={shape!r}: must be a list of sizes, the batch first")
    seed = _seed("[model]", table)
    if "folder" in table:
        for other in ("weights", "call"):
            if other in table:
                raise ValueError(f"[model] {other}: a folder has weights, and is called with ids")
        settings = table.get("settings", {})
        check_keys("[model] settings", settings, {"classes"})
        return folder_model(folder / str(table["folder"]), shape, settings, seed)
    name, call = str(table["name"]), table.get("call", {})
    if not isinstance(call, dict):
        raise ValueError(f"[model] call={call!r}: must be a table")
    make = model_maker(name, trust=trust)
    settings = arguments(make, table.get("settings", {}), Given())
    x = jnp.zeros(shape)
    if isinstance(make, type) and issubclass(make, nnx.Module):
        settings = {"rngs": nnx.Rngs(seed)} | dict(settings)
    model = construct(f"[model] {name}", make, settings, Given())
    if not is_model(model):
        raise ValueError(f"[model] {name}: makes a {type(model).__name__}, no Flax module")
    if isinstance(model, nnx.Module):
        net = js.trace(model, None, x, **call)
    else:
        init = jax.jit(lambda key: model.init(key, x, **call))
        net = js.trace(model, init(jax.random.key(seed)), x, **call)
    if "weights" not in table:
        return net
    path = folder / str(table["weights"])
    if not path.exists():
        raise ValueError(f"[model] weights={str(path)!r}: no such file or folder")
    readers = {".npz": read_npz, ".safetensors": read_safetensors}
    if path.suffix in readers:
        return _with_weights(net, path, readers[path.suffix](path))
    return js.load(path, net)


def deploy_key(recipe: Mapping[str, Any]) -> Key[Array, ""]:
    """Random key of what the cells of a recipe draw.

    Args:
      recipe: Recipe, from `read_recipe`.

    Raises:
      ValueError: Its seed is out of range.
    """
    return jax.random.key(_seed("[deploy]", recipe["deploy"]))


def _seed(what: str, table: Mapping[str, Any]) -> int:
    return checked_seed(table.get("seed", 0), f"{what} seed")


def with_seed(recipe: dict[str, Any], seed: int | None) -> dict[str, Any]:
    """Makes a recipe whose cells draw from another seed, if one is given.

    Args:
      recipe: Recipe, from `read_recipe`.
      seed: The seed, from 0 to 2**32 - 1; None for the recipe's own.

    Raises:
      ValueError: A seed out of range.
    """
    if seed is None:
        return recipe
    return recipe | {"deploy": recipe["deploy"] | {"seed": checked_seed(seed)}}


def cost_numbers(cost: Cost) -> dict[str, Any]:
    """Makes of a cost what JSON holds.

    Args:
      cost: Cost of a network.
    """
    sites = [
        {"name": s.name, "params": s.params, "nonzero": s.nonzero, **s.spent} for s in cost.sites
    ]
    return {"params": cost.params, "nonzero": cost.nonzero, "sites": sites}


def _with_weights(net: js.Network, path: Path, held: dict[str, np.ndarray]) -> js.Network:
    """A network with the arrays of a file, by paths of parameters and buffers, `a/b` or `a.b`."""
    said = f"[model] weights={str(path)!r}"

    def leaf(where: Any, old: Array) -> Array:
        name = path_name(where)
        name = name if name in held else name.replace("/", ".")
        if name not in held:
            raise ValueError(f"{said}: {path_name(where)} is missing")
        if held[name].shape != old.shape:
            raise ValueError(f"{said}: {name} has shape {held[name].shape}, not {old.shape}")
        return jnp.asarray(held.pop(name), old.dtype)

    params, buffers = (
        jax.tree_util.tree_map_with_path(leaf, tree) for tree in (net.params, net.buffers)
    )
    if held:
        raise ValueError(f"{said}: no place for {', '.join(sorted(held))}")
    return dataclasses.replace(net, params=params, buffers=buffers)


def _arrays(name: Any, folder: Path) -> dict[str, np.ndarray]:
    """Inputs to calibrate on, inputs to compare on, and their labels."""
    if name == "fashion_mnist":
        train, test = fashion_mnist("train"), fashion_mnist("test")
        return {"train": train.images, "images": test.images, "labels": test.labels}
    found = read_npz(folder / str(name))
    for part in ("train", "images", "labels"):
        if part not in found:
            raise ValueError(f"[deploy] data={name!r}: the file has no array {part!r}")
    return found
