"""`jaxsim trace`, `transform` and `bench`: a model by its name, transforms from a file.

A recipe is TOML. A value that is a table with one key, the name of something public in jaxsim, is
what that makes: `inputs = {Grid = {bits = 8, symmetric = false}}`, `cells = {"cells.proportional" =
0.02}`. What can be named is told by `jaxsim.cli.vocabulary`.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from jaxtyping import Array, Key

import jaxsim as js
from jaxsim.cli.vocabulary import is_model, model_maker, public
from jaxsim.console.timing import Timing, alternate
from jaxsim.data import fashion_mnist
from jaxsim.files import atomic
from jaxsim.files.npz import read_npz
from jaxsim.files.text import read_text
from jaxsim.network.cost import Cost
from jaxsim.network.leaves import path_name
from jaxsim.numerics.checks import checked_int, checked_seed

_MODEL = {"name", "settings", "input", "weights", "seed", "call"}
_DEPLOY = {"seed", "data", "calibrate", "images"}
_COUNTS = ("calibrate", "images")


@dataclasses.dataclass(frozen=True)
class Trace:
    """Show the sites of a model and what a call of it costs.

    Example: jaxsim trace jaxsim.models.resnet:ResNet --input 1 28 28 1
    """

    model: Annotated[str, tyro.conf.Positional]
    """`module:name` of a Flax module class or of a function that makes one; or a recipe file."""
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


@dataclasses.dataclass(frozen=True)
class Transform:
    """Take a model through the transforms of a recipe, deploy it, save it and report on it.

    Example: jaxsim transform chip.toml --out chip
    """

    recipe: Annotated[Path, tyro.conf.Positional]
    """TOML file; docs/cli.md shows one."""
    out: Path = Path("chip")
    """Folder to make, with the checkpoint and the report in it."""
    seed: int | None = None
    """Of what the cells draw, the recipe's unless said."""
    json: Path | None = None
    """File for the numbers."""
    quiet: bool = False
    """Print nothing but errors; files are written all the same."""
    trust_model: bool = False
    """Import the model that the recipe names and run its code, from wherever it comes; without,
    only classes of jaxsim.models."""


@dataclasses.dataclass(frozen=True)
class Bench:
    """Time the network of a recipe beside its model, both compiled, on this machine.

    Example: jaxsim bench chip.toml --batch 256
    """

    recipe: Annotated[Path, tyro.conf.Positional]
    """TOML file; docs/cli.md shows one."""
    batch: int = 64
    """Inputs of a call: of the recipe's data where it names some, else random."""
    runs: int = 11
    """Warm calls of each, taken in turn; at least 5."""
    seed: int | None = None
    """Of what the cells and the inputs draw, the recipe's unless said."""
    json: Path | None = None
    """File for the numbers."""
    quiet: bool = False
    """Print nothing but errors; files are written all the same."""
    trust_model: bool = False
    """Import the model that the recipe names and run its code, from wherever it comes; without,
    only classes of jaxsim.models."""


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
        net = model_of(recipe["model"], Path(args.model).parent, trust=args.trust_model)
        shown = {"model": net, "transformed": compose_steps(recipe["transform"])(net)}
    else:
        try:
            settings = json.loads(args.settings)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"settings={args.settings!r}: not JSON: {error}") from None
        table = {"name": args.model, "settings": settings, "input": list(args.input)}
        # Who types the name of a model means to run it.
        shown = {"model": model_of(table, Path(), trust=True)}
    costs = {name: net.cost() for name, net in shown.items()}
    if args.json is not None:
        atomic.write_json(args.json, {name: _numbers(cost) for name, cost in costs.items()})
    console = Console(quiet=args.quiet)
    for name, net in shown.items():
        console.rule(name)
        console.print(net)
        console.print(costs[name])


