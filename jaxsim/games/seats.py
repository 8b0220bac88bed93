"""Games in sequence form as symmetric games, for the solvers: an agent holds both seats."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from jaxsim.games.game import CERTAIN, Episode, Game
from jaxsim.games.sequence import (
    Plan,
    Seat,
    SequenceGame,
    best_response,
    best_value,
    facing,
    legal_actions,
    path,
    random_policy,
    realization_plan,
)
from jaxsim.numerics.arrays import own_promotion


def both_seats(game: SequenceGame) -> Game:
    """Makes the symmetric game of a sequence-form game played in both seats, for the solvers.

    An agent is a policy for each seat, a strategy its two plans; a mixture of agents is the mixture
    of their plans, not of their policies. The best response is exact, `nash_conv` is the same as of
    the two plans.

    Args:
      game: The game.

    Examples:
      >>> import jax
      >>> import jaxsim.games as jg
      >>> game = jg.both_seats(jg.kuhn_poker().game)
      >>> first, second = game.init(jax.random.key(0))  # a policy for each seat
      >>> first.shape, game.respond is None
      ((6, 2), False)
    """
    return Game(
        Partial(_init, game),
        Partial(_plans, game),
        Partial(_mixture, game),
        Partial(_against),
        Partial(_best, game),
        Partial(_respond, game),
        Partial(_draw, game),
        Partial(_episode, game),
    )


def by_logits(game: SequenceGame) -> Game:
    """Makes the game of `both_seats` for agents who are logits, as oracles that climb need.

    A policy is the softmax over the legal actions of each infoset.

    Args:
      game: The game.

    Examples:
      >>> import jax
      >>> import jaxsim.games as jg
      >>> game = jg.by_logits(jg.kuhn_poker().game)
      >>> [plan.shape for plan in game.strategy(game.init(jax.random.key(0)))]
      [(13,), (13,)]
    """
    return both_seats(game)._replace(
        init=Partial(_init_logits, game),
        strategy=Partial(_plans_of_logits, game),
        respond=Partial(_respond_logits, game),
    )


class Faced(NamedTuple):
    """An opponent of `both_seats`: the value of ending in each sequence, and both plans."""

    values: tuple[Float[Array, " S0"], Float[Array, " S1"]]
    plans: tuple[Plan, Plan]


@own_promotion()
def _init(game: SequenceGame, key: Array) -> tuple[Array, Array]:
    first, second = jax.random.split(key)
    return random_policy(game.first, first), random_policy(game.second, second)


@own_promotion()
def _plans(game: SequenceGame, agent: tuple[Array, Array]) -> tuple[Array, Array]:
    return realization_plan(game.first, agent[0]), realization_plan(game.second, agent[1])


@own_promotion()
def _mixture(game: SequenceGame, plans: tuple[Array, Array], weights: Array) -> Faced:
    mixed = (weights @ plans[0], weights @ plans[1])
    return Faced((facing(game.first, mixed[1]), facing(game.second, mixed[0])), mixed)


@own_promotion()
def _against(plans: tuple[Array, Array], opponent: Faced) -> Array:
    return (plans[0] @ opponent.values[0] + plans[1] @ opponent.values[1]) / 2


@own_promotion()
def _best(game: SequenceGame, opponent: Faced) -> Array:
    values = opponent.values
    return (best_value(game.first, values[0]) + best_value(game.second, values[1])) / 2


@own_promotion()
def _respond(game: SequenceGame, opponent: Faced) -> tuple[Array, Array]:
    values = opponent.values
    return best_response(game.first, values[0])[1], best_response(game.second, values[1])[1]


@own_promotion()
def _init_logits(game: SequenceGame, key: Array) -> tuple[Array, Array]:
    first, second = _init(game, key)
    return jnp.log(jnp.maximum(first, 1e-6)), jnp.log(jnp.maximum(second, 1e-6))


@own_promotion()
def _plans_of_logits(game: SequenceGame, agent: tuple[Array, Array]) -> tuple[Array, Array]:
    first, second = (
        jax.nn.softmax(jnp.where(legal_actions(seat), logits, -jnp.inf))
        for seat, logits in zip(game, agent, strict=True)
    )
    return _plans(game, (first, second))


@own_promotion()
def _respond_logits(game: SequenceGame, opponent: Faced) -> tuple[Array, Array]:
    first, second = _respond(game, opponent)
    return CERTAIN * first, CERTAIN * second


@own_promotion()
def _draw(
    game: SequenceGame, key: Array, plans: tuple[Array, Array], opponent: Faced
) -> tuple[Array, Array]:
    """An end of a play in each seat, by its number among those of the seat's table."""

    def one(key: Array, seat: Seat, mine: Array, theirs: Array) -> Array:
        chances = mine[:, None] * seat.chance * theirs[seat.opposite]
        return jax.random.categorical(key, jnp.log(chances.reshape(-1)))

    first, second = jax.random.split(key)
    return (
        one(first, game.first, plans[0], opponent.plans[1]),
        one(second, game.second, plans[1], opponent.plans[0]),
    )


@own_promotion()
def _episode(
    game: SequenceGame,
    plans: tuple[Array, Array],
    opponent: Faced,
    ends: tuple[Array, Array],
) -> Episode:
    depth = max(1, *(len(seat.parents) for seat in game))

    def one(seat: Seat, mine: Array, theirs: Array, end: Array) -> tuple[Array, Array, Array]:
        many = seat.opposite.shape[1]
        at, other = end // many, theirs[seat.opposite.reshape(-1)[end]]
        reward = (seat.values / jnp.where(seat.chance > 0, seat.chance, 1)).reshape(-1)[end]
        # half of the game, when it is over
        after = jnp.zeros(depth, mine.dtype).at[-1]
        own = jnp.log(mine[path(seat, at, depth)])
        return jnp.diff(own), after.set(jnp.log(other)), after.set(reward / 2)

    seats = (
        one(game.first, plans[0], opponent.plans[1], ends[0]),
        one(game.second, plans[1], opponent.plans[0], ends[1]),
    )
    return Episode(*(jnp.stack(pair) for pair in zip(*seats, strict=True)))
