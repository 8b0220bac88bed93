import functools
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxsim.games as jg
import jaxsim.solvers as js
from jaxsim.games import sequence
from tests.oracles import sequence_lp

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("JAXSIM_DATA", ROOT.parent / "shared" / "data")) / "nac"
KUHN, LEDUC = jg.kuhn_poker(), jg.leduc_poker()
GAMES = {"kuhn_poker": KUHN, "leduc_poker": LEDUC}


def plans(game, policies):
    return [sequence.realization_plan(s, p) for s, p in zip(game, policies, strict=True)]


def random_policies(game, seed):
    keys = jax.random.split(jax.random.key(seed))
    return [sequence.random_policy(s, k) for s, k in zip(game, keys, strict=True)]


@functools.partial(jax.jit, static_argnums=0)
def uniform(name):
    """NashConv and value of the uniform policies, and how often a play ends."""
    game = GAMES[name].game
    both = plans(game, [sequence.uniform_policy(s) for s in game])
    total = both[0] @ (game.first.chance * both[1][game.first.opposite]).sum(1)
    return sequence.nash_conv(game, *both), sequence.policy_value(game, *both), total


@pytest.mark.parametrize(
    ("name", "infosets", "sequences", "ends", "levels"),
    [("kuhn_poker", 6, 13, 30, [2, 1]), ("leduc_poker", 468, 1093, 5520, [4, 4])],
)
def test_trees_have_the_size_of_the_games(name, infosets, sequences, ends, levels):
    named = GAMES[name]
    assert [len(seat.legal) for seat in named.game] == levels
    for seat, names in zip(named.game, named.infosets, strict=True):
        assert len(names) == len(set(names)) == infosets
        assert 1 + sum(int(a.sum()) for a in seat.legal) == sequences
        assert int((seat.chance > 0).sum()) == ends
    assert float(uniform(name)[2]) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "nash_conv", "value"),
    [("kuhn_poker", 0.9166667, 0.125), ("leduc_poker", 4.7472222, -0.078125)],
)
def test_the_uniform_policies_have_known_values(name, nash_conv, value):
    gap, worth, _ = uniform(name)
    assert float(gap) == pytest.approx(nash_conv, abs=1e-5)
    assert float(worth) == pytest.approx(value, abs=1e-5)


@functools.partial(jax.jit, static_argnums=0)
def measured(name, both):
    game = GAMES[name].game
    return sequence.nash_conv(game, *both), sequence.policy_value(game, *both)


@pytest.mark.parametrize(("name", "value"), [("kuhn_poker", -1 / 18), ("leduc_poker", -0.0856064)])
def test_the_equilibrium_of_the_linear_programme_has_the_known_value(name, value):
    game = GAMES[name].game
    found, both = sequence_lp.equilibrium(game)
    assert found == pytest.approx(value, abs=1e-7)
    gap, worth = measured(name, [p.astype(np.float32) for p in both])
    assert float(gap) == pytest.approx(0, abs=1e-5)
    assert float(worth) == pytest.approx(value, abs=1e-5)
    path = DATA / f"{name.removesuffix('_poker')}_nash.npz"
    if not path.exists():
        pytest.skip(f"{path} is absent; set JAXSIM_DATA")
    assert found == pytest.approx(float(np.load(path)["value"]), abs=1e-7)


@pytest.mark.parametrize("name", GAMES)
def test_random_policies_agree_with_openspiel(name):
    pyspiel = pytest.importorskip("pyspiel", reason="OpenSpiel is not installed")
    named, peer = GAMES[name], pyspiel.load_game(name)
    for seed in range(20):
        policies, both, _ = replayed(name, seed)
        table = {}
        for seat, names, policy in zip(named.game, named.infosets, policies, strict=True):
            legal = np.concatenate([np.asarray(a) for a in seat.legal])
            for n, row, can in zip(names, np.asarray(policy, float), legal, strict=True):
                table[n] = [(a, p) for a, p in enumerate(row) if can[a]]
        theirs = pyspiel.TabularPolicy(table)
        gap, value = measured(name, both)
        assert float(gap) == pytest.approx(pyspiel.nash_conv(peer, theirs), abs=1e-5)
        root = peer.new_initial_state()
        expected = pyspiel.expected_returns(root, theirs, -1, True)[0]
        assert float(value) == pytest.approx(expected, abs=1e-5)
        read = jg.read_policy(named, theirs)
        for a, b in zip(read, policies, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-7)


@pytest.mark.parametrize("name", GAMES)
def test_the_uniform_policy_of_openspiel_is_read(name):
    pyspiel = pytest.importorskip("pyspiel", reason="OpenSpiel is not installed")
    pytest.importorskip("absl", reason="OpenSpiel's Python half needs absl")
    policy = pytest.importorskip("open_spiel.python.policy", exc_type=ImportError)
    read = jg.read_policy(GAMES[name], policy.TabularPolicy(pyspiel.load_game(name)))
    for seat, found in zip(GAMES[name].game, read, strict=True):
        np.testing.assert_allclose(found, sequence.uniform_policy(seat), atol=1e-7)


