import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from tests.support import models
from tests.support.networks import X, answer, cnn, run, stack

KEY = jax.random.key(11)


def chip(*transforms, net=None, key=None, calibrate=X):
    return js.deploy(js.compose(*transforms)(net or cnn()), key=key, calibrate=calibrate)


@pytest.fixture(scope="module")
def digital():
    return answer(js.quantize()(cnn()), X)


@pytest.mark.parametrize("mapping", ["differential", "offset"])
@pytest.mark.parametrize("slices", [[], [js.slice_bits(2)]])
@pytest.mark.parametrize("rows", [7, 1152])
def test_an_ideal_array_computes_the_same_bits(digital, mapping, slices, rows):
    y = answer(js.compose(js.quantize(), *slices, js.analog(mapping=mapping, rows=rows))(cnn()), X)
    np.testing.assert_array_equal(y, digital)


@functools.cache
def dense():
    """One layer, whose inputs have no sign."""
    net = js.trace(lambda params, x: x @ params["w"], {"w": models.normal(9, 4)}, jnp.ones((2, 9)))
    return net, jnp.abs(models.normal(5, 9, seed=4))


MAPPINGS = ("differential", "offset", "unit_column")
SLICES = ([], [js.slice_bits(4)], [js.slice_bits(2, top="padded")])
INPUTS = ({}, {"input_bits": 1}, {"input_bits": 3, "accumulate": "analog"})


@pytest.mark.parametrize("i", range(3))
@pytest.mark.parametrize("j", range(3))
@pytest.mark.parametrize("k", range(3))
def test_ideal_hardware_is_exact_however_it_is_laid_out(i, j, k):
    """Signs, slices, digits of the input, and where the parts are added: all the same bits.

    Each of the 27 layouts has one grid of the inputs, each two of its choices have either.
    """
    mapping, slices, inputs = MAPPINGS[i], SLICES[j], INPUTS[k]
    symmetric = (i + j + k) % 2 == 0
    net, x = dense()
    codes = js.quantize(8, js.Grid(8, symmetric=symmetric))
    analog = js.analog(mapping=mapping, rows=4, **inputs)
    y, expected = (answer(js.compose(codes, *more)(net), x) for more in ([*slices, analog], []))
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("accumulate", ["digital", "analog"])
@pytest.mark.parametrize("mapping", ["differential", "offset", "unit_column"])
def test_guaranteed_bits_of_adc_are_exact_in_a_network(mapping, accumulate):
    """Two-bit cells, one-bit inputs, four rows; a pair of columns has a sign as well."""
    net, x = dense()
    codes = js.quantize(8, js.Grid(8, symmetric=False))
    guaranteed = js.fpg_bits(2, 1 if accumulate == "digital" else 8, 4)
    guaranteed += mapping == "differential"
    layout = {"mapping": mapping, "rows": 4, "adc_range": "granular", "input_bits": 1}
    exact = run(chip(codes, net=net, calibrate=x), x)

    def read(bits):
        analog = js.analog(adc=bits, accumulate=accumulate, **layout)
        return answer(js.compose(codes, js.slice_bits(2), analog)(net), x)

    np.testing.assert_allclose(read(guaranteed), exact, rtol=1e-6, atol=1e-6)
    assert np.abs(read(guaranteed - 3) - exact).max() > 1e-2


@pytest.mark.parametrize("mapping", ["differential", "offset"])
def test_more_bits_of_adc_come_closer_to_the_ideal(digital, mapping):
    """At the last layer, behind which nothing rounds."""

    def error(bits):
        adc = js.analog(adc=bits, mapping=mapping, percentile=100.0, rows=4, sites="Dense*")
        return np.abs(answer(js.compose(js.quantize(), adc)(cnn()), X) - digital).max()

    coarse, fine, finest = (error(bits) for bits in (4, 8, 12))
    assert coarse > 8 * fine > 64 * finest > 0


@pytest.mark.parametrize("mapping", ["differential", "offset"])
def test_perfect_cells_are_exact_up_to_floats(digital, mapping):
    cells = js.cells.independent(0.0, on_off=10.0)
    analog = js.analog(cells=cells, mapping=mapping, sites="Dense*")
    np.testing.assert_allclose(run(chip(js.quantize(), analog, key=KEY), X), digital, atol=1e-5)


def noisy(sites="*"):
    return [
        js.quantize(sites=sites),
        js.analog(adc=8, cells=js.cells.proportional(0.2), sites=sites),
    ]


def cells_of(state):
    """The conductances of an analog site without slices: what the innermost core wrote."""
    return np.asarray(max(jax.tree.leaves(state), key=lambda leaf: leaf.size))


