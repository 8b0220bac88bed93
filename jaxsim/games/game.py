"""Symmetric two-player zero-sum games as pure functions, as solvers need them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, Key

from jaxsim.numerics.arrays import own_promotion

Agent = Any
"""Quantity that a best response changes: logits, positions, a policy for each seat."""
Strategy = Any
"""Strategy of an agent: probabilities, densities, realization plans."""
Opponent = Any
"""Mixture of strategies to play against, as far as payoffs need it."""
Draws = Any
"""Draws of a play: actions, and states that they led to."""

CERTAIN = 100.0
"""A logit that gives the others, at zero, no probability in float32."""


class Episode(NamedTuple):
    """Log-probabilities and rewards of a play; both seats of a game are parts of one episode.

    Attributes:
      own: Log-probability of the player's draw at each decision, 0 where none was made, [P, T].
      other: Log-probability of the opponent's draws meanwhile, [P, T].
      reward: Reward that followed, [P, T]; the payoff is the mean of its sum.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim.games as jg
      >>> game = jg.matrix_game(jg.rock_paper_scissors())
      >>> opponent = game.mix(jnp.eye(3), jnp.ones(3) / 3)
      >>> episode = game.episode(jnp.ones(3) / 3, opponent, jnp.int32(0))
      >>> isinstance(episode, jg.Episode), episode.reward.shape
      (True, (1, 1))
    """

    own: Float[Array, "P T"]
    other: Float[Array, "P T"]
    reward: Float[Array, "P T"]


class Game(NamedTuple):
    """A game as pure functions; `Partial`s, so that a game is a pytree and `vmap` takes many.

    Games of two different seats are played in both: an agent has a strategy for each, and a payoff
    is the mean of the two. Payoffs are then antisymmetric and the value of the game is zero.

    Attributes:
      init: Function from a random key to a new agent.
      strategy: Function from an agent to the strategy that it plays.
      mix: Function from strategies [N, ...] and their weights [N] to the opponent who draws one of
        them before each play.
      against: Function from a strategy and an opponent to the strategy's payoff.
      best: Function from an opponent to the largest payoff that any agent has against it, or None
        where it is not known; each game says what "any agent" means.
      respond: Function from an opponent to an agent that has the largest payoff, or None.
      draw: Function from a key, a strategy and an opponent to the draws of one play; None where
        the game cannot be played in samples.
      episode: Function from a strategy, an opponent and draws, perhaps of others, to their episode.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxsim.games as jg
      >>> game = jg.matrix_game(jg.rock_paper_scissors())
      >>> strategy = game.strategy(game.init(jax.random.key(0)))
      >>> always_rock = game.mix(jnp.eye(3)[:1], jnp.ones(1))
      >>> float(game.best(always_rock)), int(game.respond(always_rock).argmax())
      (1.0, 1)
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
    """Makes the opponent who always plays one strategy.

    Args:
      game: The game.
      strategy: Strategy of that opponent.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim.games as jg
      >>> game = jg.matrix_game(jg.rock_paper_scissors())
      >>> rock, paper = jnp.eye(3)[:2]
      >>> float(game.against(paper, jg.alone(game, rock)))
      1.0
    """
    return game.mix(jax.tree.map(lambda a: a[None], strategy), jnp.ones(1))


@own_promotion()
def payoff(game: Game, strategy: Strategy, other: Strategy) -> Float[Array, ""]:
    """Computes the payoff of a strategy against another.

    Args:
      game: The game.
      strategy: Strategy of the player.
      other: Strategy of the opponent.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim.games as jg
      >>> game = jg.matrix_game(jg.rock_paper_scissors())
      >>> rock, paper = jnp.eye(3)[:2]
      >>> float(jg.payoff(game, rock, paper))
      -1.0
    """
    return game.against(strategy, alone(game, other))


@own_promotion()
def payoffs(game: Game, strategies: Strategy) -> Float[Array, "N N"]:
    """Computes payoffs of each strategy (row) against each (column), antisymmetric.

    Args:
      game: The game.
      strategies: Strategies, [N, ...].

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim.games as jg
      >>> game = jg.matrix_game(jg.rock_paper_scissors())
      >>> jg.payoffs(game, jnp.eye(3)).tolist()
      [[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]
    """
    opponents = jax.vmap(Partial(alone, game))(strategies)
    found = jax.vmap(lambda s: jax.vmap(Partial(game.against, s))(opponents))(strategies)
    return (found - found.T) / 2


@own_promotion()
def nash_conv(game: Game, opponent: Opponent) -> Float[Array, ""]:
    """Computes the joint gain of both players by best responses when both play as `opponent`.

    Twice the largest payoff, since the game is symmetric. Exploitability is half of it.

    Args:
      game: The game.
      opponent: Mixture that both players play, from `Game.mix`.

    Raises:
      ValueError: The game has no exact best response.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim.games as jg
      >>> game = jg.matrix_game(jg.rock_paper_scissors())
      >>> float(jg.nash_conv(game, jg.alone(game, jnp.array([1.0, 0.0, 0.0]))))
      2.0
      >>> abs(float(jg.nash_conv(game, jg.alone(game, jnp.ones(3) / 3)))) < 1e-6
      True
    """
    if game.best is None:
        raise ValueError("game: no exact best response is known; measure with an oracle")
    return 2 * game.best(opponent)
