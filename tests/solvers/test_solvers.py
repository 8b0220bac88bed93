import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog

import jaxsim.games as jg
import jaxsim.solvers as js
from jaxsim.solvers import mixing
from jaxsim.solvers.psro import extend, populate

RPS = jnp.asarray(jg.rock_paper_scissors())


@functools.partial(jax.jit, static_argnums=(1, 2))
def metagame(seed, agents=6, room=3):
    """Payoffs among agents of a game of skill, with room for more."""
    return populate(
        jg.games_of_skill(jax.random.key(seed), 9), jax.random.key(seed + 1), agents, room
    )


def gap(payoffs, weights):
    return float(2 * (np.asarray(payoffs, float) @ np.asarray(weights, float)).max())


SOLVERS = {
    "uniform": js.uniform(),
    "latest": js.latest(),
    "nash": js.nash(),
    "nash_lp": js.nash_lp(),
    "rectified": js.rectified(),
    "prd": js.projected_replicator(),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_weights_are_a_mixture_of_the_agents_that_there_are(name):
    solve = jax.jit(SOLVERS[name])
    for seed in range(3):
        p = metagame(seed)
        weights = np.asarray(solve(p.payoffs, p.size))
        assert weights.sum() == pytest.approx(1, abs=1e-5)
        assert (weights >= 0).all()
        assert not weights[6:].any()
        # what lies where there are no agents does not matter
        dirty = np.array(p.payoffs)
        dirty[6:] = 7
        dirty[:, 6:] = -7
        if name != "rectified":
            np.testing.assert_allclose(solve(dirty, p.size), weights, atol=1e-6)


def test_the_linear_programme_is_a_nash_equilibrium_also_under_vmap():
    made = [metagame(seed) for seed in range(4)]
    payoffs = np.stack([p.payoffs for p in made])
    found = jax.jit(jax.vmap(js.nash_lp()))(payoffs, np.full(4, 6))
    for a, w in zip(payoffs, found, strict=True):
        assert gap(a[:6, :6], w[:6]) < 1e-5


def test_regret_matching_has_the_stated_accuracy_on_metagames():
    def one(key):
        game, play = jax.random.split(key)
        return js.psro(jg.games_of_skill(game, 60), js.nash(), js.unrolled(5, 25.0), play)

    run = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 8))
    for a, w in zip(np.asarray(run.population.payoffs), run.weights, strict=True):
        assert gap(a, w) / np.abs(a).max() < 5e-3


@pytest.mark.parametrize("name", ["nash", "nash_lp", "prd"])
def test_rock_paper_scissors_is_played_evenly(name):
    np.testing.assert_allclose(jax.jit(SOLVERS[name])(RPS, jnp.int32(3)), 1 / 3, atol=1e-3)


def test_rectified_weights_are_the_formula():
    a = np.array([[0, -1, 2.0], [1, 0, -1], [-2, 1, 0]])
    nash = np.array([0.25, 0.5, 0.25])  # a @ nash is zero
    expected = sum(nash[i] * nash * np.maximum(a[i], 0) for i in range(3))
    expected /= expected.sum()
    padded = np.pad(a.astype(np.float32), ((0, 2), (0, 2)))
    found = jax.jit(js.rectified(4000))(padded, jnp.int32(3))
    np.testing.assert_allclose(found[:3], expected, atol=2e-3)


def test_the_projection_is_the_nearest_point():
    rng = np.random.default_rng(0)
    mask = jnp.arange(5) < 4
    project = jax.jit(mixing._project_to_simplex)
    for _ in range(20):
        x, floor = rng.normal(size=5), 0.05 * np.asarray(mask, float)
        found = np.asarray(project(x, floor, mask))
        assert found.sum() == pytest.approx(1, abs=1e-6)
        assert (found[:4] >= 0.05 - 1e-7).all()
        # a nearest point has no descent direction towards any vertex of the set
        for i in range(4):
            vertex = floor.copy()
            vertex[i] += 1 - floor.sum()
            assert (found - x)[:4] @ (vertex - found)[:4] > -1e-5


def test_payoffs_of_a_grown_population_are_those_of_its_strategies():
    game = jg.both_seats(jg.kuhn_poker().game)

    @jax.jit
    def grown():
        p = populate(game, jax.random.key(0), 2, 3)
        for i in range(3):
            p = extend(game, p, game.strategy(game.init(jax.random.key(i + 1))))
        return p, jg.payoffs(game, p.strategies)

    p, payoffs = grown()
    np.testing.assert_allclose(p.payoffs, payoffs, atol=1e-6)
    assert int(p.size) == 5


