"""One layer beside CrossSim's own core, where its source is at hand."""

import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from jaxsim.cores.adc.column import AdcState

ROWS, COLUMNS, VECTORS, LEVELS, ON_OFF = 144, 64, 256, 127, 100.0


@pytest.fixture(scope="module")
def crosssim():
    """CrossSim's core and parameters, from the folder that CROSSSIM names."""
    folder = os.environ.get("CROSSSIM")
    if folder is None:
        pytest.skip("CROSSSIM is not set: the folder of CrossSim's source, with simulator/ in it")
    if not (Path(folder) / "simulator").is_dir():
        pytest.fail(f"CROSSSIM={folder}: holds no folder simulator")
    sys.path.insert(0, folder)
    try:
        import simulator
    finally:
        sys.path.remove(folder)
    return simulator


@pytest.fixture(scope="module")
def layer():
    """Weights [rows, columns] and inputs [vectors, rows], the largest of each exactly one."""
    rng = np.random.default_rng(0)
    w, x = rng.normal(0, 0.25, (ROWS, COLUMNS)), rng.normal(0, 0.3, (VECTORS, ROWS))
    return tuple((a / np.abs(a).max()).astype(np.float32) for a in (w, x))


def codes(a):
    return np.rint(a.astype(np.float64) * LEVELS)


def theirs(simulator, style, w, x, *, cell_bits, converter, lo, hi):
    """What CrossSim computes: 8-bit inputs, cells of `cell_bits`, an 8-bit ADC from lo to hi."""
    parameters = simulator.CrossSimParameters()
    parameters.core.style = style
    weights, inputs = parameters.core.mapping.weights, parameters.core.mapping.inputs
    weights.percentile, weights.min, weights.max = None, -1.0, 1.0
    inputs.mvm.min, inputs.mvm.max = -1.0, 1.0
    device = parameters.xbar.device
    device.cell_bits, device.Rmin, device.Rmax = cell_bits, 1e3, 1e3 * ON_OFF
    dac = parameters.xbar.dac.mvm
    dac.model, dac.bits, dac.signed = "SignMagnitudeDAC", 8, True
    parameters.xbar.adc.mvm.model = converter  # which puts another object in its place
    adc = parameters.xbar.adc.mvm
    adc.bits, adc.signed = 8, True
    adc.calibrated_range = [lo, hi]
    return np.asarray(simulator.AnalogCore(w.T, parameters) @ x.T).T


def ours(mapping, on_off, w, x):
    """What our chain computes, one scale for all weights, and its converter's range in codes."""
    net = js.trace(lambda params, x: x @ params["w"], {"w": jnp.asarray(w)}, jnp.asarray(x))
    cells = js.cells.independent(0.0, on_off=on_off)
    array = js.analog(adc=8, cells=cells, mapping=mapping, percentile=100.0)
    chip = js.compose(js.quantize(js.Grid(8), 8), array)(net)
    deployed = js.deploy(chip, key=jax.random.key(0), calibrate=jnp.asarray(x))
    states = jax.tree.leaves(deployed.states, is_leaf=lambda s: isinstance(s, AdcState))
    (state,) = (s for s in states if isinstance(s, AdcState))
    return np.asarray(deployed(jnp.asarray(x))), np.asarray(state.outputs, np.float64).reshape(2)


def assert_the_same(a, b, lsb):
    difference = np.abs(a - b)
    assert len(np.unique(np.rint(b / lsb))) > 64  # most of the converter is used
    assert np.mean(difference <= 1e-5) >= 0.999
    assert difference.max() <= lsb * 1.001


def test_a_differential_pair_computes_what_crosssim_does(crosssim, layer):
    """Seven bits a cell are the 127 magnitudes of our 8-bit codes."""
    w, x = layer
    y, (lo, hi) = ours("differential", ON_OFF, w, x)
    np.testing.assert_allclose([-lo, hi], np.abs(codes(x) @ codes(w)).max(), rtol=1e-6)
    code = (1 - 1 / ON_OFF) / LEVELS**2  # of current, in that of a full cell
    balanced = crosssim.parameters.core_parameters.CoreStyle.BALANCED
    settings = {"cell_bits": 7, "converter": "SignMagnitudeADC", "lo": lo * code, "hi": hi * code}
    assert_the_same(y, theirs(crosssim, balanced, w, x, **settings), hi / LEVELS**3)


def test_an_offset_array_computes_what_crosssim_does(crosssim, layer):
    """CrossSim leaves the lowest of its 256 levels empty, so that zero has one of its own.

    Ours spreads the 255 codes over the whole of the cell. The cell that does what theirs does is
    one whose smallest conductance is theirs and one level more. CrossSim scales what it reads by
    the range of all 256 levels, which makes its outputs 254/255 of the product.

    The range is what ours calibrated: an offset current is large beside the outputs, and a range
    rounded otherwise in single precision would move every level by more than the bound.
    """
    w, x = layer
    lowest = 1 - (1 - 1 / ON_OFF) * 2 * LEVELS / (2 * LEVELS + 1)
    y, (lo, hi) = ours("offset", 1 / lowest, w, x)
    code = (1 - lowest) / (2 * LEVELS**2)
    g = lowest + (1 - lowest) * (codes(w) + LEVELS) / (2 * LEVELS)
    current = codes(x) @ g / LEVELS
    np.testing.assert_allclose([lo * code, hi * code], [current.min(), current.max()], rtol=1e-5)
    offset = crosssim.parameters.core_parameters.CoreStyle.OFFSET
    settings = {"cell_bits": 8, "converter": "QuantizerADC", "lo": lo * code, "hi": hi * code}
    expected = theirs(crosssim, offset, w, x, **settings) * 255 / 254
    assert_the_same(y, expected, (hi - lo) / 255 / LEVELS**2)


