"""Weights within a few deviations, against numpy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsim as js
from jaxsim.train import clip_weights, fit

X = jax.random.normal(jax.random.key(0), (8, 4))


def stacked():
    """Three layers in a scan, the second ten times as large, and a bias that stays."""

    def model(params, x):
        x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params["layers"])
        return x @ params["head"] + params["bias"]

    keys = jax.random.split(jax.random.key(1), 2)
    layers = jax.random.normal(keys[0], (3, 4, 4)) * jnp.array([1.0, 10.0, 0.1])[:, None, None]
    head = jax.random.normal(keys[1], (4, 2)).at[0, 0].set(0)
    return js.trace(model, {"layers": layers, "head": head, "bias": jnp.array([9.0, 0])}, X)


def by_hand(w, deviations):
    kept = w[w != 0]
    bound = deviations * np.sqrt(np.mean(np.square(kept, dtype=np.float64)))
    return np.clip(w, -bound, bound)


def after(net, optimizer, grads):
    updates, _ = optimizer.update(grads, optimizer.init(net.params), net.params)
    return optax.apply_updates(net.params, updates)


def test_each_layer_is_clipped_by_its_own_deviation_and_nothing_else_is():
    net = stacked()
    grads = jax.tree.map(lambda p: 0.1 * jnp.cos(jnp.arange(p.size)).reshape(p.shape), net.params)
    plain = after(net, optax.sgd(1.0), grads)
    found = after(net, optax.chain(optax.sgd(1.0), clip_weights(net, 1.2)), grads)
    for layer in range(3):
        expected = by_hand(np.asarray(plain["layers"][layer]), 1.2)
        np.testing.assert_allclose(found["layers"][layer], expected, rtol=1e-5)
        assert (expected != plain["layers"][layer]).any()
    np.testing.assert_allclose(found["head"], by_hand(np.asarray(plain["head"]), 1.2), rtol=1e-5)
    np.testing.assert_array_equal(found["bias"], plain["bias"])


def test_zeros_are_not_counted():
    net = stacked()
    zeros = jax.tree.map(jnp.zeros_like, net.params)
    head = np.asarray(after(net, clip_weights(net, 1.0), zeros)["head"])
    np.testing.assert_allclose(head, by_hand(np.asarray(net.params["head"]), 1.0), rtol=1e-5)
    counted = np.sqrt(np.mean(np.square(net.params["head"])))
    assert np.abs(head).max() > 1.01 * counted


def test_chosen_sites_alone_and_a_wide_bound_that_moves_nothing():
    net = stacked()
    zeros = jax.tree.map(jnp.zeros_like, net.params)
    one = after(net, clip_weights(net, 0.5, sites="head"), zeros)
    np.testing.assert_array_equal(one["layers"], net.params["layers"])
    assert float(jnp.abs(one["head"]).max()) < float(jnp.abs(net.params["head"]).max())
    wide = after(net, clip_weights(net, 100.0), zeros)
    assert jax.tree.all(jax.tree.map(np.array_equal, wide, net.params))


def test_the_bound_is_traced():
    net, count = stacked(), []
    zeros = jax.tree.map(jnp.zeros_like, net.params)

    @jax.jit
    def largest(deviations):
        count.append(1)
        return jnp.abs(after(net, clip_weights(net, deviations), zeros)["head"]).max()

    found = [float(largest(d)) for d in (0.5, 1.0, 1.5)]
    assert found == sorted(found)
    assert len(set(found)) == 3
    assert len(count) == 1


def test_it_trains_beside_learned_ranges():
    """`fit` then has the parameters in a dict of their own."""
    model = nn.Dense(3)
    net = js.trace(model, jax.jit(model.init)(jax.random.key(0), X), X)
    net = js.learn_ranges(X)(js.quantize(4, None)(net))

    def ratio(optimizer):
        """The largest weight over the deviation."""
        key, labels = jax.random.key(1), np.arange(8) % 3
        made = {"epochs": 4, "batch_size": 8, "optimizer": optimizer, "key": key, "quiet": True}
        w = np.asarray(fit(net, np.asarray(X), labels, **made).params["kernel"])
        return np.abs(w).max() / np.sqrt(np.mean(w**2))

    # the deviation is that before clipping, so that what is left may be a little above the bound
    assert ratio(optax.chain(optax.adam(0.1), clip_weights(net, 1.1))) < 1.4
    assert ratio(optax.adam(0.1)) > 1.5


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: clip_weights(lambda x: x), "clip_weights takes a Network"),
        (lambda: clip_weights(stacked(), 0.0), r"deviations=0\.0"),
        (lambda: clip_weights(stacked(), sites="nowhere"), "matches no site"),
        (
            lambda: clip_weights(stacked()).update({}, optax.EmptyState()),
            "params=None: clip_weights needs the parameters",
        ),
        (
            lambda: clip_weights(stacked()).update({"a": X}, optax.EmptyState(), {"a": X}),
            "params: .* of the network is not among them",
        ),
    ],
)
def test_what_it_refuses(call, said):
    with pytest.raises(ValueError, match=said):
        call()
