import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import jaxsim as js
from jaxsim.cores import cells
from jaxsim.cores.adc.column import uniform_adc
from jaxsim.cores.bit_sliced import bit_sliced
from jaxsim.cores.cells import measured
from jaxsim.cores.conductance import conductance, offset_current
from jaxsim.cores.geometry import Dot
from jaxsim.cores.mapping import differential, offset, unit_column
from jaxsim.cores.op import Op
from jaxsim.cores.quantized import quantized
from jaxsim.formats.grid import Grid
from tests.oracles import devices
from tests.support import sites
from tests.support.compiled import core_of

K, N, ALPHA = 400, 500, 0.01
SQUARE = Dot((1,), (), (0,), (), 2, (K, N))
KEY = jax.random.key(5)
CODES = (quantized, {"weights": Grid(8), "inputs": None})


def weights():
    """Uniform weights in [-1, 1], on the grid."""
    w = np.random.default_rng(0).integers(-127, 127, (K, N), endpoint=True)
    w[0, 0] = 127
    return (w / 127).astype(np.float32)


APART = (differential, {"apart": True})


def array(mapping, device):
    """The chain of an array of cells."""
    ground = [(offset_current, {"device": device})] if offset in mapping else []
    return [*mapping, *ground, (conductance, {"device": device})]


def effective(mapping, device, w):
    """The weights that the cells really hold, seen by unit inputs."""
    unit = np.eye(K, dtype=np.float32)
    return np.asarray(sites.read([CODES, *array(mapping, device)], SQUARE, unit, w, KEY))


def laws(kind, mapping, w, gmin):
    """The standard deviation of a weight, of a largest weight of one (analog.md, 4.4)."""
    gr = 1 - gmin

    def cell(level):
        """Of one cell, whose level is in [0, 1]."""
        g = gmin + gr * level
        return ALPHA * {cells.independent: 1 + 0 * g, cells.proportional: g}.get(
            kind, np.where(g > 0, 1 / np.where(g > 0, g, 1), 0)
        )

    if mapping is differential:
        return np.hypot(cell(np.abs(w)), cell(0 * w)) / gr
    own = 2 / gr * cell((w + 1) / 2)
    return np.hypot(own, 2 / gr * cell(0 * w + 0.5)) if mapping is unit_column else own


@pytest.mark.parametrize("on_off", [None, 10.0])
@pytest.mark.parametrize("mapping", [differential, offset])
@pytest.mark.parametrize("kind", [cells.independent, cells.proportional, cells.inverse])
def test_weight_errors_follow_their_law_at_every_weight(kind, mapping, on_off):
    w = weights()
    error = effective([mapping], kind(ALPHA, on_off=on_off), w) - w
    law = laws(kind, mapping, w, 0.0 if on_off is None else 1 / on_off)
    for lo in np.arange(-1, 1, 0.25):
        # a weight that a cell holds as nothing has no error at all
        there = (w >= lo) & (w < lo + 0.25) & (law > 1e-4)
        scaled = error[there] / law[there]
        assert there.sum() > 20_000
        assert np.std(scaled) == pytest.approx(1, rel=0.03)
        assert abs(np.mean(scaled)) < 0.03


@pytest.mark.parametrize("kind", [cells.independent, cells.proportional])
def test_a_column_of_zeros_adds_its_own_error_to_every_output(kind):
    w, unit = weights()[:, :2], np.eye(K, dtype=np.float32)
    pair, device = Dot((1,), (), (0,), (), 2, (K, 2)), kind(ALPHA, on_off=10.0)
    pieces = [CODES, *array([unit_column], device)]
    keys = jax.random.split(KEY, 400)
    error = jax.vmap(lambda key: sites.read(pieces, pair, unit, w, key))(keys) - w
    scaled = error / laws(kind, unit_column, w, 0.1)
    assert np.std(scaled) == pytest.approx(1, rel=0.01)
    assert abs(np.mean(scaled)) < 0.02
    # what the two outputs share is the column's
    own, shared = laws(kind, offset, w, 0.1), laws(kind, offset, 0 * w, 0.1)
    both = np.mean(error[..., 0] * error[..., 1])
    assert both == pytest.approx(np.mean(shared[:, 0] ** 2), rel=0.05)
    assert np.all(own > 0)


