"""Two-player zero-sum games with hidden information, in sequence form.

A player's sequence is what he has done so far; his plan gives each sequence the probability that he
plays it, whatever the others do. Payoffs are bilinear in the plans of the two players, a best
response is one sweep from the last decisions to the first, and a mixture of plans plays exactly as
the mixture of players who hold them.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jaxsim.numerics.arrays import own_promotion
from jaxsim.numerics.checks import is_traced
from jaxsim.numerics.scaling import TINY


class Seat(NamedTuple):
    """One player's part of a game.

    His infosets are ordered by level, the number of decisions he has made before; L levels of I_l
    infosets with A actions each. His sequences are numbered from 0, where he has done nothing; then
    action a at infoset i is 1 + i·A + a. An illegal action is a sequence that no plan plays.

    Attributes:
      legal: For each level, whether each action is legal, [I_l, A].
      parents: For each level, the sequence before each infoset, counted within the level above.
      children: For each level, the infosets that each sequence leads to, counted within the level
        below and filled up with their number, [I_l·A, C_l].
      opposite: Sequences of the other player at ends that a sequence shares with him, [S, K].
      values: Payoff to this player there times the probability of chance, 0 where none, [S, K].
      chance: Probability of chance there, [S, K].
    """

    legal: tuple[Bool[Array, "I A"], ...]
    parents: tuple[Int[Array, " I"], ...]
    children: tuple[Int[Array, "S C"], ...]
    opposite: Int[Array, "S K"]
    values: Float[Array, "S K"]
    chance: Float[Array, "S K"]


class SequenceGame(NamedTuple):
    """A game in sequence form, as arrays.

    Examples:
      >>> import jaxsim.games as jg
      >>> from jaxsim.games import sequence
      >>> game = jg.kuhn_poker().game
      >>> policies = [sequence.uniform_policy(seat) for seat in game]
      >>> first, second = (sequence.realization_plan(*pair) for pair in zip(game, policies))
      >>> game.first.legal[0].shape, first.shape
      ((3, 2), (13,))
    """

    first: Seat
    """Player 0."""
    second: Seat
    """Player 1."""


Policy = Float[Array, "I A"]
"""Probabilities of the actions at each infoset of a player."""
Plan = Float[Array, " S"]
"""Probability of each sequence of a player: 1 for the first, and what follows shares it out."""


@own_promotion()
def uniform_policy(seat: Seat) -> Policy:
    """Makes a policy that plays every legal action equally often.

    Args:
      seat: Player's part of the game.

    Examples:
      >>> import jaxsim.games as jg
      >>> from jaxsim.games import sequence
      >>> sequence.uniform_policy(jg.kuhn_poker().game.first)[0].tolist()
      [0.5, 0.5]
    """
    legal = legal_actions(seat)
    return legal / legal.sum(-1, keepdims=True)


def legal_actions(seat: Seat) -> Bool[Array, "I A"]:
    """Lists which actions are legal at each infoset; no row for a player who never moves.

    Args:
      seat: Player's part of the game.
    """
    return jnp.concatenate(seat.legal) if seat.legal else jnp.zeros((0, 1), bool)


@own_promotion()
def random_policy(seat: Seat, key: Key[Array, ""]) -> Policy:
    """Draws a policy: uniform numbers on the legal actions, normalized.

    Args:
      seat: Player's part of the game.
      key: Random key.

    Examples:
      >>> import jax
      >>> import jaxsim.games as jg
      >>> from jaxsim.games import sequence
      >>> sequence.random_policy(jg.kuhn_poker().game.first, jax.random.key(0)).shape
      (6, 2)
    """
    legal = legal_actions(seat)
    draws = jax.random.uniform(key, legal.shape, minval=1e-6) * legal
    return draws / draws.sum(-1, keepdims=True)


@own_promotion()
def check_policy(seat: Seat, policy: Policy) -> None:
    """Checks that a policy fits a seat; a traced one is looked at for its shape only.

    Args:
      seat: Player's part of the game.
      policy: Probabilities of actions at each infoset, [I, A].

    Raises:
      ValueError: Another shape, rows that do not sum to 1 within 1e-4, or weight on illegal moves.
    """
    legal = np.asarray(legal_actions(seat))
    if jnp.shape(policy) != legal.shape:
        raise ValueError(f"policy: shape {jnp.shape(policy)}; must be {legal.shape}")
    if is_traced(policy):
        return
    p = np.asarray(policy)
    if not np.isfinite(p).all() or (p < 0).any() or (np.abs(p.sum(1) - 1) > 1e-4).any():
        raise ValueError("policy: rows must be probabilities that sum to 1 within 1e-4")
    if np.where(legal, 0, p).any():
        raise ValueError("policy: gives illegal actions a probability")


@own_promotion()
def realization_plan(seat: Seat, policy: Policy) -> Plan:
    """Converts a policy to its plan: the product of its probabilities along each sequence.

    Args:
      seat: Player's part of the game.
      policy: Probabilities of actions at each infoset, [I, A].

    Source: von Stengel (1996), doi 10.1006/game.1996.0050.

    Examples:
      >>> import jaxsim.games as jg
      >>> from jaxsim.games import sequence
      >>> game = jg.kuhn_poker().game
      >>> policies = [sequence.uniform_policy(seat) for seat in game]
      >>> first, second = (sequence.realization_plan(*pair) for pair in zip(game, policies))
      >>> first[:3].tolist()
      [1.0, 0.5, 0.5]
    """
    done, plan = 0, []
    for parents in seat.parents:
        here = policy[done : done + len(parents)]
        if plan:
            here = plan[-1][parents][:, None] * here
        plan.append(here.reshape(-1))
        done += len(parents)
    return jnp.concatenate([jnp.ones(1, policy.dtype), *plan])


@own_promotion()
def behavior_policy(seat: Seat, plan: Plan) -> Policy:
    """Converts a plan to its policy; uniform at infosets that the plan never reaches.

    Args:
      seat: Player's part of the game.
      plan: Probability of each sequence, [S].

    Examples:
      >>> import jaxsim.games as jg
      >>> from jaxsim.games import sequence
      >>> game = jg.kuhn_poker().game
      >>> policies = [sequence.uniform_policy(seat) for seat in game]
      >>> first, second = (sequence.realization_plan(*pair) for pair in zip(game, policies))
      >>> sequence.behavior_policy(game.first, first)[0].tolist()
      [0.5, 0.5]
    """
    at, policy, above = 1, [], None
    for legal, parents in zip(seat.legal, seat.parents, strict=True):
        here = plan[at : at + legal.size].reshape(legal.shape)
        reach = jnp.ones(len(parents), plan.dtype) if above is None else above[parents]
        # dividing by 1 where the plan does not come keeps the gradient free of NaN
        reached = reach >= TINY
        played = here / jnp.where(reached, reach, 1)[:, None]
        policy.append(jnp.where(reached[:, None], played, legal / legal.sum(-1, keepdims=True)))
        above = here.reshape(-1)
        at += legal.size
    return jnp.concatenate(policy) if policy else jnp.zeros((0, 1), plan.dtype)


@own_promotion()
def facing(seat: Seat, plan: Plan) -> Float[Array, " S"]:
    """Computes the value of ending in each sequence of a seat, against the other player's plan.

    Args:
      seat: Player's part of the game.
      plan: Plan of the other player.

    Examples:
      >>> import jaxsim.games as jg
      >>> from jaxsim.games import sequence
      >>> game = jg.kuhn_poker().game
      >>> policies = [sequence.uniform_policy(seat) for seat in game]
      >>> first, second = (sequence.realization_plan(*pair) for pair in zip(game, policies))
      >>> sequence.facing(game.first, second).shape
      (13,)
    """
    return jnp.sum(seat.values * plan[seat.opposite], -1)


@own_promotion()
def policy_value(game: SequenceGame, first: Plan, second: Plan) -> Float[Array, ""]:
    """Computes the expected payoff to player 0.

    Args:
      game: The game.
      first: Plan of player 0.
      second: Plan of player 1.

    Examples:
      >>> import jaxsim.games as jg
      >>> from jaxsim.games import sequence
      >>> game = jg.kuhn_poker().game
      >>> policies = [sequence.uniform_policy(seat) for seat in game]
      >>> first, second = (sequence.realization_plan(*pair) for pair in zip(game, policies))
      >>> round(float(sequence.policy_value(game, first, second)), 3)
      0.125
    """
    return first @ facing(game.first, second)


@own_promotion()
def best_value(seat: Seat, values: Float[Array, " S"]) -> Float[Array, ""]:
    """Computes the largest expected payoff to a player, given the value of each sequence.

    The largest over the actions of an *infoset*, never of a history: the player does not see what
    he cannot see.

    Args:
      seat: Player's part of the game.
      values: Value of ending in each sequence, [S], from `facing` or a mixture of such.

    Examples:
      >>> import jaxsim.games as jg
      >>> from jaxsim.games import sequence
      >>> game = jg.kuhn_poker().game
      >>> policies = [sequence.uniform_policy(seat) for seat in game]
      >>> first, second = (sequence.realization_plan(*pair) for pair in zip(game, policies))
      >>> round(float(sequence.best_value(game.first, sequence.facing(game.first, second))), 3)
      0.5
    """
    return _swept(seat, values)[0]


@own_promotion()
def best_response(seat: Seat, values: Float[Array, " S"]) -> tuple[Float[Array, ""], Policy]:
    """Finds the largest expected payoff to a player, and a pure policy that has it.

    Args:
      seat: Player's part of the game.
      values: Value of ending in each sequence, [S], from `facing` or a mixture of such.

    Examples:
      >>> import jaxsim.games as jg
      >>> from jaxsim.games import sequence
      >>> game = jg.kuhn_poker().game
      >>> policies = [sequence.uniform_policy(seat) for seat in game]
      >>> first, second = (sequence.realization_plan(*pair) for pair in zip(game, policies))
      >>> value, policy = sequence.best_response(game.first, sequence.facing(game.first, second))
      >>> round(float(value), 3), policy.shape
      (0.5, (6, 2))
    """
    value, choices = _swept(seat, values)
    width = seat.legal[0].shape[-1] if seat.legal else 1
    best = [jax.nn.one_hot(jnp.argmax(c, -1), width, dtype=values.dtype) for c in choices]
    return value, jnp.concatenate(best) if best else jnp.zeros((0, width), values.dtype)


def _swept(seat: Seat, values: Array) -> tuple[Array, list[Array]]:
    """The value of the game to a player, and of each action of each level."""
    below, choices = None, []
    at = len(values)
    for legal, children in zip(reversed(seat.legal), reversed(seat.children), strict=True):
        at -= legal.size
        here = values[at : at + legal.size]
        if below is not None:
            more = jnp.concatenate([below, jnp.zeros(1, below.dtype)])
            here = here + more[children].sum(-1)
        here = jnp.where(legal, here.reshape(legal.shape), -jnp.inf)
        choices.append(here)
        below = here.max(-1)
    return values[0] + (0 if below is None else below.sum()), choices[::-1]


@own_promotion()
def nash_conv(game: SequenceGame, first: Plan, second: Plan) -> Float[Array, ""]:
    """Computes the joint gain of the players by best responses to each other's plans.

    Exploitability, as OpenSpiel says it, is half of it.

    Args:
      game: The game.
      first: Plan of player 0.
      second: Plan of player 1.

    Source: Lanctot et al. (2017), arXiv 1711.00832, section 2.

    Examples:
      >>> import jaxsim.games as jg
      >>> from jaxsim.games import sequence
      >>> game = jg.kuhn_poker().game
      >>> policies = [sequence.uniform_policy(seat) for seat in game]
      >>> first, second = (sequence.realization_plan(*pair) for pair in zip(game, policies))
      >>> round(float(sequence.nash_conv(game, first, second)), 3)
      0.917
    """
    return best_value(game.first, facing(game.first, second)) + best_value(
        game.second, facing(game.second, first)
    )


def path(seat: Seat, at: Int[Array, ""], depth: int) -> Int[Array, " D1"]:
    """Lists the sequences that lead to one, from 0 on; after it, the same again up to `depth`.

    Args:
      seat: Player's part of the game.
      at: Number of the sequence.
      depth: Length of the list less 1, at least the number of the seat's levels.
    """
    starts = np.cumsum([1, *(legal.size for legal in seat.legal)])
    found = [at]
    for i, parents in reversed(list(enumerate(seat.parents))):
        width = seat.legal[i].shape[1]
        inside = (at >= starts[i]) & (at < starts[i + 1])
        before = parents[(at - starts[i]) // width]  # anything where it is not inside
        at = jnp.where(inside, starts[i - 1] + before if i else 0, at)
        found.append(at)
    found += [jnp.zeros_like(at)] * (depth + 1 - len(found))
    return jnp.stack(found[::-1])