def transform(args: Transform) -> js.Network:
    """Runs a recipe: writes `chip` (a checkpoint) and `report.txt` into a new folder.

    Args:
      args: Options of the command.

    Returns:
      The deployed network.

    Raises:
      ValueError: The folder exists, or the recipe says what cannot be done.
    """
    from rich.console import Console

    if args.out.exists():
        raise ValueError(f"out={str(args.out)!r} exists; choose a new folder")
    atomic.check_target("json", args.json)
    recipe = _with_seed(read_recipe(args.recipe), args.seed)
    net, chip, data = build(recipe, args.recipe.parent, trust=args.trust_model)
    cost = chip.cost()
    report: list[Any] = [net, chip, cost]
    numbers: dict[str, Any] = {"cost": _numbers(cost)}
    if data is not None:
        few = slice(recipe["deploy"].get("images"))
        seen = data["images"][few], data["labels"][few]
        key = jax.random.fold_in(_key(recipe), 1)
        table = js.compare(net, {"transformed": chip}, seen, key=key)
        report.append(table)
        numbers["accuracy"] = [row._asdict() for row in table.rows]
    args.out.mkdir(parents=True)
    js.save(args.out / "chip", chip)
    atomic.write_text(args.out / "report.txt", "\n".join(map(str, report)))
    if args.json is not None:
        atomic.write_json(args.json, numbers)
    console = Console(quiet=args.quiet)
    console.print(*report, sep="\n")
    console.print(f"wrote {args.out / 'chip'} and {args.out / 'report.txt'}")
    return chip


def bench(args: Bench) -> dict[str, Timing]:
    """Times the model and its transformed network, and prints a table.

    Args:
      args: Options of the command.

    Returns:
      Times of "model" and "transformed".

    Raises:
      ValueError: A setting out of range, or the recipe says what cannot be done.
    """
    from rich.console import Console
    from rich.table import Table

    batch, runs = checked_int("batch", args.batch, 1), checked_int("runs", args.runs, 5)
    atomic.check_target("json", args.json)
    recipe = _with_seed(read_recipe(args.recipe), args.seed)
    net, chip, data = build(recipe, args.recipe.parent, trust=args.trust_model)
    if data is None:
        shape = (batch, *recipe["model"]["input"][1:])
        x = np.random.default_rng(args.seed or 0).normal(size=shape).astype(np.float32)
    else:
        x = np.resize(data["images"], (batch, *data["images"].shape[1:]))
    run = jax.jit(lambda net, x, key: net(x, key=key))
    nets = {"model": net, "transformed": chip}
    calls = {name: partial(run, n, jnp.asarray(x), _key(recipe)) for name, n in nets.items()}
    times = alternate(calls, runs=runs)
    table = Table(title=f"a call of {batch} inputs, median of {runs}, on {jax.devices()[0]}")
    for column in ("network", "first call, s", "ms", "best, ms", "times the model", "inputs a s"):
        table.add_column(column, justify="left" if column == "network" else "right")
    for name, taken in times.items():
        table.add_row(
            name,
            f"{taken.first:.2f}",
            f"{1e3 * taken.median:.2f}",
            f"{1e3 * taken.best:.2f}",
            f"{taken.median / times['model'].median:.2f}",
            f"{batch / taken.median:,.0f}",
        )
    if args.json is not None:
        atomic.write_json(args.json, {name: taken._asdict() for name, taken in times.items()})
    Console(quiet=args.quiet).print(table)
    return times