@pytest.mark.parametrize(("top", "most"), [("full_range", 1), ("padded", 3)])
def test_slices_divide_the_error_by_what_their_digits_carry(top, most):
    """Digits of 2 bits and a top one of a single bit: 3·1, 3·4, 3·16 and 1·64 (or 3·64) of 127."""
    w = weights()
    mapping = [(bit_sliced, {"bits": 2, "top": top}), differential]
    error = effective(mapping, cells.independent(ALPHA), w) - w
    law = np.sqrt(2) * ALPHA * np.sqrt(3**2 + 12**2 + 48**2 + (most * 64) ** 2) / 127
    assert np.std(error) == pytest.approx(law, rel=0.03)


@pytest.mark.parametrize(
    "mapping", [[differential], [offset], [unit_column], [(bit_sliced, {"bits": 3}), differential]]
)
@pytest.mark.parametrize("on_off", [None, 3.0])
def test_perfect_cells_hold_the_codes(mapping, on_off):
    w = weights()
    held_weights = effective(mapping, cells.independent(0.0, on_off=on_off), w)
    np.testing.assert_allclose(held_weights, w, atol=5e-6)


def test_conductances_lie_between_the_smallest_and_the_largest():
    device = cells.Device(lambda g, key: g, on_off=4.0)
    x, w = sites.operands(sites.DENSE)
    state = sites.deployed(
        [CODES, APART, (conductance, {"device": device})], sites.DENSE, x, w, KEY
    )
    assert state.inner.min() == 0.25
    assert state.inner.max() == 1


def test_gradients_of_inputs_are_the_noisy_weights_transposed():
    x, w = sites.operands(sites.DENSE)
    pieces = [CODES, differential, (conductance, {"device": cells.proportional(0.3, on_off=5.0)})]

    def read(x):
        return sites.read(pieces, sites.DENSE, x, w, KEY, integer=False)

    noisy = np.asarray(read(np.eye(20, dtype=np.float32)))
    pull = np.random.default_rng(1).normal(size=(5, 6)).astype(np.float32)
    gradient = jax.grad(lambda x: (read(x) * pull).sum())(jnp.asarray(x))
    np.testing.assert_allclose(gradient, pull @ noisy.T, rtol=1e-4, atol=1e-4)
    assert np.abs(noisy - w).max() > 0.1
    # nothing is rounded on the way of the inputs, so differences agree with the derivative too
    check_grads(read, (jnp.asarray(x),), order=1, modes=["rev"], rtol=0.02)


def test_cells_hold_no_sign_and_no_floats():
    core = core_of((conductance, {"device": cells.independent(0.1)}))
    w = np.ones((20, 6), np.float32)
    both = Op(sites.DENSE).codes(0, 1)
    for op in (
        Op(sites.DENSE),
        Op(sites.DENSE).codes(-1, 1),
        Op(sites.DENSE).codes([0, -1], [1, 1]),
        dataclasses.replace(both, w_lo=None),
        dataclasses.replace(both, w_hi=None),
    ):
        with pytest.raises(ValueError, match="differential or offset"):
            core.write(op, w, KEY)
    with pytest.raises(ValueError, match="key=None"):
        core.write(Op(sites.DENSE).codes(0, 1), w, None)


def spread(device, level, count=40_000):
    """Mean and deviation of cells programmed to one level."""
    g = device.program(jnp.full(count, level, jnp.float32), KEY)
    return np.mean(g), np.std(g)


LEVELS = (0.02, 0.1, 0.35, 0.7, 1.0)


@pytest.mark.parametrize("name", ["rram_milo", "rram_wan", "pcm_joshi"])
@pytest.mark.parametrize("level", LEVELS)
def test_measured_devices_spread_as_their_fit_says(name, level):
    device = getattr(cells, name)()
    top = {"rram_milo": 225.0, "rram_wan": 39.26, "pcm_joshi": 25.0}[name]
    mean, deviation = spread(device, level)
    sigma = devices.sigma(name, level * top) / top
    if name == "pcm_joshi":  # what falls below zero stays there
        mean_at_zero, sigma = devices.clipped_at_zero(level, sigma)
        assert mean == pytest.approx(mean_at_zero, abs=0.02 * sigma)
    else:
        assert mean == pytest.approx(level, abs=0.02 * sigma)
    assert deviation == pytest.approx(sigma, rel=0.02)


@pytest.mark.parametrize("days", [0.0, 1.0, 2.5, 4.0, 5.0])
@pytest.mark.parametrize("level", LEVELS[1:])
def test_sonos_drifts_and_spreads_as_its_fit_says(days, level):
    mean, deviation = spread(cells.sonos(1600.0, days=days), level)
    current, sigma = devices.sonos(round(level * 1600.0), days)
    assert mean * 1600 == pytest.approx(current, abs=0.02 * sigma + 0.2)
    assert deviation * 1600 == pytest.approx(sigma, rel=0.02)


