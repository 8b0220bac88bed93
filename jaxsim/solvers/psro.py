"""Policy-space response oracles: populations that grow by answers to mixtures of themselves."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key

from jaxsim.games.game import Game, Strategy, alone, nash_conv, payoffs
from jaxsim.numerics import memory
from jaxsim.numerics.arrays import own_promotion
from jaxsim.numerics.checks import checked_int
from jaxsim.solvers.mixing import MetaSolver
from jaxsim.solvers.responses import Oracle


class Population(NamedTuple):
    """Agents in order of arrival, with room for more.

    Attributes:
      strategies: Strategy of each agent, [N, ...].
      payoffs: Payoff of each against each, 0 where there is none yet, [N, N].
      size: Number of agents that have arrived.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxsim.games as jg
      >>> import jaxsim.solvers as so
      >>> game = jg.matrix_game(jg.rock_paper_scissors())
      >>> run = so.psro(game, so.nash(100), so.exact(), jax.random.key(0), iterations=4)
      >>> run.population.strategies.shape, int(run.population.size)
      ((6, 3), 6)
    """

    strategies: Strategy
    payoffs: Float[Array, "N N"]
    size: Int[Array, ""]


class Run(NamedTuple):
    """Population of PSRO, its mixture, and their NashConv over iterations.

    Attributes:
      population: Population at the end.
      weights: Weights of its agents by the solver that reports, [N].
      nash_conv: Exact NashConv of the reported mixture at the start and after each iteration,
        [T + 1]; NaN in games without an exact best response.
      found: The same measured by the oracle `exploiter`, a lower bound; NaN without one.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxsim.games as jg
      >>> import jaxsim.solvers as so
      >>> game = jg.matrix_game(jg.rock_paper_scissors())
      >>> run = so.psro(game, so.nash(100), so.exact(), jax.random.key(0), iterations=4)
      >>> run.nash_conv.shape, run.weights.shape
      ((5,), (6,))
    """

    population: Population
    weights: Float[Array, " N"]
    nash_conv: Float[Array, " T1"]
    found: Float[Array, " T1"]


def populate(game: Game, key: Key[Array, ""], start: int, room: int) -> Population:
    """Makes a population of new agents, with room for more.

    Args:
      game: The game.
      key: Random key of the agents.
      start: Number of agents, at least 1.
      room: Number of agents that may follow, at least 0.
    """
    start, room = checked_int("start", start, 1), checked_int("room", room, 0)
    agent = jax.eval_shape(lambda key: game.strategy(game.init(key)), key)
    size = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(agent))
    count = start + room
    need = count * size + 4 * count**2
    memory.check(f"start + iterations = {count} agents", need, "lower iterations")
    strategies = jax.vmap(lambda k: game.strategy(game.init(k)))(jax.random.split(key, start))
    among = payoffs(game, strategies)

    def with_room(a: Array) -> Array:
        return jnp.concatenate([a, jnp.zeros((room, *a.shape[1:]), a.dtype)])

    table = jnp.pad(among, ((0, room), (0, room)))
    return Population(jax.tree.map(with_room, strategies), table, jnp.int32(start))


def extend(game: Game, population: Population, strategy: Strategy) -> Population:
    """Adds one agent to a population.

    Args:
      game: The game.
      population: The population, with room for one more.
      strategy: Strategy of the new agent.
    """
    strategies, table, size = population
    theirs = jax.vmap(game.against, (0, None))(strategies, alone(game, strategy))
    theirs = jnp.where(jnp.arange(len(table)) < size, theirs, 0)
    strategies = jax.tree.map(lambda a, s: a.at[size].set(s), strategies, strategy)
    return Population(strategies, table.at[size].set(-theirs).at[:, size].set(theirs), size + 1)


def respond(
    game: Game, population: Population, weights: Array, oracle: Oracle, key: Key[Array, ""]
) -> Population:
    """Adds an answer to a mixture of a population: one iteration of PSRO.

    Args:
      game: The game.
      population: The population, with room for one more.
      weights: Weights of the mixture, [N].
      oracle: Oracle that answers.
      key: Random key of the oracle.
    """
    agent = oracle(game, game.mix(population.strategies, weights), key)
    return extend(game, population, game.strategy(agent))


@own_promotion()
def psro(
    game: Game,
    solver: MetaSolver,
    oracle: Oracle,
    key: Key[Array, ""],
    *,
    start: int = 2,
    iterations: int = 20,
    report: MetaSolver | None = None,
    exploiter: Oracle | None = None,
) -> Run:
    """Grows a population by answers to mixtures of itself; under `vmap` over keys and games, many.

    Args:
      game: The game.
      solver: Meta-solver that chooses the mixture which a new agent answers.
      oracle: Oracle that answers.
      key: Random key of all agents; two solvers that are given the same key start from the same
        agents and their oracles draw the same.
      start: Number of agents at first, at least 1.
      iterations: Number of agents that follow T, at least 1.
      report: Meta-solver of the mixture whose NashConv is taken; None for `solver`.
      exploiter: Oracle that measures the mixture too, or None.

    Source: Lanctot et al. (2017), arXiv 1711.00832, algorithm 1.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxsim.games as jg
      >>> import jaxsim.solvers as so
      >>> game = jg.matrix_game(jg.rock_paper_scissors())
      >>> run = so.psro(game, so.nash(100), so.exact(), jax.random.key(0), iterations=4)
      >>> bool(run.nash_conv[-1] < 0.05)
      True
    """
    iterations = checked_int("iterations", iterations, 1)
    first, rest, tries = jax.random.split(key, 3)
    reported = solver if report is None else report

    def measure(population: Population, key: Any) -> tuple[Array, Array, Array]:
        weights = reported(population.payoffs, population.size)
        opponent = game.mix(population.strategies, weights)
        unknown = jnp.full((), jnp.nan, population.payoffs.dtype)
        exact = unknown if game.best is None else nash_conv(game, opponent)
        found = unknown if exploiter is None else approximate_gain(game, opponent, exploiter, key)
        return weights, exact, found

    def one(population: Population, keys: Any) -> tuple[Population, tuple[Array, Array]]:
        weights, *seen = measure(population, keys[1])
        if report is not None:
            weights = solver(population.payoffs, population.size)
        return respond(game, population, weights, oracle, keys[0]), (seen[0], seen[1])

    population = populate(game, first, start, iterations)
    keys = (jax.random.split(rest, iterations), jax.random.split(tries, iterations))
    population, seen = lax.scan(one, population, keys)
    weights, *last = measure(population, tries)
    exact, found = (jnp.append(a, b) for a, b in zip(seen, last, strict=True))
    return Run(population, weights, exact, found)


@own_promotion()
def approximate_gain(
    game: Game, opponent: Any, exploiter: Oracle, key: Key[Array, ""]
) -> Float[Array, ""]:
    """Measures NashConv by an oracle, twice the payoff of its agent: a lower bound.

    Args:
      game: The game.
      opponent: Mixture that both players play, from `Game.mix`.
      exploiter: Oracle that answers it.
      key: Random key of the oracle.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxsim.games as jg
      >>> import jaxsim.solvers as so
      >>> game = jg.matrix_game(jg.rock_paper_scissors())
      >>> rock = jg.alone(game, jnp.array([1.0, 0.0, 0.0]))
      >>> float(so.approximate_gain(game, rock, so.exact(), jax.random.key(0)))
      2.0
    """
    return 2 * game.against(game.strategy(exploiter(game, opponent, key)), opponent)