def test_one_key_is_one_chip_and_another_key_another():
    same, again = (chip(*noisy(), key=KEY) for _ in range(2))
    other = chip(*noisy(), key=jax.random.key(12))
    np.testing.assert_array_equal(run(same, X), run(again, X))
    np.testing.assert_array_equal(run(same, X), run(same, X))
    assert np.abs(run(same, X) - run(other, X)).max() > 1e-3


def test_sites_and_stacked_layers_draw_their_own_errors():
    ones = {"w": jnp.ones((3, 4, 4)), "head": jnp.ones((4, 4))}
    net = dataclasses.replace(stack(4), params=ones)
    states = chip(*noisy(), net=net, key=KEY, calibrate=models.normal(5, 4)).states
    draws = [*cells_of(states["w"]), cells_of(states["head"])]
    for i, a in enumerate(draws):
        for b in draws[:i]:
            assert np.abs(a[0] - b[0]).min() > 0


def test_a_transform_elsewhere_leaves_the_draw_of_a_site():
    alone = chip(*noisy("Dense_0*"), key=KEY).states["Dense_0/kernel"]
    among = chip(*noisy(), key=KEY).states["Dense_0/kernel"]
    np.testing.assert_array_equal(cells_of(alone), cells_of(among))


@pytest.mark.slow
@pytest.mark.parametrize(("net", "mapping"), [(cnn, "offset"), (stack, "differential")])
def test_an_undeployed_network_draws_the_chip_that_its_key_would_write(net, mapping):
    """Also in a scan, whose layers are calibrated one by one."""
    x = X[:2] if net is cnn else models.normal(5, 4)
    cells = js.cells.independent(0.05, on_off=20.0)
    analog = js.analog(adc=7, cells=cells, mapping=mapping, rows=16, percentile=99.0)
    composed = js.compose(js.quantize(), js.slice_bits(3), analog)(net())
    deployed = js.deploy(composed, key=KEY, calibrate=x)
    np.testing.assert_allclose(run(composed, x, key=KEY), run(deployed, x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mapping", ["differential", "unit_column"])
def test_every_read_of_noisy_cells_differs_and_needs_a_key(mapping):
    cells = js.cells.independent(0.0, on_off=50.0, noise=0.02)
    analog = js.analog(adc=8, cells=cells, mapping=mapping, input_bits=4)
    net, x = dense()
    codes = js.quantize(8, js.Grid(8, symmetric=False))
    noisy_chip = chip(codes, js.slice_bits(4), analog, net=net, key=KEY, calibrate=x)
    first, second = (run(noisy_chip, x, key=jax.random.key(i)) for i in (0, 1))
    assert np.abs(first - second).max() > 1e-3
    np.testing.assert_array_equal(run(noisy_chip, x, key=jax.random.key(0)), first)
    with pytest.raises(ValueError, match="key=None: cells with read noise"):
        noisy_chip(x)


def test_what_is_a_number_shares_one_programme():
    """Errors, drift, noise, converters: a sweep over them is traced, and so compiled, once."""
    traced = []

    @jax.jit
    def jitted(net, x, key):
        traced.append(net)
        return net(x, key=key)

    for i in range(3):
        cells = js.cells.sonos(1200.0 + i, on_off=1e6 + i, days=1.0 + i)
        other = js.cells.inverse(0.01 * (i + 1), on_off=9.0 + i, noise=0.01 * (i + 1))
        analog = js.compose(
            js.analog(adc=6 + i, cells=cells, percentile=99.0 + i / 9, sites="Dense*"),
            js.analog(adc=6 + i, cells=other, mapping="unit_column", sites="Conv*"),
        )
        jax.eval_shape(jitted, js.compose(js.quantize(), analog)(cnn()), X, KEY)
    assert len(traced) == 1


def test_training_through_noise_and_converters_has_gradients_everywhere():
    net = js.compose(*noisy())(cnn())

    @jax.jit
    @jax.grad
    def slope(params):
        return (dataclasses.replace(net, params=params)(X[:2], key=KEY) ** 2).sum()

    for gradient, weight in zip(
        *map(jax.tree.leaves, (slope(net.params), net.params)), strict=True
    ):
        assert np.isfinite(np.asarray(gradient)).all()
        if weight.ndim > 1:  # some units are dead
            assert np.mean(np.asarray(gradient) != 0) > 0.3


def test_a_users_device_is_a_function():
    """Conductances that reach no more than three quarters of what was asked for."""

    def lazy(g, key):
        return 0.75 * g

    x = models.normal(5, 4)
    net = js.compose(js.quantize(), js.analog(cells=js.cells.Device(lazy), sites="head"))(stack())
    quiet = js.quantize()(stack())
    np.testing.assert_allclose(run(net, x, key=KEY), 0.75 * run(quiet, x), rtol=1e-5, atol=1e-6)
