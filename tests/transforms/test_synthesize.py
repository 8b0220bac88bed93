import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from tests.support.models import normal
from tests.support.networks import cnn, stack
from tests.support.variables import initial
from tests.transforms.test_fold_norms import folded


class Normed(nn.Module):
    """Two convolutions with norms and a head."""

    @nn.compact
    def __call__(self, x, train=False):
        for features in (6, 8):
            x = nn.Conv(features, (3, 3))(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.0)(x))
        return nn.Dense(3)(x.mean((1, 2)))


@functools.cache
def seen():
    """A network whose norms hold the statistics of some inputs, and those inputs."""
    x = 0.4 * normal(64, 8, 8, 2, seed=3) + jnp.asarray([2.0, -1.0])
    model = Normed()
    variables = initial(model, x)
    train = jax.jit(
        lambda variables: model.apply(variables, x, train=True, mutable=["batch_stats"])
    )
    _, updates = train(variables)
    return js.trace(model, {**variables, **updates}, x), x


@functools.cache
def made_up(steps):
    return js.synthesize_inputs(seen()[0], 64, key=jax.random.key(1), steps=steps, rate=0.05)


@jax.jit
def statistics(x):
    """What the norms would store of inputs, by the model itself."""
    net, _ = seen()
    _, updates = net(x, train=True, mutable=["batch_stats"])
    return updates["batch_stats"]


def off(x):
    """How far inputs are from the stored statistics, in the units of those."""
    stored, now = seen()[0].buffers["batch_stats"]["BatchNorm_0"], statistics(x)["BatchNorm_0"]
    mean = np.square((now["mean"] - stored["mean"]) / np.sqrt(stored["var"])).mean()
    return float(mean + np.square(np.sqrt(now["var"] / stored["var"]) - 1).mean())


def test_what_enters_the_norms_has_the_statistics_they_store():
    """Measured by the model's own training mode, which the synthesis does not use."""
    noise, few, many = made_up(1), made_up(30), made_up(300)
    assert off(many) < 0.5 * off(few) < 0.5 * off(noise)
    assert off(many) < 0.02
    assert off(seen()[1]) < 1e-6


def test_made_up_inputs_set_ranges_near_those_of_the_data():
    net, x = seen()
    stored = {
        name: js.deploy(js.quantize(8, 8)(net), calibrate=inputs).states
        for name, inputs in {"data": x, "made up": made_up(300)}.items()
    }
    for site in net.sites:
        real, mine = (stored[n][site.name].inputs.hi for n in ("data", "made up"))
        assert 0.5 < float(mine / real) < 2


def test_the_same_key_gives_the_same_inputs():
    again = js.synthesize_inputs(seen()[0], 64, key=jax.random.key(1), steps=30, rate=0.05)
    np.testing.assert_allclose(again, made_up(30), rtol=1e-5, atol=1e-5)
    assert again.shape == (64, 8, 8, 2)


KEY = jax.random.key(0)


def test_the_first_step_of_adam_is_against_the_slope_of_the_distance_by_hand():
    """Of ((m - mean) / std)² + (s / std - 1)² by channel, every entry by the rate."""
    model = nn.Sequential([nn.Dense(3), nn.BatchNorm(use_running_average=True), nn.Dense(2)])
    variables = initial(model, jnp.ones((2, 4)))
    mean, var = jnp.array([0.5, -2.0, 1.0]), jnp.array([0.25, 4.0, 2.0])
    stored = {"layers_1": {"mean": mean, "var": var}}
    net = js.trace(model, {**variables, "batch_stats": stored}, jnp.ones((2, 4)))
    found = js.synthesize_inputs(net, 5, key=KEY, steps=1, rate=0.25, epsilon=1e-5)
    x = jax.random.normal(jax.random.split(KEY)[1], (5, 4))
    layer = variables["params"]["layers_0"]

    @jax.jit
    @jax.grad
    def slope(x):
        y, std = x @ layer["kernel"] + layer["bias"], jnp.sqrt(var + 1e-5)
        off = jnp.square((y.mean(0) - mean) / std) + jnp.square(y.std(0) / std - 1)
        return off.mean()

    np.testing.assert_allclose(found, x - 0.25 * np.sign(slope(x)), atol=1e-5)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: js.synthesize_inputs(seen()[0], 1, key=KEY), "count=1"),
        (lambda: js.synthesize_inputs(seen()[0], key=KEY, steps=0), "steps=0"),
        (lambda: js.synthesize_inputs(seen()[0], key=KEY, rate=0), "rate=0"),
        (lambda: js.synthesize_inputs(seen()[0], key=KEY, epsilon=0), "epsilon=0"),
        (lambda: js.synthesize_inputs(cnn(), key=KEY), "no batch norm"),
        (lambda: js.synthesize_inputs(stack(), key=KEY), "no batch norm"),
        (lambda: js.synthesize_inputs(3, key=KEY), "takes a Network"),
        (lambda: js.synthesize_inputs(js.quantize()(folded()), key=KEY), "before quantize"),
    ],
)
def test_what_no_inputs_can_be_made_for_is_refused_by_name(make, said):
    with pytest.raises(ValueError, match=said):
        make()
