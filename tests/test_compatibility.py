"""A selection that runs on every version of Python and JAX, by `make compatibility`.

One model of each kind, one transform of each kind, saving and the demo.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import jaxsim as js
from tests.support.demo_process import small

X = jax.random.normal(jax.random.key(0), (8, 8, 8, 1))
LABELS = jnp.arange(8) % 4


class Linen(nn.Module):
    """A small image classifier with batch statistics."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(4, (3, 3))(x)))
        x = nn.relu(nn.Conv(6, (3, 3), strides=2)(x))
        return nn.Dense(4)(x.mean((1, 2)))


class Nnx(nnx.Module):
    """The same without batch statistics."""

    def __init__(self, rngs):
        self.first = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.second = nnx.Conv(4, 6, (3, 3), strides=2, rngs=rngs)
        self.head = nnx.Linear(6, 4, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.second(nnx.relu(self.first(x))))
        return self.head(x.mean((1, 2)))


def linen():
    """A network of Flax Linen and what the model computes."""
    model = Linen()
    variables = model.init(jax.random.key(1), X)
    return js.trace(model, variables, X), jax.jit(model.apply)(variables, X)


def nnx_network():
    """A network of Flax NNX and what the model computes."""
    model = Nnx(nnx.Rngs(0))
    return js.trace(model, X), nnx.jit(lambda model, x: model(x))(model, X)


def scanned():
    """A network of layers that a scan stacks, and what the function computes."""
    keys = jax.random.split(jax.random.key(2))
    params = {
        "w": jax.random.normal(keys[0], (3, 64, 64)) / 8,
        "head": jax.random.normal(keys[1], (64, 4)) / 8,
    }

    def fn(params, x):
        x = x.reshape(len(x), -1)
        x, _ = lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, params["w"])
        return x @ params["head"]

    return js.trace(fn, params, X), jax.jit(fn)(params, X)


MODELS = {"linen": linen, "nnx": nnx_network, "scan": scanned}


@pytest.mark.parametrize("kind", MODELS)
def test_an_untransformed_network_is_the_model(kind):
    net, y = MODELS[kind]()
    np.testing.assert_array_equal(jax.jit(lambda net, x: net(x))(net, X), y)


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_a_chip_of_all_parts(kind, capsys):
    net, _ = MODELS[kind]()
    chip = js.compose(
        js.prune(0.5),
        js.quantize(weights=8, inputs=8),
        js.slice_bits(2),
        js.analog(adc=8, cells=js.cells.proportional(0.02)),
    )(net)
    chip = js.deploy(chip, calibrate=X, key=jax.random.key(0))
    assert chip(X).shape == (8, 4)
    print(js.compare(net, chip, (X, LABELS)))
    assert "networks, cost per input" in capsys.readouterr().out


CODES = js.quantize(8, 8)
TRANSFORMS = {
    "prune": js.prune(0.5),
    "quantize": CODES,
    "table": js.quantize(js.nf4(), None),
    "block": js.compose(CODES, js.block(4, 2, 1)),
    "analog": js.compose(CODES, js.slice_bits(2), js.analog(adc=8)),
    "round_weights": js.compose(CODES, js.round_weights(js.rounding.gptq(), X)),
    "learn_ranges": js.compose(CODES, js.learn_ranges(X)),
    "smooth": js.compose(CODES, js.smooth(X)),
    "correct_bias": js.compose(CODES, js.correct_bias(X)),
}


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("kind", MODELS)
def test_a_transform_of_each_kind_of_each_model(kind, name):
    net, y = MODELS[kind]()
    changed = TRANSFORMS[name](net)
    if changed.cores:
        changed = js.deploy(changed, calibrate=X, key=jax.random.key(3))
    error = jnp.linalg.norm(changed(X) - y) / jnp.linalg.norm(y)
    assert 0 < error < (1 if name == "prune" else 0.5)


def test_transforms_of_how_equations_run():
    net, y = linen()
    folded = js.fold_norms(X)(net)
    np.testing.assert_allclose(folded(X), y, atol=1e-5)
    small_net = js.shrink(0.5)(net)
    assert small_net.cost().params < net.cost().params
    piped = js.pipeline_shard(2, microbatches=2, devices=jax.devices()[:1] * 2)(net)
    np.testing.assert_allclose(piped(X), y, atol=1e-5)
    early = js.exit_early(2)(net)  # exits that were taught nothing let no row leave
    np.testing.assert_allclose(early(X), y, atol=1e-5)


def test_integers_alone_compute_what_codes_do():
    net = js.deploy(CODES(js.fold_norms(X)(linen()[0])), calibrate=X)
    np.testing.assert_allclose(js.integer_only(net)(X), net(X), atol=0.05)


@pytest.mark.parametrize("kind", MODELS)
def test_a_saved_chip_loads_and_computes_the_same_bits(kind, tmp_path):
    composed = js.compose(js.prune(0.5), CODES)(MODELS[kind]()[0])
    chip = js.deploy(composed, calibrate=X)
    js.save(tmp_path / "chip", chip)
    np.testing.assert_array_equal(js.load(tmp_path / "chip", like=composed)(X), chip(X))


def test_training_lowers_the_loss():
    import optax

    from jaxsim.train.loop import fit

    net = CODES(nnx_network()[0])

    def loss(net):
        return optax.softmax_cross_entropy_with_integer_labels(net(X), LABELS).mean()

    trained = fit(
        net, X, LABELS, epochs=3, batch_size=4, optimizer=optax.sgd(0.1), key=jax.random.key(0)
    )
    assert loss(trained) < loss(net)


def test_the_demo_in_its_shortest_form(request, tmp_path):
    if any(item.path.name == "test_demo.py" for item in request.session.items):
        pytest.skip("tests/cli/test_demo.py runs it, and more than once")
    assert len(small(tmp_path / "out", tmp_path / "cache").rows) == 4
    assert (tmp_path / "out" / "sweep.png").exists()
