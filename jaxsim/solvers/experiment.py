"""Games, networks and baselines of an experiment in learned meta-solvers, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Key

from jaxsim import games as jg
from jaxsim import solvers as js
from jaxsim.numerics.checks import checked_int
from jaxsim.solvers.mixing import MetaSolver
from jaxsim.solvers.nac import Sampler

GameName = Literal["skill", "rps", "lotto", "pennies", "kuhn", "leduc"]


NetworkName = Literal["equivariant", "gru", "conv"]


class Recipe(NamedTuple):
    """Games, objective and oracles of an experiment.

    Attributes:
      sample: Function from a random key to a game.
      objective: Objective of meta-training.
      measure: Oracle that measures NashConv from below, beside the exact one.
      gradient: Gradient of meta-training: "unrolled" or "es".
    """

    sample: Sampler
    objective: js.Objective
    measure: js.Oracle
    gradient: Literal["unrolled", "es"] = "unrolled"


def recipe(game: GameName | str, *, dim: int = 200) -> Recipe:
    """Chooses the oracle and the objective that go with a kind of game.

    Args:
      game: "skill" (random games of `dim` actions), "rps" (seven modes in the plane), "lotto" (nine
        customers, 20 servers), "pennies" (50 rounds), "kuhn" or "leduc" (poker; answers are half
        exact and half random, and the gradient is by evolution strategies).
      dim: Number of actions of a game of skill, at least 2.

    Examples:
      >>> from jaxsim.solvers.experiment import recipe
      >>> made = recipe("rps")
      >>> made.objective.iterations, made.gradient
      (15, 'unrolled')
    """
    every = js.Objective(js.exact(), each=True)
    match game:
        case "skill":
            dim = checked_int("dim", dim, 2)
            oracle, measure = js.unrolled(5, 25.0), js.unrolled(20, 10.0)
            aim = every._replace(oracle=oracle, window=20)
            return Recipe(lambda key: jg.games_of_skill(key, dim), aim, measure)
        case "rps":
            oracle, measure = js.unrolled(5, 2.0), js.unrolled(20, 2.0)
            aim = every._replace(oracle=oracle, iterations=15, window=15)
            return Recipe(jg.rps_mixture, aim, measure)
        case "lotto":
            oracle, measure = js.unrolled(10, 0.5), js.unrolled(30, 0.5)
            aim = js.Objective(oracle, measure, iterations=10, window=5)
            return Recipe(lambda key: jg.lotto(key, servers=20), aim, measure)
        case "pennies":
            oracle, measure = js.unrolled(10, 10.0), js.unrolled(20, 10.0)
            aim = every._replace(oracle=oracle, start=1, iterations=9, window=9)
            return Recipe(lambda key: jg.matching_pennies(50), aim, measure)
        case "kuhn" | "leduc":
            named = jg.kuhn_poker() if game == "kuhn" else jg.leduc_poker()
            both = jg.both_seats(named.game)
            oracle = js.approximate(0.5)
            aim = every._replace(oracle=oracle, start=1, iterations=15, window=15)
            return Recipe(lambda key: both, aim, js.exact(), "es")
        case _:
            raise ValueError(
                f"game={game!r}: must be 'skill', 'rps', 'lotto', 'pennies', 'kuhn' or 'leduc'"
            )


def meta_network(name: NetworkName | str) -> nn.Module:
    """Makes a meta-solver's network by its name.

    Args:
      name: Name of the network: "equivariant", "gru" or "conv".
    """
    match name:
        case "equivariant":
            return js.EquivariantMixing()
        case "gru":
            return js.GRUMixing()
        case "conv":
            return js.ConvMixing()
        case _:
            raise ValueError(f"network={name!r}: must be 'equivariant', 'gru' or 'conv'")


def measure(
    solvers: Mapping[str, tuple[MetaSolver, MetaSolver | None]],
    made: Recipe,
    key: Key[Array, ""],
    games: int,
    *,
    iterations: int | None = None,
) -> dict[str, tuple[Float[np.ndarray, "games T1"], Float[np.ndarray, "games T1"]]]:
    """Measures NashConv of populations that several meta-solvers grow in the same games.

    Args:
      solvers: Pairs by name: the meta-solver that chooses opponents, and the one that reports, or
        None for the same.
      made: Games, objective and oracles, from `recipe`.
      key: Random key of the games and of all agents.
      games: Number of games, at least 1.
      iterations: Number of agents that join; None for the objective's.

    Returns:
      For each, exact NashConv (NaN where none is known) and what the recipe's oracle finds.
    """
    aim, games = made.objective, checked_int("games", games, 1)
    count = aim.iterations if iterations is None else checked_int("iterations", iterations, 1)

    def one(solver: MetaSolver, report: MetaSolver | None, key: Any) -> tuple[Array, Array]:
        game, play = jax.random.split(key)
        found = js.psro(
            made.sample(game),
            solver,
            aim.oracle,
            play,
            start=aim.start,
            iterations=count,
            report=report,
            exploiter=made.measure,
        )
        return found.nash_conv, found.found

    every: Callable[..., Any] = jax.jit(jax.vmap(one, (None, None, 0)))
    keys = jax.random.split(key, games)
    found: dict[str, Any] = {}
    for name, (solver, report) in solvers.items():
        exact, seen = every(solver, report, keys)
        found[name] = (np.asarray(exact), np.asarray(seen))
    return found


def baselines() -> dict[str, tuple[MetaSolver, MetaSolver | None]]:
    """Lists the meta-solvers that a learned one is compared with."""
    return {
        "PSRO-Nash, LP": (js.nash_lp(), None),
        "PSRO-Nash, RM+": (js.nash(), None),
        "uniform": (js.uniform(), None),
        "rectified Nash": (js.rectified(), js.nash()),
        "PRD": (js.projected_replicator(), None),
        "self-play": (js.latest(), None),
    }
