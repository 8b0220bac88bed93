"""A game of a card, worked by hand: every number of its sequence form, plays and answers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim.games as jg
from jaxsim.games import sequence, tree

# A high card comes a quarter of the time. Player 0 sees it and stops or goes on; player 1 folds or
# calls without having seen it; called with the high card, player 0 chooses once more.
AGAIN = jg.Decision(0, "again", {0: 10.0, 1: 6.0})
HIGH = jg.Decision(0, "high", {0: 4.0, 1: jg.Decision(1, "blind", {0: 1.0, 1: AGAIN})})
LOW = jg.Decision(0, "low", {0: -2.0, 1: jg.Decision(1, "blind", {0: 1.0, 1: -3.0})})
NAMED = jg.sequence_form(jg.Chance([(0.25, HIGH), (0.75, LOW)]))
GAME = NAMED.game
FIRST = jnp.array([[0.2, 0.8], [0.6, 0.4], [0.5, 0.5]])
SECOND = jnp.array([[0.3, 0.7]])
ONE = sequence.realization_plan(GAME.first, FIRST)
TWO = sequence.realization_plan(GAME.second, SECOND)


def test_infosets_stand_in_the_order_of_their_levels():
    assert NAMED.infosets == (("high", "low", "again"), ("blind",))
    assert [seat.tolist() for seat in GAME.first.legal] == [[[True] * 2] * 2, [[True] * 2]]
    assert [parents.tolist() for parents in GAME.first.parents] == [[0, 0], [1]]
    # sequence "high, go" leads to "again"; 1 and 0 are the numbers of no infoset below
    assert [c.tolist() for c in GAME.first.children] == [[[1], [0], [1], [1]], [[], []]]


def test_plans_are_products_and_policies_are_their_quotients():
    np.testing.assert_allclose(ONE, [1, 0.2, 0.8, 0.6, 0.4, 0.4, 0.4])
    np.testing.assert_allclose(TWO, [1, 0.3, 0.7])
    np.testing.assert_allclose(sequence.behavior_policy(GAME.first, ONE), FIRST)


def test_values_of_sequences_have_their_chances():
    """Stopping: 4/4 and -6/4. Going on and folded: .3/4 and .9/4; called low: -.7 · 9/4; again."""
    found = sequence.facing(GAME.first, TWO)
    np.testing.assert_allclose(
        found, [0, 1, 0.3 / 4, -1.5, 0.3 * 3 / 4 - 0.7 * 9 / 4, 1.75, 1.05], rtol=1e-6
    )
    # against player 1: stopping in the empty sequence, folds and calls, signs turned
    stop = 0.2 * 4 / 4 - 0.6 * 6 / 4
    fold = 0.8 / 4 + 0.4 * 3 / 4
    call = 0.4 * 10 / 4 + 0.4 * 6 / 4 - 0.4 * 9 / 4
    found = sequence.facing(GAME.second, ONE)
    np.testing.assert_allclose(found, [-stop, -fold, -call], rtol=1e-6)


def test_the_value_the_answers_and_their_gain():
    """High: .2 · 4 + .8 (.3 + .7 · 8) = 5.52; low: -1.2 + .4 (.3 - 2.1) = -1.92. In all -0.06.

    Player 0 answers by going on and 10: 7.3/4 - 1.8 · 3/4; player 1 by folding, 0.7 - 0.5.
    """
    assert float(sequence.policy_value(GAME, ONE, TWO)) == pytest.approx(-0.06, abs=1e-6)
    value, policy = sequence.best_response(GAME.first, sequence.facing(GAME.first, TWO))
    assert float(value) == pytest.approx(0.475, abs=1e-6)
    assert policy.tolist() == [[0, 1], [0, 1], [1, 0]]
    value, policy = sequence.best_response(GAME.second, sequence.facing(GAME.second, ONE))
    assert float(value) == pytest.approx(0.2, abs=1e-6)
    assert policy.tolist() == [[1, 0]]
    assert float(sequence.nash_conv(GAME, ONE, TWO)) == pytest.approx(0.675, abs=1e-6)


def test_both_seats_are_the_mean_of_two_games():
    """Each plays the other's part too: a pair of plans has 0 against itself."""
    game = jg.both_seats(GAME)
    opponent = jg.alone(game, (ONE, TWO))
    assert float(game.against((ONE, TWO), opponent)) == pytest.approx(0, abs=1e-7)
    assert float(game.best(opponent)) == pytest.approx(0.675 / 2, abs=1e-6)
    pure = game.strategy(game.respond(opponent))
    assert float(game.against(pure, opponent)) == pytest.approx(0.675 / 2, abs=1e-6)
    assert float(game.against((pure[0], TWO), opponent)) == pytest.approx(0.535 / 2, abs=1e-6)


