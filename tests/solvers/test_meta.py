"""Meta-training where every number is known: a solver that is even, in a game of a cycle."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.tree_util import Partial

import jaxsim.solvers as js
from jaxsim.solvers.nac import check_objective
from tests.solvers.test_psro import ALWAYS_ZERO, CYCLE


class Even(nn.Module):
    """The even mixture, and a parameter that its logits do not read."""

    @nn.compact
    def __call__(self, payoffs, size):
        still = self.param("still", nn.initializers.ones, ())
        return (jnp.arange(len(payoffs)) < size) / size + 0 * still


PARAMS = Even().init(jax.random.key(0), jnp.zeros((2, 2)), jnp.int32(1))


def loss(**options):
    aim = js.Objective(js.exact(), start=1, **options)
    return float(js.nac_loss(Even(), aim, PARAMS, ALWAYS_ZERO, jax.random.key(0)))


def populations(count):
    """NashConv of the even mixture as one exact answer after another joins action 0."""
    actions, values = [0], []
    for _ in range(count):
        worth = CYCLE @ np.bincount(actions, minlength=5) / len(actions)
        actions.append(int(worth.argmax()))
        values.append(2 * (CYCLE @ np.bincount(actions, minlength=5) / len(actions)).max())
    return np.array(values)


def test_the_objective_is_the_mean_of_every_iteration_or_of_the_ends_of_windows():
    values = populations(4)
    assert len({round(v, 4) for v in values}) > 2
    assert loss(iterations=4, window=2, each=True) == pytest.approx(values.mean(), rel=1e-5)
    assert loss(iterations=4, window=2) == pytest.approx(values[[1, 3]].mean(), rel=1e-5)
    found = loss(iterations=4, window=4, exploiter=js.exact())
    assert found == pytest.approx(values[3], rel=1e-5)


@pytest.mark.parametrize(
    ("message", "options"),
    {
        "start=0": {"start": 0},
        "iterations=0": {"iterations": 0, "window": 1},
        "window=0": {"window": 0},
        "window=3: must divide iterations=4": {"iterations": 4, "window": 3},
    }.items(),
)
def test_objectives_that_cannot_be_are_named(message, options):
    with pytest.raises(ValueError, match=message):
        check_objective(js.Objective(js.exact(), **options))
    check_objective(js.Objective(js.exact(), start=1, iterations=1, window=1))


def test_the_rate_falls_by_a_cosine_and_gradients_are_clipped():
    """Of a gradient that does not change Adam makes steps of the rate: 0.1 · (1 + cos(π t/4))/2."""
    optimizer = js.meta_optimizer(0.1, 4)
    state = optimizer.init(jnp.zeros(2))
    steps = []
    for size in (1.0, 1.0, 1000.0, 1.0, 1.0):  # clipped to a norm of 1, as the others are
        changes, state = optimizer.update(size * jnp.array([0.6, 0.8]), state)
        steps.append(float(changes[0]))
    expected = -0.1 * (1 + np.cos(np.pi * np.arange(5) / 4)) / 2
    np.testing.assert_allclose(steps, expected, atol=1e-6)
    for told, make in {
        "rate=0": lambda: js.meta_optimizer(0, 1),
        "clip=0": lambda: js.meta_optimizer(1, 1, clip=0),
        "steps=0": lambda: js.meta_optimizer(1, 0),
    }.items():
        with pytest.raises(ValueError, match=told):
            make()


def lucky(key):
    """A game in which any agent wins a number of the game's key."""
    return ALWAYS_ZERO._replace(best=Partial(lambda worth, _: worth, jax.random.uniform(key)))


def values(batch, steps, seed=0, **options):
    aim = js.Objective(js.exact(), start=1, iterations=1, window=1)
    optimizer = optax.sgd(0.1)
    step = js.meta_step(Even(), aim, lucky, optimizer, batch=batch, **options)
    state, found = js.MetaState(PARAMS, optimizer.init(PARAMS), jnp.int32(0)), []
    for _ in range(steps):
        state, value = step(state, jax.random.key(seed))
        found.append(float(value))
    assert int(state.step) == steps
    return np.array(found)


def test_each_game_of_a_step_and_each_step_is_another():
    """Twice a uniform number has the mean 1 and the deviation 0.577; of 64 games it is 0.072."""
    single, many = values(1, 12), values(64, 12)
    assert len(set(single.tolist())) == 12
    assert single.std() > 0.3
    assert (np.abs(many - 1) < 4 * 0.072).all()
    assert many.std() > 0.02
    np.testing.assert_array_equal(values(1, 2), single[:2])
    assert values(1, 1, seed=1)[0] != single[0]
    # perturbations of a parameter that nothing reads leave the mean
    assert values(64, 2, gradient="es", pairs=2) == pytest.approx(many[:2], rel=1e-5)


def test_a_solver_of_a_network_is_its_mixture():
    solver = js.network_solver(Even(), PARAMS)
    np.testing.assert_allclose(solver(jnp.zeros((4, 4)), 2), [0.5, 0.5, 0, 0])
    run = js.psro(ALWAYS_ZERO, solver, js.exact(), jax.random.key(0), start=1, iterations=4)
    np.testing.assert_allclose(run.nash_conv[1:], populations(4), rtol=1e-5)


def test_steps_that_cannot_be_are_named():
    for message, options in {
        "batch=0": {"batch": 0},
        "gradient='x'": {"gradient": "x"},
        "axes": {"mesh": jax.make_mesh((1, 1), ("a", "b"))},
    }.items():
        with pytest.raises(ValueError, match=message):
            js.meta_step(Even(), js.Objective(js.exact()), lucky, optax.sgd(0.1), **options)
