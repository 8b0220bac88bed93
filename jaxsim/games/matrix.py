"""Games given by a payoff matrix."""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float, Key

from jaxsim.games.game import CERTAIN, Episode, Game
from jaxsim.numerics import memory
from jaxsim.numerics.arrays import own_promotion
from jaxsim.numerics.checks import checked_int, is_traced


def matrix_game(payoffs: Float[ArrayLike, "d d"]) -> Game:
    """Makes a game of two equal players who each choose one of d actions.

    An agent is logits [d], a strategy probabilities [d]. The best response is exact.

    Args:
      payoffs: Payoffs of the row player, [d, d], antisymmetric to 1e-5. Traced.

    Raises:
      ValueError: A matrix that is not square, finite and antisymmetric to 1e-5.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim.games as jg
      >>> game = jg.matrix_game(jg.rock_paper_scissors())
      >>> float(jg.payoff(game, jnp.eye(3)[1], jnp.eye(3)[0]))  # paper beats rock
      1.0
    """
    shape = jnp.shape(payoffs)
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] < 1:
        raise ValueError(f"payoffs: shape {shape}; must be square, [d, d]")
    if not is_traced(payoffs):
        a = np.asarray(payoffs)
        if not np.isfinite(a).all():
            raise ValueError("payoffs: not finite")
        if (worst := np.abs(a + a.T).max()) > 1e-5:
            raise ValueError(f"payoffs: differs from -payoffs.T by {worst:.3g}; at most 1e-5")
    a = jnp.asarray(payoffs, jnp.result_type(float))
    return Game(
        Partial(_init, jnp.zeros(len(a), a.dtype)),
        Partial(jax.nn.softmax),
        Partial(_mix, a),
        Partial(jnp.dot),
        Partial(jnp.max),
        Partial(_respond),
        Partial(_draw),
        Partial(_episode),
    )


@own_promotion()
def skill_matrix(key: Key[Array, ""], dim: int) -> Float[Array, "d d"]:
    """Draws a game of skill, W - Wᵀ + S - Sᵀ: a cyclic and a transitive part of normals.

    Args:
      key: Random key of W [d, d] and S [d, 1].
      dim: Number of actions d, at least 1.

    Raises:
      MemoryError: More than `jaxsim.numerics.memory.LIMIT`.

    Source: Czarnecki et al. (2020), arXiv 2004.09468, section 5, unscaled.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxsim.games as jg
      >>> payoffs = jg.skill_matrix(jax.random.key(0), 4)
      >>> payoffs.shape, bool(jnp.allclose(payoffs, -payoffs.T))
      ((4, 4), True)
    """
    dim = checked_int("dim", dim, 1)
    memory.check(f"a matrix of dim = {dim}", 4 * dim**2, "lower dim")
    draws = jax.random.normal(key, (dim + 1, dim))
    cycle, skill = draws[:dim], draws[dim]
    return cycle - cycle.T + skill[:, None] - skill


def games_of_skill(key: Key[Array, ""], dim: int) -> Game:
    """Makes the game of a `skill_matrix`.

    Args:
      key: Random key of the matrix.
      dim: Number of actions d, at least 1.

    Examples:
      >>> import jax
      >>> import jaxsim.games as jg
      >>> jg.games_of_skill(jax.random.key(0), 5).init(jax.random.key(1)).shape
      (5,)
    """
    return matrix_game(skill_matrix(key, dim))


def rock_paper_scissors() -> Float[np.ndarray, "3 3"]:
    """Lists the payoffs of rock, paper and scissors.

    Examples:
      >>> import jaxsim.games as jg
      >>> jg.rock_paper_scissors().astype(int).tolist()
      [[0, -1, 1], [1, 0, -1], [-1, 1, 0]]
    """
    return np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]], np.float32)


def blotto_matrix(coins: int, fields: int) -> Float[np.ndarray, "d d"]:
    """Computes Blotto's payoffs: the sign of fields won less fields lost.

    Args:
      coins: Coins that each player divides among the fields, at least 1.
      fields: Number of fields, at least 1. The player with more coins on more fields wins 1.

    Returns:
      [d, d] with d = C(coins + fields - 1, fields - 1) allocations in lexicographic order.

    Raises:
      MemoryError: More than `jaxsim.numerics.memory.LIMIT`.

    Examples:
      >>> import jaxsim.games as jg
      >>> jg.blotto_matrix(coins=2, fields=3).shape
      (6, 6)
    """
    coins, fields = checked_int("coins", coins, 1), checked_int("fields", fields, 1)
    d = math.comb(coins + fields - 1, fields - 1)
    what = f"a matrix of coins = {coins} on fields = {fields}"
    memory.check(what, 8 * fields * d**2, "lower them")
    bars = itertools.combinations(range(coins + fields - 1), fields - 1)
    edges = np.array([(-1, *b, coins + fields - 1) for b in bars])
    split = np.diff(edges, axis=1)  # one more than the coins of each field, for both players
    won = np.sign(split[:, None] - split[None]).sum(-1)
    return np.sign(won).astype(np.float32)


@own_promotion()
def _init(like: Array, key: Array) -> Array:
    return 0.2 * jax.random.normal(key, like.shape, like.dtype)


@own_promotion()
def _mix(a: Array, strategies: Array, weights: Array) -> Array:
    return a @ (weights @ strategies)


@own_promotion()
def _respond(opponent: Array) -> Array:
    return CERTAIN * jax.nn.one_hot(jnp.argmax(opponent), len(opponent), dtype=opponent.dtype)


@own_promotion()
def _draw(key: Array, strategy: Array, opponent: Array) -> Array:
    return jax.random.categorical(key, jnp.log(strategy))


@own_promotion()
def _episode(strategy: Array, opponent: Array, action: Array) -> Episode:
    # what an action is worth is known: the opponent's draw is left out
    told = jnp.stack([jnp.log(strategy[action]), jnp.zeros_like(strategy[0]), opponent[action]])
    return Episode(*told[:, None, None])
