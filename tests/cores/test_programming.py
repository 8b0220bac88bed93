"""Verified writes, cells that are stuck, and temperature, by their laws."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsim.cores import cells

KEY = jax.random.key(3)
COUNT = 60_000
G = jnp.full(COUNT, 0.4)


def law(sigma, tolerance, most):
    """Share of cells within the tolerance, and the mean number of pulses."""
    p = math.erf(tolerance / sigma / math.sqrt(2))
    return 1 - (1 - p) ** most, (1 - (1 - p) ** most) / p


@pytest.mark.parametrize(("tolerance", "most"), [(0.03, 1), (0.03, 4), (0.01, 20), (0.1, 9)])
def test_a_verified_write_takes_the_pulses_of_its_law_and_leaves_its_errors(tolerance, most):
    device = cells.verified(cells.independent(0.05), tolerance=tolerance, pulses=most)
    error, pulses = device.program(G, KEY) - 0.4, device.pulses.taken(G, KEY)
    share, mean = law(0.05, tolerance, most)
    assert np.mean(np.abs(error) <= tolerance) == pytest.approx(share, abs=0.01)
    assert np.mean(pulses) == pytest.approx(mean, rel=0.01)
    needed = (1 - law(0.05, tolerance, 1)[0]) ** (most - 1)  # the share that needs the last one
    assert (float(pulses.min()), float(pulses.max()) == most) == (1, needed * COUNT > 5)
    # those that are within it are so uniformly often as in one pulse
    within = np.asarray(error)[np.abs(error) <= tolerance]
    one = np.asarray(cells.independent(0.05).program(G, jax.random.key(8))) - 0.4
    one = one[np.abs(one) <= tolerance]
    assert within.std() == pytest.approx(one.std(), rel=0.02)


def test_one_pulse_is_the_device_as_it_is():
    device = cells.proportional(0.1, on_off=9.0)
    once = cells.verified(device, tolerance=0.0, pulses=1)
    np.testing.assert_array_equal(once.program(G, KEY), device.program(G, KEY))
    np.testing.assert_array_equal(once.pulses.taken(G, KEY), 1)
    assert once.on_off == device.on_off


def test_a_verified_write_has_a_gradient():
    device = cells.verified(cells.independent(0.05), tolerance=0.02, pulses=4)
    slope = jax.grad(lambda g: device.program(g, KEY).sum())(G)
    np.testing.assert_allclose(slope, 1, rtol=1e-6)


def test_shares_of_cells_are_stuck_where_the_key_of_the_chip_says():
    device = cells.stuck(cells.proportional(0.01, on_off=20.0), low=0.1, high=0.03)
    g = device.program(G, KEY)
    low, high = np.asarray(g == np.float32(0.05)), np.asarray(g == 1)
    assert low.mean() == pytest.approx(0.1, abs=0.005)
    assert high.mean() == pytest.approx(0.03, abs=0.003)
    other = device.program(jnp.full(COUNT, 0.7), KEY)  # another weight on the same chip
    np.testing.assert_array_equal(np.asarray(other == np.float32(0.05)), low)
    assert np.mean(np.asarray(device.program(G, jax.random.key(9)) == 1) & high) < 0.003
    rest = ~(low | high)
    plain = cells.proportional(0.01, on_off=20.0).program(G, KEY)
    np.testing.assert_array_equal(np.asarray(g)[rest], np.asarray(plain)[rest])
    slope = np.asarray(jax.grad(lambda g: device.program(g, KEY).sum())(G))
    np.testing.assert_array_equal(slope == 0, ~rest)
    np.testing.assert_array_equal(cells.stuck(plain_device(), low=1.0).program(G, KEY), 0)


def plain_device():
    return cells.proportional(0.0)


def test_stuck_cells_do_not_age_and_take_all_pulses():
    inner = cells.drifting(
        cells.verified(cells.independent(0.05), tolerance=0.02, pulses=6), 0.1, spread=0.01
    )
    device = cells.stuck(inner, low=0.2, high=0.1)
    reached, fate = device.program(G, KEY), device.aging.draw(G, KEY)
    later = device.aging.at(reached, fate, 1e6)
    held = np.isin(np.asarray(reached), [0.0, 1.0])
    np.testing.assert_array_equal(np.asarray(later)[held], np.asarray(reached)[held])
    free = inner.aging.at(inner.program(G, KEY), inner.aging.draw(G, KEY), 1e6)
    np.testing.assert_array_equal(np.asarray(later)[~held], np.asarray(free)[~held])
    pulses = np.asarray(device.pulses.taken(G, KEY))
    np.testing.assert_array_equal(pulses[held], 6)
    np.testing.assert_array_equal(pulses[~held], np.asarray(inner.pulses.taken(G, KEY))[~held])


def test_temperature_follows_arrhenius():
    inner = cells.drifting(cells.proportional(0.05, noise=0.1), 0.1, spread=0.02, flicker=0.01)
    device = cells.at_temperature(inner, 350.0, reading_energy=0.2, aging_energy=0.7)
    boltzmann = 1.380649e-23 / 1.602176634e-19
    factor = math.exp(0.2 / boltzmann * (1 / 300 - 1 / 350))
    faster = math.exp(0.7 / boltzmann * (1 / 300 - 1 / 350))
    reached = device.program(G, KEY)
    np.testing.assert_allclose(reached, factor * inner.program(G, KEY), rtol=1e-4)
    np.testing.assert_allclose(
        device.noise(reached), factor * inner.noise(reached / factor), rtol=1e-4
    )
    fate = device.aging.draw(G, KEY)
    later = factor * inner.aging.at(inner.program(G, KEY), fate, 1e5 * faster)
    np.testing.assert_allclose(device.aging.at(reached, fate, 1e5), later, rtol=1e-4)
    same = cells.at_temperature(inner, 300.0, reading_energy=0.2, aging_energy=0.7)
    np.testing.assert_array_equal(same.program(G, KEY), inner.program(G, KEY))


def test_noise_of_one_size_grows_with_the_conductance_that_temperature_gives():
    inner = cells.independent(0.05, noise=0.1)
    device = cells.at_temperature(inner, 350.0, reading_energy=0.2)
    factor = device.program(G, KEY) / inner.program(G, KEY)
    assert factor.min() > 2
    np.testing.assert_allclose(device.noise(G), factor * inner.noise(G), rtol=1e-4)


def test_sizes_are_traced():
    @jax.jit
    def programmed(device, g):
        return device.program(g, KEY), device.aging.at(g, device.aging.draw(g, KEY), 1e3)

    for size in (0.01, 0.1):
        device = cells.verified(cells.independent(size), tolerance=size, pulses=3)
        device = cells.stuck(cells.drifting(device, size, spread=size, flicker=size), low=size)
        device = cells.at_temperature(device, 300 + size, reading_energy=size, aging_energy=size)
        programmed(device, G[:5])
    assert programmed._cache_size() == 1


STUCK = cells.stuck(cells.proportional(0.1), low=0.1)
WARM = cells.at_temperature(cells.proportional(0.1), 320.0)
AGAIN = cells.verified(cells.proportional(0.1), tolerance=0.1, pulses=2)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: cells.verified(STUCK, tolerance=0.1, pulses=2), "verified: goes inside stuck"),
        (lambda: cells.verified(WARM, tolerance=0.1, pulses=2), "inside at_temperature"),
        (lambda: cells.verified(AGAIN, tolerance=0.1, pulses=2), "counts its pulses already"),
        (lambda: cells.verified(plain_device(), tolerance=-0.1, pulses=2), "tolerance=-0.1"),
        (
            lambda: cells.verified(plain_device(), tolerance=0.1, pulses=0),
            "pulses=0: must be an int",
        ),
        (lambda: cells.drifting(STUCK, 0.1), "drifting: goes inside stuck"),
        (lambda: cells.drifting(WARM, 0.1), "drifting: goes inside at_temperature"),
        (lambda: cells.stuck(WARM, low=0.1), "stuck: goes inside at_temperature"),
        (lambda: cells.stuck(STUCK, low=0.1), "stuck: goes inside stuck"),
        (lambda: cells.stuck(plain_device(), low=1.1), "low=1.1"),
        (lambda: cells.stuck(plain_device(), high=-0.1), "high=-0.1"),
        (lambda: cells.stuck(plain_device(), low=0.6, high=0.6), "at most 1 together"),
        (lambda: cells.at_temperature(WARM, 300.0), "at_temperature: goes inside at_temperature"),
        (lambda: cells.at_temperature(plain_device(), 199.0), "kelvin=199.0"),
        (lambda: cells.at_temperature(plain_device(), 300.0, reference=501.0), "reference=501.0"),
        (lambda: cells.at_temperature(plain_device(), 300.0, reading_energy=3), "reading_energy=3"),
        (lambda: cells.at_temperature(plain_device(), 300.0, aging_energy=1), "does not age"),
        (lambda: cells.stuck(8, low=0.1), "device=8: must be a device"),
    ],
)
def test_combinations_without_a_meaning_are_refused_by_name(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_a_device_says_what_it_is_made_of():
    assert str(cells.stuck(AGAIN, low=0.1)) == "stuck verified σ = 0.1 g"
