"""Oracles that know a game only by playing it: DiCE and proximal policy optimization."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Float, Key

from jaxsim.games.game import Agent, Draws, Episode, Game, Opponent, Strategy
from jaxsim.numerics import memory
from jaxsim.numerics.arrays import own_promotion
from jaxsim.numerics.checks import Count, check_range, check_share, checked_count, checked_int
from jaxsim.solvers.responses import Oracle


@own_promotion()
def dice_payoff(
    game: Game, strategy: Strategy, opponent: Opponent, key: Key[Array, ""], episodes: int
) -> Float[Array, ""]:
    """Averages sampled payoffs so that derivatives of every order estimate those of the payoff.

    The derivatives are without bias, in the strategy and in the opponent. The baseline at each
    decision is what the other episodes had from there on, on average.

    Args:
      game: Game that can be played in samples.
      strategy: The player's strategy.
      opponent: The opponent, from `Game.mix`.
      key: Random key of all draws.
      episodes: Number of episodes B, at least 2.

    Raises:
      ValueError: The game has no `draw`, or too few episodes.

    Source: Foerster et al. (2018), arXiv 1802.05098, eq. 6 and 9.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxsim.games as jg
      >>> import jaxsim.solvers as so
      >>> game = jg.matrix_game(jg.rock_paper_scissors())
      >>> rock = jg.alone(game, jnp.array([1.0, 0.0, 0.0]))
      >>> paper = jnp.array([0.0, 1.0, 0.0])
      >>> float(so.dice_payoff(game, paper, rock, jax.random.key(0), 4))
      1.0
    """
    draws = _draws(game, strategy, opponent, key, episodes)
    told = _episodes(game, strategy, opponent, draws)
    chances = told.own + told.other
    worth = _box(jnp.cumsum(chances, -1)) * told.reward + (1 - _box(chances)) * _baseline(told)
    return worth.sum((1, 2)).mean()


def _checked_draws(name: str, value: Any, lo: int) -> Count:
    """A count, where a key is drawn for each."""
    count = checked_count(name, value, lo)
    memory.check(f"{name}={value}", 8 * len(count), "lower it")
    return count


def dice(steps: int, rate: float | Array, episodes: int = 32) -> Oracle:
    """Makes an oracle of gradient ascent on sampled payoffs; derivatives go through it.

    Args:
      steps: Number of steps, at least 1.
      rate: Size of a step, above 0. Traced.
      episodes: Number of episodes of each step, at least 2.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxsim.games as jg
      >>> import jaxsim.solvers as so
      >>> game = jg.matrix_game(jg.rock_paper_scissors())
      >>> rock = jg.alone(game, jnp.array([1.0, 0.0, 0.0]))
      >>> agent = so.dice(20, 10.0, episodes=16)(game, rock, jax.random.key(0))
      >>> int(agent.argmax())
      1
    """
    check_range("rate", rate, 0, above=True)
    number = _checked_draws("episodes", episodes, 2)
    return Partial(_dice, _checked_draws("steps", steps, 1), jnp.asarray(rate), number)


def ppo(
    iterations: int,
    rate: float | Array,
    episodes: int = 64,
    *,
    epochs: int = 4,
    clip: float | Array = 0.2,
) -> Oracle:
    """Makes an oracle of proximal policy optimization by Adam; no derivative goes through it.

    There is no critic: an advantage is what an episode had from a decision on, less what the others
    had on average, in units of the spread of all.

    Args:
      iterations: Number of iterations, at least 1.
      rate: Learning rate of Adam, above 0. Traced.
      episodes: Number of episodes of each iteration, at least 2.
      epochs: Number of steps on the same episodes, at least 1.
      clip: Distance from 1 beyond which a ratio of probabilities is clipped, in [0, 1). Traced.

    Source: Schulman et al. (2017), arXiv 1707.06347, eq. 7.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxsim.games as jg
      >>> import jaxsim.solvers as so
      >>> game = jg.matrix_game(jg.rock_paper_scissors())
      >>> rock = jg.alone(game, jnp.array([1.0, 0.0, 0.0]))
      >>> agent = so.ppo(10, 0.5, episodes=16)(game, rock, jax.random.key(0))
      >>> int(agent.argmax())
      1
    """
    check_range("rate", rate, 0, above=True)
    check_share("clip", clip)
    counts = (("iterations", iterations, 1), ("episodes", episodes, 2), ("epochs", epochs, 1))
    sizes = (_checked_draws(*c) for c in counts)
    return Partial(_ppo, *sizes, jnp.asarray(rate), jnp.asarray(clip))


def _draws(game: Game, strategy: Strategy, opponent: Opponent, key: Any, episodes: int) -> Draws:
    if game.draw is None:
        raise ValueError("game: cannot be played in samples; give another oracle")
    keys = jax.random.split(key, checked_int("episodes", episodes, 2))
    still = lax.stop_gradient((strategy, opponent))
    return jax.vmap(game.draw, (0, None, None))(keys, *still)


def _episodes(game: Game, strategy: Strategy, opponent: Opponent, draws: Draws) -> Episode:
    assert game.episode is not None  # where there is `draw`
    return jax.vmap(game.episode, (None, None, 0))(strategy, opponent, draws)


def _box(chances: Array) -> Array:
    """One, with the derivatives of the probability over itself."""
    return jnp.exp(chances - lax.stop_gradient(chances))


def _ahead(told: Episode) -> Array:
    """Rewards of each episode from each decision on."""
    return lax.stop_gradient(jnp.flip(jnp.cumsum(jnp.flip(told.reward, -1), -1), -1))


def _baseline(told: Episode) -> Array:
    """The mean of what the other episodes had: independent of the one, so without bias."""
    ahead = _ahead(told)
    return (ahead.sum(0) - ahead) / (len(ahead) - 1)


@own_promotion()
def _dice(
    steps: Count, rate: Array, number: Count, game: Game, opponent: Opponent, key: Any
) -> Agent:
    first, rest = jax.random.split(key)

    def one(agent: Agent, key: Any) -> tuple[Agent, None]:
        slope = jax.grad(lambda a: dice_payoff(game, game.strategy(a), opponent, key, len(number)))(
            agent
        )
        return jax.tree.map(lambda a, s: a + rate * s, agent, slope), None

    return lax.scan(one, game.init(first), jax.random.split(rest, len(steps)))[0]


@own_promotion()
def _ppo(
    iterations: Count,
    number: Count,
    epochs: Count,
    rate: Array,
    clip: Array,
    game: Game,
    opponent: Opponent,
    key: Any,
) -> Agent:
    first, rest = jax.random.split(key)
    opponent = lax.stop_gradient(opponent)
    adam = optax.scale_by_adam()

    def iteration(carry: tuple[Agent, Any], key: Any) -> tuple[tuple[Agent, Any], None]:
        strategy = game.strategy(carry[0])
        draws = _draws(game, strategy, opponent, key, len(number))
        old = _episodes(game, strategy, opponent, draws)
        better = _ahead(old) - _baseline(old)
        better = better / (better.std() + 1e-8)

        def surrogate(agent: Agent) -> Array:
            own = _episodes(game, game.strategy(agent), opponent, draws).own
            ratio = jnp.exp(own - old.own)
            clipped = jnp.clip(ratio, 1 - clip, 1 + clip)
            return jnp.minimum(ratio * better, clipped * better).sum((1, 2)).mean()

        def epoch(carry: tuple[Agent, Any], _: Any) -> tuple[tuple[Agent, Any], None]:
            agent, moments = carry
            step, moments = adam.update(jax.grad(surrogate)(agent), moments)
            return (jax.tree.map(lambda a, s: a + rate * s, agent, step), moments), None

        return lax.scan(epoch, carry, None, len(epochs))[0], None

    agent = game.init(first)
    keys = jax.random.split(rest, len(iterations))
    agent = lax.scan(iteration, (agent, adam.init(agent)), keys)[0][0]
    return lax.stop_gradient(agent)
