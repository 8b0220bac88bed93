import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import jaxsim.games as jg
import jaxsim.solvers as js
from jaxsim.games import sequence
from jaxsim.games.pennies import Mixture
from tests.oracles import games as oracle

ROUNDS = 3
RPS = jg.matrix_game(jg.rock_paper_scissors())


def differences(f, x, h=1e-3):
    """Central first and second differences of a function of an array, in double precision."""
    eye = h * np.eye(len(x))
    first = np.array([f(x + a) - f(x - a) for a in eye]) / (2 * h)
    second = np.array(
        [[f(x + a + b) - f(x + a - b) - f(x - a + b) + f(x - a - b) for b in eye] for a in eye]
    )
    return first, second / (4 * h * h)


def agrees(samples, expected, most=5.0):
    """Whether means of samples are what they should be, and are not so by being too noisy."""
    samples = np.asarray(samples, float)
    error = samples.std(0, ddof=1) / len(samples) ** 0.5
    assert np.abs((samples.mean(0) - expected) / (error + 1e-6)).max() < most
    assert np.sqrt(np.mean(error**2)) < 0.2 * np.sqrt(np.mean(np.square(expected)))


def test_dice_has_the_first_and_second_derivative_of_the_payoff_of_pennies():
    game = jg.matching_pennies(ROUNDS)
    rng = np.random.default_rng(0)
    probabilities, weights = rng.uniform(0.2, 0.8, (6, 5)), np.array([0.3, 0.7])
    free = np.array([0, 1, 5, 10, 15, 16, 20, 25])

    def exact(x):
        mine0, mine1, *theirs = put(x[:-1]).reshape(6, 5)
        w = np.array([x[-1], 1 - x[-1]])
        return sum(
            w[i] * oracle.pennies(mine0, theirs[2 + i], ROUNDS) / 2
            - w[i] * oracle.pennies(theirs[i], mine1, ROUNDS) / 2
            for i in range(2)
        )

    def put(values):
        full = probabilities.ravel().copy()
        full[free] = values
        return full

    start = np.append(probabilities.ravel()[free], weights[0])
    first, second = differences(exact, start)

    def estimate(x, key):
        p = jnp.asarray(probabilities, x.dtype).ravel().at[free].set(x[:-1]).reshape(6, 5)
        opponent = Mixture((p[2:4], p[4:]), jnp.stack([x[-1], 1 - x[-1]]))
        return js.dice_payoff(game, (p[0], p[1]), opponent, key, 2000)

    @jax.jit
    def derivatives(keys):
        x = jnp.asarray(start, jnp.float32)
        return jax.lax.map(
            lambda k: (estimate(x, k), jax.grad(estimate)(x, k), jax.hessian(estimate)(x, k)), keys
        )

    value, slope, bend = derivatives(jax.random.split(jax.random.key(1), 60))
    agrees(value, exact(start))
    agrees(slope, first)
    agrees(bend, second)


def test_what_comes_in_samples_from_poker_is_what_it_is_worth():
    game = jg.by_logits(jg.kuhn_poker().game)

    @jax.jit
    def drawn():
        agent, *others = (game.init(jax.random.key(i)) for i in range(3))
        return agent, jax.tree.map(lambda *a: jnp.stack(a), *(game.strategy(a) for a in others))

    agent, strategies = drawn()

    def opponent(w):
        return game.mix(strategies, jnp.stack([w, 1 - w]))

    def exact(agent, w):
        return game.against(game.strategy(agent), opponent(w))

    def estimate(agent, w, key):
        return js.dice_payoff(game, game.strategy(agent), opponent(w), key, 2000)

    flat, shaped = ravel_pytree(agent)
    way = shaped(np.random.default_rng(9).normal(size=flat.shape).astype(np.float32))

    @jax.jit
    def all_of(f, *rest):
        slope = jax.grad(f)(agent, 0.4, *rest)
        # what a meta-gradient needs, along a direction
        mixed = jax.jvp(lambda a: jax.grad(f, 1)(a, 0.4, *rest), (agent,), (way,))[1]
        return f(agent, 0.4, *rest), ravel_pytree(slope)[0], mixed

    expected = all_of(jax.tree_util.Partial(exact))
    keys = jax.random.split(jax.random.key(3), 60)
    found = jax.jit(
        lambda keys: jax.lax.map(lambda k: all_of(jax.tree_util.Partial(estimate), k), keys)
    )(keys)
    for samples, value in zip(found, expected, strict=True):
        agrees(samples, np.asarray(value))


def test_the_steps_of_a_play_are_the_decisions_on_its_way():
    game = jg.leduc_poker().game

    @jax.jit
    def played(key):
        policies = [sequence.random_policy(seat, jax.random.key(i)) for i, seat in enumerate(game)]
        plans = [sequence.realization_plan(s, p) for s, p in zip(game, policies, strict=True)]
        both = jg.both_seats(game)
        opponent = jg.alone(both, tuple(plans))
        play = jax.vmap(lambda k: both.episode(plans, opponent, both.draw(k, plans, opponent)))
        return policies, play(jax.random.split(key, 200))

    policies, told = played(jax.random.key(5))
    deepest = 0
    for seat in range(2):
        known = np.append(np.asarray(policies[seat]).ravel(), 1.0)
        steps = np.exp(np.asarray(told.own[:, seat]))
        assert np.abs(steps[..., None] - known).min(-1).max() < 1e-5
        deepest = max(deepest, (steps < 1).sum(-1).max())
    assert deepest >= 3
    assert float(jnp.abs(told.reward).max()) <= 13 / 2


