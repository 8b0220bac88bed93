"""Cells that pulses change: steps, spreads and symmetry points against their equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsim.train import pulsed
from jaxsim.train.pulsed.pulses import deliver, round_pulses
from tests.oracles import pulses as oracle

KEY = jax.random.key(0)
MANY = (4000,)
SPREADS = {"spread": 0.1, "imbalance_spread": 0.2, "bound_spread": 0.15}
RANGE = {"low": -0.5, "high": 0.8}


def after(cells, w, pulses, key=KEY):
    @jax.jit
    def run(w, pulses):
        return deliver(cells, cells.draw(KEY, w.shape), w, pulses, key)

    return np.asarray(run(jnp.asarray(w, jnp.float32), jnp.asarray(pulses, jnp.float32)))


W = np.linspace(-0.45, 0.75, 7)
N = np.array([3, -2, 0, 7, -31, 1, -1])


def test_pulses_of_soft_bounds_leave_a_share_of_the_distance():
    cells = pulsed.soft_bounds(0.05, imbalance=0.2, **RANGE)
    expected = [oracle.soft(w, n, 0.06, 0.04, -0.5, 0.8) for w, n in zip(W, N, strict=True)]
    np.testing.assert_allclose(after(cells, W, N), expected, atol=1e-6)


def test_pulses_of_constant_steps_add_up_to_the_bounds():
    cells = pulsed.constant_step(0.05, imbalance=-0.2, **RANGE)
    expected = [oracle.constant(w, n, 0.04, 0.06, -0.5, 0.8) for w, n in zip(W, N, strict=True)]
    np.testing.assert_allclose(after(cells, W, N), expected, atol=1e-6)
    assert min(expected) == -0.5


def test_a_pulse_of_linear_and_of_power_steps_is_their_equation():
    up, down = W < 0.1, W >= 0.1
    signs = np.where(up, 1, -1)
    linear = pulsed.linear_step(0.02, 0.5, 1.5, imbalance=0.1, **RANGE)
    expected = W + np.where(up, 0.022 * (1 - 0.5 * W), -0.018 * (1 + 1.5 * W))
    np.testing.assert_allclose(after(linear, W, signs), expected, atol=1e-6)
    power = pulsed.power_step(0.02, 1.7, imbalance=0.1, **RANGE)
    distance = np.where(up, 0.8 - W, W + 0.5) / 0.65
    expected = W + np.where(up, 0.022, -0.018) * distance**1.7
    np.testing.assert_allclose(after(power, W, signs), expected, atol=1e-6)
    assert down.any()
    assert up.any()


def test_linear_steps_never_turn_around():
    cells = pulsed.linear_step(0.1, 5.0, 5.0, low=-1.0, high=1.0)
    np.testing.assert_array_equal(after(cells, [0.9, -0.9], [1, -1]), np.float32([0.9, -0.9]))


def test_power_steps_of_exponent_one_are_soft_bounds():
    both = [pulsed.power_step(0.03, 1.0, **SPREADS), pulsed.soft_bounds(0.03, **SPREADS)]
    ends = [after(cells._replace(draw=fixed_bounds(cells)), W, N) for cells in both]
    np.testing.assert_allclose(*ends, atol=1e-6)


def fixed_bounds(cells):
    """Draws with the spread of steps alone: bounds that are opposite."""

    def draw(key, shape):
        parts = cells.draw(key, shape)
        parts = parts._replace(low=-jnp.ones(shape), high=jnp.ones(shape))
        if hasattr(parts, "up_slope"):
            parts = parts._replace(up_slope=parts.up, down_slope=parts.down)
        return parts

    return draw


def test_cells_differ_as_much_as_was_asked():
    parts = jax.jit(
        lambda: pulsed.constant_step(0.02, imbalance=0.1, **RANGE, **SPREADS).draw(KEY, MANY)
    )()
    size = (parts.up + parts.down) / 2
    balance = (parts.up - parts.down) / (parts.up + parts.down)
    for found, mean, deviation in (
        (size, 0.02, 0.1 * 0.02),
        (balance, 0.1, 0.2),
        (parts.low, -0.5, 0.15 * 0.5),
        (parts.high, 0.8, 0.15 * 0.8),
    ):
        assert abs(float(found.mean()) - mean) < 4 * deviation / np.sqrt(MANY[0])
        assert abs(float(found.std()) / deviation - 1) < 0.06
    drawn = np.stack([size, balance, parts.low, parts.high])
    assert np.abs(np.corrcoef(drawn) - np.eye(4)).max() < 0.06  # each by a key of its own


def test_no_cell_has_a_step_or_a_bound_of_the_wrong_sign():
    cells = pulsed.soft_bounds(0.02, spread=2.0, imbalance_spread=2.0, bound_spread=2.0)
    parts = jax.jit(lambda: cells.draw(KEY, MANY))()
    assert float(parts.high.min()) == pytest.approx(0.05)
    assert float(parts.low.max()) == pytest.approx(-0.05)
    assert float((parts.up + parts.down).min()) == pytest.approx(2 * 0.05 * 0.02, rel=1e-4)
    assert float(jnp.minimum(parts.up, parts.down).min()) == 0


CELLS = {
    "soft": pulsed.soft_bounds(0.02, imbalance=0.3, noise=0.3, **RANGE, **SPREADS),
    "linear": pulsed.linear_step(0.02, 0.6, 2.0, imbalance=0.1, noise=0.3, **RANGE, **SPREADS),
    "power": pulsed.power_step(0.02, 1.6, imbalance=0.3, noise=0.3, **RANGE, **SPREADS),
}


@pytest.mark.parametrize("name", CELLS)
def test_random_pulses_drive_cells_to_their_symmetry_points(name):
    """The mean over time and cells of what is off, and not zero, where they began."""
    cells, count = CELLS[name], (600,)

    @jax.jit
    def run():
        parts = cells.draw(KEY, count)

        def step(w, key):
            first, second = jax.random.split(key)
            pulses = jnp.sign(jax.random.uniform(first, count) - 0.5)
            w = deliver(cells, parts, w, pulses, second)
            return w, w

        _, path = jax.lax.scan(step, jnp.zeros(count), jax.random.split(KEY, 900))
        return path[500:].mean(0), cells.symmetry(parts)

    mean, point = map(np.asarray, run())
    assert abs((mean - point).mean()) < 0.012
    assert np.corrcoef(mean, point)[0, 1] > 0.85
    assert abs(point.mean()) > 0.05
    up, down = cells.steps(jnp.asarray(point), cells.draw(KEY, count))
    inside = (point > -0.2) & (point < 0.4)
    np.testing.assert_allclose(up[inside], down[inside], rtol=1e-3)


def test_symmetric_cells_have_no_point_to_go_to():
    cells = pulsed.constant_step(0.02)
    assert float(cells.symmetry(cells.draw(KEY, (1,)))[0]) == 0


def test_each_pulse_has_noise_of_its_own():
    cells = pulsed.constant_step(0.01, noise=0.5)
    for count in (1, 16):
        moved = after(cells, np.zeros(MANY), np.full(MANY, count))
        assert abs(moved.mean() / (0.01 * count) - 1) < 4 * 0.5 / np.sqrt(count * MANY[0])
        assert abs(moved.std() / (0.01 * 0.5 * np.sqrt(count)) - 1) < 0.06
    other = after(cells, np.zeros(MANY), np.ones(MANY), jax.random.key(1))
    assert abs(np.corrcoef(other, after(cells, np.zeros(MANY), np.ones(MANY)))[0, 1]) < 0.06


def test_what_lies_outside_is_brought_within_and_noise_does_not_leave():
    cells = pulsed.constant_step(0.3, noise=2.0, low=-0.5, high=0.5)
    found = after(cells, np.linspace(-2, 2, 400), np.tile([0, 1, -1, 5], 100))
    assert found.min() == -0.5
    assert found.max() == 0.5


def test_rounding_keeps_the_mean_and_the_bound():
    @jax.jit
    def drawn(wanted):
        keys = jax.random.split(KEY, 2000)
        return jax.vmap(lambda key: round_pulses(wanted, 5, key))(keys)

    wanted = jnp.array([0.0, 3.0, -2.0, 0.3, -1.75, 40.0, -7.0])
    found = np.asarray(drawn(wanted))
    np.testing.assert_array_equal(found, np.round(found))
    np.testing.assert_array_equal(np.ptp(found, 0), [0, 0, 0, 1, 1, 0, 0])
    np.testing.assert_allclose(found.mean(0), [0, 3, -2, 0.3, -1.75, 5, -5], atol=0.05)


def test_the_mean_is_that_of_trains_that_coincide():
    """Trains of 31 pulses whose amplitudes make the mean x d rate / size, in numpy."""
    x, d, rate, size = np.array([0.5, -1.0, 0.2]), np.array([0.8, -0.4]), 0.05, 0.01
    rng = np.random.default_rng(0)
    amplitude = np.sqrt(rate / size / 31)
    trains = [oracle.coincidences(x, d, 31, amplitude, rng) for _ in range(2000)]
    wanted = jnp.asarray(rate * np.outer(x, d) / size, jnp.float32)
    rounded = jax.jit(jax.vmap(lambda key: round_pulses(wanted, 31, key)))(
        jax.random.split(KEY, 2000)
    )
    np.testing.assert_allclose(np.mean(trains, 0), np.asarray(rounded).mean(0), atol=0.12)
    assert np.var(trains, 0)[1, 0] > 1.5 * np.asarray(rounded).var(0)[1, 0]  # as the docs say


def test_a_gradient_that_is_not_a_number_is_seen():
    cells = pulsed.constant_step(0.1)
    found = after(cells, [0.0, 0.0], [np.nan, 2])
    assert np.isnan(found[0])
    assert found[1] == pytest.approx(0.2)


MAKERS = {
    "constant_step": pulsed.constant_step,
    "linear_step": lambda size=0.1, **more: pulsed.linear_step(size, 1.0, 1.0, **more),
    "soft_bounds": pulsed.soft_bounds,
    "power_step": lambda size=0.1, **more: pulsed.power_step(size, 1.0, **more),
}
BAD = {
    "size": (0.0, -1.0, np.nan),
    "low": (0.0, 1.0, np.nan, "low"),
    "high": (0.0, -1.0, np.inf),
    "imbalance": (-1.1, 2.0),
    "spread": (-0.1,),
    "imbalance_spread": (-0.1,),
    "bound_spread": (-0.1,),
    "noise": (-0.1, np.nan),
}


@pytest.mark.parametrize("maker", MAKERS)
def test_arguments_out_of_range_are_named(maker):
    for name, values in BAD.items():
        for value in values:
            with pytest.raises(ValueError, match=f"^{name}="):
                MAKERS[maker](**{"size": 0.1, name: value})


def test_shapes_of_steps_out_of_range_are_named():
    with pytest.raises(ValueError, match="up_slope="):
        pulsed.linear_step(0.1, -1.0, 1.0)
    with pytest.raises(ValueError, match="down_slope="):
        pulsed.linear_step(0.1, 1.0, -1.0)
    with pytest.raises(ValueError, match="exponent="):
        pulsed.power_step(0.1, 0.0)
