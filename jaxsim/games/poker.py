"""Kuhn's and Leduc poker, and policies that OpenSpiel writes for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxsim.games.sequence import Policy, check_policy
from jaxsim.games.tree import Chance, Decision, Named, Node, sequence_form
from jaxsim.numerics.arrays import own_promotion
from jaxsim.numerics.checks import checked_int


def kuhn_poker(cards: int = 3) -> Named:
    """Makes Kuhn's poker: one card each, one bet of 1 on an ante of 1.

    Action 0 passes, 1 bets. Infosets have OpenSpiel's names ("0", "2pb").

    Args:
      cards: Number of cards in the deck, at least 2; 3 is Kuhn's game.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim.games as jg
      >>> from jaxsim.games import sequence
      >>> named = jg.kuhn_poker()
      >>> [len(names) for names in named.infosets]
      [6, 6]
      >>> plans = [sequence.realization_plan(s, sequence.uniform_policy(s)) for s in named.game]
      >>> round(float(sequence.policy_value(named.game, *plans)), 3)
      0.125
    """
    cards = checked_int("cards", cards, 2)

    def after(deal: tuple[int, int], said: str) -> Node:
        won = 1 if deal[0] > deal[1] else -1
        ends = {"pp": won, "bp": 1, "pbp": -1, "bb": 2 * won, "pbb": 2 * won}
        if said in ends:
            return float(ends[said])
        player = len(said) % 2
        moves = {a: after(deal, said + c) for a, c in enumerate("pb")}
        return Decision(player, f"{deal[player]}{said}", moves)

    deals = [(i, j) for i in range(cards) for j in range(cards) if i != j]
    return sequence_form(Chance([(1 / len(deals), after(deal, "")) for deal in deals]))


def leduc_poker() -> Named:
    """Makes Leduc poker: three ranks in two suits, one card each and a public one, two rounds.

    An ante of 1, raises of 2 and then 4, at most two a round. A pair with the public card wins,
    then the higher rank. Action 0 folds (where there is a bet), 1 calls or checks, 2 raises.
    Infosets have OpenSpiel's names.

    Source: Southey et al. (2005), arXiv 1207.1411, section 4.

    Examples:
      >>> import jaxsim.games as jg
      >>> named = jg.leduc_poker()
      >>> len(named.infosets[0]), named.infosets[0][0][:24]
      (468, '[Observer: 0][Private: 0')
    """
    cards = range(6)

    def showdown(deal: tuple[int, int], public: int) -> int:
        pairs = [card // 2 == public // 2 for card in deal]
        ranks = [card // 2 for card in deal]
        if pairs[0] != pairs[1]:
            return 1 if pairs[0] else -1
        return (ranks[0] > ranks[1]) - (ranks[0] < ranks[1])

    def after(
        deal: tuple[int, int],
        public: int | None,
        spent: tuple[int, int],
        said: tuple[tuple[int, ...], tuple[int, ...]],
    ) -> Node:
        late = public is not None
        now = said[late]
        player = len(now) % 2
        name = (
            f"[Observer: {player}][Private: {deal[player]}][Round {1 + late}][Player: {player}]"
            f"[Pot: {sum(spent)}][Money: {100 - spent[0]} {100 - spent[1]}]"
            + (f"[Public: {public}]" if late else "")
            + "".join(f"[Round{i + 1}: {' '.join(map(str, s))}]" for i, s in enumerate(said))
        )
        facing = spent[1 - player] > spent[player]
        moves: dict[int, Node] = {}
        if facing:
            moves[0] = float(-spent[0] if player == 0 else spent[1])
        level = max(spent)
        for action in (1, 2):
            if action == 2 and now.count(2) == 2:
                continue
            paid = level + (4 if late else 2) * (action == 2)
            spending = (paid, spent[1]) if player == 0 else (spent[0], paid)
            more = (*now, action)
            saying = (said[0], more) if late else (more, said[1])
            closed = action == 1 and len(more) > 1
            if not closed:
                moves[action] = after(deal, public, spending, saying)
            elif public is not None:
                moves[action] = float(paid * showdown(deal, public))
            else:
                left = [c for c in cards if c not in deal]
                moves[action] = Chance(
                    [(1 / len(left), after(deal, c, spending, saying)) for c in left]
                )
        return Decision(player, name, moves)

    deals = [(i, j) for i in cards for j in cards if i != j]
    tree = Chance([(1 / len(deals), after(deal, None, (1, 1), ((), ()))) for deal in deals])
    return sequence_form(tree)


@own_promotion()
def read_policy(named: Named, table: Any) -> tuple[Policy, Policy]:
    """Reads the policies of both players from a table that OpenSpiel has written.

    Args:
      named: Game with OpenSpiel's names of infosets.
      table: A Python `TabularPolicy`, a C++ one (`pyspiel.TabularPolicy`), or a mapping from the
        name of an infoset to the probabilities of its actions: {action: p} or [(action, p), …].

    Returns:
      Probabilities of actions for each player, [I, A].

    Raises:
      ValueError: An infoset is missing, or its entry is not a policy.

    Examples:
      >>> import jaxsim.games as jg
      >>> named = jg.kuhn_poker()
      >>> passes = {name: {0: 1.0, 1: 0.0} for names in named.infosets for name in names}
      >>> first, second = jg.read_policy(named, passes)
      >>> first.shape, first[0].tolist()
      ((6, 2), [1.0, 0.0])
    """
    if hasattr(table, "policy_table"):
        table = table.policy_table()
    elif hasattr(table, "state_lookup"):
        rows = np.asarray(table.action_probability_array)
        table = {k: dict(enumerate(rows[i])) for k, i in table.state_lookup.items()}
    if not isinstance(table, Mapping):
        raise ValueError(f"table: a {type(table).__name__}; must map infosets to probabilities")
    found = []
    for seat, names in zip(named.game, named.infosets, strict=True):
        policy = np.zeros((len(names), seat.legal[0].shape[-1]))
        for row, name in zip(policy, names, strict=True):
            if name not in table:
                raise ValueError(f"table: has nothing for infoset {name!r}")
            given: Any = table[name]
            pairs: Iterable[tuple[int, float]] = (
                given.items() if isinstance(given, Mapping) else given
            )
            for action, p in pairs:
                if p:
                    if not 0 <= int(action) < len(row):
                        raise ValueError(f"table: action {action} at infoset {name!r}")
                    row[int(action)] = p
        found.append(jnp.asarray(policy, jnp.result_type(float)))
        check_policy(seat, found[-1])
    return found[0], found[1]
