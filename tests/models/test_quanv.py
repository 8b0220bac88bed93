"""A quantum layer is a Flax layer: what its circuit does, its parameters, and every transform."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
import jaxsim.quantum as jq
from jaxsim.models.quanv import QDCNN, QuanvConv
from tests.support import pipelines
from tests.support.circuits import random
from tests.support.pipelines import furthest, plain

ONE = jax.devices()[:1]


def images(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).uniform(size=shape), jnp.float32)


X = images(8, 8, 8, 1)
NETWORK = QDCNN(3, QuanvConv(dilation=2, layers=2), pool=2, hidden=(6,))
SITES = ["conv/weights", "Dense_0/kernel", "Dense_1/kernel"]


def network(model=NETWORK):
    return js.trace(model, model.init(jax.random.key(0), X), X)


def test_a_trained_layer_is_its_circuit_with_its_weights():
    layer = QuanvConv((1, 2), (2, 1), ((0, 1), (1, 0)), (1, 2), layers=2)
    y, variables = layer.init_with_output(jax.random.key(1), X)
    weights = variables["params"]["weights"]
    assert weights.shape == (2, 2, 3)
    kernel = jq.compile_circuit(jq.strongly_entangling(np.asarray(weights)))
    spec = jq.QuanvSpec((1, 2), (2, 1), (1, 2), ((0, 1), (1, 0)))
    np.testing.assert_allclose(y, jq.quanv2d(X, kernel, spec), atol=2e-6)
    assert y.shape == (8, *jq.out_shape((8, 8), spec), 2)


@pytest.mark.parametrize(
    ("ansatz", "shape"), [("strongly_entangling", (2, 4, 3)), ("basic", (2, 4)), ("random", (2, 4))]
)
def test_every_ansatz_trains_or_stays_fixed(ansatz, shape):
    trained = QuanvConv(ansatz=ansatz, layers=2, seed=1)
    variables = trained.init(jax.random.key(0), X)
    assert variables["params"]["weights"].shape == shape
    grads = jax.jit(jax.grad(lambda v: jnp.mean(trained.apply(v, X) ** 3)))(variables)
    assert np.isfinite(grads["params"]["weights"]).all()
    assert np.any(grads["params"]["weights"])
    ys = []
    for seed in (1, 1, 2):
        fixed = QuanvConv(ansatz=ansatz, layers=2, seed=seed, trainable=False)
        y, variables = fixed.init_with_output(jax.random.key(0), X)
        assert not jax.tree.leaves(variables)
        ys.append(y)
    np.testing.assert_array_equal(ys[0], ys[1])
    assert not np.allclose(ys[0], ys[2])


def test_a_compiled_circuit_is_a_fixed_layer():
    kernel = jq.compile_circuit(random(4)[0], 4)
    layer = QuanvConv(ansatz=kernel, trainable=False)
    y, _ = layer.init_with_output(jax.random.key(0), X)
    np.testing.assert_allclose(y, jq.quanv2d(X, kernel, jq.QuanvSpec()), atol=1e-6)


def test_noise_and_shots_belong_to_the_layer():
    noise = jq.depolarizing(0.05, "end")
    clean, noisy = (QuanvConv(noise=n) for n in (None, noise))
    variables = clean.init(jax.random.key(0), X)
    exact = (1 - 4 * 0.05 / 3) * clean.apply(variables, X)
    np.testing.assert_allclose(jax.jit(noisy.apply)(variables, X), exact, atol=1e-5)
    for joint in (False, True):
        drawn = QuanvConv(noise=noise, shots=2000, joint=joint)
        apply = functools.partial(drawn.apply, rngs={"shots": jax.random.key(3)})
        y = jax.jit(apply)(variables, X)
        assert 0 < np.abs(y - exact).max() < 5 / 2000**0.5
        assert drawn.init(jax.random.key(0), X)["params"]["weights"].shape == (1, 4, 3)
    with pytest.raises(ValueError, match="shots: a sampled"):
        jax.eval_shape(jax.grad(lambda v: apply(v, X).sum()), variables)


def test_the_circuit_of_a_network_is_a_site_when_it_is_trained():
    assert [site.name for site in network().sites] == SITES
    fixed = QDCNN(3, QuanvConv(trainable=False), hidden=(6,))
    assert [site.name for site in network(fixed).sites] == SITES[1:]


TRANSFORMS = {
    "quantize": js.quantize(8, 8),
    "prune": js.prune(0.5, sites="Dense_*"),
    "analog": js.compose(js.quantize(8, 8), js.analog(adc=8, cells=js.cells.proportional(0.01))),
    "everything": js.compose(
        js.prune(0.25, sites="Dense_*"), js.quantize(8, 8), js.slice_bits(2), js.analog(adc=8)
    ),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_apply(name):
    net = network()
    composed = TRANSFORMS[name](net)
    if composed.cores:
        composed = js.deploy(composed, key=jax.random.key(1), calibrate=X)
        assert set(composed.cores) == set(SITES)
    else:
        assert set(composed.masks) == set(SITES[1:])
    y = jax.jit(composed)(X)
    assert y.shape == (8, 3)
    assert np.isfinite(y).all()
    assert np.abs(y - net(X)).max() > 1e-6
    assert name in ("prune", "everything") or np.abs(y - net(X)).max() < 0.2


def test_eight_bits_of_the_circuit_are_nearly_the_circuit():
    """Its matrix is stored in codes; what is read of it stays within a few steps."""
    layer = QuanvConv(layers=2)
    net = js.trace(layer, layer.init(jax.random.key(0), X), X)
    chip = js.deploy(js.quantize(8, 8)(net), calibrate=X)
    assert 1e-5 < np.abs(chip(X) - net(X)).max() < 0.05


def test_each_encoding_has_layers_of_its_own_and_a_site():
    layer = QuanvConv(layers=1, uploads=2)
    params = layer.init(jax.random.key(0), X)
    weights = params["params"]["weights"]
    circuits = [jq.strongly_entangling(w[None]) for w in weights]
    expected = jq.quanv2d(X, jq.compile_circuit(circuits), jq.QuanvSpec())
    net = js.trace(layer, params, X)
    np.testing.assert_allclose(net(X), expected, atol=2e-6)
    assert len(net.sites) == 2
    assert all(site.name.startswith("weights") for site in net.sites)
    chip = js.deploy(js.quantize(8, 8)(net), calibrate=X)
    assert 1e-5 < np.abs(chip(X) - net(X)).max() < 0.1
    fixed = QuanvConv(ansatz="random", uploads=2, trainable=False, seed=3)
    once = QuanvConv(ansatz="random", layers=2, trainable=False, seed=3)
    outputs = [jax.jit(m.apply)(m.init(jax.random.key(0), X), X) for m in (fixed, once)]
    assert np.abs(outputs[0] - outputs[1]).max() > 0.1


def test_a_pipeline_has_its_outputs_and_gradients():
    net = network()
    pipe = js.pipeline_shard(2, 4, devices=ONE * 2)(net)
    np.testing.assert_allclose(pipe(X), net(X), atol=1e-5)
    case = pipelines.Case(net, (X, jnp.arange(8) % 3), pipelines.entropy)
    found = js.pipeline_value_and_grad(pipe, case.loss)(net.params, case.batch)
    assert furthest(found, plain(case)) < 1e-5
    assert np.any(found[1]["conv"]["weights"])


def test_its_cost_is_counted():
    """The matrix of a trained circuit is stored; a fixed one is a constant."""
    cost = network().cost()
    rows = {row.name: row for row in cost.sites}
    assert rows["conv/weights"].params == 24
    assert rows["conv/weights"].spent["cells"] == 16 * 32
    assert rows["conv/weights"].spent["macs"] == 8 * 36 * 16 * 32
    assert cost.params == sum(p.size for p in jax.tree.leaves(network().params))


def test_training_through_eight_bits_moves_the_angles():
    net = js.quantize(8, 8)(network())

    def loss(params):
        return jnp.mean(dataclasses.replace(net, params=params)(X) ** 2)

    assert np.any(jax.grad(loss)(net.params)["conv"]["weights"])


BAD = {
    "ansatz='ladder'": lambda: QuanvConv(ansatz="ladder"),
    "layers=0: must": lambda: QuanvConv(layers=0),
    "uploads=0: must": lambda: QuanvConv(uploads=0),
    "trainable=True, noise=None, uploads=1: a compiled circuit is fixed": lambda: QuanvConv(
        ansatz=jq.compile_circuit(random(4)[0], 4)
    ),
    "stride=0: must": lambda: QuanvConv(stride=0),
    "dilation=.*the taps span": lambda: QuanvConv(dilation=8),
    r"weights\[1, 16, 3\]": lambda: QuanvConv(4),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]().init(jax.random.key(0), X)