# own decisions, the other's plan and the payoff of each end, in each seat
ENDS = [
    [
        ((0.2, 1), 1, 4),
        ((0.6, 1), 1, -2),
        ((0.8, 1), 0.3, 1),
        ((0.4, 1), 0.3, 1),
        ((0.4, 1), 0.7, -3),
        ((0.8, 0.5), 0.7, 10),
        ((0.8, 0.5), 0.7, 6),
    ],
    [
        ((1, 1), 0.2, -4),
        ((1, 1), 0.6, 2),
        ((1, 0.3), 0.8, -1),
        ((1, 0.3), 0.4, -1),
        ((1, 0.7), 0.4, 3),
        ((1, 0.7), 0.4, -10),
        ((1, 0.7), 0.4, -6),
    ],
]
CHANCES = [0.25, 0.75, 0.25, 0.75, 0.75, 0.25, 0.25]


def plays():
    """For each end of each seat: its number, the chance of it, and the episode that ends there."""
    game = jg.both_seats(GAME)
    opponent = jg.alone(game, (ONE, TWO))
    tell = jax.jit(lambda ends: game.episode((ONE, TWO), opponent, ends))
    still = [int(jnp.argmax(seat.chance.reshape(-1) > 0)) for seat in GAME]
    for i, seat in enumerate(GAME):
        for end in np.flatnonzero(np.asarray(seat.chance).reshape(-1)):
            ends = [jnp.int32(end if i == j else still[j]) for j in range(2)]
            told = jax.tree.map(lambda a, i=i: np.asarray(a)[i], tell(tuple(ends)))
            yield i, float(seat.chance.reshape(-1)[end]), told


def test_an_episode_tells_its_decisions_and_half_of_what_was_won():
    found = [[], []]
    for i, chance, told in plays():
        own = tuple(np.exp(told.own).round(5).tolist())
        np.testing.assert_array_equal(told.other[:-1], 0)
        np.testing.assert_array_equal(told.reward[:-1], 0)
        other, reward = float(np.exp(told.other[-1])), float(2 * told.reward[-1])
        found[i].append((*own, round(other, 5), round(reward, 4), chance))
    for seat, known in zip(found, ENDS, strict=True):
        expected = [(*own, *rest, p) for (own, *rest), p in zip(known, CHANCES, strict=True)]
        np.testing.assert_allclose(sorted(seat), sorted(expected), rtol=1e-4)


def test_episodes_have_the_payoff_as_their_mean():
    """Half of -0.06 in the first seat, and half of 0.06 in the second."""
    mean = [0.0, 0.0]
    for i, chance, told in plays():
        mean[i] += chance * np.exp(told.own.sum() + told.other.sum()) * told.reward.sum()
    assert mean == pytest.approx([-0.03, 0.03], abs=1e-6)


