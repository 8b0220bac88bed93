"""Game trees, and the sequence form of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxsim.games.sequence import Seat, SequenceGame
from jaxsim.numerics.checks import is_whole


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