@functools.partial(jax.jit, static_argnums=0)
def replayed(name, seed):
    """Of random policies: themselves, their plans, and the policies of these."""
    game = GAMES[name].game
    policies = random_policies(game, seed)
    both = plans(game, policies)
    again = [sequence.behavior_policy(s, p) for s, p in zip(game, both, strict=True)]
    return policies, both, again


@settings(max_examples=8)
@given(st.integers(0, 10**6), st.sampled_from(sorted(GAMES)))
def test_a_plan_and_its_policy_are_the_same_play(seed, name):
    for seat, policy, plan, again in zip(GAMES[name].game, *replayed(name, seed), strict=True):
        E, e = sequence_lp.constraints(seat)
        np.testing.assert_allclose(E @ np.asarray(plan, float), e, atol=1e-6)
        np.testing.assert_allclose(again, policy, atol=1e-5)


@functools.partial(jax.jit, static_argnums=0)
def mixed_and_alone(name, keys, weights):
    game = jg.both_seats(GAMES[name].game)
    strategies = jax.vmap(lambda k: game.strategy(game.init(k)))(keys[:3])
    one = game.strategy(game.init(keys[3]))
    alone = [jax.tree.map(lambda a, i=i: a[i], strategies) for i in range(3)]
    table = jnp.stack([jg.payoff(game, one, other) for other in alone])
    return game.against(one, game.mix(strategies, weights)), table


@settings(max_examples=8)
@given(st.integers(0, 10**6), st.sampled_from(sorted(GAMES)))
def test_a_mixture_of_plans_plays_as_its_agents_do(seed, name):
    weights = np.float32([0.2, 0.3, 0.5])
    mixed, table = mixed_and_alone(name, jax.random.split(jax.random.key(seed), 4), weights)
    assert float(mixed) == pytest.approx(float(np.dot(weights, table)), abs=1e-5)


def test_averaged_policies_are_not_the_mixture():
    # the original averages policies, which is another player
    game = KUHN.game

    @jax.jit
    def gaps():
        agents = [random_policies(game, seed) for seed in range(8)]
        mixed = [sum(p) / 8 for p in zip(*(plans(game, a) for a in agents), strict=True)]
        averaged = plans(game, [sum(p) / 8 for p in zip(*agents, strict=True)])
        return sequence.nash_conv(game, *mixed), sequence.nash_conv(game, *averaged)

    mixed, averaged = map(float, gaps())
    assert abs(mixed - averaged) > 1e-3


@functools.partial(jax.jit, static_argnums=0)
def responded(name, seed):
    game = GAMES[name].game
    mine, theirs = plans(game, random_policies(game, seed))
    values = sequence.facing(game.first, theirs)
    value, best = sequence.best_response(game.first, values)
    return value, best, sequence.realization_plan(game.first, best) @ values, mine @ values


@settings(max_examples=8)
@given(st.integers(0, 10**6), st.sampled_from(sorted(GAMES)))
def test_a_best_response_has_its_value_and_nothing_beats_it(seed, name):
    value, best, reached, mine = responded(name, seed)
    sequence.check_policy(GAMES[name].game.first, best)
    assert float(reached) == pytest.approx(float(value), abs=1e-5)
    assert float(value) >= float(mine) - 1e-6


def test_the_best_response_in_kuhn_is_that_of_brute_force():
    game = KUHN.game
    pure = np.eye(2, dtype=np.float32)[np.array(np.meshgrid(*[[0, 1]] * 6)).reshape(6, -1).T]

    @jax.jit
    def answered(seed):
        values = sequence.facing(game.first, plans(game, random_policies(game, seed))[1])
        every = jax.vmap(lambda p: sequence.realization_plan(game.first, p))(pure)
        return values, every, sequence.best_value(game.first, values)

    for seed in range(10):
        values, every, best = answered(seed)
        most = (np.asarray(every, float) @ np.asarray(values, float)).max()
        assert float(best) == pytest.approx(most, abs=1e-6)


def test_nash_conv_of_both_seats_is_that_of_the_plans():

    @jax.jit
    def both():
        game = jg.both_seats(LEDUC.game)
        strategy = game.strategy(game.init(jax.random.key(0)))
        whole = jg.nash_conv(game, jg.alone(game, strategy))
        return whole, sequence.nash_conv(LEDUC.game, *strategy)

    whole, of_plans = map(float, both())
    assert whole == pytest.approx(of_plans, abs=1e-5)