def test_ends_are_drawn_with_their_chances_and_for_each_seat_anew():
    game = jg.both_seats(GAME)
    opponent = jg.alone(game, (ONE, TWO))
    keys = jax.random.split(jax.random.key(0), 4000)
    draw = jax.jit(jax.vmap(lambda k: game.draw(k, (ONE, TWO), opponent)))
    drawn = [np.asarray(a) for a in draw(keys)]
    for seat, mine, theirs, ends in zip(GAME, (ONE, TWO), (TWO, ONE), drawn, strict=True):
        chance = np.asarray(mine[:, None] * seat.chance * theirs[seat.opposite]).reshape(-1)
        found = np.bincount(ends, minlength=len(chance)) / 4000
        assert (abs(found - chance) <= 4 * np.sqrt(chance * (1 - chance) / 4000)).all()
    worth = [np.asarray(s.values).reshape(-1)[e] for s, e in zip(GAME, drawn, strict=True)]
    assert abs(np.corrcoef(worth)[0, 1]) < 4 / np.sqrt(4000)
    again = draw(keys[:3])
    np.testing.assert_array_equal(again[0], drawn[0][:3])


def test_the_way_to_a_sequence_is_listed_from_the_start():
    ways = {0: [0, 0, 0], 1: [0, 1, 1], 3: [0, 3, 3], 4: [0, 4, 4], 5: [0, 2, 5], 6: [0, 2, 6]}
    for at, way in ways.items():
        found = sequence.path(GAME.first, jnp.int32(at), 2)
        assert found.tolist() == way
    assert sequence.path(GAME.second, jnp.int32(2), 2).tolist() == [0, 0, 2]


def test_ways_of_kuhn_go_through_the_pass_of_the_same_card():
    """Sequences 1 to 6 pass and bet 0, 1 and 2; 7 to 12 fold and call after a pass and a bet."""
    first = jg.kuhn_poker().game.first
    assert [p.tolist() for p in first.parents] == [[0, 0, 0], [0, 2, 4]]
    ways = [sequence.path(first, jnp.int32(at), 2).tolist() for at in range(13)]
    assert ways[1:7] == [[0, at, at] for at in range(1, 7)]
    assert ways[7:] == [[0, 1, 7], [0, 1, 8], [0, 3, 9], [0, 3, 10], [0, 5, 11], [0, 5, 12]]


def test_policies_of_logits_are_their_softmax_on_legal_actions():
    uneven = jg.sequence_form(
        jg.Decision(0, "a", {0: 1.0, 2: jg.Decision(1, "b", {0: 0.0, 1: 2.0, 2: 5.0})})
    ).game
    game = jg.by_logits(uneven)
    first, second = game.strategy((jnp.log(jnp.array([[1.0, 9, 3]])), jnp.zeros((1, 3))))
    np.testing.assert_allclose(first, [1, 0.25, 0, 0.75], rtol=1e-6)
    np.testing.assert_allclose(second, [1, 1 / 3, 1 / 3, 1 / 3], rtol=1e-6)
    agent = game.init(jax.random.key(0))
    policies = jg.both_seats(uneven).init(jax.random.key(0))
    for logits, policy in zip(agent, policies, strict=True):
        np.testing.assert_allclose(jnp.exp(logits), jnp.maximum(policy, 1e-6), rtol=1e-5)
    answer = game.respond(jg.alone(game, (first, second)))
    np.testing.assert_array_equal(answer[0], [[0, 0, 100]])
    np.testing.assert_array_equal(answer[1], [[100, 0, 0]])


def test_new_agents_have_a_policy_of_their_own_in_each_seat():
    game = jg.both_seats(jg.leduc_poker().game)
    first, second = game.init(jax.random.key(0))
    other, _ = game.init(jax.random.key(1))
    a, b, c = (np.asarray(p) for p in (first, second, other))
    three = ((a > 0) & (b > 0) & (c > 0)).all(1)
    rows = np.stack([p[three][:, 0] for p in (a, b, c)])
    assert abs(np.corrcoef(rows)[np.triu_indices(3, 1)]).max() < 4 / np.sqrt(three.sum())
    np.testing.assert_array_equal(game.init(jax.random.key(0))[0], first)