def test_no_conductance_of_phase_change_memory_is_negative():
    g = cells.pcm_joshi().program(jnp.linspace(0, 0.05, 20_000), KEY)
    assert np.min(g) == 0


NOISY = {
    "independent": cells.independent(0.02, noise=0.1),
    "proportional": cells.proportional(0.02, noise=0.1, on_off=5.0),
    "inverse": cells.inverse(0.01, noise=0.01, on_off=5.0),
    "sonos": cells.sonos(),
}


@pytest.mark.parametrize("name", NOISY)
def test_read_noise_is_that_of_cells_drawn_anew_for_every_vector(name):
    """Compared with reads of as many arrays, whose cells are drawn one by one."""
    device = NOISY[name]
    x, w = sites.operands(sites.DENSE)
    pieces, count = [CODES, *array([differential], device)], 4000
    state = sites.deployed(pieces, sites.DENSE, x, w, KEY)
    op, core = Op(sites.DENSE, integer=True, ranges="stored"), core_of(*pieces)
    many = jnp.tile(x[:1], (count, 1))
    y = np.asarray(jax.jit(partial(core.read, op))(state, many, KEY))

    apart = sites.deployed([CODES, *array([APART], device)], sites.DENSE, x, w, KEY)
    plus, minus = np.asarray(apart.inner.inner)
    sigma = np.stack([np.asarray(device.noise(g)) for g in (plus, minus)])
    rng = np.random.default_rng(0)
    draws = np.stack([plus, minus]) + sigma * rng.normal(size=(count, 2, *plus.shape))
    low = 0.0 if device.on_off is None else 1 / float(device.on_off)
    scale = np.asarray(state.scale) * 127 / (1 - low)
    expected = np.einsum("k,ckn->cn", x[0], draws[:, 0] - draws[:, 1]) * scale
    error = expected.std(0) / np.sqrt(count)
    np.testing.assert_allclose(y.mean(0), expected.mean(0), atol=6 * error.max())
    np.testing.assert_allclose(y.std(0), expected.std(0), rtol=0.06)
    correlation = np.corrcoef(y[:-1, 0], y[1:, 0])[0, 1]
    assert abs(correlation) < 0.06


def test_noise_redrawn_at_the_cells_is_one_draw_a_call():
    device = cells.independent(0.0, noise=0.1)
    x, w = sites.operands(sites.DENSE)
    x = jnp.tile(x[:1], (3, 1))
    pieces = [CODES, differential, (conductance, {"device": device, "redraw": True})]

    def read(key):
        return sites.read(pieces, sites.DENSE, x, w, key)

    y = jax.vmap(read)(jax.random.split(KEY, 3000))
    np.testing.assert_allclose(y[:, 0], y[:, 1], rtol=1e-5)
    law = np.sqrt(2) * 0.1 * np.linalg.norm(x[0]) * np.abs(w).max()
    np.testing.assert_allclose(np.std(y[:, 0], axis=0), law, rtol=0.06)


def test_calibration_reads_without_noise_and_a_call_needs_a_key():
    device = cells.independent(0.0, noise=1.0)
    x, w = sites.operands(sites.DENSE)
    converter = (uniform_adc, {"bits": 8.0, "percentile": 100.0, "signed": True})
    pieces = [CODES, converter, differential, (conductance, {"device": device})]
    state = sites.deployed(pieces, sites.DENSE, x, w, KEY)
    exact = x @ np.asarray(np.round(w / np.asarray(state.scale)))
    assert float(state.inner.outputs.hi) == pytest.approx(np.abs(exact).max(), rel=1e-5)
    core, op = core_of(*pieces), Op(sites.DENSE, ranges="stored")
    with pytest.raises(ValueError, match="key=None: cells with read noise"):
        core.read(op, state, x, None)


def test_noise_has_a_gradient_where_there_is_none_of_it():
    """A silent input has noise of variance zero, where a square root has no derivative."""
    pieces = [CODES, differential, (conductance, {"device": cells.proportional(0.0, noise=0.1)})]
    x, w = sites.operands(sites.DENSE)

    def total(x):
        return sites.read(pieces, sites.DENSE, x, w, KEY, integer=False).sum()

    assert np.isfinite(jax.grad(total)(jnp.zeros_like(x))).all()