def test_double_oracle_solves_a_matrix_game():
    # with exact answers PSRO-Nash is the double oracle, which ends at the equilibrium
    game = jg.matrix_game(jg.blotto_matrix(5, 3))
    run = jax.jit(lambda k: js.psro(game, js.nash_lp(), js.exact(), k, start=1, iterations=25))(
        jax.random.key(0)
    )
    assert float(run.nash_conv[-1]) < 1e-4
    assert float(run.nash_conv[0]) > 0.5


def test_kuhn_is_solved_by_the_double_oracle():
    game = jg.both_seats(jg.kuhn_poker().game)
    run = jax.jit(lambda k: js.psro(game, js.nash_lp(), js.exact(), k, start=1, iterations=20))(
        jax.random.key(0)
    )
    assert float(run.nash_conv[-1]) < 5e-3


def test_exact_and_found_are_both_reported_and_found_is_no_larger():
    game = jg.rps_mixture(jax.random.key(0))
    run = jax.jit(
        lambda k: js.psro(
            game, js.uniform(), js.unrolled(5, 2.0), k, iterations=4, exploiter=js.unrolled(20, 2.0)
        )
    )(jax.random.key(1))
    assert run.nash_conv.shape == run.found.shape == (5,)
    assert (run.found <= run.nash_conv + 1e-5).all()
    lotto = jg.lotto(jax.random.key(0), 3, 4)
    run = jax.jit(lambda key: js.psro(lotto, js.uniform(), js.unrolled(2, 1.0), key, iterations=1))(
        jax.random.key(1)
    )
    assert np.isnan(run.nash_conv).all()


def test_gradient_ascent_is_the_closed_form_of_softmax():
    game = jg.games_of_skill(jax.random.key(0), 5)
    opponent = jg.alone(game, jnp.full(5, 0.2))
    found = js.unrolled(3, 2.0)(game, opponent, jax.random.key(1))
    x, v = np.asarray(game.init(jax.random.key(1)), float), np.asarray(opponent, float)
    for _ in range(3):
        s = np.exp(x) / np.exp(x).sum()
        x = x + 2.0 * s * (v - s @ v)
    np.testing.assert_allclose(found, x, rtol=1e-4, atol=1e-5)


def test_an_approximate_answer_is_between_the_best_and_a_random_one():
    game = jg.both_seats(jg.kuhn_poker().game)

    @jax.jit
    def worths(first, key):
        opponent = jg.alone(game, game.strategy(game.init(first)))
        agents = [js.approximate(q)(game, opponent, key) for q in (0.0, 0.5, 1.0)]
        reached = [game.against(game.strategy(agent), opponent) for agent in agents]
        return *reached, game.best(opponent)

    *worth, best = map(float, worths(jax.random.key(0), jax.random.key(1)))
    assert worth[0] < worth[1] < worth[2]
    assert worth[2] == pytest.approx(best, abs=1e-6)


def test_the_implicit_derivative_is_that_of_many_steps():
    with jax.enable_x64(True):
        game = jg.rps_mixture(jax.random.key(0))
        strategies = jax.jit(jax.vmap(game.strategy))(np.random.default_rng(1).normal(size=(3, 2)))

        def worth(weights, oracle):
            opponent = game.mix(strategies, weights / weights.sum())
            return jnp.sum(oracle(game, opponent, jax.random.key(5)) ** 2)

        weights = jnp.array([0.5, 0.3, 0.2])
        long = jax.jit(jax.grad(lambda w: worth(w, js.unrolled(2000, 1.0))))(weights)
        short = jax.jit(jax.grad(lambda w: worth(w, js.implicit(5000, 1.0, tolerance=1e-9))))(
            weights
        )
        np.testing.assert_allclose(short, long, rtol=1e-3, atol=1e-6)
        assert np.abs(long).max() > 1e-3


def test_no_derivative_goes_through_a_first_order_oracle():
    game = jg.games_of_skill(jax.random.key(0), 5)
    oracle = js.first_order(js.unrolled(3, 2.0))

    def worth(p):
        return oracle(game, jg.alone(game, p), jax.random.key(1)).sum() + (p**2).sum()

    p = jnp.full(5, 0.2)
    np.testing.assert_allclose(jax.grad(worth)(p), 2 * p, atol=1e-7)
    plain = js.unrolled(3, 2.0)(game, jg.alone(game, p), jax.random.key(1))
    np.testing.assert_allclose(oracle(game, jg.alone(game, p), jax.random.key(1)), plain, rtol=1e-5)


