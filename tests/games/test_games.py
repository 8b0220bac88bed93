import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxsim.games as jg
from jaxsim.games import rps
from tests.games.test_sequence import DATA
from tests.oracles import games as oracle

MAKE = {
    "skill": lambda key: jg.games_of_skill(key, 7),
    "rps": lambda key: jg.rps_mixture(key, 5),
    "lotto": lambda key: jg.lotto(key, 4, 6),
    "pennies": lambda key: jg.matching_pennies(6),
    "kuhn": lambda key: jg.both_seats(jg.kuhn_poker().game),
}


def played(name):
    """Payoffs one by one, those made together, and that of the first against a mixture."""

    @jax.jit
    def run(keys, weights):
        game = MAKE[name](keys[0])
        strategies = jax.vmap(lambda k: game.strategy(game.init(k)))(keys[1:])

        def alone(i):
            return jax.tree.map(lambda a: a[i], strategies)

        def one(pair):
            return jg.payoff(game, alone(pair // 4), alone(pair % 4))

        table = jax.lax.map(one, jnp.arange(16)).reshape(4, 4)
        mixed = game.against(alone(0), game.mix(strategies, weights))
        return table, jg.payoffs(game, strategies), mixed

    return run


PLAYED = {name: played(name) for name in MAKE}


@pytest.mark.parametrize("name", sorted(MAKE))
@settings(max_examples=5)
@given(seed=st.integers(0, 10**6))
def test_payoffs_are_antisymmetric_and_mixtures_are_means(name, seed):
    keys = jax.random.split(jax.random.key(seed), 5)
    weights = jnp.array([0.1, 0.2, 0.3, 0.4])
    table, together, mixed = map(np.asarray, PLAYED[name](keys, weights))
    np.testing.assert_allclose(table, -table.T, atol=2e-5)
    np.testing.assert_allclose(together, table, atol=2e-5)
    np.testing.assert_allclose(mixed, table[0] @ np.asarray(weights), atol=2e-5)


@pytest.mark.parametrize("name", sorted(set(MAKE) - {"lotto"}))
def test_the_best_response_has_the_best_value_and_no_agent_does_better(name):

    @jax.jit
    def values(keys):
        game = MAKE[name](keys[0])
        play = jax.vmap(lambda k: game.strategy(game.init(k)))
        opponent = game.mix(play(keys[1:4]), jnp.array([0.5, 0.3, 0.2]))
        reached = game.against(game.strategy(game.respond(opponent)), opponent)
        others = jax.vmap(lambda s: game.against(s, opponent))(play(keys[4:]))
        return game.best(opponent), reached, others.max(), jg.nash_conv(game, opponent)

    best, reached, other, conv = map(float, values(jax.random.split(jax.random.key(3), 34)))
    assert reached == pytest.approx(best, abs=1e-5)
    assert other <= best + 1e-6
    assert conv == pytest.approx(2 * best, abs=1e-6)


def test_rock_paper_scissors_has_the_known_nash_conv():
    game = jg.matrix_game(jg.rock_paper_scissors())
    for p, expected in (([1 / 3, 1 / 3, 1 / 3], 0), ([1, 0, 0], 2)):
        opponent = jg.alone(game, jnp.asarray(p, jnp.float32))
        assert float(jg.nash_conv(game, opponent)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("coins", "fields"), [(5, 3), (5, 4), (3, 2)])
def test_blotto_is_that_of_the_rules(coins, fields):
    np.testing.assert_array_equal(jg.blotto_matrix(coins, fields), oracle.blotto(coins, fields))


@pytest.mark.parametrize("name", ["5_3-Blotto", "10_3-Blotto", "RPS"])
def test_matrices_of_others_are_played_and_have_our_values(name):
    path = DATA / "spinning_tops_small.npz"
    if not path.exists():
        pytest.skip(f"{path} is absent; set JAXSIM_DATA")
    theirs = np.load(path)[name]
    jg.matrix_game(theirs)
    if name == "RPS":
        ours = jg.rock_paper_scissors()
    else:
        ours = jg.blotto_matrix(*map(int, name.split("-")[0].split("_")))

    # numbered in another order perhaps: the multiset of the rows' sorted entries is the same
    def rows(a):
        return sorted(map(tuple, np.sort(np.round(a, 6), 1)))

    assert rows(np.sign(theirs)) == rows(np.sign(ours))


@functools.partial(jax.jit, static_argnums=0)
def of_pennies(rounds, mine, theirs):
    return jg.payoff(jg.matching_pennies(rounds), mine, theirs)


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.sampled_from([1, 2, 7, 12]))
def test_matching_pennies_is_the_chain_of_its_states(seed, rounds):
    p, q = np.random.default_rng(seed).uniform(size=(2, 5))
    expected = oracle.pennies(p, q, rounds)
    chance = np.full(5, 0.5, np.float32)
    # a player of pure chance in the second seat has nothing to win or lose
    mine, other = (p.astype(np.float32), chance), (chance, q.astype(np.float32))
    assert 2 * float(of_pennies(rounds, mine, other)) == pytest.approx(expected, abs=1e-5)


def test_episodes_of_matching_pennies_have_the_mean_of_the_chain():
    rng = np.random.default_rng(0)
    p, q, r, s = rng.uniform(size=(4, 5))
    game = jg.matching_pennies(8)
    mine, theirs = (tuple(jnp.asarray(a, jnp.float32) for a in pair) for pair in ((p, q), (r, s)))
    opponent = jg.alone(game, theirs)

    @jax.jit
    @jax.vmap
    def play(key):
        return game.episode(mine, opponent, game.draw(key, mine, opponent))

    total = np.asarray(play(jax.random.split(jax.random.key(1), 20000)).reward.sum(-1))
    for seat, expected in enumerate((oracle.pennies(p, s, 8), -oracle.pennies(r, q, 8))):
        x = total[:, seat]
        assert abs(x.mean() - expected / 2) < 4 * x.std() / len(x) ** 0.5


@jax.jit
def of_lotto(keys):
    game = jg.lotto(keys[0], 5, 4)
    mine, theirs = (game.strategy(game.init(k)) for k in keys[1:])
    customers = jax.random.uniform(keys[0], (5, 2), minval=-1, maxval=1)
    return jg.payoff(game, mine, theirs), customers, mine, theirs


@settings(max_examples=10)
@given(st.integers(0, 10**6))
def test_lotto_is_one_softmax_a_customer(seed):
    found, customers, mine, theirs = of_lotto(jax.random.split(jax.random.key(seed), 3))
    expected = oracle.lotto(
        *jax.tree.map(lambda a: np.asarray(a, float), (customers, tuple(mine), tuple(theirs)))
    )
    assert float(found) == pytest.approx(expected, abs=1e-4)
    assert float(mine.shares.sum()) == pytest.approx(4, abs=1e-5)


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.sampled_from([3, 5, 7]))
def test_rps_in_the_plane_is_its_cycle(seed, modes):
    key = jax.random.key(seed)
    game = jg.rps_mixture(key, modes)
    x, y = np.random.default_rng(seed).uniform(-4, 4, (2, 2))
    turn = (
        float(jax.random.uniform(key, (), maxval=2 * np.pi)) + 2 * np.pi * np.arange(modes) / modes
    )
    means = rps.RADIUS * np.stack([np.cos(turn), np.sin(turn)], 1)
    mine, theirs = (game.strategy(jnp.asarray(z, jnp.float32)) for z in (x, y))
    expected = oracle.rps(means, rps.SHARPNESS, x, y)
    assert float(jg.payoff(game, mine, theirs)) == pytest.approx(expected, abs=1e-4)