def test_devices_print_what_they_are():
    assert str(cells.independent(0.1)) == "σ = 0.1"
    assert str(cells.proportional(0.1, on_off=10)) == "σ = 0.1 g, on/off 10"
    assert str(cells.inverse(0.5)) == "σ = 0.5 / g"
    assert str(cells.sonos()) == "sonos, on/off 1e+07"
    assert str(cells.Device(lambda g, key: g)) == "<lambda>"


@pytest.mark.parametrize("kind", [cells.independent, cells.proportional, cells.inverse])
def test_errors_of_all_sizes_share_a_program(kind):
    @jax.jit
    def programmed(device, g):
        return device.program(g, KEY)

    for size in (0.1, 0.2):
        programmed(kind(size, on_off=70 * size, noise=size), jnp.ones(5))
    assert programmed._cache_size() == 1


def test_the_old_name_of_program_warns_and_works():
    device = js.cells.independent(0.1)
    with pytest.warns(DeprecationWarning, match="program"):
        assert device.programme is device.program
    with pytest.warns(DeprecationWarning, match="program"):
        assert js.cells.Device(programme=device.program) == js.cells.Device(device.program)
    with pytest.raises(ValueError, match="program=None"):
        js.cells.Device()


def test_read_noise_of_each_kind_by_hand():
    g = jnp.array([0.0, 0.25, 0.5, 1.0])
    kinds = {
        cells.independent: [0.1, 0.1, 0.1, 0.1],
        cells.proportional: [0, 0.025, 0.05, 0.1],
        cells.inverse: [0, 0.4, 0.2, 0.1],  # nothing is stored in the first
    }
    for kind, expected in kinds.items():
        np.testing.assert_allclose(kind(0.7, noise=0.1).noise(g), expected, rtol=1e-6)
        assert kind(0.7).noise is None


@pytest.mark.parametrize("largest", [800.0, 1600.0])
def test_read_noise_of_sonos_saturates_with_its_current(largest):
    g = np.array([0.0, 0.1, 0.5, 1.0])
    most, scale = devices.SONOS_NOISE
    expected = most * (1 - np.exp(-g * largest / scale)) / largest
    np.testing.assert_allclose(cells.sonos(largest).noise(jnp.float32(g)), expected, rtol=1e-5)