BITS, SHARED = 8, 8


def circuit(simulator, model, currents, monkeypatch, **errors):
    """What a converter of CrossSim's with its errors makes of currents [vectors, columns]."""
    parameters = simulator.CrossSimParameters()
    parameters.xbar.adc.mvm.model = model  # which puts another object in its place
    adc = parameters.xbar.adc.mvm
    adc.bits, adc.signed = BITS, True
    top = float(np.abs(currents).max())
    adc.calibrated_range = [-top, top]
    for name, value in {"gain_db": 300.0, **errors}.items():
        setattr(adc, name, value)
    core = simulator.AnalogCore(np.eye(COLUMNS), parameters)
    inner = core.cores[0][0].adc.mvm if hasattr(core, "cores") else core.adc.mvm
    monkeypatch.setattr(np.random, "normal", np.random.default_rng(3).normal)
    inner.set_limits(np.zeros((COLUMNS, ROWS)))
    return np.asarray(inner.convert(currents.T.copy())).T, top


@pytest.fixture(scope="module")
def currents(layer):
    w, x = layer
    return (codes(x) @ codes(w)) / LEVELS**2


@pytest.mark.parametrize("split", [None, 4])
@pytest.mark.parametrize(
    ("sigma", "offset", "gain_db"), [(0.1, 0.02, 300.0), (0.0, 0.0, 300.0), (0.0, 0.0, 40.0)]
)
def test_a_sar_converter_decides_as_crosssim_s(
    crosssim, currents, sigma, offset, gain_db, split, monkeypatch
):
    """Its capacitors are read as two's complement: ours, of seven bits, of magnitudes.

    Its levels are halves and ours whole ones, so the range is half a step narrower on both sides.
    The gain is taken alone: CrossSim's feedback in it is another capacitor than in the levels.
    Split, half of the bits are on the lower node, and the last two capacitors are the unit at
    ground and the bridge.
    """
    settings = {"sigma_capacitor": sigma, "sigma_comparator": offset, "gain_db": gain_db}
    settings |= {"split_cdac": split is not None, "group_size": SHARED}
    theirs, top = circuit(crosssim, "SarADC", currents, monkeypatch, **settings)
    rng = np.random.default_rng(3)
    capacitors = rng.normal(0, sigma, BITS + 1)[: BITS if split is None else None]
    offsets = np.repeat(rng.normal(0, offset * top, COLUMNS // SHARED), SHARED)
    step = top / 2 ** (BITS - 1)
    adc = js.adc.sar(BITS - 1, amplifier=10 ** (gain_db / 20), split=split)
    seen = currents + offsets
    parts = {"capacitors": jnp.asarray(capacitors[:, None], jnp.float32)}
    found = adc.convert(
        jnp.asarray(np.abs(seen), jnp.float32), step / 2, top - step / 2, False, parts
    )
    difference = np.abs(np.where(seen > 0, 1, -1) * np.asarray(found) - theirs)
    assert len(np.unique(np.rint(theirs / step))) > 64
    near = 0.02 if gain_db < 100 else 0.001  # half a step, too, passes its amplifier
    assert np.mean(difference > 1e-3 * step) <= near
    assert difference.max() <= step * 1.001


@pytest.mark.parametrize("sigma", [0.0, 0.03])
def test_a_ramp_converter_decides_as_crosssim_s(crosssim, currents, sigma, monkeypatch):
    """CrossSim takes the nearest level; a ramp that is stopped passes it by half a step.

    So with ideal capacitors they agree, and with others they differ by a step in the share of
    values that lies between: half of what a step is too long or too short.
    """
    settings = {"sigma_capacitor": sigma, "sigma_comparator": 0.02, "symmetric_cdac": False}
    theirs, top = circuit(crosssim, "RampADC", currents, monkeypatch, **settings)
    rng = np.random.default_rng(3)
    offsets = rng.normal(0, 0.02 * top, COLUMNS)
    capacitors = rng.normal(0, sigma, BITS + 1)
    step = 2 * top / 2**BITS
    parts = {
        "capacitors": jnp.asarray(capacitors[:, None], jnp.float32),
        "offset": jnp.asarray(offsets / (2 * top - step), jnp.float32),
    }
    y = jnp.asarray(currents, jnp.float32)
    lo, hi = -top + step / 2, top - step / 2
    found = np.asarray(js.adc.ramp(BITS, offset=0.02).convert(y, lo, hi, False, parts))
    difference = np.abs(found - theirs)
    level = np.asarray(
        [
            sum((2.0**k + 2 ** (k / 2) * capacitors[k]) for k in range(BITS) if c >> k & 1)
            for c in range(2**BITS)
        ]
    ) / (1 + capacitors[BITS] / 2 ** (BITS / 2))
    middle = np.rint((currents + offsets - lo) / step).clip(1, 2**BITS - 1).astype(int)
    between = np.abs(np.diff(level) - 1)[middle - 1].mean() / 2
    assert np.mean(difference > 1e-3 * step) == pytest.approx(between, rel=0.3, abs=0.002)
    assert difference.max() <= step * 1.001