def build(recipe: Mapping[str, Any], folder: Path, *, trust: bool = False) -> Built:
    """Builds the network of a recipe, transforms it and deploys it.

    Args:
      recipe: Recipe, from `read_recipe`.
      folder: Folder that relative paths start from.
      trust: Whether a model outside `jaxsim.models` may be imported, which runs its code.

    Raises:
      ValueError: The recipe says what cannot be done.
    """
    steps, settings = compose_steps(recipe["transform"]), recipe["deploy"]
    counts = {k: checked_int(f"[deploy] {k}", settings[k], 1) for k in _COUNTS if k in settings}
    if counts and "data" not in settings:
        raise ValueError(f"[deploy]: {next(iter(counts))} is of data, and data is missing")
    net = model_of(recipe["model"], folder, trust=trust)
    chip = steps(net)
    data = _data(settings["data"], folder) if "data" in settings else None
    if chip.cores:
        calibrate = None if data is None else data["train"][: counts.get("calibrate", 256)]
        try:
            chip = js.deploy(chip, key=_key(recipe), calibrate=calibrate)
        except ValueError as error:
            if calibrate is not None or "calibrate" not in str(error):
                raise
            raise ValueError(
                "[deploy]: data is missing; ranges of inputs are set by it: name an npz of train, "
                'images and labels, or "fashion_mnist"'
            ) from error
    return Built(net, chip, data)


def read_recipe(path: str | Path) -> dict[str, Any]:
    """Reads a recipe and checks its form.

    Args:
      path: TOML file.

    Returns:
      `model` and `deploy`, tables, and `transform`, a list of tables with a name each.

    Raises:
      ValueError: Not TOML, a part that is missing, or a key that is unknown.
    """
    try:
        recipe = tomllib.loads(read_text(path))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ValueError(f"recipe={str(path)!r}: not TOML: {error}") from None
    _check_keys("recipe", recipe, {"model", "transform", "deploy"})
    if "model" not in recipe:
        raise ValueError(f"recipe={str(path)!r}: has no [model]")
    steps = recipe.setdefault("transform", [])
    recipe.setdefault("deploy", {})
    for name, allowed in (("model", _MODEL), ("deploy", _DEPLOY)):
        _check_keys(f"[{name}]", recipe[name], allowed)
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
    for name in ("name", "input"):
        if name not in table:
            raise ValueError(f"[model]: {name} is missing")
    shape = table["input"]
    if not isinstance(shape, list) or not all(isinstance(n, int) and n > 0 for n in shape):
        raise ValueError(f"[model] input={shape!r}: must be a list of sizes, the batch first")
    name, call, seed = str(table["name"]), table.get("call", {}), _seed("[model]", table)
    if not isinstance(call, dict):
        raise ValueError(f"[model] call={call!r}: must be a table")
    make = model_maker(name, trust=trust)
    settings = _arguments(make, table.get("settings", {}))
    x = jnp.zeros(shape)
    if isinstance(make, type) and issubclass(make, nnx.Module):
        settings = {"rngs": nnx.Rngs(seed)} | dict(settings)
    model = _call(f"[model] {name}", make, settings)
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
    return _with_weights(net, path) if path.suffix == ".npz" else js.load(path, net)


def compose_steps(steps: Sequence[Mapping[str, Any]]) -> Callable[[js.Network], js.Network]:
    """Composes the transforms of a recipe, one after the other.

    Args:
      steps: Tables `[[transform]]`, each with a name and arguments.

    Raises:
      ValueError: An unknown transform or argument; when applied, what a transform raises.
    """
    transforms: list[tuple[str, Callable[[js.Network], js.Network]]] = []
    for i, step in enumerate(steps, 1):
        try:
            make = public(str(step["name"]))
        except ValueError as error:
            raise ValueError(f"transform {i}: name={error}") from None
        settings = {k: _resolve(v) for k, v in step.items() if k != "name"}
        what = f"transform {i}, {step['name']}"
        built: Callable[[js.Network], js.Network] = _call(what, make, settings)
        if not callable(built):
            raise ValueError(f"{what}: makes a {type(built).__name__}, no transform")
        transforms.append((what, built))

    def apply(net: js.Network) -> js.Network:
        for what, step in transforms:
            try:
                net = step(net)
            # What a transform says of values that a file should not have given it.
            except (ValueError, TypeError, AttributeError, ArithmeticError) as error:
                raise ValueError(f"{what}: {error}") from error
            if not isinstance(net, js.Network):
                raise ValueError(f"{what}: makes a {type(net).__name__} of a network, no network")
        return net

    return apply


