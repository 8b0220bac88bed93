"""Populations: who answers whom, who reports, and what is drawn for whom."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import jaxsim.games as jg
import jaxsim.solvers as js
from jaxsim.solvers.psro import extend, populate, respond

psro = jax.jit(js.psro, static_argnames=("start", "iterations"))
# the answer to action i is i + 1, round and round
CYCLE = np.zeros((5, 5), np.float32)
for i in range(5):
    CYCLE[(i + 1) % 5, i], CYCLE[i, (i + 1) % 5] = 3, -3
CYCLE[0, 2], CYCLE[2, 0] = 1, -1
GAME = jg.matrix_game(CYCLE)
ALWAYS_ZERO = GAME._replace(init=Partial(lambda key: 100 * jax.nn.one_hot(0, 5)))


def actions(run):
    return run.population.strategies.argmax(-1).tolist()


def from_zero(solver, **report):
    """Four exact answers, the first to an agent that always plays 0."""
    key = jax.random.key(0)
    return psro(ALWAYS_ZERO, solver, js.exact(), key, start=1, iterations=4, **report)


def test_the_solver_is_answered_and_the_reporter_reports():
    """Self-play goes round the cycle, 0 to 4; one action alone loses 3 to the next."""
    run = from_zero(js.latest(), report=js.uniform())
    assert actions(run) == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(run.weights, np.full(5, 0.2))
    even = [2 * (CYCLE @ np.bincount(range(n), minlength=5) / n).max() for n in range(1, 6)]
    np.testing.assert_allclose(run.nash_conv, even, rtol=1e-6)
    assert np.isnan(run.found).all()
    other = from_zero(js.uniform(), report=js.latest())
    assert actions(other) != actions(run)
    assert other.weights.tolist() == [0, 0, 0, 0, 1]
    np.testing.assert_allclose(other.nash_conv, 6)
    same = from_zero(js.uniform())
    assert actions(same) == actions(other)
    np.testing.assert_allclose(same.weights, np.full(5, 0.2))


def test_what_an_exact_exploiter_finds_is_nash_conv_itself():
    run = psro(
        GAME,
        js.uniform(),
        js.exact(),
        jax.random.key(0),
        iterations=3,
        exploiter=js.exact(),
    )
    np.testing.assert_allclose(run.found, run.nash_conv, rtol=1e-6)
    opponent = jg.alone(GAME, jnp.array([0.25, 0.75, 0, 0, 0]))
    # 1 wins 3 · 1/4, and 2 wins 3 · 3/4 - 1 · 1/4 = 2
    gain = js.approximate_gain(GAME, opponent, js.exact(), jax.random.key(0))
    assert float(gain) == 4.0
    assert float(jg.nash_conv(GAME, opponent)) == 4.0


def drawn(game, opponent, key):
    """An oracle that answers with a new agent of its key, whatever there is to answer."""
    return game.init(key)


NOISE = jg.matrix_game(np.asarray(jg.skill_matrix(jax.random.key(5), 300)))


def logits(strategies):
    return np.log(np.asarray(strategies, float)) - np.log(np.asarray(strategies)).mean(1)[:, None]


def test_agents_at_first_and_answers_are_drawn_independently():
    run, again = (
        psro(NOISE, js.uniform(), Partial(drawn), jax.random.key(7), start=3, iterations=4)
        for _ in range(2)
    )
    made = logits(run.population.strategies)
    assert np.abs(np.corrcoef(made)[np.triu_indices(7, 1)]).max() < 4 / np.sqrt(300)
    np.testing.assert_array_equal(run.population.strategies, again.population.strategies)
    first = populate(NOISE, jax.random.split(jax.random.key(7), 3)[0], 3, 4)
    np.testing.assert_allclose(first.strategies[:3], run.population.strategies[:3], rtol=1e-6)


def test_an_exploiter_draws_other_numbers_than_the_answers():
    """Answer i meets the mixture that was measured: drawn alike, it would have what was found."""
    run = psro(
        NOISE,
        js.uniform(),
        Partial(drawn),
        jax.random.key(7),
        start=2,
        iterations=5,
        exploiter=Partial(drawn),
    )
    table, found = np.asarray(run.population.payoffs), np.asarray(run.found)
    worth = [2 * table[2 + i, : 2 + i].mean() for i in range(5)]
    assert (np.abs(found[:5] - worth) > 1e-4).all()
    assert len({round(float(f), 6) for f in found}) == 6


def test_a_population_has_room_for_those_who_follow():
    p = populate(GAME, jax.random.key(0), 2, 0)
    assert p.strategies.shape == (2, 5)
    p = populate(GAME, jax.random.key(0), 1, 2)
    assert (p.payoffs.shape, int(p.size)) == ((3, 3), 1)
    p = extend(GAME, p, jnp.eye(5)[1])
    assert int(p.size) == 2
    table = np.asarray(p.payoffs)
    assert table[1, 0] == -table[0, 1] == pytest.approx(CYCLE[1] @ np.asarray(p.strategies[0]))
    assert not table[2].any()
    assert not table[:, 2].any()
    p = respond(GAME, p, jnp.array([0.0, 1.0, 0.0]), js.exact(), jax.random.key(0))
    assert int(p.strategies[2].argmax()) == 2
    assert p.payoffs[2, 1] == 3
    for told, start, room in (("start=0", 0, 1), ("room=-1", 1, -1)):
        with pytest.raises(ValueError, match=f"{told}: must be an int"):
            populate(GAME, jax.random.key(0), start, room)
    with pytest.raises(ValueError, match="iterations=0"):
        js.psro(GAME, js.uniform(), js.exact(), jax.random.key(0), iterations=0)


def test_an_agent_has_nothing_of_itself():
    """Room is filled with zeros, which are strategies of Lotto that others lose to or beat."""

    @jax.jit
    def payoffs():
        game = jg.lotto(jax.random.key(0), 2, 3)
        p = populate(game, jax.random.key(1), 1, 1)
        return extend(game, p, game.strategy(game.init(jax.random.key(2)))).payoffs

    table = np.asarray(payoffs())
    assert table[0, 1] == -table[1, 0] != 0
    np.testing.assert_array_equal(np.diag(table), 0)


def test_memory_counts_strategies_and_the_table_of_payoffs(monkeypatch):
    """Of 2 + 3 agents: 5 · 5 numbers of 4 bytes, and 4 · 5² of payoffs, 200 in all."""
    from jaxsim.numerics import memory

    monkeypatch.setattr(memory, "LIMIT", 200)
    populate(GAME, jax.random.key(0), 2, 3)
    monkeypatch.setattr(memory, "LIMIT", 199)
    with pytest.raises(MemoryError, match=r"start \+ iterations = 5 agents"):
        populate(GAME, jax.random.key(0), 2, 3)
