"""Chips after some time: what drifts, what is compensated, what is set again."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from jaxsim.cores.adc.column import AdcState
from jaxsim.cores.compensation import CompensationState
from jaxsim.cores.conductance import AgingState
from tests.oracles import aging
from tests.support.scans import grouped_scan

KEY = jax.random.key(1)
DAY, YEAR = 86400.0, aging.YEAR
X = jax.random.normal(jax.random.key(2), (32, 24))
W = jax.random.normal(jax.random.key(3), (24, 6))
DRIFT = js.cells.drifting(js.cells.proportional(0.05), 0.06, spread=0.01, flicker=0.005)


def net(*steps, w=W, **array):
    traced = js.trace(lambda params, x: x @ params["w"], {"w": w}, X[:, : len(w)])
    return js.compose(js.quantize(8, 8), *steps, js.analog(**array))(traced)


@functools.cache
def chip_of(mapping="differential", compensation=None, adc=None, rows=1152):
    cells = js.cells.drifting(
        js.cells.proportional(0.05, on_off=30.0), 0.06, spread=0.01, flicker=0.005
    )
    array = {"mapping": mapping, "compensation": compensation, "adc": adc, "rows": rows}
    return js.deploy(net(js.slice_bits(4), cells=cells, **array), key=KEY, calibrate=X)


def found(states, kind):
    states = getattr(states, "states", states)
    leaves = jax.tree.leaves(states, is_leaf=lambda s: isinstance(s, kind))
    return [s for s in leaves if isinstance(s, kind)]


@jax.jit
def later(chip, time, x):
    return js.age(chip, time)(x)


def test_a_chip_reads_what_its_cells_hold_at_the_time():
    """A pair by hand: cells and their fates from the state, drifted in numpy."""
    chip = js.deploy(net(cells=DRIFT), key=KEY, calibrate=X)
    (state,) = found(chip, AgingState)
    g, nu, flicker = (np.float64(a) for a in (state.cells, *state.fate))
    codes = np.round(np.asarray(X) / float(chip.states["w"].inputs.hi / 127))
    for t in (0.0, DAY, 10 * YEAR):
        now = g * ((t + 20) / 20) ** -nu
        now = now * (1 + 0.005 * aging.noise_growth(t + 20, 250e-9) * flicker)
        scale = np.asarray(chip.states["w"].scale) * float(chip.states["w"].inputs.hi / 127)
        expected = codes @ (now[0] - now[1]) * 127 * scale
        y = js.age(chip, t)(X)
        np.testing.assert_allclose(y, expected, atol=3e-5 * np.abs(expected).max())


@pytest.mark.parametrize("mapping", ["differential", "offset", "unit_column"])
def test_times_count_from_the_first_read_and_compile_once(mapping):
    chip = chip_of(mapping, rows=10)
    later.clear_cache()
    outputs = [later(chip, t, X) for t in (0.0, DAY, YEAR)]
    assert later._cache_size() == 1
    np.testing.assert_allclose(outputs[0], chip(X), rtol=1e-4, atol=1e-4)
    twice = js.age(js.age(chip, YEAR), DAY)
    np.testing.assert_array_equal(twice(X), js.age(chip, DAY)(X))
    assert not np.allclose(outputs[1], outputs[2], rtol=0.01)


def test_slices_tiles_and_their_chips_keep_their_time_on_disk(tmp_path):
    chip = chip_of(adc=8, rows=10, compensation="reference")
    old = js.age(chip, YEAR)
    js.save(tmp_path / "old", old)
    again = js.load(tmp_path / "old", net(js.slice_bits(4), **described(chip)))
    np.testing.assert_array_equal(again(X), old(X))
    np.testing.assert_array_equal(js.age(again, 0.0)(X), chip(X))


def described(chip):
    cells = js.cells.drifting(
        js.cells.proportional(0.05, on_off=30.0), 0.06, spread=0.01, flicker=0.005
    )
    return {"cells": cells, "adc": 8, "rows": 10, "compensation": "reference"}


def test_layers_of_a_stack_age_together_and_count_their_pulses():
    cells = js.cells.verified(js.cells.proportional(0.05), tolerance=1.0, pulses=2)
    cells = js.cells.drifting(cells, 0.06, spread=0.01, flicker=0.005)
    chip = js.compose(js.quantize(8, 8), js.analog(adc=12, cells=cells, rows=7))(grouped_scan())
    x = jnp.ones((2, 13, 99))
    chip = js.deploy(chip, key=KEY, calibrate=x)
    old = js.age(chip, DAY)
    (state,) = found(old, AgingState)
    np.testing.assert_array_equal(state.time, np.full(5, DAY))
    five = np.mean(old(x)) / np.mean(chip(x))  # of each of five layers
    assert five == pytest.approx(((DAY + 20) / 20) ** (-0.06 * 5), rel=0.05)
    assert js.count_pulses(chip) == {"w": 5 * 2 * 24 * 99}  # a pair each, rows filled up to tiles
    for state, new in zip(
        found(old, AdcState), found(js.recalibrate(old, x), AdcState), strict=True
    ):
        assert np.all(new.outputs.hi < state.outputs.hi)


@pytest.mark.parametrize("noise", [None, 0.02])
def test_cells_age_behind_wires_too(noise):
    """As an array does whose cells are programmed to what they hold by then."""
    cells = js.cells.drifting(js.cells.proportional(0.05, noise=noise), 0.06, spread=0.01)
    wires = js.wires.input_source(1e-3)
    chip = js.deploy(net(cells=cells, wires=wires), key=KEY, calibrate=X)
    old = js.age(chip, YEAR)
    (state,) = found(old, AgingState)
    now = cells.aging.at(state.cells, state.fate, state.time)
    held = js.cells.Device(lambda g, key: now, noise=cells.noise)
    fresh = js.deploy(net(cells=held, wires=wires), key=KEY, calibrate=X)
    key = jax.random.key(5)
    np.testing.assert_allclose(old(X, key=key), fresh(X, key=key), rtol=1e-3, atol=1e-3)
    assert not np.allclose(old(X, key=key), chip(X, key=key), rtol=0.05)


def test_read_noise_is_that_of_what_the_cells_hold_by_then():
    cells = js.cells.drifting(js.cells.proportional(0.0, noise=0.1), 0.2)
    chip = js.deploy(net(cells=cells), key=KEY, calibrate=X)
    keys = jax.random.split(KEY, 2000)
    reads = jax.jit(jax.vmap(lambda chip, key: chip(X[:4], key=key), (None, 0)))
    spread = [np.std(reads(js.age(chip, t), keys), axis=0) for t in (0.0, DAY)]
    np.testing.assert_allclose(spread[1] / spread[0], (DAY / 20 + 1) ** -0.2, rtol=0.12)
    with pytest.raises(ValueError, match="key=None: cells with read noise"):
        chip(X)


FACTORS = ["array", "column", "reference"]


@pytest.mark.parametrize("mapping", ["differential", "offset"])
@pytest.mark.parametrize("per", FACTORS)
def test_a_factor_is_what_its_readout_has_lost(mapping, per):
    """One slice, no converter: outputs over those without, and the readout in numpy."""
    array = {"cells": DRIFT, "mapping": mapping}
    chips = [js.deploy(net(**array, compensation=c), key=KEY, calibrate=X) for c in (per, None)]
    (state,) = found(chips[0], CompensationState)
    held = state.reference if per == "reference" else found(state, AgingState)[0]

    def magnitude(time):
        g = np.asarray(DRIFT.aging.at(held.cells, held.fate, time), np.float64)
        if per == "reference":
            return g
        return np.abs(g[0] - g[1]) if mapping == "differential" else g

    def mean(time):
        return magnitude(time).mean(0 if per != "array" else None)

    np.testing.assert_array_equal(*(c(X) for c in chips))
    with_it, without = (np.asarray(js.age(c, YEAR)(X), np.float64) for c in chips)
    factor = mean(0.0) / mean(YEAR)
    assert np.all(factor > 1.5)
    if mapping == "offset":  # scaled before what the offset adds is taken off
        step = float(chips[0].states["w"].inputs.hi / 127)
        codes = np.round(np.asarray(X) / step)
        share = 127 * codes.sum(1, keepdims=True) * np.asarray(chips[0].states["w"].scale) * step
        with_it, without = with_it + share, without + share
    expected = without * factor
    np.testing.assert_allclose(with_it, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("mapping", "per"),
    [
        ("differential", "array"),
        ("differential", "reference"),
        ("offset", "column"),
        ("unit_column", "reference"),
    ],
)
def test_every_array_has_a_factor_of_its_own(mapping, per):
    """Of each slice and tile; with one nu for all, every kind undoes drift to the last digit."""
    cells = js.cells.drifting(js.cells.proportional(0.05, on_off=30.0), 0.06)
    array = {"cells": cells, "mapping": mapping, "rows": 10, "compensation": per}
    chip = js.deploy(net(js.slice_bits(4), **array), key=KEY, calibrate=X)
    np.testing.assert_allclose(later(chip, YEAR, X), chip(X), rtol=2e-3, atol=2e-3)
    first = found(chip, CompensationState)[0].first
    assert first.size == 2 * 3 * (6 if per == "column" else 1)  # slices, tiles, columns


@pytest.mark.parametrize("per", ["array", "column"])
def test_compensation_curves_are_those_of_the_documented_formulas(per):
    """From an hour to ten years, within 2 %, on a layer of 200 × 40 of phase-change memory."""
    rng = np.random.default_rng(0)
    w = rng.normal(0, 0.25, (200, 40)).clip(-1, 1)
    w[0, 0] = 1
    x = jnp.ones((1, 200))
    cells = js.cells.pcm_nandakumar()
    traced = js.trace(lambda params, x: x @ params["w"], {"w": jnp.asarray(w, jnp.float32)}, x)
    chips = [
        js.deploy(
            js.compose(js.quantize(js.Grid(8), 8), js.analog(cells=cells, compensation=c))(traced),
            key=KEY,
            calibrate=x,
        )
        for c in (per, None)
    ]
    for time in (3600.0, DAY, YEAR, 10 * YEAR):
        factor = np.ravel(later(chips[0], time, x) / later(chips[1], time, x))
        draws = [
            aging.compensation(w, time, np.random.default_rng(i), aging.nandakumar)
            for i in range(8)
        ]
        expected = np.mean([d[per == "column"] for d in draws], 0)
        if per == "array":
            np.testing.assert_allclose(factor, expected, rtol=0.02)
        else:  # a column of 200 cells has a spread of its own
            assert factor.mean() == pytest.approx(expected.mean(), rel=0.02)
            spread = np.mean([d[1].std() for d in draws])
            assert factor.std() == pytest.approx(spread, rel=0.35)


def test_ranges_that_are_set_again_hold_what_flows_then():
    array = {"cells": DRIFT, "percentile": 100.0}
    chip, bare = (
        js.deploy(net(**array | {"adc": adc}), key=KEY, calibrate=X)
        if adc
        else js.deploy(net(cells=DRIFT), key=KEY, calibrate=X)
        for adc in (8, None)
    )
    old = js.age(chip, YEAR)
    new = js.recalibrate(old, X)
    scale = np.asarray(chip.states["w"].scale) * float(chip.states["w"].inputs.hi / 127)
    most = np.abs(np.asarray(js.age(bare, YEAR)(X)) / scale).max()
    for c, expected in ((new, most), (old, np.abs(np.asarray(bare(X)) / scale).max())):
        (state,) = found(c, AdcState)
        np.testing.assert_allclose([-state.outputs.lo, state.outputs.hi], expected, rtol=1e-4)
    for a, b in zip(old.states["w"].inputs, new.states["w"].inputs, strict=True):
        np.testing.assert_array_equal(a, b)
    widened = js.widen_ranges(old, X)  # a control: it widens only
    assert found(widened, AdcState)[0].outputs.hi == found(old, AdcState)[0].outputs.hi
    several = js.recalibrate(old, [X[:5], X[5:]])
    np.testing.assert_allclose(*(found(c, AdcState)[0].outputs.hi for c in (several, new)))
    exact = js.age(bare, YEAR)(X)
    assert np.std(new(X) - exact) < 0.8 * np.std(old(X) - exact)


def test_a_chip_is_aged_and_set_again_inside_one_program():
    @jax.jit
    def error(chip, time):
        return jnp.std(js.recalibrate(js.age(chip, time), X)(X) - chip(X))

    chip = chip_of(adc=8, compensation="column")
    sizes = [float(error(chip, t)) for t in (0.0, DAY, YEAR)]
    assert error._cache_size() == 1
    assert 0 < sizes[1] < sizes[2]


def test_a_gradient_reaches_inputs_through_aged_and_compensated_cells():
    chip = js.age(chip_of(adc=8, compensation="array"), DAY)
    slope = jax.grad(lambda x: jnp.sum(chip(x)))(X)
    assert np.isfinite(slope).all()
    assert np.any(slope != 0)


def test_sizes_of_drift_and_compensation_compile_once():
    @jax.jit
    def outputs(net, key):
        return net(X, key=key)

    for size in (0.0, 0.1):
        cells = js.cells.drifting(js.cells.proportional(size), size, spread=size, flicker=size)
        outputs(net(adc=8, cells=cells, compensation="reference"), KEY)
    assert outputs._cache_size() == 1


def test_pulses_of_a_chip_are_counted():
    cells = js.cells.verified(js.cells.independent(0.05), tolerance=0.03, pulses=6)
    aged = js.cells.stuck(js.cells.drifting(cells, 0.05), low=0.001)
    chip = js.deploy(net(js.slice_bits(4), cells=aged, adc=8), key=KEY, calibrate=X)
    p = 0.4515  # erf(0.6 / sqrt 2)
    expected = 24 * 6 * 2 * 2 * (1 - (1 - p) ** 6) / p
    assert js.count_pulses(chip)["w"] == pytest.approx(expected, rel=0.1)
    assert not np.allclose(js.age(chip, DAY)(X), chip(X), rtol=0.05)


def test_what_cannot_age_says_so():
    plain = js.deploy(net(cells=js.cells.proportional(0.1)), key=KEY, calibrate=X)
    with pytest.raises(ValueError, match="none of its cells ages"):
        js.age(plain, 1.0)
    for function in (js.age, js.recalibrate):
        with pytest.raises(ValueError, match="chip is not deployed"):
            function(net(cells=DRIFT), 1.0)
    with pytest.raises(ValueError, match="chip is not deployed"):
        js.count_pulses(net(cells=DRIFT))
    with pytest.raises(ValueError, match="none of its sites counts pulses"):
        js.count_pulses(plain)
    with pytest.raises(ValueError, match="it has no converters"):
        js.recalibrate(plain, X)
    for time in (-1.0, 3.2e8):
        with pytest.raises(ValueError, match="time="):
            js.age(chip_of(), time)
    with pytest.raises(ValueError, match="compensation='column': has no effect"):
        js.analog(cells=js.cells.proportional(0.1), compensation="column")
    with pytest.raises(ValueError, match="compensation='row': must be 'array'"):
        js.analog(cells=DRIFT, compensation="row")


def test_reference_cells_are_drawn_apart_from_those_of_the_array():
    """One column of full cells beside a reference of the same shape: the key must not be theirs."""
    x = jnp.ones((1, 64))
    net = js.trace(lambda p, x: x @ p["w"], {"w": jnp.ones((64, 1))}, x)
    cells = js.cells.drifting(js.cells.proportional(0.1), 0.05, spread=0.01)
    made = js.compose(js.quantize(8, 8), js.analog(cells=cells, compensation="reference"))(net)
    chip = js.deploy(made, key=jax.random.key(0), calibrate=x)
    (state,) = found(chip, CompensationState)
    (array,) = found(state.inner, AgingState)
    own = [np.ravel(a)[:64] for a in (array.cells, array.fate.exponent)]
    other = [np.ravel(a)[:64] for a in (state.reference.cells, state.reference.fate.exponent)]
    for a, b in zip(own, other, strict=True):
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.5