def test_random_policies_share_out_uniform_numbers():
    seat = jg.leduc_poker().game.first
    policy = np.asarray(sequence.random_policy(seat, jax.random.key(3)))
    legal = np.concatenate([np.asarray(a) for a in seat.legal])
    assert (policy[~legal] == 0).all()
    assert (policy[legal] > 0).all()
    two = policy[legal.sum(1) == 2]
    # of two uniform numbers the share of one is below 1/4 with probability 1/6
    share = np.where(two[:, 0] > 0, two[:, 0], two[:, 1])
    assert np.mean(share < 0.25) == pytest.approx(1 / 6, abs=4 * np.sqrt(5 / 36 / len(share)))


@pytest.mark.parametrize("error", [0.8e-4, -0.8e-4])
def test_rows_of_a_policy_may_be_off_by_less_than_their_tolerance(error):
    sequence.check_policy(GAME.second, jnp.array([[0.3, 0.7 + error]]))


@pytest.mark.parametrize("error", [1.2e-4, -1.2e-4])
def test_rows_of_a_policy_that_are_off_by_more_are_refused(error):
    with pytest.raises(ValueError, match="sum to 1 within 1e-4"):
        sequence.check_policy(GAME.second, jnp.array([[0.3, 0.7 + error]]))


@pytest.mark.parametrize("row", [[1.5, -0.5], [np.nan, 1.0], [np.inf, -np.inf]])
def test_what_is_no_probability_is_refused(row):
    with pytest.raises(ValueError, match="must be probabilities"):
        sequence.check_policy(GAME.second, jnp.array([row]))


def test_a_traced_policy_is_looked_at_for_its_shape():
    look = jax.jit(lambda p: sequence.check_policy(GAME.second, p))
    look(jnp.array([[2.0, 3.0]]))
    with pytest.raises(ValueError, match=r"shape \(1, 3\); must be \(1, 2\)"):
        look(jnp.ones((1, 3)))


def chances(*p):
    return jg.Chance([(x, float(i)) for i, x in enumerate(p)])


def test_chances_may_be_off_by_rounding_only():
    jg.sequence_form(chances(0.5, 0.5 + 0.9e-9))
    jg.sequence_form(chances(1.0, 0.0))
    for off in (1.1e-9, -1.1e-9):
        with pytest.raises(ValueError, match="must be at least 0 and sum to 1"):
            jg.sequence_form(chances(0.5, 0.5 + off))


def test_the_largest_action_is_that_of_sixteen_bits():
    assert tree._moves(jg.Decision(0, "a", {65535: 2.0})) == {65535: 2.0}
    with pytest.raises(ValueError, match="action 65536: must be an int from 0 to 65535"):
        jg.sequence_form(jg.Decision(0, "a", {65536: 2.0}))


def test_players_infosets_and_moves_that_cannot_be_are_refused():
    for told, root in {
        "player -1 with 1 moves": jg.Decision(-1, "a", {0: 1.0}),
        "player 0 with 0 moves": jg.Decision(0, "a", {}),
        "player 0.5 with 1 moves": jg.Decision(0.5, "a", {0: 1.0}),
        "'x': both players move": jg.Decision(0, "x", {0: jg.Decision(1, "x", {0: 1.0})}),
    }.items():
        with pytest.raises(ValueError, match=told):
            jg.sequence_form(root)


def test_two_ends_of_one_pair_of_sequences_are_added():
    """Chance alone tells them apart: 1/4 · 8 + 3/4 · 4, and for the other player less that."""
    game = jg.sequence_form(
        jg.Decision(0, "a", {0: jg.Chance([(0.25, 8.0), (0.75, 4.0)]), 1: 0.0})
    ).game
    np.testing.assert_allclose(game.first.values, [[0], [5], [0]])
    np.testing.assert_allclose(game.second.values, [[-5, 0]])
    np.testing.assert_allclose(game.first.chance, [[0], [1], [1]])
