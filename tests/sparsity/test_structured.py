"""What channels are worth, from what they are and what flows through them."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from jaxsim.network.params import by_name
from tests.support.models import normal, resnet
from tests.support.networks import X, cnn, stack

sp = js.sparsity


def test_slimming_keeps_the_channels_of_the_largest_scales():
    case = resnet()
    net = js.trace(case.model, case.variables, *case.args)
    gamma = jnp.array([0.3, -2.0, 0.1, 1.0])
    params = {**net.params, "BatchNorm_0": {**net.params["BatchNorm_0"], "scale": gamma}}
    net = dataclasses.replace(net, params=params)
    scales = sp.batch_norm_scale({"Conv_0/kernel": "BatchNorm_0/scale"})
    pruned = js.prune(0.5, criterion=scales, pattern=sp.channel(), sites="Conv_0*")(net)
    np.testing.assert_array_equal(pruned.masks["Conv_0/kernel"][0, 0, 0], [0, 1, 0, 1])
    with pytest.raises(ValueError, match="'gamma' is no parameter"):
        js.prune(0.5, criterion=sp.batch_norm_scale({"Conv_0/kernel": "gamma"}))(net)


def test_the_redundant_channel_is_that_nearest_to_the_others():
    w = np.array([[0.0, 1, 4, 1.1], [0, 1, -3, 1.2]])
    net = js.trace(lambda p, x: x @ p["w"], {"w": jnp.asarray(w, jnp.float32)}, normal(2, 2))
    found = sp.redundancy().score(net, ())["w"]
    apart = [sum(np.linalg.norm(w[:, i] - w[:, j]) for j in range(4)) for i in range(4)]
    np.testing.assert_allclose(found, np.broadcast_to(apart, (2, 4)), rtol=1e-5)


def test_activities_and_variances_are_those_of_what_flows_in():
    net = cnn()
    first = nn.relu(
        jax.lax.conv_general_dilated(
            X,
            net.params["Conv_0"]["kernel"],
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        + net.params["Conv_0"]["bias"]
    )
    found = by_name(sp.activity(X).score(net, ()))
    assert {n: f.shape for n, f in found.items()} == {
        n: p.shape for n, p in by_name(net.params).items()
    }
    hidden = js.trace(lambda p, x: x @ p["w"], {"w": normal(4, 3)}, first.reshape(-1, 4))
    rows = np.asarray(first.reshape(-1, 4))
    active = by_name(sp.activity(rows).score(hidden, ()))["w"]
    expected = (rows != 0).mean(0)[:, None]
    np.testing.assert_allclose(active, np.broadcast_to(expected, (4, 3)), rtol=1e-5)
    varied = by_name(sp.activation_variance(rows).score(hidden, ()))["w"]
    np.testing.assert_allclose(varied, np.broadcast_to(rows.var(0)[:, None], (4, 3)), rtol=1e-3)
    # a kernel of one tap sees each position once
    one = js.trace(
        lambda p, x: jax.lax.conv_general_dilated(
            x, p["w"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ),
        {"w": normal(1, 1, 4, 3)},
        first,
    )
    conv = by_name(sp.activity(first).score(one, ()))["w"]
    np.testing.assert_allclose(conv[0, 0], active, rtol=1e-5)


def test_dead_inputs_are_the_first_to_go():
    x = np.array(normal(50, 6))
    x[:, [1, 4]] = 0
    net = js.trace(lambda p, x: x @ p["w"], {"w": normal(6, 3)}, x)
    pruned = js.prune(1 / 3, criterion=sp.activity(x), pattern=sp.channel(-2))(net)
    np.testing.assert_array_equal(pruned.masks["w"][:, 0], [1, 0, 1, 1, 0, 1])
    np.testing.assert_array_equal(pruned(x), net(x))


@pytest.mark.parametrize("scanned", [True, False])
def test_wanda_is_the_weight_times_the_norm_of_its_input(scanned):
    x = normal(9, 4, seed=2) * np.asarray([1.0, 5.0, 1.0, 0.2])
    if scanned:
        net = stack()
        found = js.sparsity.wanda([x[:4], x[4:]]).score(net, ())["w"]
        hidden = np.asarray(x)
        for i, w in enumerate(np.asarray(net.params["w"])):
            expected = np.abs(w) * np.linalg.norm(hidden, axis=0)[:, None]
            np.testing.assert_allclose(found[i], expected, rtol=1e-4)
            hidden = np.tanh(hidden @ w)
        return
    net = js.trace(lambda p, x: x @ p["w"], {"w": normal(4, 6)}, x)
    sparse = js.prune(pattern=js.sparsity.per_output(0.5), criterion=js.sparsity.wanda(x))(net)
    scores = np.abs(net.params["w"]) * np.linalg.norm(x, axis=0)[:, None]
    np.testing.assert_array_equal(sparse.masks["w"], np.argsort(np.argsort(scores, 0), 0) >= 2)
    pairs = js.prune(pattern=js.sparsity.n_of_m(1, 2), criterion=js.sparsity.wanda(x))(net)
    halves = scores.reshape(2, 2, 6)
    np.testing.assert_array_equal(
        pairs.masks["w"].reshape(2, 2, 6), halves == halves.max(1)[:, None]
    )


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5])
def test_each_output_loses_the_same_share(share):
    w = normal(10, 3) * np.asarray([1.0, 10.0, 100.0])
    net = js.trace(lambda p, x: x @ p["w"], {"w": w}, normal(2, 10))
    mask = js.prune(pattern=js.sparsity.per_output(share))(net).masks["w"]
    np.testing.assert_array_equal(mask.sum(0), 10 - round(share * 10))


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_shares_of_an_output_are_below_one(share):
    with pytest.raises(ValueError, match="sparsity="):
        js.sparsity.per_output(share)
