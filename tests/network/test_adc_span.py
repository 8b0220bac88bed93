"""One range for all converters, against percentiles of sums of codes in numpy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from tests.support.models import normal

X = np.asarray(normal(40, 12, seed=3))
SITES = {"a": 1.0, "b": 3.0, "c": 0.2}
KEY = jax.random.key(0)


def branches():
    """Three products of one input, of which the second's weights are not centered."""

    def fn(params, x):
        return sum(jnp.tanh(x @ params[name]) for name in SITES)

    params = {name: size * normal(12, 5, seed=i) for i, (name, size) in enumerate(SITES.items())}
    params["b"] = params["b"] + 6
    return js.trace(fn, params, X)


def codes(w, bits):
    """Symmetric codes, one scale an output."""
    top = 2 ** (bits - 1) - 1
    return np.round(w / (np.abs(w).max(0) / top))


def inputs(bits=8):
    top = 2 ** (bits - 1) - 1
    return np.round(X / (np.abs(X).max() / top))


def grid(bits):
    return js.Grid(bits, per="channel")


def chip_of(array, bits=8, **of_site):
    chosen = {name: js.quantize(grid(of_site.get(name, bits)), 8) for name in SITES}
    return js.deploy(js.compose(js.rules(chosen), array)(branches()), key=KEY, calibrate=X)


def covering(sums, share):
    """The magnitude that a share of the sums stays below, of those that occurred."""
    return np.percentile(np.abs(sums), share)


@pytest.mark.parametrize("share", [100.0, 90.0])
def test_it_is_the_largest_of_the_sites_in_currents_of_a_cell(share):
    params = branches().params
    found = js.common_span(chip_of(js.analog(8, percentile=share), b=4))
    each = {}
    for name in SITES:
        bits = 4 if name == "b" else 8
        sums = inputs() @ codes(np.asarray(params[name]), bits)
        each[name] = covering(sums, share) / (127 * (2 ** (bits - 1) - 1))
    np.testing.assert_allclose(found, max(each.values()), rtol=2e-3)
    # in units of codes another site has the largest
    assert max(each, key=lambda n: each[n] * (7 if n == "b" else 127)) != max(each, key=each.get)


def test_converters_of_fixed_ranges_have_seen_what_flows_too():
    fixed = chip_of(js.analog(16, adc_range="max"))
    np.testing.assert_allclose(js.common_span(fixed), js.common_span(chip_of(js.analog(16))))


def test_slices_are_counted_each_by_its_own_full_cell():
    found = js.common_span(js.deploy(sliced(js.analog(8, percentile=100)), calibrate=X))
    each = []
    for name in SITES:
        w = codes(np.asarray(branches().params[name]), 8)
        for shift, top in ((0, 7), (3, 7), (6, 1)):
            digit = np.sign(w) * (np.abs(w).astype(int) >> shift & 7)
            each.append(np.abs(inputs() @ digit).max() / (127 * top))
    np.testing.assert_allclose(found, max(each), rtol=1e-5)


def sliced(array):
    return js.compose(js.quantize(grid(8), 8), js.slice_bits(3), array)(branches())


def test_offsets_and_digits_of_inputs():
    array = js.analog(8, mapping="offset", percentile=100, input_bits=4)
    found = js.common_span(chip_of(array))
    x, each = inputs(), []
    for name in SITES:
        w = codes(np.asarray(branches().params[name]), 8) + 127
        for shift, top in ((0, 15), (4, 15)):
            digit = np.sign(x) * (np.abs(x).astype(int) >> shift & 15)
            each.append(np.abs(digit @ w).max() / (254 * top))
    np.testing.assert_allclose(found, max(each), rtol=1e-5)


def test_one_range_cuts_every_array_at_the_same_current():
    """At a third of the span sums beyond it stop there, at each site and slice by the same rule."""
    span = js.common_span(chip_of(js.analog(8))) / 3
    array = js.analog(adc=js.adc.uniform(12, span=span))
    chip = chip_of(array)
    out = 0
    for name in SITES:
        w = np.asarray(branches().params[name])
        sums, limit = inputs() @ codes(w, 8), span * 127 * 127
        step = 2 * limit / (2**12 - 2)
        kept = np.clip(np.round(sums / step) * step, -limit, limit)
        out = out + np.tanh(kept * np.abs(w).max(0) / 127 * np.abs(X).max() / 127)
    np.testing.assert_allclose(jax.jit(chip.__call__)(X), out, atol=2e-5)
    assert np.abs(chip(X) - branches()(X)).max() > 0.1


def test_a_span_of_all_rows_is_the_largest_range_bit_for_bit():
    both = [sliced(js.analog(js.adc.uniform(6, span=s))) for s in (12.0, "max")]
    np.testing.assert_array_equal(*[js.deploy(net, calibrate=X)(X) for net in both])
    unsigned = [
        chip_of(js.analog(js.adc.uniform(6, span=s), mapping="offset")) for s in (12.0, "max")
    ]
    np.testing.assert_array_equal(*[chip(X) for chip in unsigned])
    assert (unsigned[0](X) != chip_of(js.analog(6, mapping="offset"))(X)).any()


def test_spans_share_a_program_and_train():
    traced = []

    @jax.jit
    @jax.grad
    def slope(params, net):
        traced.append(1)
        return jnp.sum(dataclasses.replace(net, params=params)(X) ** 2)

    nets = [sliced(js.analog(js.adc.uniform(8, span=s))) for s in (2.0, 5.0, 9.0)]
    slopes = [slope(net.params, net)["a"] for net in nets]
    assert len(traced) == 1
    assert all(np.isfinite(s).all() and np.abs(s).max() > 0 for s in slopes)


def test_it_reads_chips_without_floats_stacks_and_converters_of_one_s_own():
    def fn(params, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params["w"])[0]

    weights = normal(3, 12, 12) * jnp.array([1.0, 4.0, 0.5])[:, None, None]
    net = js.quantize(8, 8)(js.trace(fn, {"w": weights}, X))
    adc = js.adc.sar(8, mismatch=0.01, percentile=100)
    cells = js.cells.independent(0.01)
    chip = js.deploy(js.analog(adc, cells)(net), key=KEY, calibrate=X, keep_floats=False)
    ends = np.asarray(chip.states["w"].inner.array.outputs.hi)
    assert ends.shape == (3,)
    np.testing.assert_allclose(js.common_span(chip), ends.max() / 127**2, rtol=1e-6)
    assert str(js.adc.sar(4, span=3.0)).endswith("full_cells, cells 3")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: js.common_span(sliced(js.analog(8))), "chip is not calibrated"),
        (lambda: js.common_span(js.analog(8)), "chip is not calibrated"),
        (lambda: js.common_span(chip_of(js.analog())), "none of its converters"),
        (lambda: js.adc.uniform(8, span=0.0), r"span=0\.0: must be a number above 0"),
        (lambda: js.adc.ramp(8, span=-1.0), r"span=-1\.0"),
        (lambda: js.adc.uniform(8, span=float("nan")), "span=nan"),
        (lambda: js.adc.uniform(8, span=np.ones(2)), r"span: an array \[2\]; must be one number"),
        (
            lambda: js.analog(js.adc.uniform(8, span=2.0))(js.quantize(8, None)(branches())),
            "its inputs are floats",
        ),
    ],
)
def test_what_cannot_be_is_named(make, said):
    with pytest.raises(ValueError, match=said):
        make()
