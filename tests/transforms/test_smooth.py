import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from jaxsim.transforms.smooth import channel_scales
from tests.support.models import normal
from tests.support.networks import SITES, X, answer, cnn, run, stack


def outliers(seed=1):
    """A layer in which two input channels are far larger than the others, their weights smaller."""
    spread = jnp.asarray([1, 1, 60, 1, 1, 1, 40, 1.0])
    x = normal(60, 8, seed=seed) @ normal(8, 8, seed=seed) * spread
    w = normal(8, 5) / spread[:, None]
    return js.trace(lambda p, x: x @ p["w"], {"w": w}, x), w, x


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_channels_are_divided_by_the_formula_of_the_paper(alpha):
    plain, w, x = outliers()
    net = js.smooth(x, alpha)(js.quantize(8, 8)(plain))
    found = net.cores["w"][0].settings["channels"][0]
    expected = np.abs(x).max(0) ** alpha / np.abs(w).max(1) ** (1 - alpha)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_without_rounding_nothing_changes_and_with_it_outliers_cost_less():
    plain, _, x = outliers()
    exact = run(plain, x)
    fine = js.smooth(x)(js.quantize(8, None)(plain))
    assert np.abs(run(fine, x) - exact).max() < 0.02 * np.abs(exact).max()
    rough = js.quantize(8, 5)(plain)
    errors = [np.square(run(net, x) - exact).mean() for net in (rough, js.smooth(x)(rough))]
    assert errors[1] < 0.3 * errors[0]


def test_convolutions_are_smoothed_by_input_feature():
    net = js.smooth(X)(js.quantize(8, 8)(cnn()))
    shapes = {name: net.cores[name][0].settings["channels"].shape for name in SITES}
    assert list(shapes.values()) == [(1, 3), (1, 4)]
    exact = run(cnn(), X)
    assert np.abs(run(net, X) - exact).max() < 0.05 * np.abs(exact).max()


def test_every_slice_of_a_stack_has_its_own_factors():
    x = normal(30, 4, seed=4) * jnp.asarray([1, 30, 1, 1.0])
    net = js.smooth(x)(js.quantize(8, 8)(stack()))
    found = net.cores["w"][0].settings["channels"]
    assert found.shape == (3, 1, 4)
    w = np.asarray(stack().params["w"])
    hidden = np.asarray(x)
    for i in range(3):
        expected = np.sqrt(np.abs(hidden).max(0) / np.abs(w[i]).max(1))
        np.testing.assert_allclose(found[i, 0], expected, rtol=1e-4)
        hidden = np.tanh(hidden @ w[i])
    exact = run(stack(), x)
    assert np.abs(answer(net, x) - exact).max() < 0.03 * np.abs(exact).max()
    assert net.cost().total("macs") == js.quantize(8, 8)(stack()).cost().total("macs")


def test_dead_channels_are_left_alone():
    np.testing.assert_array_equal(
        channel_scales(jnp.asarray([[0.0, 4.0, 0.0]]), jnp.asarray([[2.0, 0.0, 0.0]]), 0.5), 1
    )


def test_what_follows_takes_it_into_account():
    """Rounding on the smoothed weights, a bias, and arrays: the codes are those of w · s."""
    plain, _, x = outliers()
    smoothed = js.smooth(x)(js.quantize(4, 8)(plain))
    net = js.compose(js.round_weights(js.rounding.gptq(), x), js.correct_bias(x, reference=plain))(
        smoothed
    )
    exact = run(plain, x)
    nearest, found = (np.square(run(n, x) - exact).mean() for n in (smoothed, net))
    assert found < 0.8 * nearest
    s = np.asarray(smoothed.cores["w"][0].settings["channels"])[0][:, None]
    state = js.deploy(net, calibrate=x).states["w"]
    values = np.asarray(state.inner) * np.asarray(state.scale)
    np.testing.assert_allclose(np.asarray(net.params["w"]) * s, values, rtol=1e-4, atol=1e-5)
    chip = js.compose(js.slice_bits(2), js.analog())(net)
    np.testing.assert_allclose(answer(chip, x), answer(net, x), rtol=1e-5, atol=1e-5)


def test_a_sweep_over_alpha_compiles_once():
    plain, _, x = outliers()
    channel_scales.clear_cache()
    run.clear_cache()
    for alpha in (0.25, 0.5, 0.75):
        run(js.smooth(x, alpha)(js.quantize(8, 8)(plain)), x)
    assert channel_scales._cache_size() == run._cache_size() == 1


@pytest.mark.parametrize("make", [lambda: js.clipping.fixed(-1, 1), lambda: js.clipping.pact(1.0)])
def test_weights_in_a_range_that_is_set_are_refused(make):
    net = js.quantize(js.Grid(8, clip=make()), 8)(cnn())
    with pytest.raises(ValueError, match="the range of its weights is set"):
        js.smooth(X)(net)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda net: js.smooth(X, 1.5), "alpha=1.5"),
        (lambda net: js.smooth(X, -0.1), "alpha=-0.1"),
        (lambda net: js.smooth(X)(cnn()), "its weights are floats"),
        (lambda net: js.smooth(X)(js.smooth(X)(net)), "smooth cannot follow smooth_scaling"),
        (lambda net: js.smooth(X)(js.correct_bias(X)(net)), "smooth cannot follow bias_correction"),
        (
            lambda net: js.smooth(X)(js.round_weights(js.rounding.gptq(), X)(net)),
            "the range of its weights is set",
        ),
        (lambda net: js.smooth(X * jnp.nan)(net), "NaN or infinite"),
    ],
)
def test_what_cannot_be_smoothed_is_refused_by_name(make, said):
    with pytest.raises(ValueError, match=said):
        make(js.quantize(8, 8)(cnn()))
