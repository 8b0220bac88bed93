"""Two-player zero-sum games with hidden information, in sequence form.

A player's sequence is what he has done so far; his plan gives each sequence the probability that he
plays it, whatever the others do. Payoffs are bilinear in the plans of the two players, a best
response is one sweep from the last decisions to the first, and a mixture of plans plays exactly as
the mixture of players who hold them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int, Key

from jaxsim.games.game import CERTAIN, Episode, Game
from jaxsim.numerics.arrays import own_promotion
from jaxsim.numerics.checks import is_traced, is_whole
from jaxsim.numerics.scaling import TINY


class Chance(NamedTuple):
    """A node where chance moves.

    Attributes:
      outcomes: Probability and following node of each outcome; probabilities sum to 1.

    Examples:
      >>> import jaxsim.games as jg
      >>> guess = jg.Decision(1, "hidden", {0: 1.0, 1: -1.0})  # player 1 does not see the coin
      >>> other = jg.Decision(1, "hidden", {0: -1.0, 1: 1.0})
      >>> jg.sequence_form(jg.Chance([(0.5, guess), (0.5, other)])).infosets
      ((), ('hidden',))
    """

    outcomes: Sequence[tuple[float, Node]]


class Decision(NamedTuple):
    """A node where a player moves.

    Attributes:
      player: Player who moves, 0 or 1.
      infoset: Name of the player's information set.
      moves: Node that follows each legal action; actions are whole numbers from 0 to 65535.

    Examples:
      >>> import jaxsim.games as jg
      >>> guess = jg.Decision(1, "hidden", {0: 1.0, 1: -1.0})  # player 1 does not see the coin
      >>> other = jg.Decision(1, "hidden", {0: -1.0, 1: 1.0})
      >>> coin = jg.Decision(0, "start", {0: guess, 1: other})  # matching pennies
      >>> jg.sequence_form(coin).infosets
      (('start',), ('hidden',))
    """

    player: int
    infoset: str
    moves: Mapping[int, Node]


Node = float | Chance | Decision
"""A game tree; a number is the payoff to player 0 at an end."""


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


class Named(NamedTuple):
    """A game with the names of its infosets.

    Attributes:
      game: The game as arrays.
      infosets: Names of each player's infosets, in the order of the policy's rows.

    Examples:
      >>> import jaxsim.games as jg
      >>> named = jg.kuhn_poker()
      >>> named.infosets[0][:3]
      ('0', '1', '2')
    """

    game: SequenceGame
    infosets: tuple[tuple[str, ...], tuple[str, ...]]


Policy = Float[Array, "I A"]
"""Probabilities of the actions at each infoset of a player."""
Plan = Float[Array, " S"]
"""Probability of each sequence of a player: 1 for the first, and what follows shares it out."""


def sequence_form(root: Node) -> Named:
    """Converts a game tree to arrays.

    Args:
      root: Root of the tree.

    Raises:
      ValueError: Chances below 0 or that do not sum to 1, payoffs that are not finite, a decision
        without moves, actions that are no whole numbers from 0 to 65535, an infoset with other
        moves or another player somewhere else, or a player who forgets what he did.

    Examples:
      >>> import jaxsim.games as jg
      >>> guess = jg.Decision(1, "hidden", {0: 1.0, 1: -1.0})  # player 1 does not see the coin
      >>> other = jg.Decision(1, "hidden", {0: -1.0, 1: 1.0})
      >>> game = jg.sequence_form(jg.Decision(0, "start", {0: guess, 1: other})).game
      >>> game.first.values.shape  # the empty sequence and two actions, two ends each
      (3, 2)
    """
    found: tuple[dict[str, _Infoset], dict[str, _Infoset]] = ({}, {})
    ends: dict[tuple[_Sequence, _Sequence], list[float]] = {}

    # a stack of nodes, the next one last: a tree may be deeper than Python's own stack
    todo: list[tuple[Node, tuple[_Sequence, _Sequence], float]] = [(root, (None, None), 1.0)]
    while todo:
        node, done, chance = todo.pop()
        if isinstance(node, Chance):
            outcomes = list(zip(_chances(node), (after for _, after in node.outcomes), strict=True))
            todo += [(after, done, chance * p) for p, after in reversed(outcomes)]
        elif isinstance(node, Decision):
            player, moves = _player(node), _moves(node)
            mine = _Infoset(done[player], tuple(moves))
            if found[player].setdefault(node.infoset, mine) != mine:
                raise ValueError(
                    f"infoset {node.infoset!r}: reached by other moves of its player, or with "
                    "other moves to make, elsewhere in the tree"
                )
            for action, after in reversed(moves.items()):
                step = (node.infoset, action)
                then = (step, done[1]) if player == 0 else (done[0], step)
                todo.append((after, then, chance))
        else:
            end = ends.setdefault(done, [0.0, 0.0])
            end[0] += chance
            end[1] += chance * _payoff(node)
    if both := set(found[0]) & set(found[1]):
        raise ValueError(f"infoset {min(both)!r}: both players move at it")
    width = 1 + max((a for seat in found for i in seat.values() for a in i.moves), default=0)
    orders = [_levels(seat) for seat in found]
    places = [{n: i for i, n in enumerate(n for level in o for n in level)} for o in orders]

    def number(player: int, sequence: _Sequence) -> int:
        return 0 if sequence is None else 1 + places[player][sequence[0]] * width + sequence[1]

    seats = []
    for player, (order, seat) in enumerate(zip(orders, found, strict=True)):
        met: list[list[tuple[int, float, float]]] = [[] for _ in range(1 + len(seat) * width)]
        for pair, (chance, value) in ends.items():
            sign = 1 if player == 0 else -1
            met[number(player, pair[player])].append(
                (number(1 - player, pair[1 - player]), sign * value, chance)
            )
        seats.append(_seat(order, seat, met, width))
    names = tuple(tuple(n for level in order for n in level) for order in orders)
    return Named(SequenceGame(seats[0], seats[1]), (names[0], names[1]))


_Sequence = tuple[str, int] | None
_MOST = 2**16 - 1
"""Largest action: tables have as many columns as the largest one says."""


def _chances(node: Chance) -> list[float]:
    """The chances of a node, checked."""
    chances = [p for p, _ in node.outcomes]
    if not all(_finite(p) and float(p) >= 0 for p in chances) or abs(sum(chances) - 1) > 1e-9:
        raise ValueError(f"outcomes: chances {chances}: must be at least 0 and sum to 1")
    return [float(p) for p in chances]


def _player(node: Decision) -> int:
    if not is_whole(node.player) or node.player not in (0, 1) or not node.moves:
        raise ValueError(
            f"infoset {node.infoset!r}: player {node.player} with {len(node.moves)} moves; "
            "must be player 0 or 1 with at least one"
        )
    return int(node.player)


def _moves(node: Decision) -> dict[int, Node]:
    """The moves of a node by rising action, checked."""
    for action in node.moves:
        if not is_whole(action) or not 0 <= action <= _MOST:
            raise ValueError(
                f"infoset {node.infoset!r}: action {action!r}: must be an int from 0 to {_MOST}"
            )
    return {int(action): node.moves[action] for action in sorted(node.moves)}


def _payoff(node: Any) -> float:
    if not _finite(node):
        raise ValueError(f"payoff={node!r}: must be a finite number, a Chance or a Decision")
    return float(node)


def _finite(value: Any) -> bool:
    number = np.asarray(value)
    return number.ndim == 0 and number.dtype.kind in "biuf" and bool(np.isfinite(number))


class _Infoset(NamedTuple):
    before: _Sequence
    moves: tuple[int, ...]


def _levels(seat: Mapping[str, _Infoset]) -> list[list[str]]:
    """Names of infosets by level."""
    level: dict[str, int] = {}
    for name, infoset in seat.items():  # a parent is found before its children
        level[name] = 0 if infoset.before is None else 1 + level[infoset.before[0]]
    return [[n for n in seat if level[n] == i] for i in range(max(level.values(), default=-1) + 1)]


def _seat(
    order: list[list[str]],
    seat: Mapping[str, _Infoset],
    met: list[list[tuple[int, float, float]]],
    width: int,
) -> Seat:
    legal, parents, children = [], [], []
    for depth, names in enumerate(order):
        legal.append(np.array([[a in seat[n].moves for a in range(width)] for n in names]))
        above = {n: i for i, n in enumerate(order[depth - 1])} if depth else {}
        before = [seat[n].before for n in names]
        parents.append(np.array([0 if b is None else above[b[0]] * width + b[1] for b in before]))
    for depth, names in enumerate(order):
        below: list[list[int]] = [[] for _ in range(len(names) * width)]
        if depth + 1 < len(order):
            for i, p in enumerate(parents[depth + 1]):
                below[p].append(i)
        children.append(_pad_rows(below, len(parents[depth + 1]) if depth + 1 < len(order) else 0))
    return Seat(
        tuple(map(jnp.asarray, legal)),
        tuple(map(jnp.asarray, parents)),
        tuple(map(jnp.asarray, children)),
        jnp.asarray(_pad_rows([[m[0] for m in row] for row in met], 0)),
        jnp.asarray(_pad_rows([[m[1] for m in row] for row in met], 0.0), jnp.result_type(float)),
        jnp.asarray(_pad_rows([[m[2] for m in row] for row in met], 0.0), jnp.result_type(float)),
    )


def _pad_rows(rows: Sequence[Sequence[float]], by: float) -> np.ndarray:
    """Rows of unequal length as an array."""
    longest = max(map(len, rows), default=0)
    return np.array([[*row, *[by] * (longest - len(row))] for row in rows]).reshape(
        len(rows), longest
    )


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
    legal = _legal(seat)
    return legal / legal.sum(-1, keepdims=True)


def _legal(seat: Seat) -> Bool[Array, "I A"]:
    """Mask of the legal actions of each infoset; no row for a player who never moves."""
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
    legal = _legal(seat)
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
    legal = np.asarray(_legal(seat))
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
        jax.nn.softmax(jnp.where(_legal(seat), logits, -jnp.inf))
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
