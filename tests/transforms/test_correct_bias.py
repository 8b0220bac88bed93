import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from jaxsim.cores.observers import outputs
from jaxsim.cores.wrapper import Wrapper
from tests.support.models import normal
from tests.support.networks import SITES, X, answer, attention, cnn, run, stack


def means(net, x):
    """Mean of each output channel of each site, measured around what is there."""
    cores = {n: (Wrapper.of(outputs), *net.cores.get(n, ())) for n in net.cores or SITES}
    states = js.deploy(dataclasses.replace(net, cores=cores), calibrate=x).states
    return {name: np.asarray(state.mean) for name, state in states.items()}


@pytest.mark.parametrize("grid", [js.Grid(3, per="channel"), js.Grid(3, symmetric=False)])
def test_the_mean_of_every_output_is_the_float_one(grid):
    """In order: each site is corrected for the inputs that corrected sites before it hand on."""
    plain, quantised = cnn(), js.quantize(grid, 4)(cnn())
    expected, before = means(plain, X), means(quantised, X)
    after = means(js.correct_bias(X)(quantised), X)
    for name in SITES:
        size = np.abs(expected[name]).max()
        np.testing.assert_allclose(after[name], expected[name], atol=2e-5 * size)
        assert np.abs(before[name] - expected[name]).max() > 0.01 * size


def test_one_site_has_the_closed_form_correction():
    """E[x]ᵀ (w - q) where only weights are rounded, in numpy."""
    w, x = normal(6, 3), normal(40, 6, seed=1) + 1
    net = js.quantize(2, None)(js.trace(lambda p, x: x @ p["w"], {"w": w}, x))
    scale = np.abs(w).max(0)
    rounded = np.clip(np.rint(w / scale), -1, 1) * scale
    bias = js.correct_bias(x)(net).cores["w"][0].settings["bias"]
    np.testing.assert_allclose(bias[0], x.mean(0) @ (w - rounded), rtol=1e-4, atol=1e-6)


def test_every_slice_of_a_stack_has_its_own_correction():
    x = normal(30, 4, seed=4) + 0.5
    net = js.quantize(2, 8)(stack())
    expected, before, after = (means(n, x) for n in (_float(net), net, js.correct_bias(x)(net)))
    assert after["w"].shape == (3, 1, 4)
    np.testing.assert_allclose(after["w"], expected["w"], atol=1e-5)
    assert np.all(np.abs(before["w"] - expected["w"]).max((1, 2)) > 0.01)
    corrected = js.correct_bias(x)(net)
    np.testing.assert_allclose(answer(corrected, x), run(corrected, x), rtol=1e-5, atol=1e-6)
    assert corrected.cost().total("weight_bits") == net.cost().total("weight_bits")


def _float(net):
    cores = dict.fromkeys(net.cores, ())
    return dataclasses.replace(net, cores=cores)


def test_after_rounding_the_reference_is_the_network_before():
    before = js.quantize(2, 8)(cnn())
    moved = js.round_weights(js.rounding.gptq(), X)(before)
    fixed = js.correct_bias(X, reference=before)(moved)
    expected, found = means(cnn(), X), means(fixed, X)
    for name in SITES:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5)


def test_hardware_may_follow_and_computes_the_same():
    net = js.correct_bias(X)(js.quantize(4, 8)(cnn()))
    plain = answer(net, X)
    for more in (js.slice_bits(2), js.analog(mapping="offset", input_bits=4), js.block(3)):
        np.testing.assert_allclose(answer(more(net), X), plain, rtol=1e-5, atol=1e-6)
    plain, corrected = (js.block(3)(n) for n in (js.quantize(4, 8)(cnn()), net))
    estimates = [js.Hardware().estimate(n) for n in (plain, corrected)]
    assert estimates[0].energy_gain == estimates[1].energy_gain


def test_a_corrected_network_is_shown_and_kept_on_disk(tmp_path):
    like = js.compose(js.smooth(X), js.correct_bias(X))(js.quantize(4, 8)(cnn()))
    assert "bias_correction(bias=array[1, 1, 1, 4])" in repr(like.cores[SITES[0]])
    chip = js.deploy(like, calibrate=X)
    js.save(tmp_path / "chip", chip)
    other = dataclasses.replace(like, params=jax.tree.map(jnp.zeros_like, like.params))
    np.testing.assert_array_equal(run(js.load(tmp_path / "chip", other), X), run(chip, X))


def test_gradients_pass_through_a_corrected_network():
    net = js.correct_bias(X)(js.quantize(4, 8)(cnn()))
    slope = jax.jit(jax.grad(lambda p: (dataclasses.replace(net, params=p)(X) ** 2).sum()))
    slope = slope(net.params)
    assert all(np.any(np.asarray(leaf) != 0) for leaf in jax.tree.leaves(slope))


def test_several_batches_are_corrected_by_their_mean():
    net = js.quantize(3, js.Grid(8, clip=js.clipping.fixed(-3.0, 3.0)))(cnn())
    whole, parts = (js.correct_bias(x)(net) for x in (X, [X[:4], X[4:]]))
    first = SITES[0]  # nothing before it is corrected
    np.testing.assert_allclose(
        whole.cores[first][0].settings["bias"], parts.cores[first][0].settings["bias"], atol=1e-6
    )


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda net: js.correct_bias(X)(cnn()), "computes in floats"),
        (lambda net: js.correct_bias(X)(js.correct_bias(X)(net)), "cannot follow correct_bias"),
        (lambda net: js.correct_bias(X, reference=3), "reference"),
        (lambda net: js.correct_bias(X, reference=stack())(net), "no site Conv_0/kernel"),
        (lambda net: js.correct_bias(X * jnp.inf)(net), "NaN or infinite"),
        (lambda net: js.correct_bias([])(net), r"inputs=\[\]"),
        (
            lambda net: js.correct_bias(normal(2, 5, 4), sites="dynamic*")(
                js.quantize(None, 8, sites="dynamic*")(attention())
            ),
            "contracts two inputs",
        ),
        (
            lambda net: js.correct_bias(X)(js.analog(cells=js.cells.independent(0.05))(net)),
            "from chip to chip.*programming error.*put it before",
        ),
        (
            lambda net: js.correct_bias(X)(js.analog(js.adc.sar(8, mismatch=0.1))(net)),
            "from chip to chip.*converters that differ",
        ),
    ],
)
def test_what_cannot_be_corrected_is_refused_by_name(make, said):
    with pytest.raises(ValueError, match=said):
        make(js.quantize(4, 8)(cnn()))
