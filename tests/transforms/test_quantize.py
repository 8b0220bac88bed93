import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from jaxsim.cores.geometry import Dot
from tests.oracles import fake_quant, quantiser
from tests.support import models
from tests.support.networks import SITES, X, answer, attention, cnn, run


def loss_and_slopes(forward):
    """The loss, its gradient by the parameters and by the inputs."""
    return jax.jit(jax.value_and_grad(lambda p, x: (forward(p, x) ** 2).sum(), (0, 1)))


HOLDINGS = {
    "plain": [],
    "sliced": [js.slice_bits(2)],
    "differential": [js.analog(rows=10)],
    "sliced, offset": [js.slice_bits(3), js.analog(rows=16, mapping="offset")],
}


@pytest.mark.parametrize("holding", HOLDINGS)
def test_training_a_composed_network_is_quantisation_aware_training(holding):
    net = js.compose(js.quantize(4, 6), *HOLDINGS[holding])(cnn())
    found = loss_and_slopes(lambda p, x: dataclasses.replace(net, params=p)(x))(net.params, X)
    byhand = loss_and_slopes(lambda p, x: fake_quant.cnn(p, x, weights=4, inputs=6))(net.params, X)
    for mine, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(byhand), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-3 * np.abs(theirs).max())


def test_training_at_two_bits_recovers_what_rounding_lost():
    """Gradient descent through the composed network fits its own float teacher."""
    teacher = cnn()
    target = run(teacher, X)
    net = js.quantize(2, 8)(teacher)

    @jax.jit
    def loss(params):
        return ((dataclasses.replace(net, params=params)(X) - target) ** 2).mean()

    step = jax.jit(lambda p: jax.tree.map(lambda p, g: p - 0.5 * g, p, jax.grad(loss)(p)))
    params = net.params
    for _ in range(40):
        params = step(params)
    assert loss(params) < 0.3 * loss(net.params)


def test_an_int_is_a_symmetric_grid_with_a_scale_a_channel():
    net = js.quantize(4, 6)(cnn())
    (wrapper,) = net.cores["Conv_0/kernel"]
    assert wrapper.settings == {"weights": js.Grid(4, per="channel"), "inputs": js.Grid(6)}
    assert set(net.cores) == set(SITES)


def test_a_quantised_dense_layer_is_its_exact_integers():
    params, x = {"w": models.normal(4, 3)}, models.normal(5, 4)
    net = js.trace(lambda p, x: x @ p["w"], params, x)
    grid = {
        "weights": js.Grid(5, symmetric=False, per="channel"),
        "inputs": js.Grid(7, clip=js.clipping.percentile(90.0)),
    }
    y = answer(js.quantize(**grid)(net), x)
    (site,) = net.sites
    geometry = Dot((1,), (), (0,), (), 2, site.w_shape)
    np.testing.assert_allclose(y, quantiser.product(geometry, x, params["w"], **grid), rtol=1e-5)


def test_stacked_layers_have_scales_of_their_own():
    case = models.CASES["nested scans"]()
    net = js.quantize(8, None)(js.trace(case.model, case.variables, *case.args))
    chip = js.deploy(net)
    scale = np.squeeze(chip.states["stack"].scale, -2)
    w = np.asarray(case.variables["stack"])
    np.testing.assert_allclose(scale, np.abs(w).max(2) / 127, rtol=1e-6)
    assert chip.states["stack"].inner.shape == (2, 3, 4, 4)


def test_tied_weights_may_be_stored_on_two_grids():
    case = models.CASES["transformer"]()
    net = js.trace(case.model, case.variables, *case.args)
    grids = {"Embed_0/embedding": 3, "Embed_0/embedding:lookup": 5}
    coded = [js.quantize(bits, None, sites=site) for site, bits in grids.items()]
    chip = js.deploy(js.compose(*coded)(net))
    assert chip.states.keys() == grids.keys()
    table = case.variables["params"]["Embed_0"]["embedding"]
    for site, bits in grids.items():
        codes, _, _ = quantiser.quantise(js.Grid(bits), table, 1)
        stored = np.asarray(chip.states[site].inner)
        np.testing.assert_array_equal(stored, codes if stored.shape == codes.shape else codes.T)


