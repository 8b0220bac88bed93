"""What is estimated of plays: baselines, steps and keys, in a game whose plays are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import jaxsim.games as jg
import jaxsim.solvers as js
from jaxsim.games.game import Episode
from jaxsim.solvers import sampled

# rewards of three episodes in two seats of two decisions
REWARD = jnp.array([[[1.0, 2], [3, 4]], [[5, 0], [0, 6]], [[0, 7], [8, 0]]])
TOLD = Episode(jnp.zeros((3, 2, 2)), jnp.zeros((3, 2, 2)), REWARD)


def test_rewards_ahead_and_those_of_the_others_by_hand():
    ahead = [[[3, 2], [7, 4]], [[5, 0], [6, 6]], [[7, 7], [8, 0]]]
    np.testing.assert_array_equal(sampled._ahead(TOLD), ahead)
    others = [[[6, 3.5], [7, 3]], [[5, 4.5], [7.5, 2]], [[4, 1], [6.5, 5]]]
    np.testing.assert_array_equal(sampled._baseline(TOLD), others)


def noisy(scale=1.0):
    """A play is a uniform number: x of it in each decision of one seat, 2 x in the other."""

    def episode(strategy, opponent, drawn):
        reward = drawn * strategy * jnp.array([[1.0, 1.0], [2.0, 2.0]])
        return Episode(jnp.zeros((2, 2)), jnp.zeros((2, 2)), reward)

    return jg.Game(
        init=Partial(lambda key: scale * jax.random.uniform(key)),
        strategy=Partial(lambda x: x),
        mix=Partial(lambda s, w: s),
        against=Partial(lambda s, o: 3 * s),
        draw=Partial(lambda key, s, o: jax.random.uniform(key)),
        episode=Partial(episode),
    )


def test_a_payoff_is_the_mean_of_sums_over_seats_and_decisions():
    """Six times the mean of as many uniform numbers as there are episodes, each of its own key."""
    key = jax.random.key(3)
    drawn = np.asarray(jax.vmap(jax.random.uniform)(jax.random.split(key, 5)))
    assert len(set(drawn.tolist())) == 5
    found = js.dice_payoff(noisy(), jnp.float32(1.5), None, key, 5)
    assert float(found) == pytest.approx(1.5 * 6 * drawn.mean(), rel=1e-5)


def test_steps_of_dice_climb_by_plays_of_their_own():
    """Each step adds the rate times six times the mean of its numbers; the start is not moved."""
    steps = [float(js.dice(n, 0.5, 4)(noisy(0.0), None, jax.random.key(1))) for n in (1, 2, 3)]
    gains = np.diff([0.0, *steps])
    # keys of two steps are another split than those of one or three
    assert len({round(g, 6) for g in gains}) == 3
    assert (np.abs(gains - 0.5 * 6 * 0.5) < 0.5 * 6 * 4 / np.sqrt(12 * 4)).all()
    first, rest = jax.random.split(jax.random.key(1))
    (only,) = jax.random.split(rest, 1)
    expected = js.dice_payoff(noisy(), jnp.float32(1.0), None, only, 4)
    assert steps[0] == pytest.approx(0.5 * float(expected), rel=1e-5)
    start = float(js.dice(1, 1e-9, 4)(noisy(), None, jax.random.key(1)))
    assert start == pytest.approx(float(jax.random.uniform(first)), rel=1e-5)


COIN = jg.matrix_game(np.array([[0, 1.0], [-1, 0]]))


def test_a_first_step_of_adam_is_the_rate_towards_what_is_better():
    opponent = jnp.array([1.0, 0.0])  # the first action wins 1
    key = jax.random.key(0)
    start = COIN.init(jax.random.split(key)[0])
    found = js.ppo(1, 0.01, 64, epochs=1)(COIN, opponent, key)
    np.testing.assert_allclose(found - start, [0.01, -0.01], rtol=1e-3)
    turned = js.ppo(1, 0.01, 64, epochs=1)(COIN, -opponent, key)
    np.testing.assert_allclose(turned - start, [-0.01, 0.01], rtol=1e-3)
    thrice = js.ppo(3, 0.01, 64, epochs=2)(COIN, opponent, key)
    np.testing.assert_allclose(thrice - start, [0.06, -0.06], rtol=0.1)


def test_no_derivative_goes_through_proximal_policies():
    slope = jax.grad(
        lambda v: js.ppo(1, 0.1, 4)(COIN, jnp.stack([v, 0.0]), jax.random.key(0)).sum()
    )
    assert float(slope(1.0)) == 0


@pytest.mark.parametrize(
    ("message", "make"),
    {
        "episodes=1: must be an int from 2": lambda: js.dice(1, 1.0, 1),
        "episodes=1: must be an int of at least 2": lambda: js.dice_payoff(
            noisy(), jnp.float32(1), None, jax.random.key(0), 1
        ),
        "iterations=0": lambda: js.ppo(0, 1.0),
        "clip=-0.1": lambda: js.ppo(1, 1.0, clip=-0.1),
        "rate=0": lambda: js.dice(1, 0),
    }.items(),
)
def test_numbers_out_of_range_are_named(message, make):
    with pytest.raises(ValueError, match=message):
        make()
    assert js.ppo(1, 1.0, 2, epochs=1, clip=0) is not None
    assert js.dice(1, 1.0, 2) is not None


def test_memory_of_keys_is_counted(monkeypatch):
    from jaxsim.numerics import memory

    monkeypatch.setattr(memory, "LIMIT", 80)
    js.dice(10, 1.0, 10)
    with pytest.raises(MemoryError, match="steps=11"):
        js.dice(11, 1.0, 2)
    with pytest.raises(MemoryError, match="episodes=11"):
        js.ppo(1, 1.0, 11)