def test_evolution_strategies_find_the_gradient_of_a_smooth_function():
    def f(params, shift):
        return jnp.sum(jnp.sin(params["a"]) * 2) + jnp.sum((params["b"] - shift) ** 2)

    params = {"a": jnp.linspace(0, 1, 4), "b": jnp.ones((2, 3))}
    value, found = jax.jit(js.es_value_and_grad(f, sigma=0.05, pairs=200))(
        jax.random.key(0), params, 0.3
    )
    exact = jax.grad(f)(params, 0.3)
    a, b = (jnp.concatenate([x.ravel() for x in jax.tree.leaves(t)]) for t in (found, exact))
    assert float(a @ b / jnp.linalg.norm(a) / jnp.linalg.norm(b)) > 0.9
    assert float(value) == pytest.approx(float(f(params, 0.3)), rel=0.05)


def test_evolution_strategies_go_where_those_of_evosax_go():
    evosax = pytest.importorskip("evosax.algorithms", reason="evosax is not installed")
    import optax

    target = jnp.linspace(-1, 1, 6)

    def f(x):
        return jnp.sum((x - target) ** 2)

    peer = evosax.Open_ES(
        population_size=40,
        solution=target,
        optimizer=optax.sgd(0.05),
        std_schedule=optax.constant_schedule(0.1),
    )
    options = peer.default_params
    state = peer.init(jax.random.key(0), jnp.zeros(6), options)
    x = jnp.zeros(6)
    estimate = jax.jit(js.es_value_and_grad(f, sigma=0.1, pairs=20))
    for i in range(60):
        key = jax.random.key(i)
        batch, state = peer.ask(key, state, options)
        state, _ = peer.tell(key, batch, jax.vmap(f)(batch), state, options)
        x = x - 0.05 * estimate(key, x)[1]
    assert float(f(x)) < 0.05
    assert float(f(peer.get_mean(state))) < 0.5 * float(f(jnp.zeros(6)))


def test_bad_options_are_refused():
    for told, make in {
        "steps=0": lambda: js.unrolled(0, 1.0),
        "rate=0": lambda: js.unrolled(1, 0),
        "quality=2": lambda: js.approximate(2),
        "iterations=0": lambda: js.nash(0),
        "sigma=-1": lambda: js.es_value_and_grad(jnp.sum, sigma=-1),
        "damping=-1": lambda: js.implicit(3, 1.0, damping=-1),
    }.items():
        with pytest.raises(ValueError, match=told):
            make()
    with pytest.raises(ValueError, match="no exact best response"):
        js.exact()(jg.lotto(jax.random.key(0), 2, 2), None, jax.random.key(0))
    with pytest.raises(ValueError, match="start=0"):
        populate(jg.games_of_skill(jax.random.key(0), 3), jax.random.key(0), 0, 1)


def test_the_linear_programme_is_that_of_another_formulation():
    # least v with payoffs y <= v: the column player's side of the same game
    p = np.asarray(metagame(2).payoffs)[:6, :6]
    found = linprog(
        [0] * 6 + [1], A_ub=np.c_[p, -np.ones(6)], b_ub=np.zeros(6),
        A_eq=[[1] * 6 + [0]], b_eq=[1], bounds=[(0, None)] * 6 + [(None, None)],
    )  # fmt: skip
    assert found.fun == pytest.approx(0, abs=1e-7)
    assert gap(p, mixing.solve_lp(p)) == pytest.approx(gap(p, found.x[:6]), abs=1e-6)


@pytest.mark.parametrize("iterations", [10, 100, 1000])
@pytest.mark.parametrize("agents", [2, 5, 20])
def test_rectified_does_not_train_against_what_the_solver_failed_to_leave_out(agents, iterations):
    """The last agent beats all: the mixture is it alone, and it beats nobody in the mixture."""
    rng = np.random.default_rng(agents)
    a = rng.normal(size=(agents, agents))
    a = a - a.T
    a[-1, :-1], a[:-1, -1] = rng.uniform(0.1, 1, agents - 1), 0
    a[:-1, -1] = -a[-1, :-1]
    solvers = mixing.rectified(iterations), mixing.nash_lp()
    both = jax.jit(lambda a, size: [solve(a, size) for solve in solvers])
    weights, exact = map(np.asarray, both(a, np.int32(agents)))
    assert exact[-1] == pytest.approx(1)
    assert weights[-1] == weights.max()
    assert weights[-1] > 0.5


def test_rectified_of_a_cycle_is_what_each_agent_beats():
    a = np.array([[0, 1, -2], [-1, 0, 3], [2, -3, 0]], np.float32)
    p = np.array([3, 2, 1]) / 6  # Nash: the payoff of the pair that an agent is not in
    often = p * (p @ np.maximum(a, 0))
    found = jax.jit(mixing.rectified(3000))(a, jnp.int32(3))
    np.testing.assert_allclose(found, often / often.sum(), atol=0.01)
