"""Cells after some time, beside the formulas that aihwkit documents."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from jaxsim.cores import cells
from tests.oracles import aging

KEY = jax.random.key(7)
COUNT = 60_000
TIMES = (0.0, 3600.0, 86400.0, aging.YEAR, 10 * aging.YEAR)
KINDS = {
    "nandakumar": (cells.pcm_nandakumar, aging.nandakumar),
    "hermes 1": (partial(cells.pcm_hermes, 1), partial(aging.hermes, devices=1)),
    "hermes 2": (partial(cells.pcm_hermes, 2), partial(aging.hermes, devices=2)),
    "cmo": (cells.rram_cmo, aging.cmo),
    "cmo, 2 %": (
        partial(cells.rram_cmo, 2),
        partial(aging.cmo, spread=(0.0112185391, 0.01129027418)),
    ),
}


@jax.jit
def held(device, g, times, key):
    """What cells asked for g hold at each of some times."""
    reached, fate = device.program(g, key), device.aging.draw(g, key)
    return jax.vmap(lambda t: device.aging.at(reached, fate, t))(times)


@pytest.mark.parametrize("level", [0.12, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_the_drift_curve_is_that_of_the_documented_formulas(kind, level):
    """Mean and deviation of cells within 2 % from the first read to ten years."""
    make, oracle = KINDS[kind]
    found = held(make(), jnp.full(COUNT, level), jnp.float32(TIMES), KEY)
    for g, time in zip(np.asarray(found), TIMES, strict=True):
        expected = oracle(np.full(COUNT, level), time, np.random.default_rng(1))
        assert g.mean() == pytest.approx(expected.mean(), rel=0.005)
        assert g.std() == pytest.approx(expected.std(), rel=0.02)


LEVELS = np.array([0.0, 0.004, 0.03, 0.09, 0.1, 0.15, 0.17, 0.2, 0.29, 0.32, 0.5, 0.8, 1.0])


@pytest.mark.parametrize("kind", ["nandakumar", "hermes 1", "hermes 2"])
def test_exponents_and_noise_are_those_of_the_fits_at_every_level(kind):
    device = KINDS[kind][0]()
    named = kind.split()[0]
    devices = {"devices": int(kind[-1])} if named == "hermes" else {}
    exponents, noise = (
        partial(getattr(aging, f"{named}_{what}"), **devices) for what in ("exponents", "noise")
    )
    g = np.broadcast_to(LEVELS[:, None], (len(LEVELS), 20_000)).astype(np.float32)
    fate = device.aging.draw(jnp.asarray(g), KEY)
    mean, deviation = (a[:, None] for a in exponents(LEVELS))
    drawn = np.asarray(fate.exponent)
    expected = np.abs(mean + deviation * np.random.default_rng(0).normal(size=g.shape))
    np.testing.assert_allclose(drawn.mean(1), expected.mean(1), rtol=0.02)
    np.testing.assert_allclose(drawn.std(1), expected.std(1), rtol=0.03)
    assert drawn.min() >= 0
    # one deviation of noise, and none of drift
    still = fate._replace(exponent=0 * fate.exponent, flicker=0 * fate.flicker + 1)
    at = np.asarray(device.aging.at(jnp.asarray(g), still, 1e6))[:, 0]
    first, read = {"nandakumar": (20, 250e-9), "hermes 1": (200, 512e-9)}.get(kind, (300, 512e-9))
    grown = aging.noise_growth(1e6 + first, read)
    np.testing.assert_allclose(at, LEVELS * (1 + noise(LEVELS) * grown), rtol=1e-4)


def test_a_device_drifts_by_a_power_of_time_and_keeps_its_errors():
    device = cells.drifting(
        cells.proportional(0.1, on_off=20.0, noise=0.2), 0.06, spread=0.02, first=5.0
    )
    plain = cells.proportional(0.1, on_off=20.0, noise=0.2)
    g = jnp.full(COUNT, 0.4)
    np.testing.assert_array_equal(device.program(g, KEY), plain.program(g, KEY))
    np.testing.assert_array_equal(device.noise(g), plain.noise(g))
    assert device.on_off == plain.on_off
    now = held(device, g, jnp.float32([0.0, 5 * 999.0]), KEY)
    np.testing.assert_allclose(now[0], plain.program(g, KEY), rtol=1e-6)
    nu = -np.log(now[1] / now[0]) / np.log(1000)
    assert nu.mean() == pytest.approx(0.06, rel=0.01)
    assert nu.std() == pytest.approx(0.02, rel=0.02)
    assert abs(np.corrcoef(nu, now[0])[0, 1]) < 0.02  # a draw of its own


def test_noise_grows_with_the_logarithm_of_time_by_one_number_a_cell():
    device = cells.drifting(cells.proportional(0.0), 0.0, flicker=0.01, first=20.0, pulse=1e-6)
    now = np.asarray(held(device, jnp.full(COUNT, 0.5), jnp.float32([0.0, 1e8]), KEY))
    for g, t in zip(now, (20.0, 1e8 + 20), strict=True):
        assert g.std() / 0.5 == pytest.approx(0.01 * aging.noise_growth(t, 1e-6), rel=0.02)
    assert np.corrcoef(now[0], now[1])[0, 1] > 0.999


def test_errors_of_cells_and_what_becomes_of_them_repeat_with_the_key():
    g = jnp.full((2, 100, 80), 0.5)
    device = cells.pcm_nandakumar()
    first, again, other = (device.aging.draw(g, jax.random.key(k)) for k in (1, 1, 2))
    for a, b, c in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(a, b)
        for p, q in ((a[0], a[1]), (a[:, 1:], a[:, :-1]), (a, c)):
            assert abs(np.corrcoef(np.ravel(p), np.ravel(q))[0, 1]) < 0.04
    assert abs(np.corrcoef(np.ravel(first.exponent), np.ravel(first.flicker))[0, 1]) < 0.04
    reached = device.program(g, jax.random.key(1))
    for drawn in first:
        assert abs(np.corrcoef(np.ravel(reached), np.ravel(drawn))[0, 1]) < 0.04


def test_conductances_of_the_metal_oxide_stay_between_its_ends():
    device = cells.rram_cmo(largest=40.0, on_off=4.0)
    now = held(device, jnp.linspace(0.25, 1, 20_000), jnp.float32([1e8]), KEY)
    assert (float(now.min()), float(now.max())) == (0.25, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_time_has_a_gradient(kind):
    device, g = KINDS[kind][0](), jnp.float32([0.0, 0.3, 1.0])
    reached, fate = device.program(g, KEY), device.aging.draw(g, KEY)
    slope = jax.grad(lambda t: device.aging.at(reached, fate, t).sum())(100.0)
    near = jax.vmap(lambda t: device.aging.at(reached, fate, t).sum())(jnp.float32([90, 110]))
    assert float(slope) == pytest.approx(float(near[1] - near[0]) / 20, rel=0.05, abs=1e-6)
    into = jax.grad(lambda g: device.program(g, KEY).sum())(g)
    assert np.isfinite(into).all()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: cells.drifting(cells.proportional(0.1), 1.1), "exponent=1.1: .* at most 1"),
        (lambda: cells.drifting(cells.proportional(0.1), 0.1, spread=-1), "spread=-1"),
        (lambda: cells.drifting(cells.proportional(0.1), 0.1, flicker=-1), "flicker=-1"),
        (lambda: cells.drifting(cells.proportional(0.1), 0.1, first=0), "first=0: .* above 0"),
        (lambda: cells.drifting(cells.proportional(0.1), 0.1, pulse=0), "pulse=0"),
        (lambda: cells.drifting(cells.pcm_nandakumar(), 0.1), "drifts in its own way already"),
        (lambda: cells.drifting(0.1, 0.1), "device=0.1: must be a device"),
        (lambda: cells.pcm_hermes(3), "devices=3: must be an int from 1 to 2"),
        (lambda: cells.pcm_nandakumar(on_off=1.0), "on_off=1.0"),
        (lambda: cells.rram_cmo(1), "acceptance=1: must be 0.2 or 2"),
        (lambda: cells.rram_cmo(largest=88.3), "largest=88.3"),
        (lambda: cells.rram_cmo(on_off=1.0), "on_off=1.0"),
    ],
)
def test_what_no_device_can_be_is_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_devices_that_age_say_so():
    assert str(cells.pcm_hermes()) == "hermes, ages"
    assert str(js.cells.drifting(cells.independent(0.1), 0.1)) == "σ = 0.1, ages"
