"""What a solver needs of a symmetric two-player zero-sum game."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, Key

from jaxsim.numerics.arrays import own_promotion

Agent = Any
"""What a best response changes: logits, positions, a policy for each seat."""
Strategy = Any
"""What an agent plays: probabilities, densities, realisation plans."""
Opponent = Any
"""What it plays against: a mixture of strategies, as far as payoffs need it."""
Draws = Any
"""What was drawn in a play: actions, and states that they led to."""

CERTAIN = 100.0
"""A logit that gives the others, at zero, no probability in float32."""


class Episode(NamedTuple):
    """What was drawn in a play, and how likely it was; both seats of a game are parts of one.

    Attributes:
      own: log-probability of the player's draw at each decision, 0 where he made none [P, T].
      other: that of what the opponent drew meanwhile [P, T].
      reward: that followed; the payoff is the mean of its sum [P, T].
    """

    own: Float[Array, "P T"]
    other: Float[Array, "P T"]
    reward: Float[Array, "P T"]


class Game(NamedTuple):
    """A game as pure functions; `Partial`s, so that a game is a pytree and `vmap` takes many.

    Games of two different seats are played in both: an agent has a strategy for each, and a payoff
    is the mean of the two. Payoffs are then antisymmetric and the value of the game is zero.

    Attributes:
      init: a new agent from a key.
      strategy: what an agent plays.
      mix: from strategies [N, ...] and their weights [N] to the opponent who draws one of them
        before each play.
      against: payoff of a strategy against an opponent.
      best: the largest payoff that any agent has against an opponent, or None where it is not
        known; what "any agent" means is said by each game.
      respond: an agent that has it, or None.
      draw: what happens in one play, from a key, a strategy and an opponent; None where the game
        cannot be played in samples.
      episode: from a strategy, an opponent and draws, perhaps of others, to what they are worth.
    """

    init: Callable[[Key[Array, ""]], Agent]
    strategy: Callable[[Agent], Strategy]
    mix: Callable[[Strategy, Float[Array, " N"]], Opponent]
    against: Callable[[Strategy, Opponent], Float[Array, ""]]
    best: Callable[[Opponent], Float[Array, ""]] | None = None
    respond: Callable[[Opponent], Agent] | None = None
    draw: Callable[[Key[Array, ""], Strategy, Opponent], Draws] | None = None
    episode: Callable[[Strategy, Opponent, Draws], Episode] | None = None


@own_promotion()
def alone(game: Game, strategy: Strategy) -> Opponent:
    """The opponent who always plays one strategy."""
    return game.mix(jax.tree.map(lambda a: a[None], strategy), jnp.ones(1))


@own_promotion()
def payoff(game: Game, strategy: Strategy, other: Strategy) -> Float[Array, ""]:
    """Payoff of a strategy against another."""
    return game.against(strategy, alone(game, other))


@own_promotion()
def payoffs(game: Game, strategies: Strategy) -> Float[Array, "N N"]:
    """Payoffs of each strategy (row) against each (column), antisymmetric."""
    opponents = jax.vmap(Partial(alone, game))(strategies)
    found = jax.vmap(lambda s: jax.vmap(Partial(game.against, s))(opponents))(strategies)
    return (found - found.T) / 2


@own_promotion()
def nash_conv(game: Game, opponent: Opponent) -> Float[Array, ""]:
    """What both players together gain by best responses when both play as `opponent` does.

    Twice the largest payoff, since the game is symmetric. Exploitability is half of it.

    Raises:
      ValueError: the game has no exact best response.
    """
    if game.best is None:
        raise ValueError("game: no exact best response is known; measure with an oracle")
    return 2 * game.best(opponent)
