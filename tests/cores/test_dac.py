"""Drivers of rows, beside the levels of their capacitors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from jaxsim.cores.dac import DriverState, capacitive, drivers
from tests.oracles import contraction, converters, quantiser
from tests.support import sites

KEY = jax.random.key(0)


def test_levels_are_those_of_the_capacitors():
    dac = capacitive(mismatch=0.05, amplifier=100.0)
    errors = dac.parts(KEY, 5)
    x = jnp.arange(-31.0, 32)
    level = converters.levels(5, errors, 100.0)
    np.testing.assert_allclose(dac.convert(x, 5, errors), [*-level[:0:-1], *level], rtol=1e-5)
    one = dac.convert(jnp.arange(2.0), 1, dac.parts(KEY, 1))
    np.testing.assert_allclose(one, converters.levels(1, dac.parts(KEY, 1), 100.0), rtol=1e-6)


def test_without_errors_it_is_linear_bit_for_bit():
    x = jnp.arange(-127.0, 128)
    for dac in (capacitive(), capacitive(mismatch=0.0)):
        parts = None if dac.parts is None else dac.parts(KEY, 7)
        np.testing.assert_array_equal(dac.convert(x, 7, parts), x)


def test_an_array_is_driven_by_converted_codes():
    dac, (x, w) = capacitive(mismatch=0.5), sites.operands(sites.CONV)
    pieces = [sites.quantize(per="tensor"), (drivers, {"dac": dac})]
    state = sites.deployed(pieces, sites.CONV, x, w, KEY)
    (found,) = (
        s
        for s in jax.tree.leaves(state, is_leaf=lambda s: isinstance(s, DriverState))
        if isinstance(s, DriverState)
    )
    qw, sw, _ = quantiser.quantise(sites.Grid(8, per="tensor"), w)
    qx, sx, _ = quantiser.quantise(sites.Grid(8), x)
    level = converters.levels(7, found.parts)
    v = np.sign(qx) * level[np.abs(qx)]
    y = sites._read_state(sites.wrappers(pieces), sites.CONV, state, x, None)
    expected = contraction.contract(sites.CONV, v, qw) * sw * sx
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    ideal = sites.read_deployed(pieces[:1], sites.CONV, x, w)
    assert np.abs(y - ideal).max() > 0.01 * np.abs(ideal).max()


def net_of(dac, **settings):
    x = jax.random.normal(jax.random.key(3), (16, 12))
    params = {"w": jax.random.normal(jax.random.key(4), (12, 5))}
    net = js.trace(lambda params, x: jnp.tanh(x @ params["w"]), params, x)
    return js.compose(js.quantize(8, 8), js.analog(adc=8, dac=dac, **settings))(net), x


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"mapping": "offset", "cells": js.cells.proportional(0.01, on_off=50.0)},
        {"mapping": "unit_column", "input_bits": 4},
        {"input_bits": 2, "accumulate": "analog"},
        {"rows": 5, "cells": js.cells.proportional(0.0), "wires": js.wires.input_source(1e-5)},
    ],
)
def test_drivers_stand_in_every_kind_of_array(settings):
    """Ideal ones change nothing; others do, the same at each call and from disk."""
    same, x = net_of(capacitive(mismatch=0.0), **settings)
    plain, _ = net_of(None, **settings)
    exact = js.deploy(plain, key=KEY, calibrate=x)(x)
    np.testing.assert_allclose(js.deploy(same, key=KEY, calibrate=x)(x), exact, atol=2e-6)
    chip = js.deploy(net_of(capacitive(mismatch=0.2), **settings)[0], key=KEY, calibrate=x)
    assert np.abs(chip(x) - exact).max() > 1e-3
    np.testing.assert_array_equal(chip(x), chip(x))


def test_slices_may_come_before_and_behind():
    net = js.trace(lambda p, x: x @ p, jnp.ones((4, 2)), jnp.ones((1, 4)))
    array, slices = js.analog(dac=capacitive()), js.slice_bits(2)
    chains = [
        js.compose(js.quantize(8, 8), *steps)(net).cores
        for steps in ((array, slices), (slices, array))
    ]
    assert repr(chains[0]) == repr(chains[1])


def test_a_sweep_compiles_once_and_gradients_pass_straight_through():
    @jax.jit
    def outputs(net, x, key):
        return net(x, key=key)

    for size in (0.0, 0.1):
        outputs(*net_of(capacitive(mismatch=size, amplifier=100.0 + size)), KEY)
    assert outputs._cache_size() == 1
    parts = capacitive(mismatch=0.1).parts(KEY, 3)
    slope = jax.grad(lambda x: capacitive().convert(x, 3, parts).sum())(jnp.float32([-3.0, 0, 5]))
    np.testing.assert_array_equal(slope, 1)


def test_one_of_ones_own_needs_no_key():
    soft = js.dac.DAC(lambda x, bits, parts: x - 0.2 * x**3 / 4**bits)
    net, x = net_of(soft)
    plain, _ = net_of(None)
    assert np.abs(js.deploy(net, calibrate=x)(x) - js.deploy(plain, calibrate=x)(x)).max() > 1e-3


def test_what_cannot_be_is_refused():
    net = js.trace(lambda p, x: x @ p, jnp.ones((4, 2)), jnp.ones((1, 4)))
    with pytest.raises(ValueError, match=r"analog\(dac=capacitor_levels\).*its inputs are floats"):
        js.compose(js.quantize(8, None), js.analog(dac=capacitive()))(net)
    with pytest.raises(ValueError, match="mismatch=-1"):
        capacitive(mismatch=-1)
    with pytest.raises(ValueError, match="dac=8: must be from"):
        js.analog(dac=8)
    with pytest.raises(ValueError, match="gated wires switch cells"):
        js.analog(
            dac=capacitive(),
            cells=js.cells.proportional(0.0),
            wires=js.wires.gated(1e-4),
            input_bits=1,
        )
    chip, x = net_of(capacitive(mismatch=0.1))
    with pytest.raises(ValueError, match="key=None: drivers"):
        js.deploy(chip, calibrate=x)
