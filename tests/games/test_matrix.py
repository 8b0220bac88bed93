"""Matrix games: what agents start from, draw and answer, and which matrices are none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim.games as jg

A = np.array([[0, 3, -1], [-3, 0, 2], [1, -2, 0]], np.float32)


def test_new_agents_are_normal_with_a_deviation_of_a_fifth():
    game = jg.matrix_game(np.zeros((400, 400)))
    a, same, b = (np.asarray(game.init(jax.random.key(k))) for k in (0, 0, 1))
    np.testing.assert_array_equal(a, same)
    assert np.std([a, b]) == pytest.approx(0.2, rel=4 / np.sqrt(2 * 800))
    assert abs(np.mean([a, b])) < 4 * 0.2 / np.sqrt(800)
    assert abs(np.corrcoef(a, b)[0, 1]) < 4 / np.sqrt(400)


def test_payoffs_mixtures_and_answers_by_hand():
    """Against (1/2, 1/4, 1/4) rows have the payoffs 3/4 - 1/4, -3/2 + 1/2, 1/2 - 1/2."""
    game = jg.matrix_game(A)
    mixed = game.mix(jnp.eye(3)[jnp.array([0, 1])], jnp.array([0.75, 0.25]))
    np.testing.assert_allclose(mixed, [0.75, -2.25, 0.25])
    opponent = game.mix(jnp.eye(3), jnp.array([0.5, 0.25, 0.25]))
    np.testing.assert_allclose(opponent, [0.5, -1, 0])
    assert float(game.against(jnp.array([0.2, 0.3, 0.5]), opponent)) == pytest.approx(-0.2)
    assert float(game.best(opponent)) == 0.5
    np.testing.assert_array_equal(game.respond(opponent), [100, 0, 0])
    np.testing.assert_array_equal(game.strategy(game.respond(opponent)), [1, 0, 0])
    assert float(jg.nash_conv(game, opponent)) == 1.0
    np.testing.assert_array_equal(jg.payoffs(game, jnp.eye(3)), A)
    assert float(jg.payoff(game, jnp.eye(3)[1], jnp.eye(3)[2])) == 2


def test_payoffs_of_a_table_are_half_of_what_differs_between_both_sides():
    """A game whose payoffs are told as 2 where the other's are 0: each has one of the two."""
    game = jg.matrix_game(A)._replace(against=lambda s, o: 2 * s[0] * (o[1] != 0))
    np.testing.assert_array_equal(jg.payoffs(game, jnp.eye(3)), [[0, 0, 1], [0, 0, 0], [-1, 0, 0]])


def test_a_play_is_an_action_its_chance_and_what_it_is_worth():
    game = jg.matrix_game(A)
    strategy, opponent = jnp.array([0.5, 0.125, 0.375]), jnp.array([0.5, -1.0, 0.25])
    told = game.episode(strategy, opponent, jnp.int32(1))
    np.testing.assert_allclose(told.own, [[np.log(0.125)]])
    np.testing.assert_array_equal(told.other, [[0]])
    np.testing.assert_array_equal(told.reward, [[-1]])
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = np.bincount(jax.vmap(lambda k: game.draw(k, strategy, opponent))(keys))
    expected = 4000 * np.array([0.5, 0.125, 0.375])
    assert (abs(drawn - expected) < 4 * np.sqrt(expected)).all()


def test_a_game_of_skill_is_a_cycle_and_a_ladder_of_standard_normals():
    """W - Wᵀ has the variance 2; S - Sᵀ too, and is the same along a row but for its column."""
    d = 60
    p = np.asarray(jg.skill_matrix(jax.random.key(0), d), float)
    np.testing.assert_allclose(p, -p.T, atol=1e-6)
    skill = p.mean(1)  # S less its mean, up to noise of deviation √(2/d)
    ladder = skill[:, None] - skill
    above = np.triu_indices(d, 1)
    assert np.std((p - ladder)[above]) == pytest.approx(np.sqrt(2), rel=0.06)
    assert np.std(skill) == pytest.approx(np.sqrt(1 + 2 / d), rel=0.35)
    other = np.asarray(jg.skill_matrix(jax.random.key(1), d))
    assert abs(np.corrcoef(p[above], other[above])[0, 1]) < 0.1
    one = jg.skill_matrix(jax.random.key(0), 1)
    assert one.tolist() == [[0]]


def off(error):
    """A matrix game whose matrix is antisymmetric but for one entry."""
    a = A.copy().astype(float)
    a[0, 1] += error
    return a


@pytest.mark.parametrize("error", [0.9e-5, -0.9e-5])
def test_payoffs_may_be_off_by_less_than_their_tolerance(error):
    jg.matrix_game(off(error))


@pytest.mark.parametrize("error", [1.1e-5, -1.1e-5])
def test_payoffs_off_by_more_are_refused(error):
    with pytest.raises(ValueError, match=r"differs from -payoffs.T by 1\.1e-05; at most 1e-5"):
        jg.matrix_game(off(error))


@pytest.mark.parametrize("shape", [(3,), (2, 3), (0, 0), (2, 2, 2)])
def test_what_is_no_square_matrix_is_refused(shape):
    with pytest.raises(ValueError, match=r"must be square, \[d, d\]"):
        jg.matrix_game(np.zeros(shape))
    jg.matrix_game(np.zeros((1, 1)))


def test_paper_beats_rock_and_both_lose_to_what_beats_them():
    expected = [[0, -1, 1], [1, 0, -1], [-1, 1, 0]]
    np.testing.assert_array_equal(jg.rock_paper_scissors(), expected)


def test_blotto_of_one_field_and_of_one_coin():
    """One field is a tie; one coin on two fields too, since each wins one."""
    assert jg.blotto_matrix(3, 1).tolist() == [[0]]
    np.testing.assert_array_equal(jg.blotto_matrix(1, 2), np.zeros((2, 2)))
    # of (0, 4), (1, 3), …: two fields are always one each or both tied
    np.testing.assert_array_equal(jg.blotto_matrix(4, 2), np.zeros((5, 5)))
    three = jg.blotto_matrix(3, 3)
    splits = [(a, b, 3 - a - b) for a in range(4) for b in range(4 - a)]
    assert three.shape == (10, 10)
    # (1, 1, 1) beats (0, 0, 3), (0, 3, 0), (3, 0, 0) two fields to one
    assert three[splits.index((1, 1, 1)), splits.index((0, 3, 0))] == 1
    assert three[splits.index((0, 1, 2)), splits.index((2, 0, 1))] == 1
    for name in ("coins", "fields"):
        with pytest.raises(ValueError, match=f"{name}=0: must be an int of at least 1"):
            jg.blotto_matrix(**({"coins": 1, "fields": 1} | {name: 0}))
    with pytest.raises(ValueError, match="dim=0: must be an int of at least 1"):
        jg.skill_matrix(jax.random.key(0), 0)
