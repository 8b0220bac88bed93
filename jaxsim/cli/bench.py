"""`jaxsim bench`: the time of a call, of a model and of what a recipe makes of it."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxsim.cli.options import OfRecipe
from jaxsim.cli.recipe import build, deploy_key
from jaxsim.console.timing import Timing, alternate
from jaxsim.numerics.checks import checked_int


@dataclasses.dataclass(frozen=True)
class Bench(OfRecipe):
    """Time the network of a recipe beside its model, both compiled, on this machine.

    Example: jaxsim bench chip.toml --batch 256
    """

    batch: int = 64
    """Inputs of a call: of the recipe's data where it names some, else random."""
    runs: int = 11
    """Warm calls of each, taken in turn; at least 5."""


def bench(args: Bench) -> dict[str, Timing]:
    """Times the model and its transformed network, and prints a table.

    Args:
      args: Options of the command.

    Returns:
      Times of "model" and "transformed".

    Raises:
      ValueError: A setting out of range, or the recipe says what cannot be done.
    """
    from rich.table import Table

    console = args.open()
    batch, runs = checked_int("batch", args.batch, 1), checked_int("runs", args.runs, 5)
    recipe = args.read()
    net, chip, data = build(recipe, args.recipe.parent, trust=args.trust_model)
    if data is None:
        shape = (batch, *recipe["model"]["input"][1:])
        dtype = net.example.arrays[0].dtype
        x = np.random.default_rng(args.seed or 0).normal(size=shape)
        x = (np.abs(x) if np.issubdtype(dtype, np.integer) else x).astype(dtype)
    else:
        x = np.resize(data["images"], (batch, *data["images"].shape[1:]))
    run = jax.jit(lambda net, x, key: net(x, key=key))
    nets = {"model": net, "transformed": chip}
    calls = {name: partial(run, n, jnp.asarray(x), deploy_key(recipe)) for name, n in nets.items()}
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
    args.write({name: taken._asdict() for name, taken in times.items()})
    console.print(table)
    return times
