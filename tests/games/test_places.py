"""Games in the plane and games of rounds: by hand, and what they draw."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim.games as jg
from jaxsim.games import pennies, rps
from jaxsim.games.lotto import Servers
from jaxsim.numerics import memory

KEY = jax.random.key(0)


def test_lotto_of_one_customer_is_a_ratio_of_exponentials():
    """My servers at distances 1 and 2 have the shares 0.5 and 1.5, theirs are at 0 and 3."""
    e = np.exp(-np.array([1.0, 2, 0, 3]))
    expected = (0.5 * e[0] + 1.5 * e[1] - 1.25 * e[2] - 0.75 * e[3]) / e.sum()

    @jax.jit
    def played():
        game = jg.lotto(KEY, customers=1, servers=2)
        c = jax.random.uniform(KEY, (1, 2), minval=-1, maxval=1)[0]
        mine = Servers(c + jnp.array([[1.0, 0], [0, -2]]), jnp.array([0.5, 1.5]))
        theirs = Servers(c + jnp.array([[0.0, 0], [3, 0]]), jnp.array([1.25, 0.75]))
        both = jax.tree.map(lambda a, b: jnp.stack([a, b]), theirs, mine)
        mixed = game.against(mine, game.mix(both, jnp.array([0.25, 0.75])))
        strategy = game.strategy(Servers(mine.places, jnp.log(jnp.array([1.0, 3.0]))))
        slope = jax.grad(lambda p: jg.payoff(game, theirs._replace(places=p), mine))(theirs.places)
        return jg.payoff(game, mine, theirs), mixed, strategy.shares, slope

    worth, mixed, shares, slope = played()
    assert float(worth) == pytest.approx(expected, abs=1e-5)
    assert float(mixed) == pytest.approx(0.25 * expected, abs=1e-5)
    np.testing.assert_allclose(shares, [0.5, 1.5], rtol=1e-6)
    # a server that stands where the customer is has a slope that is a number
    assert np.isfinite(slope).all()


def test_servers_start_anywhere_in_the_square_with_shares_of_their_own():
    init = jax.jit(jg.lotto(KEY, customers=2, servers=1000).init)
    agent, other = init(jax.random.key(1)), init(jax.random.key(2))
    x, y = np.asarray(agent.places).T
    for side in (x, y):
        assert side.min() == pytest.approx(-1, abs=0.02)
        assert side.max() == pytest.approx(1, abs=0.02)
        assert abs(side.mean()) < 4 / np.sqrt(3000)
    assert np.std(agent.shares) == pytest.approx(0.2, rel=4 / np.sqrt(2000))
    assert abs(np.mean(agent.shares)) < 4 * 0.2 / np.sqrt(1000)
    rows = np.stack([x, y, agent.shares, other.places[:, 0], other.shares])
    assert np.abs(np.corrcoef(rows)[np.triu_indices(5, 1)]).max() < 4.5 / np.sqrt(1000)
    # places are 2 · 1000 of the same bits from the front, if shares were drawn of one key
    from scipy.stats import norm

    normal = norm.cdf(np.asarray(agent.shares) / 0.2)
    flat = np.ravel(agent.places)[:1000]
    assert abs(np.corrcoef(normal, flat)[0, 1]) < 4 / np.sqrt(1000)


def test_customers_are_those_of_the_game_s_key():

    @jax.jit
    def played(key):
        game = jg.lotto(key, 2, 3)
        mine, theirs = (game.strategy(game.init(jax.random.key(k))) for k in (1, 2))
        return jg.payoff(game, mine, theirs)

    worth = [float(played(jax.random.key(k))) for k in (0, 0, 1)]
    assert worth[0] == worth[1] != worth[2]


def test_pennies_of_two_rounds_by_hand():
    """Heads of the first seat: 0.6, then by what happened; the second sees the rounds turned.

    After HH, HT, TH, TT the first plays heads with 0.1, 0.2, 0.3, 0.4, and the second, who calls HT
    what the first calls TH, with 0.9, 0.7, 0.5, 0.3 after his own HH, HT, TH, TT.
    """
    p, q = jnp.array([0.6, 0.1, 0.2, 0.3, 0.4]), jnp.array([0.25, 0.9, 0.7, 0.5, 0.3])
    weights = jnp.array([0.5, 0.5])
    first = np.array([0.6 * 0.25, 0.6 * 0.75, 0.4 * 0.25, 0.4 * 0.75])
    heads = [(0.1, 0.9), (0.2, 0.5), (0.3, 0.7), (0.4, 0.3)]
    second = sum(w * (2 * a - 1) * (2 * b - 1) for w, (a, b) in zip(first, heads, strict=True))
    expected = (first[0] + first[3] - first[1] - first[2] + second) / 2
    assert float(pennies._value(weights, p, q)) == pytest.approx(expected, abs=1e-6)
    game = jg.matching_pennies(2)
    half = jnp.full(5, 0.5)
    assert float(jg.payoff(game, (p, half), (half, q))) == pytest.approx(expected / 2, abs=1e-6)
    assert float(jg.payoff(game, (half, q), (p, half))) == pytest.approx(-expected / 2, abs=1e-6)


def test_the_best_of_thirty_two_players_wins_what_is_known():
    """Who plays heads but after TT is met with heads; in the other seat with tails."""
    game = jg.matching_pennies(4)
    known = (jnp.array([1.0, 1, 1, 1, 0]), jnp.array([1.0, 1, 1, 1, 0]))
    opponent = jg.alone(game, known)
    assert float(game.best(opponent)) == pytest.approx(1)
    answer = game.strategy(game.respond(opponent))
    assert float(game.against(answer, opponent)) == pytest.approx(1)
    assert set(np.abs(np.concatenate(game.respond(opponent))).tolist()) == {100.0}


def test_players_of_pennies_start_with_logits_of_their_own():
    game = jg.matching_pennies(2)
    made = np.stack([np.ravel(jnp.stack(game.init(jax.random.key(k)))) for k in range(200)])
    assert np.std(made) == pytest.approx(1, rel=4 / np.sqrt(2 * made.size))
    assert np.abs(np.corrcoef(made.T)[np.triu_indices(10, 1)]).max() < 4.5 / np.sqrt(200)


def test_pennies_are_drawn_apart_from_who_draws_them_and_in_each_seat_and_round():
    game = jg.matching_pennies(2)
    half = jnp.full((2, 5), 0.5)
    opponent = game.mix((half, half), jnp.array([0.5, 0.5]))
    draw = jax.jit(jax.vmap(lambda k: game.draw(k, (half[0], half[0]), opponent)))
    drawn = draw(jax.random.split(KEY, 2000))
    bits = np.concatenate(
        [np.reshape(a, (2000, -1)) for a in (drawn.who, drawn.mine, drawn.theirs)], 1
    )
    assert np.abs(np.corrcoef(bits.T.astype(float))[np.triu_indices(10, 1)]).max() < 4.5 / np.sqrt(
        2000
    )
    # HH, HT, TH and TT of the own penny first are 1 to 4
    first = 1 + 2 * (1 - drawn.mine[:, :, 0].astype(int)) + (1 - drawn.theirs[:, :, 0].astype(int))
    np.testing.assert_array_equal(drawn.state[:, :, 1], first)
    assert not np.any(drawn.state[:, :, 0])


def test_an_episode_of_pennies_tells_its_chances():
    game = jg.matching_pennies(2)
    p, q = jnp.array([0.6, 0.1, 0.2, 0.3, 0.4]), jnp.array([0.25, 0.9, 0.7, 0.5, 0.3])
    theirs = (jnp.stack([q, p]), jnp.stack([p, q]))
    opponent = game.mix(theirs, jnp.array([0.25, 0.75]))
    draws = pennies.Draws(
        who=jnp.array([1, 0]),
        state=jnp.array([[0, 2], [0, 3]]),  # HT of the first seat, TH of the second
        mine=jnp.array([[True, False], [False, True]]),
        theirs=jnp.array([[False, False], [True, True]]),
    )
    told = game.episode((p, q), opponent, draws)
    # first seat: p then against q of number 1; second: q against q of number 0
    np.testing.assert_allclose(jnp.exp(told.own), [[0.6, 0.8], [0.75, 0.5]], rtol=1e-6)
    expected = [[0.75 * 0.75, 0.5], [0.25 * 0.25, 0.7]]
    np.testing.assert_allclose(jnp.exp(told.other), expected, rtol=1e-5)
    np.testing.assert_allclose(told.reward, [[-0.25, 0.25], [0.25, -0.25]])


def test_constants_of_the_plane_are_the_published_ones():
    """Feng et al. (2021), arXiv 2106.02745, in their code."""
    assert (rps.RADIUS, rps.SHARPNESS) == (2.8722, 0.54)


def test_three_modes_beat_each_other_in_turn():
    """At mode 0 one is felt as 1 there and as exp(-0.27 · 3 r²) at both others."""
    game = jg.rps_mixture(KEY, 3)
    turn = float(jax.random.uniform(KEY, (), maxval=2 * np.pi))
    angles = turn + 2 * np.pi * np.arange(3) / 3
    at = [
        game.strategy(jnp.array([2.8722 * np.cos(a), 2.8722 * np.sin(a)], jnp.float32))
        for a in angles
    ]
    far = np.exp(-0.27 * 3 * 2.8722**2)
    np.testing.assert_allclose(at[0], [1, far, far, 1], rtol=1e-4)
    # mode 1 is ahead of 0 and beats it
    win = (1 - far) ** 2
    for i in range(3):
        assert float(jg.payoff(game, at[(i + 1) % 3], at[i])) == pytest.approx(win, rel=1e-3)
    # felt nowhere, one loses half of what the other is felt
    gone = game.strategy(jnp.array([50.0, 50.0]))
    assert float(jg.payoff(game, at[0], gone)) == pytest.approx((1 + 2 * far) / 2, rel=1e-4)


def test_points_start_near_the_middle():
    game = jg.rps_mixture(KEY, 3)
    made = np.stack([game.init(jax.random.key(k)) for k in range(150)])
    assert np.std(made) == pytest.approx(0.01, rel=4 / np.sqrt(600))
    assert abs(np.corrcoef(made.T)[0, 1]) < 4 / np.sqrt(150)


@pytest.mark.parametrize(
    ("message", "make"),
    {
        "customers=0": lambda: jg.lotto(KEY, 0, 1),
        "servers=0": lambda: jg.lotto(KEY, 1, 0),
        "modes=2: must be an int of at least 3": lambda: jg.rps_mixture(KEY, 2),
        "modes=4: must be odd": lambda: jg.rps_mixture(KEY, 4),
        "rounds=0": lambda: jg.matching_pennies(0),
    }.items(),
)
def test_games_have_a_least_size(message, make):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("need", "make"),
    [
        (36, lambda: jg.lotto(KEY, 1, 3)),  # 12 for each of three servers
        (240, lambda: jg.lotto(KEY, 10, 3)),  # 8 for each of thirty pairs
        (64, lambda: jg.rps_mixture(KEY, 3)),  # 4 · 4²
        (144, lambda: jg.matching_pennies(3)),
        (4 * 25, lambda: jg.skill_matrix(KEY, 5)),
        (8 * 3 * 36, lambda: jg.blotto_matrix(2, 3)),
    ],
)
def test_memory_is_counted_by_what_is_made(monkeypatch, need, make):
    monkeypatch.setattr(memory, "LIMIT", need)
    make()
    monkeypatch.setattr(memory, "LIMIT", need - 1)
    with pytest.raises(MemoryError):
        make()