@settings(max_examples=10)
@given(st.integers(0, 10**6))
def test_no_point_of_a_fine_grid_beats_the_best_response_in_the_plane(seed):
    best, most = best_in_the_plane(jax.random.split(jax.random.key(seed), 4))
    assert float(best) >= float(most) - 1e-5


@jax.jit
def best_in_the_plane(keys):
    game = jg.rps_mixture(keys[0])
    points = jax.vmap(lambda k: 3 * jax.random.normal(k, (2,)))(keys[1:])
    opponent = game.mix(jax.vmap(game.strategy)(points), jnp.array([0.5, 0.25, 0.25]))
    line = jnp.linspace(-6, 6, 401)
    grid = jnp.stack(jnp.meshgrid(line, line), -1).reshape(-1, 2)
    most = jax.vmap(lambda x: game.against(game.strategy(x), opponent))(grid).max()
    return game.best(opponent), most


def test_games_are_pytrees_of_their_numbers():
    keys = jax.random.split(jax.random.key(0), 3)
    games = jax.vmap(lambda k: jg.games_of_skill(k, 4))(keys)
    found = jax.vmap(lambda g: g.best(jg.alone(g, jnp.full(4, 0.25))))(games)
    single = [jg.games_of_skill(k, 4) for k in keys]
    expected = [float(g.best(jg.alone(g, jnp.full(4, 0.25)))) for g in single]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_bad_games_are_refused():
    for told, a in {
        "must be square": np.zeros((2, 3)),
        "differs from": np.ones((2, 2)),
        "not finite": np.full((2, 2), np.nan),
    }.items():
        with pytest.raises(ValueError, match=told):
            jg.matrix_game(a)
    with pytest.raises(ValueError, match="modes=4: must be odd"):
        jg.rps_mixture(jax.random.key(0), 4)
    with pytest.raises(ValueError, match="rounds=0"):
        jg.matching_pennies(0)
    game = jg.lotto(jax.random.key(0), 2, 2)
    opponent = jg.alone(game, game.strategy(game.init(jax.random.key(1))))
    with pytest.raises(ValueError, match="no exact best response"):
        jg.nash_conv(game, opponent)


@pytest.mark.parametrize(
    "call", [lambda: jg.skill_matrix(jax.random.key(0), 10**6), lambda: jg.blotto_matrix(60, 6)]
)
def test_what_would_not_fit_is_refused_before_it_is_made(call):
    with pytest.raises(MemoryError, match=r"GiB; allowed: 4\.0 GiB"):
        call()
