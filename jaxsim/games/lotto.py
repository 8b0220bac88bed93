"""Differentiable Lotto: players spread servers over a square to win customers."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, Key

from jaxsim.games.game import Game
from jaxsim.numerics import memory
from jaxsim.numerics.arrays import own_promotion
from jaxsim.numerics.checks import checked_int


class Servers(NamedTuple):
    """A player's servers.

    Attributes:
      places: Points [S, 2], in the square [-1, 1]² at first, free later.
      shares: Shares of the mass [S]: logits in an agent, probabilities times S in a strategy.
    """

    places: Float[Array, "S 2"]
    shares: Float[Array, " S"]


class Mixture(NamedTuple):
    """Strategies of an opponent, with the probability of each."""

    strategies: Servers
    weights: Float[Array, " N"]


@own_promotion()
def lotto(key: Key[Array, ""], customers: int = 9, servers: int = 500) -> Game:
    """Makes a game of Lotto with customers at random in the square.

    Each customer turns to the servers of both players by a softmax of minus the distances; a player
    has the mass that his servers bring, less the other's. An agent is `Servers`. Nobody knows the
    best response exactly: `best` is None, and what oracles find is a lower bound.

    Args:
      key: Random key of the customers' places.
      customers: Number of customers C, at least 1.
      servers: Number of servers S of each player, at least 1.

    Source: Perez-Nieves et al. (2021), arXiv 2103.07927, section 6, as in the code of Feng et al.

    Examples:
      >>> import jax
      >>> import jaxsim.games as jg
      >>> game = jg.lotto(jax.random.key(0), customers=3, servers=4)
      >>> agent = game.init(jax.random.key(1))
      >>> agent.places.shape, game.best is None
      ((4, 2), True)
    """
    customers = checked_int("customers", customers, 1)
    servers = checked_int("servers", servers, 1)
    memory.check(f"servers = {servers}", 12 * servers, "lower servers")
    both = f"customers = {customers}, servers = {servers}"
    memory.check(both, 8 * customers * servers, "lower them")
    at = jax.random.uniform(key, (customers, 2), minval=-1, maxval=1)
    return Game(
        Partial(_init, jnp.zeros(servers)),
        Partial(_strategy),
        Partial(Mixture),
        Partial(_against, at),
    )


@own_promotion()
def _init(like: Array, key: Array) -> Servers:
    where, how = jax.random.split(key)
    places = jax.random.uniform(where, (len(like), 2), minval=-1, maxval=1)
    return Servers(places, 0.2 * jax.random.normal(how, like.shape))


@own_promotion()
def _strategy(agent: Servers) -> Servers:
    return Servers(agent.places, jax.nn.softmax(agent.shares) * len(agent.shares))


def _pull(customers: Array, places: Array) -> Array:
    """exp(-distance) of each customer to each server [C, S]."""
    square = jnp.sum((customers[:, None] - places) ** 2, -1)
    return jnp.exp(-jnp.sqrt(square + 1e-12))


@own_promotion()
def _against(customers: Array, mine: Servers, opponent: Mixture) -> Array:
    pull = _pull(customers, mine.places)
    drawn, total = pull @ mine.shares, pull.sum(-1)

    def one(theirs: Servers) -> Array:
        pull = _pull(customers, theirs.places)
        return jnp.sum((drawn - pull @ theirs.shares) / (total + pull.sum(-1)))

    return opponent.weights @ jax.vmap(one)(opponent.strategies)
