"""Policy-space response oracles: a population grows by answers to mixtures of itself."""

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
      strategies: what each plays [N, ...].
      payoffs: of each against each, 0 where there is none yet [N, N].
      size: how many there are.
    """

    strategies: Strategy
    payoffs: Float[Array, "N N"]
    size: Int[Array, ""]


class Run(NamedTuple):
    """What PSRO found.

    Attributes:
      population: at the end.
      weights: of its agents, by the solver that reports [N].
      nash_conv: exact, of the reported mixture at the start and after each iteration [T + 1]; NaN
        in games without an exact best response.
      found: the same measured by the oracle's `exploiter`, a lower bound; NaN without one.
    """

    population: Population
    weights: Float[Array, " N"]
    nash_conv: Float[Array, " T1"]
    found: Float[Array, " T1"]


def populate(game: Game, key: Key[Array, ""], start: int, room: int) -> Population:
    """A population of new agents, with room for more.

    Args:
      game: whose agents.
      key: of the agents.
      start: how many, at least 1.
      room: how many more.
    """
    start, room = checked_int("start", start, 1), checked_int("room", room, 0)
    agent = jax.eval_shape(lambda key: game.strategy(game.init(key)), key)
    size = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(agent))
    count = start + room
    need = count * size + 4 * count**2
    memory.check(f"start + iterations = {count} agents", need, "lower iterations")
    strategies = jax.vmap(lambda k: game.strategy(game.init(k)))(jax.random.split(key, start))
    among = payoffs(game, strategies)

    def padded(a: Array) -> Array:
        return jnp.concatenate([a, jnp.zeros((room, *a.shape[1:]), a.dtype)])

    table = jnp.pad(among, ((0, room), (0, room)))
    return Population(jax.tree.map(padded, strategies), table, jnp.int32(start))


def extend(game: Game, population: Population, strategy: Strategy) -> Population:
    """The population with one more; there must be room."""
    strategies, table, size = population
    theirs = jax.vmap(game.against, (0, None))(strategies, alone(game, strategy))
    theirs = jnp.where(jnp.arange(len(table)) < size, theirs, 0)
    strategies = jax.tree.map(lambda a, s: a.at[size].set(s), strategies, strategy)
    return Population(strategies, table.at[size].set(-theirs).at[:, size].set(theirs), size + 1)


def respond(
    game: Game, population: Population, weights: Array, oracle: Oracle, key: Key[Array, ""]
) -> Population:
    """One iteration: the population with an answer to its mixture."""
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
    """Grows a population; under `vmap` over keys and games, many.

    Args:
      game: to play.
      solver: the mixture that a new agent answers.
      oracle: how it answers.
      key: for all agents; two solvers that are given the same key start from the same agents and
        their oracles draw the same.
      start: agents at first, at least 1.
      iterations: T, agents that follow, at least 1.
      report: the mixture whose NashConv is taken, `solver` unless said.
      exploiter: an oracle that measures the mixture too.

    Source: Lanctot et al. (2017), arXiv 1711.00832, algorithm 1.
    """
    iterations = checked_int("iterations", iterations, 1)
    first, rest, tries = jax.random.split(key, 3)
    reported = solver if report is None else report

    def measured(population: Population, key: Any) -> tuple[Array, Array, Array]:
        weights = reported(population.payoffs, population.size)
        opponent = game.mix(population.strategies, weights)
        unknown = jnp.full((), jnp.nan, population.payoffs.dtype)
        exact = unknown if game.best is None else nash_conv(game, opponent)
        found = unknown if exploiter is None else approximate_gain(game, opponent, exploiter, key)
        return weights, exact, found

    def one(population: Population, keys: Any) -> tuple[Population, tuple[Array, Array]]:
        weights, *seen = measured(population, keys[1])
        if report is not None:
            weights = solver(population.payoffs, population.size)
        return respond(game, population, weights, oracle, keys[0]), (seen[0], seen[1])

    population = populate(game, first, start, iterations)
    keys = (jax.random.split(rest, iterations), jax.random.split(tries, iterations))
    population, seen = lax.scan(one, population, keys)
    weights, *last = measured(population, tries)
    exact, found = (jnp.append(a, b) for a, b in zip(seen, last, strict=True))
    return Run(population, weights, exact, found)


@own_promotion()
def approximate_gain(
    game: Game, opponent: Any, exploiter: Oracle, key: Key[Array, ""]
) -> Float[Array, ""]:
    """NashConv as far as an oracle finds it, twice the payoff of its agent: a lower bound."""
    return 2 * game.against(game.strategy(exploiter(game, opponent, key)), opponent)
