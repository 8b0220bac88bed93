"""Oracles by their formulas, and where they stop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import jaxsim.games as jg
import jaxsim.solvers as js

# an agent is two numbers, and its payoff against q is q·x - (x₁² + 2 x₂²): the top is (q₁/2, q₂/4)
CURVE = jnp.array([1.0, 2.0])


def hill():
    return jg.Game(
        init=Partial(lambda key: jnp.array([3.0, -1.0])),
        strategy=Partial(lambda x: x),
        mix=Partial(lambda s, w: w @ s),
        against=Partial(lambda x, q: q @ x - CURVE @ x**2),
    )


Q = jnp.array([4.0, 8.0])
KEY = jax.random.key(0)


@pytest.mark.parametrize("steps", [1, 2, 5, 6])
def test_gradient_ascent_makes_its_steps_and_no_more(steps):
    """The distance to the top (2, 2) shrinks by 1 - 2 c · rate a step."""
    found = js.unrolled(steps, 0.1)(hill(), Q, KEY)
    expected = [2 + 1 * 0.8**steps, 2 - 3 * 0.6**steps]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    found = js.implicit(steps, 0.1, tolerance=0)(hill(), Q, KEY)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_an_implicit_answer_stops_where_the_slope_is_small():
    """From (3, 2) the slope is (-2, 0) · 0.8^t: 2 · 0.8⁴ = 0.819 and 2 · 0.8⁵ = 0.655."""
    from_side = hill()._replace(init=Partial(lambda key: jnp.array([3.0, 2.0])))
    for tolerance, steps in ((0.82, 4), (0.81, 5), (0.66, 5), (3.0, 0)):
        found = js.implicit(100, 0.1, tolerance=tolerance)(from_side, Q, KEY)
        np.testing.assert_allclose(found, [2 + 0.8**steps, 2], rtol=1e-5)


@pytest.mark.parametrize(("damping", "slopes"), [(0.0, [1 / 2, 1 / 4]), (2.0, [1 / 4, 1 / 6])])
def test_the_implicit_derivative_is_the_inverse_of_the_damped_curvature(damping, slopes):
    """-H⁻¹ ∂²f/∂x∂q with H = -diag(2, 4) less the damping."""
    oracle = js.implicit(200, 0.1, tolerance=1e-6, damping=damping)
    slope = jax.jacobian(lambda q: oracle(hill(), q, KEY))(Q)
    np.testing.assert_allclose(slope, np.diag(slopes), atol=1e-4)
    unrolled = jax.jacobian(lambda q: js.unrolled(3, 0.1)(hill(), q, KEY))(Q)
    expected = np.diag([(1 - 0.8**3) / 2, (1 - 0.6**3) / 4])
    np.testing.assert_allclose(unrolled, expected, atol=1e-5)


def test_derivatives_stop_at_exact_and_first_order_answers():
    game = hill()._replace(respond=Partial(lambda q: q / 2))
    for oracle, value in ((js.exact(), Q / 2), (js.first_order(js.exact()), Q / 2)):
        np.testing.assert_array_equal(oracle(game, Q, KEY), value)
        assert not np.any(jax.jacobian(lambda q, oracle=oracle: oracle(game, q, KEY))(Q))
    # approximate answers carry none either
    assert not np.any(jax.jacobian(lambda q: js.approximate(0.5)(game, q, KEY))(Q))


@pytest.mark.parametrize("quality", [0.0, 0.25, 1.0])
def test_an_approximate_answer_is_a_mean_weighted_by_its_quality(quality):
    game = hill()._replace(respond=Partial(lambda q: q / 2))
    found = js.approximate(quality)(game, Q, KEY)
    np.testing.assert_allclose(found, [3 - quality, -1 + 5 * quality])


def test_new_agents_of_an_oracle_are_those_of_its_key():
    game = jg.matrix_game(np.zeros((50, 50)))
    opponent = jnp.zeros(50)
    for oracle in (js.unrolled(1, 1.0), js.approximate(0)):
        played = game._replace(respond=Partial(lambda q: 0 * q))
        found = [oracle(played, opponent, jax.random.key(k)) for k in (3, 3, 4)]
        np.testing.assert_array_equal(found[0], found[1])
        np.testing.assert_allclose(found[0], game.init(jax.random.key(3)), atol=1e-6)
        assert np.abs(np.corrcoef(found[0], found[2])[0, 1]) < 4 / np.sqrt(50)


@pytest.mark.parametrize(
    ("message", "make"),
    {
        "rate=0": lambda: js.implicit(3, 0),
        "tolerance=-1": lambda: js.implicit(3, 1.0, tolerance=-1),
        "steps=0": lambda: js.implicit(0, 1.0),
        "quality=-0.1": lambda: js.approximate(-0.1),
        "quality=1.1": lambda: js.approximate(1.1),
        "steps=2147483648": lambda: js.unrolled(2**31, 1.0),
    }.items(),
)
def test_numbers_out_of_range_are_refused(message, make):
    with pytest.raises(ValueError, match=message):
        make()


def test_evolution_strategies_are_exact_along_lines_and_use_each_noise_twice():
    """Of a linear function the gain of a pair is 2 σ (g · e): the mean of e eᵀ g. No constant."""
    g = jnp.array([2.0, -3.0])
    key, pairs = jax.random.key(4), 6
    noise = np.asarray(jax.random.normal(key, (pairs, 2)), float)
    for sigma in (0.1, 0.7):
        estimate = js.es_value_and_grad(lambda x, shift: x @ g + shift, sigma=sigma, pairs=pairs)
        value, slope = estimate(key, jnp.array([1.0, 1.0]), 5.0)
        np.testing.assert_allclose(slope, noise.T @ (noise @ np.asarray(g)) / pairs, rtol=1e-3)
        assert float(value) == pytest.approx(4, abs=1e-5)
    # of a square the mean is larger by σ² times the noise's mean square
    value, slope = js.es_value_and_grad(lambda x: x @ x, sigma=0.5, pairs=pairs)(key, jnp.zeros(2))
    assert float(value) == pytest.approx(0.25 * (noise**2).sum(1).mean(), rel=1e-5)
    np.testing.assert_allclose(slope, 0, atol=1e-5)
    other = js.es_value_and_grad(lambda x: x @ x, sigma=0.5, pairs=pairs)
    assert other(jax.random.key(5), jnp.zeros(2))[0] != value


@pytest.mark.parametrize(
    ("message", "options"),
    {"sigma=0": {"sigma": 0}, "pairs=0": {"pairs": 0}, "pairs=1.5": {"pairs": 1.5}}.items(),
)
def test_noise_out_of_range_is_refused(message, options):
    with pytest.raises(ValueError, match=message):
        js.es_value_and_grad(jnp.sum, **options)