def test_errors_of_cells_are_drawn_one_by_one_and_repeat_with_their_key():
    device, g = cells.independent(0.1), jnp.full((2, 100, 80), 0.5)
    first, again, other = (device.program(g, jax.random.key(k)) for k in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    pairs = (
        (first[0], first[1]),
        (first[:, 1:], first[:, :-1]),
        (first[..., 1:], first[..., :-1]),
        (first, other),
    )
    for a, b in pairs:
        assert abs(np.corrcoef(np.ravel(a), np.ravel(b))[0, 1]) < 0.04


def test_defaults_are_those_of_the_measurements():
    """µS of full cells, and on/off of 50 to 225 µS; SONOS in nA."""
    tops = {"rram_milo": 225.0, "rram_wan": 39.26, "pcm_joshi": 25.0, "sonos": 1600.0}
    ratios = {"rram_milo": 4.5, "rram_wan": 39.26, "pcm_joshi": 100.0, "sonos": 1e7}
    for name, top in tops.items():
        device = getattr(cells, name)()
        assert float(device.program.keywords["top"]) == pytest.approx(top)
        assert float(device.on_off) == pytest.approx(ratios[name])


INSIDE = [
    lambda: cells.independent(0.0, on_off=1.001, noise=0.0),
    lambda: cells.rram_milo(225.0),
    lambda: cells.rram_wan(39.26, on_off=1.001),
    lambda: cells.pcm_joshi(25.0),
    lambda: cells.sonos(3200.0, days=0.0),
    lambda: cells.sonos(1800.0, days=5.0),
    lambda: cells.sonos(1e-3),
]
OUTSIDE = [
    (lambda: cells.independent(-0.001), "sigma=-0.001"),
    (lambda: cells.proportional(0.1, on_off=1.0), "on_off=1.0: must be a number above 1"),
    (lambda: cells.inverse(0.1, noise=-0.001), "noise=-0.001"),
    (lambda: cells.rram_milo(225.1), "largest=225.1: .* above 0 and at most 225"),
    (lambda: cells.rram_milo(0.0), "largest=0.0"),
    (lambda: cells.rram_wan(39.3), "largest=39.3: .* at most 39.26"),
    (lambda: cells.pcm_joshi(25.1), "largest=25.1: .* at most 25"),
    (lambda: cells.pcm_joshi(on_off=1.0), "on_off=1.0"),
    (lambda: cells.sonos(3200.1), "largest=3200.1: .* at most 3200"),
    (lambda: cells.sonos(0.0), "largest=0.0"),
    (lambda: cells.sonos(1800.1, days=0.1), "largest=1800.1: .* at most 1800"),
    (lambda: cells.sonos(days=5.1), "days=5.1"),
    (lambda: cells.sonos(days=-0.1), "days=-0.1"),
    (lambda: cells.sonos(on_off=1.0), "on_off=1.0"),
]


@pytest.mark.parametrize("make", INSIDE)
def test_devices_take_the_ends_of_what_was_measured(make):
    assert isinstance(make(), cells.Device)


@pytest.mark.parametrize(("make", "said"), OUTSIDE)
def test_devices_refuse_what_lies_just_beyond(make, said):
    with pytest.raises(ValueError, match=said):
        make()


PAIR = Dot((1,), (), (0,), (), 2, (2, 1))
PERFECT = cells.Device(lambda g, key: g, on_off=4.0)


def test_each_plane_holds_its_largest_code_at_the_largest_conductance():
    """Of codes up to 6 and 2, on/off 4: 0.25 + 0.75 q / 6 and 0.25 + 0.75 q / 2."""
    op = Op(PAIR).codes(np.array([0, 0]), np.array([6, 2]))
    core = core_of((conductance, {"device": PERFECT}))
    state = core.write(op, jnp.array([[[0.0], [3]], [[2], [1]]]), KEY)
    np.testing.assert_allclose(np.squeeze(state), [[0.25, 0.625], [1, 0.625]])
    # x = 5 and 8: 5 · 0 + 8 · 3 and 5 · 2 + 8 · 1, and 13 times what empty cells add, 6/3 and 2/3
    x = jnp.array([[5.0, 8.0]])
    y = core.read(op, state, x, None)
    np.testing.assert_allclose(np.ravel(y), [24 + 13 * 2, 18 + 13 * 2 / 3], rtol=1e-6)
    off = core_of((offset_current, {"device": PERFECT}), (conductance, {"device": PERFECT}))
    np.testing.assert_allclose(np.ravel(off.read(op, state, x, None)), [24, 18], rtol=1e-6)


def test_a_plane_of_nothing_has_cells_all_the_same():
    op = Op(PAIR).codes(np.array([0, 0]), np.array([0, 5]))
    core = core_of((conductance, {"device": cells.Device(lambda g, key: g)}))
    np.testing.assert_array_equal(core.write(op, jnp.zeros((2, 2, 1)), KEY), 0)


def test_read_noise_has_the_variance_of_every_product_by_hand():
    """σ² = (0.1 · 6)² (5² + 8²), in units of a largest code of 6."""
    device = cells.independent(0.0, noise=0.1)
    op = Op(PAIR).codes(np.array(0), np.array(6))
    core = core_of((conductance, {"device": device}))
    state = core.write(op, jnp.array([[0.0], [3]]), KEY)
    x = jnp.array([[5.0, 8.0]])
    keys = jax.random.split(KEY, 3000)
    y = np.ravel(jax.jit(jax.vmap(lambda key: core.read(op, state, x, key)))(keys))
    assert y.mean() == pytest.approx(24, abs=0.4)
    one = 24 + 0.6 * np.sqrt(89) * cells.normal(keys[0], (1, 1))
    np.testing.assert_allclose(y[0], np.ravel(one)[0], rtol=1e-5)
    assert y.std() == pytest.approx(0.6 * np.sqrt(89), rel=0.04)
    np.testing.assert_array_equal(
        core.read(op, state, x, keys[0]), core.read(op, state, x, keys[0])
    )
    quiet = dataclasses.replace(op, deterministic=True)
    np.testing.assert_allclose(core.read(quiet, state, x, None), [[24]])


def test_noise_redrawn_at_the_cells_is_added_to_each_by_hand():
    device = cells.independent(0.0, noise=0.1)
    op = Op(PAIR).codes(np.array(0), np.array(6))
    core = core_of((conductance, {"device": device, "redraw": True}))
    state = core.write(op, jnp.array([[0.0], [3]]), KEY)
    held = np.array([[0.0], [0.5]]) + 0.1 * np.asarray(cells.normal(KEY, (2, 1)))
    x = np.array([[5.0, 8.0]], np.float32)
    np.testing.assert_allclose(core.read(op, state, x, KEY), 6 * x @ held, rtol=1e-5)


@pytest.mark.parametrize("redraw", [False, True])
def test_noise_is_no_product_of_the_hardware(redraw):
    meters = []
    for noise in (None, 0.1):
        device, meter = cells.independent(0.0, noise=noise), {}
        op = Op(PAIR, meter=meter).codes(np.array(0), np.array(6))
        core = core_of((conductance, {"device": device, "redraw": redraw}))
        core.read(op, core.write(op, jnp.ones((2, 1)), KEY), jnp.ones((3, 2)), KEY)
        meters.append(meter)
    assert meters[0] == meters[1] == {"weight_bits": 2 * 3, "cells": 2, "macs": 3 * 2}


def test_codes_of_one_bit_are_cells_that_are_full_or_empty():
    op = Op(PAIR).codes(np.array(0), np.array(1))
    core = core_of((conductance, {"device": cells.Device(lambda g, key: g)}))
    state = core.write(op, jnp.array([[0], [1]]), KEY)
    np.testing.assert_array_equal(state, [[0], [1]])
    np.testing.assert_array_equal(core.read(op, state, jnp.array([[5, 8]]), None), [[8]])


@pytest.mark.parametrize("days", [0, 1, 2, 3, 4, 5])
def test_the_mean_of_sonos_drifts_by_its_polynomial(days, monkeypatch):
    """Without the spread: terms of thousands of nA that cancel, to hundredths."""
    monkeypatch.setattr(measured, "normal", lambda key, shape: jnp.zeros(shape))
    currents = np.array(list(devices.DRIFT[days]))
    g = cells.sonos(1600.0, days=float(days)).program(jnp.float32(currents / 1600), KEY)
    np.testing.assert_allclose(
        1600 * np.float64(g) - currents, list(devices.DRIFT[days].values()), atol=0.03
    )


def test_no_current_of_sonos_and_no_spread_of_a_fit_is_negative(monkeypatch):
    monkeypatch.setattr(measured, "normal", lambda key, shape: -20 * jnp.ones(shape))
    np.testing.assert_array_equal(cells.sonos().program(jnp.full(2, 0.1), KEY), 0)
    monkeypatch.setattr(measured, "normal", lambda key, shape: jnp.ones(shape))
    assert cells.sonos().program(jnp.full(1, 0.1), KEY)[0] > 0.1
    fitted = measured._fitted(
        jnp.ones(1), KEY, top=jnp.float32(2), fit=jnp.float32([-3, 1]), floor=-np.inf
    )
    np.testing.assert_array_equal(fitted, 1)  # -3 · 2 + 1 would take some off


@pytest.mark.parametrize("share", [0.0, 0.5, 2.0])
def test_scaled_cells_err_by_a_share_of_the_same_draws(share):
    g, key = jnp.linspace(0, 1, 50), jax.random.key(2)
    device = js.cells.independent(0.1, noise=0.04)
    found = js.cells.scaled(device, share)
    error = np.asarray(device.program(g, key), np.float64) - g
    np.testing.assert_allclose(found.program(g, key), g + share * error, atol=1e-6)
    np.testing.assert_allclose(found.noise(g), share * 0.04, rtol=1e-6)
    assert np.abs(error).max() > 0.1


def test_scaled_cells_age_and_keep_their_window_and_pulses():
    aged = js.cells.pcm_nandakumar()
    found = js.cells.scaled(aged, 0.5)
    assert found.aging is aged.aging
    assert found.on_off is aged.on_off
    device = js.cells.verified(js.cells.independent(0.1), tolerance=0.02, pulses=3)
    assert js.cells.scaled(device, 0.5).pulses is device.pulses
    assert str(found).startswith("scaled")
    shown = str(js.cells.scaled(js.cells.stuck(aged, low=0.1), 0.5))
    assert shown.startswith("scaled stuck")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: js.cells.scaled(js.cells.independent(0.1), -0.1), r"share=-0\.1"),
        (lambda: js.cells.scaled(js.cells.independent(0.1), float("nan")), "share=nan"),
        (lambda: js.cells.scaled(0.1, 1.0), r"scaled: device=0\.1: must be a device"),
    ],
)
def test_what_cannot_be_scaled_is_named(make, said):
    with pytest.raises(ValueError, match=said):
        make()
