"""`jaxsim nac`: meta-solvers trained, kept on disk and measured on games they have not seen."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Float

from jaxsim import solvers as js
from jaxsim.checkpoint.resumable import resumable
from jaxsim.checkpoint.resume import run_checkpoints
from jaxsim.cli.options import Seeded
from jaxsim.files import atomic
from jaxsim.numerics import memory
from jaxsim.numerics.checks import check_range, checked_int
from jaxsim.solvers.experiment import (
    GameName,
    NetworkName,
    baselines,
    measure,
    meta_network,
    recipe,
)
from jaxsim.solvers.mixing import MetaSolver


@dataclasses.dataclass(frozen=True)
class Train(Seeded):
    """Train a meta-solver on games of a kind; a run that was stopped goes on where it was."""

    game: Annotated[GameName, tyro.conf.Positional]
    """Kind of game."""
    out: Path = Path("nac")
    """Folder for checkpoints and settings."""
    network: NetworkName = "equivariant"
    """Of the meta-solver."""
    steps: int = 600
    """Of meta-training."""
    batch: int = 16
    """Games a step, divided over the devices."""
    rate: float = 6e-3
    """Of Adam at first; it falls by a cosine to nothing."""
    dim: int = 200
    """Actions of a game of skill."""
    grow: tuple[int, ...] = ()
    """Actions of games of skill to train on first, in turn; `dim` comes last, and each has an equal
    share of the steps."""
    every: int = 50
    """Steps between checkpoints."""
    plot: Path | None = None
    """Image file for the objective against the steps."""


@dataclasses.dataclass(frozen=True)
class Evaluate(Seeded):
    """Measure a trained meta-solver beside the others on new games."""

    folder: Annotated[Path, tyro.conf.Positional]
    """That `train` wrote to."""
    game: GameName | None = None
    """Kind of game, the one it was trained on unless said."""
    dim: int | None = None
    """Actions of a game of skill, as trained unless said."""
    games: int = 64
    """How many; they are not those of training."""
    iterations: int | None = None
    """Agents that join, as trained unless said."""
    plot: Path | None = None
    """PNG file for NashConv against the iterations."""
    seed: int = dataclasses.field(default=10**6, kw_only=True)
    """Of the games, 0 to 2**32 - 1."""


def train(args: Train) -> tuple[MetaSolver, Float[np.ndarray, " steps"]]:
    """Trains a meta-solver, or goes on training it.

    Whatever stops it, a run that is started again with the same settings ends with the same bits:
    the games of a step depend on the seed and the number of the step, and a checkpoint counts once
    it is complete.

    Args:
      args: Options of the command.

    Returns:
      The meta-solver and the objective at each step.

    Raises:
      ValueError: A setting out of range, or a folder of another run.
    """
    args.open()
    _check(args)
    network, optimizer = meta_network(args.network), js.meta_optimizer(args.rate, args.steps)
    key = jax.random.key(args.seed)
    stages, settings = _stages(args, network, optimizer), _settings(args)

    def step(at: tuple[Any, Array], i: int) -> tuple[tuple[Any, Array], Array]:
        state, value = stages[i * len(stages) // args.steps](at[0], key)
        return (state, at[1].at[i].set(value)), value

    state, curve = resumable(
        step,
        (js.init_meta(network, optimizer, key), jnp.full(args.steps, jnp.nan)),
        lambda done: range(done, args.steps),
        steps=args.steps,
        folder=args.out / "checkpoints",
        run=settings,
        every=args.every,
        on_open=lambda: _note(args.out / "settings.json", settings),
        label="meta-training",
        value="NashConv",
        quiet=args.quiet,
    )
    _write(args, np.asarray(curve))
    return js.network_solver(network, state.params), np.asarray(curve)


def _check(args: Train) -> None:
    """Checks the settings of a run.

    Raises:
      ValueError: One is out of range, or a file that cannot be written.
    """
    checked_int("steps", args.steps, 1)
    checked_int("every", args.every, 1)
    memory.check(f"steps={args.steps}", 4 * args.steps, "lower it")
    check_range("rate", args.rate, 0, above=True)
    if args.grow and args.game != "skill":
        raise ValueError(f"grow={args.grow}: games of {args.game!r} have one size; must be empty")
    meta_network(args.network)


def _stages(args: Train, network: Any, optimizer: Any) -> list[Callable[..., Any]]:
    """The step of meta-training on games of each size, in turn."""
    devices = [d for d in jax.devices() if args.batch % len(jax.devices()) == 0 or d.id == 0]
    mesh = jax.make_mesh((len(devices),), ("games",)) if len(devices) > 1 else None
    recipes = [recipe(args.game, dim=dim) for dim in (*args.grow, args.dim)]
    return [
        js.meta_step(
            network,
            r.objective,
            r.sample,
            optimizer,
            batch=args.batch,
            gradient=r.gradient,
            mesh=mesh,
        )
        for r in recipes
    ]


def _settings(args: Train) -> dict[str, Any]:
    """The settings that change what is computed."""
    return {k: v for k, v in dataclasses.asdict(args).items() if k not in _NOT_OF_THE_RUN}


def _note(path: Path, settings: dict[str, Any]) -> None:
    """Writes the settings beside the checkpoints, once."""
    if not path.exists() or not path.stat().st_size:
        atomic.write_text(path, json.dumps(settings, indent=1) + "\n")


def _write(args: Train, objective: Float[np.ndarray, " steps"]) -> None:
    """Writes the objective at each step, where that is asked for."""
    args.write({"objective": objective.tolist()})
    if args.plot is not None:
        from jaxsim.solvers.plot import nash_conv_curves

        nash_conv_curves(
            args.plot,
            {args.network: objective[None]},
            title=f"objective, {args.game}",
            along="steps",
        )


_NOT_OF_THE_RUN = ("out", "every", "plot", "json", "quiet", "config")
"""Settings that do not change what is computed."""


def load_solver(folder: Path) -> tuple[MetaSolver, dict[str, Any]]:
    """Loads the newest meta-solver of a folder that `train` wrote to, and the settings of the run.

    Args:
      folder: Folder that `train` wrote to.

    Raises:
      ValueError: There is none.
    """
    path = folder / "settings.json"
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        raise ValueError(
            f"folder={str(folder)!r}: no settings.json, or a damaged one; give a folder of "
            "`nac train`"
        ) from None
    network = meta_network(told["network"])
    optimizer = js.meta_optimizer(told["rate"], told["steps"])
    state = js.init_meta(network, optimizer, jax.random.key(0))
    with run_checkpoints(folder / "checkpoints", run=told, read_only=True) as kept:
        done, (state, _) = kept.newest((state, jnp.full(told["steps"], jnp.nan)))
    if done == 0:
        raise ValueError(f"folder={str(folder)!r}: no checkpoint yet")
    return js.network_solver(network, state.params), told


def evaluate(args: Evaluate) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Measures, prints a table, and writes a figure and the numbers where asked.

    Args:
      args: Options of the command.

    Raises:
      ValueError: No such run, or a setting out of range.
    """
    from rich.table import Table

    console, key = args.open(), jax.random.key(args.seed)
    solver, told = load_solver(args.folder)
    game: Any = args.game or told["game"]
    made = recipe(game, dim=args.dim or told["dim"])
    solvers = {f"NAC, {told['network']}": (solver, None), **baselines()}
    found = measure(solvers, made, key, args.games, iterations=args.iterations)
    table = Table(title=f"{game}: NashConv of {args.games} new games")
    for column in ("meta-solver", "exact", "± s.e.", "found by an oracle", "less the first"):
        table.add_column(column)
    first = next(iter(found.values()))
    for name, (exact, seen) in found.items():
        last = exact[:, -1] if np.isfinite(exact).all() else seen[:, -1]
        base = first[0][:, -1] if np.isfinite(first[0]).all() else first[1][:, -1]
        error = last.std(ddof=1) / len(last) ** 0.5 if len(last) > 1 else float("nan")
        table.add_row(
            name,
            f"{exact[:, -1].mean():.4f}",
            f"{error:.4f}",
            f"{seen[:, -1].mean():.4f}",
            f"{(last - base).mean():+.4f}",
        )
    console.print(table)
    console.print("NashConv is the sum of both players' gains; exploitability is half of it")
    if args.plot is not None:
        from jaxsim.solvers.plot import nash_conv_curves

        shown = {n: e if np.isfinite(e).all() else s for n, (e, s) in found.items()}
        nash_conv_curves(args.plot, shown, title=f"{game}, {args.games} new games")
    args.write(
        {
            n: {"exact": np.nan_to_num(e, nan=-1).tolist(), "found": s.tolist()}
            for n, (e, s) in found.items()
        }
    )
    return found