def test_scores_of_two_activations_quantise_both():
    net = attention()
    x = models.normal(2, 5, 4)
    y = run(js.quantize(8, 8, sites="dynamic/0")(net), x)
    q, k, v = (x @ net.params[n] for n in "qkv")
    q, k = fake_quant.faked(q, 8), fake_quant.faked(jnp.swapaxes(k, -1, -2), 8, 1)
    np.testing.assert_allclose(y, jax.nn.softmax(q @ k) @ v, rtol=1e-5, atol=1e-5)


def test_dynamic_sites_stay_dynamic_on_a_deployed_chip():
    net = js.compose(js.quantize(), js.quantize(8, 8, sites="dynamic/*"))(attention())
    x = models.normal(2, 5, 4)
    chip = js.deploy(net, calibrate=x)
    assert set(chip.states) == {"q", "k", "v"}
    np.testing.assert_allclose(run(chip, x), run(net, x), rtol=1e-6)


@pytest.mark.slow
def test_bfloat16_models_are_quantised_in_float32_and_answer_in_bfloat16():
    case = models.CASES["resnet in bfloat16"]()
    net = js.trace(case.model, case.variables, *case.args)
    y, exact = (run(n, *case.args) for n in (js.quantize()(net), net))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(y), np.float32(exact), atol=0.1)


def test_eight_bits_lose_little_and_fewer_lose_more():
    exact = run(cnn(), X)
    errors = [np.abs(run(js.quantize(b, b)(cnn()), X) - exact).max() for b in (8, 6, 4, 2)]
    assert errors == sorted(errors)
    assert errors[0] < 0.03 * np.abs(exact).max()


FORMATS = {
    "table": (js.nf4(), 8),
    "groups": (js.Grid(4, per="group", rows=8), 8),
    "vectors": (js.Codebook(size=8, length=3), None),
    "short floats": (js.Floating(), js.Floating("float8_e5m2")),
    "signs": (js.Grid(1, per="channel"), js.Grid(1)),
    "powers": (js.Grid(4, per="channel", spacing="powers"), js.Grid(8, per="token")),
}


@pytest.mark.parametrize("form", FORMATS)
def test_deployed_formats_are_the_undeployed_ones(form):
    net = cnn()
    chip = js.quantize(*FORMATS[form])(net)
    np.testing.assert_allclose(answer(chip, X), run(chip, X), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("weights", "inputs"),
    [
        (js.Grid(4, per="group", rows=8), js.Grid(6, symmetric=False)),
        (js.Grid(4, per="channel", spacing="powers"), js.Grid(6, per="token")),
        (js.Grid(1, per="channel"), js.Grid(4, symmetric=False, per="token")),
    ],
)
def test_hardware_holds_every_grid(weights, inputs):
    """Slices, signs and tiles around the same codes change nothing."""
    coded = js.quantize(weights, inputs)
    held = js.compose(coded, js.slice_bits(2), js.analog(rows=6, mapping="offset"))
    y, z = (answer(make(cnn()), X) for make in (coded, held))
    np.testing.assert_allclose(y, z, rtol=1e-5, atol=1e-5)


def test_hardware_of_codes_refuses_tables_short_floats_and_blocks_of_powers():
    for weights in (js.nf4(), js.Floating()):
        with pytest.raises(ValueError, match="its weights are no integer codes"):
            js.analog()(js.quantize(weights)(cnn()))
    powers = js.quantize(js.Grid(4, per="channel", spacing="powers"))(cnn())
    with pytest.raises(ValueError, match="cannot follow spacing='powers'"):
        js.block(2, 1, 1, "dynamic")(powers)
    net = attention()
    with pytest.raises(ValueError, match="no weights to store"):
        js.quantize(js.nf4(), 8, sites="dynamic/0")(net)
