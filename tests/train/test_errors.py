"""Cells that err by a share: against devices composed anew, and steps taken by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsim as js
from jaxsim.train import cross_entropy, fit, scale_errors
from tests.support.models import normal

X = np.asarray(normal(12, 6, seed=3))
LABELS = np.arange(12) % 3
KEY = jax.random.key(0)
SIGMA = 0.2
CALLS = []


def layers():
    def fn(params, x):
        CALLS.append(1)
        return jnp.tanh(x @ params["a"]) @ params["b"]

    return js.trace(fn, {"a": normal(6, 5), "b": normal(5, 3, seed=1)}, X)


def analog(sigma=SIGMA, **settings):
    cells = js.cells.independent(sigma, noise=sigma / 2)
    return js.compose(js.quantize(8, 8), js.analog(8, cells, **settings))


@pytest.mark.parametrize("settings", [{}, {"mapping": "unit_column"}, {"mapping": "offset"}])
def test_a_share_of_errors_is_a_device_of_that_error(settings):
    net = analog(**settings)(layers())
    for share in (0.0, 0.25, 1.0):
        expected = analog(share * SIGMA, **settings)(layers())
        found = scale_errors(net, share)
        np.testing.assert_allclose(found(X, key=KEY), expected(X, key=KEY), rtol=1e-4, atol=1e-4)
    assert np.abs(net(X, key=KEY) - expected(X, key=jax.random.key(1))).max() > 0.1


def test_shares_are_one_program():
    net, traced = analog()(layers()), []

    @jax.jit
    def call(net, share):
        traced.append(1)
        return scale_errors(net, share)(X, key=KEY)

    found = [call(net, share) for share in (0.0, 0.5, 1.0)]
    assert len(traced) == 1
    assert np.abs(found[0] - found[1]).max() > 1e-3
    np.testing.assert_allclose(found[2], net(X, key=KEY), atol=1e-4)


RUN = {"optimizer": optax.sgd(0.3), "key": KEY, "batch_size": 6, "quiet": True}


def by_hand(shares):
    """Steps of a network that is composed anew with each share."""
    plain, at = layers(), 0
    params = plain.params
    for epoch in range(len(shares) // 2):
        own = jax.random.fold_in(KEY, epoch)
        order = np.asarray(jax.random.permutation(own, 12)).reshape(2, 6)
        for i, rows in enumerate(order):
            net = analog(shares[at] * SIGMA)(plain)

            def loss(params, net=net, rows=rows, key=jax.random.fold_in(own, i)):
                changed = dataclasses.replace(net, params=params)
                return cross_entropy(changed(X[rows], key=key), LABELS[rows])

            grads = jax.jit(jax.grad(loss))(params)
            params = jax.tree.map(lambda p, g: p - 0.3 * g, params, grads)
            at += 1
    return params


def test_a_schedule_is_followed_step_by_step_and_all_errors_are_left():
    ramp = optax.linear_schedule(0.0, 1.0, 3)
    net = analog()(layers())
    found = fit(net, X, LABELS, epochs=2, errors=ramp, **RUN)
    expected = by_hand([0.0, 1 / 3, 2 / 3, 1.0])
    for name in ("a", "b"):
        np.testing.assert_allclose(found.params[name], expected[name], atol=2e-4)
    whole = fit(net, X, LABELS, epochs=2, **RUN)
    assert np.abs(whole.params["a"] - expected["a"]).max() > 0.01
    again = dataclasses.replace(net, params=found.params)
    np.testing.assert_array_equal(found(X, key=KEY), again(X, key=KEY))


def test_longer_ramps_compile_no_more():
    net, counts = analog()(layers()), []
    for epochs in (1, 4):
        CALLS.clear()
        fit(net, X, LABELS, epochs=epochs, errors=lambda i: i / 8, **RUN)
        counts.append(len(CALLS))
    assert counts[0] == counts[1]


def test_a_run_goes_on_by_its_own_schedule_alone(tmp_path):
    net, ramp = analog()(layers()), optax.linear_schedule(0.0, 1.0, 6)
    fit(net, X, LABELS, epochs=2, errors=ramp, checkpoints=tmp_path, **RUN)
    resumed = fit(net, X, LABELS, epochs=2, errors=ramp, checkpoints=tmp_path, **RUN)
    whole = fit(net, X, LABELS, epochs=2, errors=ramp, **RUN)
    np.testing.assert_array_equal(resumed.params["a"], whole.params["a"])
    with pytest.raises(ValueError, match="errors"):
        fit(net, X, LABELS, epochs=2, errors=lambda i: 0.5, checkpoints=tmp_path, **RUN)


def deployed():
    return js.deploy(js.lora(1, KEY)(analog()(layers())), key=KEY, calibrate=X)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: scale_errors(layers(), 0.5), "has no cells"),
        (lambda: scale_errors(deployed(), 0.5), "the cells are programmed"),
        (lambda: scale_errors(analog()(layers()), -1.0), r"share=-1\.0"),
        (lambda: scale_errors(X, 0.5), "scale_errors takes a Network"),
        (
            lambda: fit(analog()(layers()), X, LABELS, epochs=1, errors=lambda i: 0.5 - i, **RUN),
            r"errors\(1\)=-0\.5",
        ),
        (lambda: fit(layers(), X, LABELS, epochs=1, errors=lambda i: 1, **RUN), "has no cells"),
        (lambda: fit(deployed(), X, LABELS, epochs=1, errors=lambda i: 1, **RUN), "programmed"),
    ],
)
def test_what_cannot_be_is_named(make, said):
    with pytest.raises(ValueError, match=said):
        make()
