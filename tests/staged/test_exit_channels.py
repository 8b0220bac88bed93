"""Channels are removed behind exits: classifiers lose the rows that read them, by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxsim as js
from tests.support.models import normal
from tests.support.transformers import KINDS, inputs, network

WEIGHTS = {
    "a": normal(8, 12, seed=1),
    "b": normal(12, 10, seed=2),
    "c": normal(10, 8, seed=3),
    "d": normal(8, 4, seed=4),
}
X = normal(8, 8, seed=5)
BUCKETS = js.Buckets(batch=2, max_batch=4)


def mlp(p, x):
    for name in "abc":
        x = jnp.tanh(x @ p[name])
    return x @ p["d"]


def filled(net):
    """Its classifiers full of numbers, so that each row tells."""
    heads = [
        {k: jnp.asarray(normal(*np.shape(a), seed=i)) for k, a in head.items()}
        for i, head in enumerate(net.heads)
    ]
    return dataclasses.replace(net, heads=tuple(heads), threshold=jnp.float32(0.7))


def exiting():
    net = js.trace(mlp, jax.tree.map(jnp.asarray, WEIGHTS), jnp.asarray(X))
    return filled(js.exit_early(["b", "d"])(net))


def test_classifiers_lose_the_rows_of_channels_by_hand():
    net, keep = exiting(), {"a:1": [0, 3, 4, 9, 11], "c:1": [1, 2, 7]}
    small = js.shrink(keep=keep)(net)
    for i, name in enumerate(keep):
        wanted = net.heads[i]["kernel"][np.array(keep[name])]
        np.testing.assert_array_equal(small.heads[i]["kernel"], wanted)
        np.testing.assert_array_equal(small.heads[i]["bias"], net.heads[i]["bias"])
    # a network whose removed channels are zero says the same; one with other rows does not
    zero = {k: np.array(v) for k, v in WEIGHTS.items()}
    zero["a"][:, [i for i in range(12) if i not in keep["a:1"]]] = 0
    zero["c"][:, [i for i in range(8) if i not in keep["c:1"]]] = 0
    whole = dataclasses.replace(net, params=zero)
    np.testing.assert_allclose(small.exit_logits(X), whole.exit_logits(X), atol=1e-6)
    heads = ({**small.heads[0], "kernel": net.heads[0]["kernel"][:5]}, small.heads[1])
    wrong = dataclasses.replace(small, heads=heads)
    assert np.abs(wrong.exit_logits(X) - whole.exit_logits(X)).max() > 0.1
    found, ran = small.simulate(X), small.run(X, buckets=BUCKETS)
    np.testing.assert_array_equal(ran.layer, found.layer)
    np.testing.assert_allclose(ran.logits, found.logits, atol=1e-6)
    assert found.flops.max() < net.simulate(X).flops.max()


def images(p, x):
    def convolved(x, w):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=numbers)

    x = jax.nn.relu(convolved(x, p["a"]))
    x = x + convolved(jax.nn.relu(convolved(x, p["b"])), p["c"])
    x = jax.nn.relu(convolved(x, p["d"]))
    return x.mean((1, 2)) @ p["e"]


def rows_and_columns(live):
    """All places and channels of an image as features."""
    return live[0].reshape(len(live[0]), -1)


@pytest.mark.parametrize("layout", [False, True])
def test_rows_of_flattened_images_and_of_means_over_places_go(layout):
    sizes = {"a": (3, 6), "b": (6, 4), "c": (4, 6), "d": (6, 8)}
    p = {n: jnp.asarray(normal(3, 3, *s, seed=i) / 4) for i, (n, s) in enumerate(sizes.items())}
    x = normal(4, 5, 5, 3, seed=9)
    net = js.trace(images, p | {"e": jnp.asarray(normal(8, 3, seed=8))}, jnp.asarray(x))
    if layout:
        net = js.pipeline_shard(2, 2, devices=jax.devices()[:1] * 2)(net)
    feature = {} if layout else {"feature": rows_and_columns}
    net = filled(js.exit_early(["d"], **feature)(net))
    small = js.shrink(0.5)(net)  # or raises, where classifiers say something else than with zeros
    places = 1 if layout else 25
    assert small.heads[0]["kernel"].shape == (3 * places, 3)
    found = small.simulate(x)
    np.testing.assert_allclose(small(x), found.logits, atol=1e-5)


def test_tokens_exits_and_channels_go_together():
    args = inputs(KINDS["scanned bert"])
    made = js.magic_pyramid([0.08, 0.1, 0.13], js.Rule(0.9))(network("scanned bert"))
    net = filled(made)
    small = js.shrink(0.5, groups=["layers/up*"])(net)
    assert small.params["layers"]["up"].shape == (3, 8, 6)
    jax.tree.map(np.testing.assert_array_equal, small.heads, net.heads)  # read other channels
    found, ran = small.simulate(*args), small.run(*args, buckets=js.Buckets(2, 3, 4))
    np.testing.assert_array_equal(ran.kept, found.kept)
    np.testing.assert_array_equal(ran.layer, found.layer)


def test_features_that_change_with_the_number_of_channels_are_refused():
    def normalized(live):
        (x,) = live
        return x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True))

    net = js.trace(mlp, jax.tree.map(jnp.asarray, WEIGHTS), jnp.asarray(X))
    net = filled(js.exit_early(["b"], feature=normalized)(net))
    with pytest.raises(ValueError, match="outputs would change by"):
        js.shrink(keep={"a:1": [0, 3, 4, 9, 11]})(net)
