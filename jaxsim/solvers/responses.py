"""Oracles: functions from a game and an opponent to an agent that answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial
from jaxtyping import Array, Key

from jaxsim.games.game import Agent, Game, Opponent
from jaxsim.numerics.arrays import own_promotion
from jaxsim.numerics.checks import Count, check_range, checked_count, checked_int
from jaxsim.numerics.gradients import zero_with_gradient_of

Oracle = Callable[[Game, Opponent, Key[Array, ""]], Agent]
"""Function from a game, an opponent and a random key to an agent; a `Partial`. Meta-gradients flow
through it from the opponent."""


def unrolled(steps: int, rate: float | Array) -> Oracle:
    """Makes an oracle of gradient ascent from a new agent; derivatives go through the steps.

    Args:
      steps: Number of steps, at least 1.
      rate: Size of a step, above 0. Traced.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxsim.games as jg
      >>> import jaxsim.solvers as so
      >>> game = jg.matrix_game(jg.rock_paper_scissors())
      >>> rock = jg.alone(game, jnp.array([1.0, 0.0, 0.0]))
      >>> agent = so.unrolled(20, 10.0)(game, rock, jax.random.key(0))
      >>> int(agent.argmax())  # paper
      1
    """
    check_range("rate", rate, 0, above=True)
    return Partial(_unrolled, checked_count("steps", steps), jnp.asarray(rate))


def implicit(
    steps: int, rate: float | Array, *, tolerance: float | Array = 1e-3, damping: float | Array = 0
) -> Oracle:
    """Makes an oracle of gradient ascent with derivatives by the implicit function theorem.

    It climbs until the gradient is small. At the top a the payoff f(a, q) has no slope, so
    da/dq = -H⁻¹ ∂²f/∂a∂q with H = ∂²f/∂a². H is made as a matrix: for agents of up to some hundred
    numbers.

    Args:
      steps: Largest number of steps, at least 1.
      rate: Size of a step, above 0. Traced.
      tolerance: Largest slope, in Euclidean norm, at which to stop, at least 0. Traced.
      damping: Number taken off H's diagonal, at least 0; with a top that is flat somewhere it
        must be above 0. Traced.

    Source: Feng et al. (2021), arXiv 2106.02745, section 3.3; Lorraine et al. (2020),
      arXiv 1911.02590.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxsim.games as jg
      >>> import jaxsim.solvers as so
      >>> game = jg.matrix_game(jg.rock_paper_scissors())
      >>> rock = jg.alone(game, jnp.array([1.0, 0.0, 0.0]))
      >>> agent = so.implicit(50, 10.0, damping=0.1)(game, rock, jax.random.key(0))
      >>> int(agent.argmax())
      1
    """
    check_range("rate", rate, 0, above=True)
    check_range("tolerance", tolerance, 0)
    check_range("damping", damping, 0)
    numbers = map(jnp.asarray, (rate, tolerance, damping))
    return Partial(_implicit, jnp.int32(checked_int("steps", steps, 1, 2**31 - 1)), *numbers)


def exact() -> Oracle:
    """Makes an oracle of the game's exact best response; no derivative goes through it.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxsim.games as jg
      >>> import jaxsim.solvers as so
      >>> game = jg.matrix_game(jg.rock_paper_scissors())
      >>> rock = jg.alone(game, jnp.array([1.0, 0.0, 0.0]))
      >>> so.exact()(game, rock, jax.random.key(0)).tolist()
      [0.0, 100.0, 0.0]
    """
    return Partial(_exact)


def approximate(quality: float | Array = 0.5) -> Oracle:
    """Makes an oracle that mixes the exact best response with a new agent.

    It is for games whose agents are policies: at each infoset the best action has the weight
    `quality` and a random policy the rest.

    Args:
      quality: Weight of the best response, in [0, 1]. Traced.

    Examples:
      >>> import jax
      >>> import jaxsim.games as jg
      >>> import jaxsim.solvers as so
      >>> game = jg.both_seats(jg.kuhn_poker().game)
      >>> start = game.strategy(game.init(jax.random.key(0)))
      >>> first, _ = so.approximate(0.5)(game, jg.alone(game, start), jax.random.key(1))
      >>> bool((first.max(-1) >= 0.5).all())
      True
    """
    check_range("quality", quality, 0, 1)
    return Partial(_approximate, jnp.asarray(quality))


def first_order(oracle: Oracle) -> Oracle:
    """Makes an oracle through which no derivative goes.

    The meta-gradient is then that of the last mixture alone: the population is a constant.

    Args:
      oracle: Oracle that answers.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxsim.games as jg
      >>> import jaxsim.solvers as so
      >>> game = jg.matrix_game(jg.rock_paper_scissors())
      >>> rock = jg.alone(game, jnp.array([1.0, 0.0, 0.0]))
      >>> oracle = so.first_order(so.unrolled(20, 10.0))
      >>> int(oracle(game, rock, jax.random.key(0)).argmax())
      1
    """
    return Partial(_constant, oracle)


@own_promotion()
def _unrolled(steps: Count, rate: Array, game: Game, opponent: Opponent, key: Any) -> Agent:
    slope = jax.grad(lambda agent: game.against(game.strategy(agent), opponent))

    def one(agent: Agent, _: Any) -> tuple[Agent, None]:
        return jax.tree.map(lambda a, s: a + rate * s, agent, slope(agent)), None

    return lax.scan(one, game.init(key), None, len(steps), unroll=min(len(steps), 5))[0]


@own_promotion()
def _implicit(
    steps: Array,
    rate: Array,
    tolerance: Array,
    damping: Array,
    game: Game,
    opponent: Opponent,
    key: Any,
) -> Agent:
    start, shaped = ravel_pytree(game.init(key))

    def slope(x: Array, opponent: Opponent) -> Array:
        return jax.grad(lambda x: game.against(game.strategy(shaped(x)), opponent))(x)

    still = lax.stop_gradient(opponent)

    def rising(carry: tuple[Array, Array, Array]) -> Array:
        i, _, g = carry
        return (i < steps) & (jnp.sum(g**2) > tolerance**2)

    def rise(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        i, x, g = carry
        x = x + rate * g
        return i + 1, x, slope(x, still)

    x = lax.while_loop(rising, rise, (jnp.int32(0), start, slope(start, still)))[1]
    x = lax.stop_gradient(x)
    bend = jax.jacfwd(slope)(x, still) - damping * jnp.eye(len(x), dtype=x.dtype)
    return shaped(x + zero_with_gradient_of(-jnp.linalg.solve(bend, slope(x, opponent))))


@own_promotion()
def _exact(game: Game, opponent: Opponent, key: Any) -> Agent:
    if game.respond is None:
        raise ValueError("game: no exact best response is known; give another oracle")
    return lax.stop_gradient(game.respond(opponent))


@own_promotion()
def _approximate(quality: Array, game: Game, opponent: Opponent, key: Any) -> Agent:
    best, other = _exact(game, opponent, key), game.init(key)
    return jax.tree.map(lambda b, o: quality * b + (1 - quality) * o, best, other)


def _constant(oracle: Oracle, game: Game, opponent: Opponent, key: Any) -> Agent:
    return lax.stop_gradient(oracle(game, lax.stop_gradient(opponent), key))