def test_a_policy_where_it_never_comes_is_uniform_and_has_a_gradient():
    seat = KUHN.game.first
    pure = jnp.zeros((6, 2)).at[:, 0].set(1)
    plan = sequence.realization_plan(seat, pure.at[:3].set(jnp.array([0.0, 1.0])))
    policy = sequence.behavior_policy(seat, plan)
    np.testing.assert_array_equal(policy[3:], 0.5)
    slope = jax.grad(lambda p: sequence.behavior_policy(seat, p).sum())(plan)
    assert np.isfinite(slope).all()


def test_bad_trees_and_policies_are_refused():
    end = {0: 1.0, 1: -1.0}
    bad = {
        "sum to 1": jg.Chance([(0.5, 1.0), (0.4, 0.0)]),
        "player 2": jg.Decision(2, "x", end),
        "elsewhere in the tree": jg.Chance(
            [(0.5, jg.Decision(0, "x", end)), (0.5, jg.Decision(0, "x", {0: 1.0}))]
        ),
        "reached by other moves": jg.Decision(
            0, "y", {a: jg.Decision(0, "x", end) for a in (0, 1)}
        ),
    }
    for told, tree in bad.items():
        with pytest.raises(ValueError, match=told):
            jg.sequence_form(tree)
    seat = LEDUC.game.first
    good = np.asarray(sequence.uniform_policy(seat))
    moved = good.copy()
    row = np.flatnonzero(good[:, 0] == 0)[0]
    moved[row] = [1, 0, 0]
    for told, policy in {"shape": good[1:], "sum to 1": 2 * good, "illegal": moved}.items():
        with pytest.raises(ValueError, match=told):
            sequence.check_policy(seat, policy)
    with pytest.raises(ValueError, match="nothing for infoset"):
        jg.read_policy(KUHN, {})
    with pytest.raises(ValueError, match="cards=1: must be"):
        jg.kuhn_poker(1)


def _tree(first=0, second=1, chances=(0.5, 0.5), payoff=1.0):
    moves = {first: payoff, second: 3.0}
    return jg.Chance([(p, jg.Decision(0, "a", moves)) for p in chances])


@pytest.mark.parametrize(
    ("told", "tree"),
    {
        "action -1: must be an int from 0": _tree(first=-1),
        "action 0.5: must be an int": _tree(first=0.5),
        "action nan: must be an int": _tree(first=float("nan")),
        "action 100000: must be an int from 0 to 65535": _tree(first=100_000),
        r"chances \[-0.5, 1.5\]: must be at least 0": _tree(chances=(-0.5, 1.5)),
        r"chances \[nan, 1.0\]": _tree(chances=(float("nan"), 1.0)),
        "payoff=nan: must be a finite number": _tree(payoff=float("nan")),
        "payoff=inf": _tree(payoff=float("inf")),
        "payoff='3'": _tree(payoff="3"),
        "payoff=None": _tree(payoff=None),
    }.items(),
)
def test_actions_chances_and_payoffs_that_are_none_are_refused(told, tree):
    with pytest.raises(ValueError, match=told):
        jg.sequence_form(tree)


def test_numpy_numbers_are_actions_players_and_payoffs():
    moves = {np.int64(0): np.float32(1), np.int32(1): np.asarray(3)}
    tree = jg.Chance([(np.float64(1), jg.Decision(np.int64(1), "a", moves))])
    game = jg.sequence_form(tree).game
    plans = [sequence.realization_plan(s, sequence.uniform_policy(s)) for s in game]
    assert sequence.policy_value(game, *plans) == 2


def test_deep_trees_and_a_player_who_never_moves():
    """1500 levels that end at once, or go on: going on to the end is worth 1."""
    node = 1.0
    for level in reversed(range(1500)):
        node = jg.Decision(0, str(level), {0: 0.0, 1: node})
    assert len(jg.sequence_form(node).game.first.legal) == 1500
    game = jg.sequence_form(
        jg.Decision(1, "a", {0: 5.0, 1: 2.0, 2: jg.Decision(1, "b", {0: 1.0})})
    ).game
    still, mover = game

    @jax.jit
    def answers():
        policy = sequence.uniform_policy(still)
        plan = sequence.realization_plan(still, policy)
        value, best = sequence.best_response(mover, sequence.facing(mover, plan))
        facing = sequence.facing(still, sequence.realization_plan(mover, best))
        again = sequence.behavior_policy(still, plan)
        return policy, value, best, again, sequence.best_response(still, facing)

    policy, value, best, again, nothing = answers()
    assert policy.shape == (0, 1)
    assert value == -1
    assert best.tolist() == [[0, 0, 1], [1, 0, 0]]
    sequence.check_policy(still, again)
    assert (nothing[0], nothing[1].shape) == (1, (0, 1))
    seats = jg.both_seats(game)
    run = jax.jit(lambda key: js.psro(seats, js.nash(100), js.exact(), key, start=1, iterations=2))(
        jax.random.key(0)
    )
    assert np.isfinite(np.asarray(run.population.payoffs)).all()
    assert run.nash_conv[-1] == pytest.approx(0, abs=1e-6)
