"""Iterated matching pennies between players who remember the last round."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int

from jaxsim.games.game import Episode, Game
from jaxsim.numerics import memory
from jaxsim.numerics.arrays import own_promotion
from jaxsim.numerics.checks import checked_int

Pair = tuple[Float[Array, "5"], Float[Array, "5"]]
"""For the seat that wants equal pennies and the one that wants unequal ones: at the start and after
each of the four rounds (own penny first), the logit (agent) or probability (strategy) of heads."""


class Mixture(NamedTuple):
    """Strategies of an opponent, with the probability of each."""

    strategies: Pair
    weights: Float[Array, " N"]


class Draws(NamedTuple):
    """Draws of a play in both seats: the players' states and pennies.

    Attributes:
      who: Strategy that the opponent drew in each seat, [2].
      state: State before each round as the player sees it, [2, T].
      mine: Whether the player's penny is heads, [2, T].
      theirs: Whether the opponent's penny is heads, [2, T].
    """

    who: Int[Array, "2"]
    state: Int[Array, "2 T"]
    mine: Bool[Array, "2 T"]
    theirs: Bool[Array, "2 T"]


def matching_pennies(rounds: int = 50) -> Game:
    """Makes iterated matching pennies, played in both seats; a payoff is the mean over rounds.

    Payoffs are exact, by the chance of each of the five states in each round. `best` is over the 32
    deterministic players with this memory in each seat, not over all that remember more.

    Args:
      rounds: Number of rounds T, at least 1.

    Source: Foerster et al. (2018), arXiv 1709.04326, for the game and the players' memory.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxsim.games as jg
      >>> game = jg.matching_pennies(rounds=2)
      >>> heads, evens = (jnp.ones(5), jnp.ones(5)), (jnp.full(5, 0.5), jnp.full(5, 0.5))
      >>> float(jg.payoff(game, heads, evens))
      0.0
      >>> float(game.best(jg.alone(game, heads)))  # known pennies are won in both seats
      1.0
    """
    rounds = checked_int("rounds", rounds, 1)
    memory.check(f"rounds={rounds}", 48 * rounds, "lower it")
    weights = jnp.full(rounds, 1 / rounds)
    return Game(
        Partial(_init),
        Partial(_strategy),
        Partial(Mixture),
        Partial(_against, weights),
        Partial(_best, weights),
        Partial(_respond, weights),
        Partial(_draw, weights),
        Partial(_episode, weights),
    )


_SWAPPED = np.array([0, 1, 3, 2, 4])
"""The states as the other player sees them: start, HH, HT, TH, TT."""
_EQUAL = np.array([1.0, -1.0, -1.0, 1.0])
_PURE = np.array(list(itertools.product((0.0, 1.0), repeat=5)))


@own_promotion()
def _init(key: Array) -> Pair:
    first, second = jax.random.normal(key, (2, 5))
    return first, second


@own_promotion()
def _strategy(agent: Pair) -> Pair:
    return jax.nn.sigmoid(agent[0]), jax.nn.sigmoid(agent[1])


def _value(weights: Array, equal: Array, unequal: Array) -> Array:
    """Mean payoff to the player who wants equal pennies."""
    p, q = equal, unequal[_SWAPPED]
    rows = jnp.stack([p * q, p * (1 - q), (1 - p) * q, (1 - p) * (1 - q)], -1)

    def one(chances: Array, weight: Array) -> tuple[Array, Array]:
        after = chances @ rows
        return jnp.concatenate([jnp.zeros(1, after.dtype), after]), weight * (after @ _EQUAL)

    start = jnp.zeros(5, rows.dtype).at[0].set(1)
    return lax.scan(one, start, weights)[1].sum()


@own_promotion()
def _against(weights: Array, mine: Pair, opponent: Mixture) -> Array:
    def one(theirs: Pair) -> Array:
        return (_value(weights, mine[0], theirs[1]) - _value(weights, theirs[0], mine[1])) / 2

    return opponent.weights @ jax.vmap(one)(opponent.strategies)


@own_promotion()
def _seats(weights: Array, opponent: Mixture) -> tuple[Array, Array]:
    """Payoff of each deterministic player in each seat [32], [32]."""
    theirs, often = opponent
    pure = jnp.asarray(_PURE, often.dtype)

    def one(player: Array) -> tuple[Array, Array]:
        first = jax.vmap(lambda q: _value(weights, player, q))(theirs[1])
        second = jax.vmap(lambda p: -_value(weights, p, player))(theirs[0])
        return often @ first, often @ second

    return jax.vmap(one)(pure)


@own_promotion()
def _best(weights: Array, opponent: Mixture) -> Array:
    first, second = _seats(weights, opponent)
    return (first.max() + second.max()) / 2


@own_promotion()
def _respond(weights: Array, opponent: Mixture) -> Pair:
    first, second = _seats(weights, opponent)
    pure = jnp.asarray(200 * _PURE - 100, opponent.weights.dtype)
    return pure[jnp.argmax(first)], pure[jnp.argmax(second)]


@own_promotion()
def _draw(weights: Array, key: Array, mine: Pair, opponent: Mixture) -> Draws:
    who, pennies = jax.random.split(key)
    drawn = jax.random.categorical(who, jnp.log(opponent.weights), shape=(2,))
    heads = jnp.stack(mine)
    their_heads = jnp.stack([opponent.strategies[1][drawn[0]], opponent.strategies[0][drawn[1]]])
    seats = jnp.arange(2)

    def one(state: Array, draw: Array) -> tuple[Array, tuple[Array, Array, Array]]:
        up = draw[0] < heads[seats, state]
        their = draw[1] < their_heads[seats, jnp.asarray(_SWAPPED)[state]]
        return 1 + 2 * (1 - up) + (1 - their), (state, up, their)

    draws = jax.random.uniform(pennies, (len(weights), 2, 2))
    found = lax.scan(one, jnp.zeros(2, int), draws)[1]
    return Draws(drawn, *(jnp.swapaxes(a, 0, 1) for a in found))


@own_promotion()
def _episode(weights: Array, mine: Pair, opponent: Mixture, draws: Draws) -> Episode:
    who, state, up, their_up = draws
    seats = jnp.arange(2)[:, None]
    own = jnp.stack(mine)[seats, state]
    theirs = jnp.stack([opponent.strategies[1][who[0]], opponent.strategies[0][who[1]]])
    other = theirs[seats, jnp.asarray(_SWAPPED)[state]]
    own, other = (
        jnp.log(jnp.where(heads, p, 1 - p)) for heads, p in ((up, own), (their_up, other))
    )
    other = other.at[:, 0].add(jnp.log(opponent.weights[who]))
    sign = jnp.array([[1.0], [-1.0]]) / 2  # each seat is half of the game
    return Episode(own, other, sign * jnp.where(up == their_up, weights, -weights))
