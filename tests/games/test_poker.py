"""Poker by its rules: pots, showdowns and who may do what, and policies that are read."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim.games as jg
from jaxsim.games import sequence

KUHN, LEDUC = jg.kuhn_poker(), jg.leduc_poker()


def certain(named, choose):
    """Plans of players who act by the name of what they see."""
    plans = []
    for seat, names in zip(named.game, named.infosets, strict=True):
        legal = np.concatenate([np.asarray(a) for a in seat.legal])
        policy = np.zeros(legal.shape)
        for row, can, name in zip(policy, legal, names, strict=True):
            row[choose(name, can)] = 1
        plans.append(sequence.realization_plan(seat, jnp.asarray(policy, jnp.float32)))
    return plans


def value(named, choose):
    return float(sequence.policy_value(named.game, *certain(named, choose)))


def test_infosets_of_kuhn_are_a_card_and_what_was_said():
    assert [set(names) for names in KUHN.infosets] == [
        {"0", "1", "2", "0pb", "1pb", "2pb"},
        {"0p", "1p", "2p", "0b", "1b", "2b"},
    ]
    assert len(jg.kuhn_poker(4).infosets[0]) == 8


def test_kuhn_is_played_for_one_or_two():
    """Against one who always passes a bet wins the ante; calls of the highest card win two."""
    assert value(KUHN, lambda name, can: 0) == 0
    # player 0 bets, player 1 passes
    assert value(KUHN, lambda name, can: int(len(name) == 1)) == 1
    # all bet: the same cards come as often for both
    assert value(KUHN, lambda name, can: 1) == 0
    # player 0 bets with 2 only, player 1 calls: 2 wins 2, others are passed and even (-1 each)
    # of six deals: 20, 21 win 2; 10 wins 1, 01 loses 1; 02, 12 lose 1
    found = value(KUHN, lambda name, can: int(name == "2" or name.endswith("b")))
    assert found == pytest.approx((2 + 2 + 1 - 1 - 1 - 1) / 6)
    # after a pass player 1 bets with 2, and player 0 folds: 02 and 12 lose the ante
    found = value(KUHN, lambda name, can: int(name == "2p"))
    assert found == pytest.approx((-1 - 1 - 1 + 1 + 1 + 1) / 6)
    # and calls: they lose two
    found = value(KUHN, lambda name, can: int(name == "2p" or name.endswith("pb")))
    assert found == pytest.approx((-2 - 2 - 1 + 1 + 1 + 1) / 6)


def calls(name, can):
    return 1


def test_leduc_is_played_for_what_was_put_in():
    """Checked down by all it is even; a raise that is folded to wins the ante."""
    assert value(LEDUC, calls) == pytest.approx(0, abs=1e-6)
    raised = value(
        LEDUC, lambda name, can: 2 if "[Player: 0]" in name and can[2] else int(not can[0])
    )
    # player 0 raises at once, player 1 folds
    assert raised == pytest.approx(1, abs=1e-6)
    # player 0 checks, player 1 raises, player 0 folds
    folded = value(LEDUC, lambda name, can: (0 if can[0] else 1) if "[Player: 0]" in name else 2)
    assert folded == pytest.approx(-1, abs=1e-6)
    # a raise of 2 that is called, then one of 4 that is folded to: 3 are lost

    def late(name, can):
        if "[Round 1]" in name:
            return 2 if "[Player: 0]" in name and can[2] and not can[0] else 1
        return 2 if "[Player: 0]" in name and can[2] else int(not can[0])

    assert value(LEDUC, late) == pytest.approx(3, abs=1e-6)


def test_a_pair_with_the_public_card_wins_then_the_higher_rank():
    """Who holds rank 2 raises all he may and is called; others check: 1 + 2 + 2, and 4 + 4 more."""
    high = {"4", "5"}

    def strong(name, can):
        mine = name.split("[Private: ")[1][0] in high
        return 2 if mine and can[2] and "[Player: 0]" in name else 1

    # deals of 30, player 0 high in 10: against 2 of his own rank in 2, against others in 8
    ranks = [i // 2 for i in range(6)]
    total, count = 0.0, 0
    for i in range(6):
        for j in range(6):
            for k in range(6):
                if len({i, j, k}) < 3:
                    continue
                pairs = (ranks[i] == ranks[k], ranks[j] == ranks[k])
                win = np.sign(ranks[i] - ranks[j])
                if pairs[0] != pairs[1]:
                    win = 1 if pairs[0] else -1
                # one raise a round: the other only calls
                total += win * (1 + 2 + 4 if ranks[i] == 2 else 1)
                count += 1
    assert value(LEDUC, strong) == pytest.approx(total / count, abs=1e-5)


def test_no_more_than_two_raises_a_round():
    """All raise where they may: 1 + 2 + 2 a head, then 4 + 4; what is won is 13 or nothing."""
    plans = certain(LEDUC, lambda name, can: 2 if can[2] else 1)
    seat = LEDUC.game.first
    reached = np.asarray(plans[0])[:, None] * np.asarray(plans[1])[np.asarray(seat.opposite)]
    reached = (reached > 0) & (np.asarray(seat.chance) > 0)
    worth = np.asarray(seat.values)[reached] / np.asarray(seat.chance)[reached]
    assert set(np.abs(worth).round(3).tolist()) == {0.0, 13.0}


TABLE = {name: {0: 0.25, 1: 0.75} for names in KUHN.infosets for name in names}


class Tabular:
    """As a `TabularPolicy` of OpenSpiel's Python half."""

    def __init__(self):
        self.state_lookup = {name: i for i, name in enumerate(sorted(TABLE))}
        self.action_probability_array = [[0.25, 0.75]] * len(TABLE)


class Compiled:
    """As a `TabularPolicy` of its C++ half."""

    def policy_table(self):
        return {name: [(0, 0.25), (1, 0.75)] for name in TABLE}


@pytest.mark.parametrize("table", [TABLE, Tabular(), Compiled()], ids=["mapping", "python", "c++"])
def test_tables_of_openspiel_are_read(table):
    for policy in jg.read_policy(KUHN, table):
        np.testing.assert_allclose(policy, np.tile([0.25, 0.75], (6, 1)))


def test_tables_that_are_none_are_refused():
    for told, table in {
        "a list; must map infosets": [],
        "has nothing for infoset": {k: v for k, v in TABLE.items() if k != "2pb"},
        "action 2 at infoset '0'": TABLE | {"0": {2: 1.0}},
        "action -1 at infoset '0'": TABLE | {"0": {-1: 1.0}},
        "sum to 1": TABLE | {"0": {0: 0.5}},
    }.items():
        with pytest.raises(ValueError, match=told):
            jg.read_policy(KUHN, table)
    jg.read_policy(KUHN, TABLE | {"0": {0: 1.0, 2: 0.0}})