def test_a_baseline_leaves_the_mean_and_takes_variance():
    values = jnp.array([3.0, 4.0, 5.5])
    strategy = jnp.array([0.5, 0.3, 0.2])

    def plain(strategy, key):
        draws = jax.vmap(RPS.draw, (0, None, None))(jax.random.split(key, 32), strategy, values)
        told = jax.vmap(RPS.episode, (None, None, 0))(strategy, values, draws)
        return (jnp.exp(told.own - jax.lax.stop_gradient(told.own)) * told.reward).mean()

    def ours(strategy, key):
        return js.dice_payoff(RPS, strategy, values, key, 32)

    @jax.jit
    def slopes(keys):
        return [jax.vmap(lambda k, f=f: jax.grad(f)(strategy, k))(keys) for f in (plain, ours)]

    without, having = slopes(jax.random.split(jax.random.key(0), 2000))
    # the score of what is drawn has the mean 1, not 0, where probabilities need not sum to 1
    along = np.array([1.0, 1.0, -2.0])
    agrees(np.asarray(having) @ along, np.asarray(values) @ along)
    agrees(np.asarray(without) @ along, np.asarray(values) @ along)
    assert (np.asarray(having) @ along).var() < 0.2 * (np.asarray(without) @ along).var()


def test_what_flows_through_dice_is_what_flows_through_exact_steps():
    game = RPS
    strategies = jnp.array([[0.6, 0.3, 0.1], [0.1, 0.2, 0.7]])
    way = jnp.array([1.0, -1.0])

    def answer(oracle, w, key):
        return oracle(game, game.mix(strategies, w), key)

    def moved(oracle, key):
        w = jnp.array([0.5, 0.5])
        return jax.jvp(lambda w: answer(oracle, w, key), (w,), (way,))

    @jax.jit
    def both(key):
        found = moved(js.dice(1, 1.0, episodes=64), key)
        exact = moved(js.unrolled(1, 1.0), jax.random.split(key)[0])
        return found, exact

    found, exact = jax.vmap(both)(jax.random.split(jax.random.key(0), 500))
    for a, b in zip(found, exact, strict=True):
        np.testing.assert_allclose(a.mean(0), b.mean(0), atol=5 * float(a.std()) / 500**0.5)
        assert 5 * float(a.std()) / 500**0.5 < 0.1
    assert np.abs(exact[1]).max() > 0.1


@pytest.mark.parametrize(
    ("game", "oracle"),
    [
        (RPS, js.ppo(80, 0.1, 128)),
        (jg.by_logits(jg.kuhn_poker().game), js.ppo(100, 0.1, 256)),
        (jg.matching_pennies(3), js.dice(60, 20.0, 64)),
    ],
    ids=["ppo rps", "ppo kuhn", "dice pennies"],
)
def test_an_answer_that_was_played_for_comes_near_the_exact_one(game, oracle):
    @jax.jit
    @jax.vmap
    def play(key):
        first, second, answer = jax.random.split(key, 3)
        strategies = jax.vmap(lambda k: game.strategy(game.init(k)))(jax.random.split(first, 2))
        opponent = game.mix(strategies, jnp.array([0.7, 0.3]))
        start = game.against(game.strategy(game.init(second)), opponent)
        found = game.against(game.strategy(oracle(game, opponent, answer)), opponent)
        return start, found, game.best(opponent)

    start, found, best = play(jax.random.split(jax.random.key(0), 4))
    assert (found <= best + 1e-5).all()
    assert float((best - found).sum()) < 0.15 * float((best - start).sum())


def test_the_ratio_is_clipped():
    # one action of two is worth 1: without a clip the steps on one batch go on and on
    game = jg.matrix_game(jnp.zeros((2, 2)))
    opponent = jnp.array([1.0, 0.0])

    def change(clip, epochs):
        found = js.ppo(1, 0.01, 64, epochs=epochs, clip=clip)(game, opponent, jax.random.key(1))
        start = game.init(jax.random.split(jax.random.key(1))[0])
        return float(game.strategy(found)[0] / game.strategy(start)[0])

    assert 1 < change(0.1, 100) < 1.2
    assert change(0.9, 100) > 1.4


def test_rates_are_traced():
    run = jax.jit(lambda oracle, key: oracle(RPS, jnp.array([0.1, 0.0, -0.1]), key))
    for rate in (0.1, 0.2):
        run(js.dice(2, rate, 4), jax.random.key(0))
        run(js.ppo(2, rate, 4, clip=rate), jax.random.key(0))
    assert run._cache_size() == 2


def test_bad_options_are_refused():
    for told, make in {
        "steps=0": lambda: js.dice(0, 1.0),
        "episodes=1": lambda: js.dice(1, 1.0, 1),
        "epochs=0": lambda: js.ppo(1, 1.0, epochs=0),
        "clip=1": lambda: js.ppo(1, 1.0, clip=1),
        "rate=0": lambda: js.ppo(1, 0),
    }.items():
        with pytest.raises(ValueError, match=told):
            make()
    with pytest.raises(ValueError, match="cannot be played in samples"):
        js.ppo(1, 1.0)(jg.lotto(jax.random.key(0), 2, 2), None, jax.random.key(0))