def _key(recipe: Mapping[str, Any]) -> Key[Array, ""]:
    return jax.random.key(_seed("[deploy]", recipe["deploy"]))


def _seed(what: str, table: Mapping[str, Any]) -> int:
    return checked_seed(table.get("seed", 0), f"{what} seed")


def _with_seed(recipe: dict[str, Any], seed: int | None) -> dict[str, Any]:
    """A recipe whose cells draw from another seed, if one is given."""
    if seed is None:
        return recipe
    return recipe | {"deploy": recipe["deploy"] | {"seed": checked_seed(seed)}}


def _numbers(cost: Cost) -> dict[str, Any]:
    sites = [
        {"name": s.name, "params": s.params, "nonzero": s.nonzero, **s.spent} for s in cost.sites
    ]
    return {"params": cost.params, "nonzero": cost.nonzero, "sites": sites}


def _resolve(value: Any) -> Any:
    """A value of a recipe, with what its tables name in their places."""
    if isinstance(value, list):
        return tuple(_resolve(v) for v in value)
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((name, inner),) = value.items()
        # Other tables of one key are arguments, such as the patterns of `rules`.
        if name.split(".")[0] in js.__all__:
            make = public(name)
            return _call(name, make, _arguments(make, inner))
    return {name: _resolve(inner) for name, inner in value.items()}


def _arguments(make: Callable[..., Any], given: Any) -> Any:
    """Arguments of `make`; a key that is one of its parameters does not name a value."""
    if isinstance(given, dict) and given.keys() <= inspect.signature(make).parameters.keys():
        return {name: _resolve(inner) for name, inner in given.items()}
    return _resolve(given)


def _call(what: str, make: Any, given: Any) -> Any:
    """Calls with a table by name, with a list by position, or with one value."""
    args = given if isinstance(given, tuple) else () if isinstance(given, dict) else (given,)
    try:
        return make(*args, **(given if isinstance(given, dict) else {}))
    except Exception as error:  # whatever it says of values that it was not made for
        raise ValueError(f"{what}: {error}") from error


def _check_keys(what: str, table: Any, allowed: set[str]) -> None:
    if not isinstance(table, dict):
        raise ValueError(f"{what}={table!r}: must be a table")
    for key in table.keys() - allowed:
        raise ValueError(f"{what}: {key!r} is unknown; it may have {', '.join(sorted(allowed))}")


def _with_weights(net: js.Network, path: Path) -> js.Network:
    """A network with the arrays of a file, by the paths of its parameters and buffers."""
    held = read_npz(path)

    def leaf(where: Any, old: Array) -> Array:
        name = path_name(where)
        if name not in held:
            raise ValueError(f"weights={str(path)!r}: {name} is missing")
        if held[name].shape != old.shape:
            raise ValueError(
                f"weights={str(path)!r}: {name} has shape {held[name].shape}, not {old.shape}"
            )
        return jnp.asarray(held.pop(name), old.dtype)

    params, buffers = (
        jax.tree_util.tree_map_with_path(leaf, tree) for tree in (net.params, net.buffers)
    )
    if held:
        raise ValueError(f"weights={str(path)!r}: no place for {', '.join(sorted(held))}")
    return dataclasses.replace(net, params=params, buffers=buffers)


def _data(name: Any, folder: Path) -> dict[str, np.ndarray]:
    """Inputs to calibrate on, inputs to compare on, and their labels."""
    if name == "fashion_mnist":
        train, test = fashion_mnist("train"), fashion_mnist("test")
        return {"train": train.images, "images": test.images, "labels": test.labels}
    found = read_npz(folder / str(name))
    for part in ("train", "images", "labels"):
        if part not in found:
            raise ValueError(f"[deploy] data={name!r}: the file has no array {part!r}")
    return found
