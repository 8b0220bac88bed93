import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxsim as js
from tests.support.models import NnxCnn, normal
from tests.support.networks import X, cnn, run
from tests.support.variables import initial


class Normed(nn.Module):
    """A stem, a depthwise convolution, a shortcut, a norm behind a sum, a dense layer with one."""

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x, train=False):
        norm = functools.partial(nn.BatchNorm, use_running_average=not train, epsilon=self.epsilon)
        x = nn.relu(norm()(nn.Conv(4, (3, 3))(x)))
        y = norm(use_bias=False)(nn.Conv(4, (3, 3), feature_group_count=4, use_bias=False)(x))
        x = nn.relu(norm()(x + y))
        x = norm(use_scale=False)(nn.Dense(6)(x.mean((1, 2))))
        return nn.Dense(3)(nn.relu(x))


FOLDED = {
    "BatchNorm_0": "Conv_0",
    "BatchNorm_1": "Conv_1",
    "BatchNorm_3": "Dense_0",
}


def uneven(tree):
    """Leaves that no test can mistake for one another; variances above zero."""
    leaves, treedef = jax.tree.flatten(tree)
    return treedef.unflatten(
        [
            jnp.asarray(np.asarray(leaf) + 0.3 * np.abs(normal(*leaf.shape, seed=i)))
            for i, leaf in enumerate(leaves)
        ]
    )


@functools.cache
def normed(epsilon=1e-5):
    model = Normed(epsilon)
    return js.trace(model, uneven(initial(model, X)), X)


@functools.cache
def folded():
    return js.fold_norms(X)(normed())


def test_the_function_stays_and_the_norms_do_nothing_but_shift():
    net = folded()
    np.testing.assert_allclose(run(net, X), run(normed(), X), rtol=1e-4, atol=1e-5)
    other = normal(3, 6, 6, 3, seed=9)
    np.testing.assert_allclose(run(net, other), run(normed(), other), rtol=1e-4, atol=1e-5)
    statistics = net.buffers["batch_stats"]
    for norm in FOLDED:
        np.testing.assert_allclose(statistics[norm]["var"], 1 - 1e-5)
        if "scale" in net.params.get(norm, {}):
            np.testing.assert_array_equal(net.params[norm]["scale"], 1)
        if "bias" in net.params.get(norm, {}):
            np.testing.assert_array_equal(statistics[norm]["mean"], 0)


def test_kernels_take_scale_over_root_variance():
    before, after = normed(), folded()
    for norm, layer in FOLDED.items():
        scale = before.params.get(norm, {}).get("scale", 1.0)
        by = scale / np.sqrt(before.buffers["batch_stats"][norm]["var"] + 1e-5)
        was, now = before.params[layer], after.params[layer]
        np.testing.assert_allclose(now["kernel"], was["kernel"] * by, rtol=1e-5)
        if "bias" in was:
            np.testing.assert_allclose(now["bias"], was["bias"] * by, rtol=1e-5)


def test_a_norm_behind_a_sum_stays_as_it_is():
    name = "BatchNorm_2"
    before, after = (
        (net.params[name], net.buffers["batch_stats"][name]) for net in (normed(), folded())
    )
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(a, b)


def test_nnx_keeps_its_norms_beside_its_parameters():
    model = NnxCnn(nnx.Rngs(0))
    model.norm.mean.set_value(jnp.arange(4.0))
    model.norm.var.set_value(jnp.arange(1.0, 5.0))
    model.eval()
    x = normal(2, 8, 8, 3)
    net = js.trace(model, None, x)
    found = js.fold_norms(x)(net)
    np.testing.assert_allclose(run(found, x), run(net, x), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.buffers["norm"]["var"], 1 - 1e-5)
    by = 1 / np.sqrt(np.arange(1.0, 5.0) + 1e-5)
    was, now = net.params["conv"]["kernel"], found.params["conv"]["kernel"]
    np.testing.assert_allclose(now, was * by, rtol=1e-5)


def test_scanned_layers_are_folded_slice_by_slice():
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.relu(nn.BatchNorm(use_running_average=True)(nn.Dense(5)(x))), None

    class Stack(nn.Module):
        @nn.compact
        def __call__(self, x):
            axes = {"params": 0, "batch_stats": 0}
            scanned = nn.scan(Layer, variable_axes=axes, split_rngs={"params": True}, length=3)
            return nn.Dense(2)(scanned(name="stack")(x, None)[0])

    x, model = normal(20, 5), Stack()
    net = js.trace(model, uneven(initial(model, x)), x)
    found = js.fold_norms(x)(net)
    np.testing.assert_allclose(run(found, x), run(net, x), rtol=1e-4, atol=1e-5)
    name = "BatchNorm_0"
    np.testing.assert_allclose(found.buffers["batch_stats"]["stack"][name]["var"], 1 - 1e-5)


def test_another_epsilon_is_asked_for_where_it_matters():
    net = normed(0.5)
    with pytest.raises(ValueError, match="epsilon=1e-05"):
        js.fold_norms(X)(net)
    found = js.fold_norms(X, epsilon=0.5)(net)
    np.testing.assert_allclose(run(found, X), run(net, X), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: js.fold_norms(X, epsilon=0), "epsilon=0"),
        (lambda: js.fold_norms(X)(cnn()), "among 0 norms"),
        (lambda: js.fold_norms(X)(js.quantize()(normed())), "put it before quantize"),
        (lambda: js.fold_norms(X)(3), "takes a Network"),
        (lambda: js.fold_norms(X * jnp.nan)(normed()), "NaN or infinite"),
        (lambda: js.fold_norms(X)(folded()), None),
    ],
)
def test_what_cannot_be_folded_is_refused_by_name(make, said):
    if said is None:  # folding twice changes nothing
        for a, b in zip(
            jax.tree.leaves(make().params), jax.tree.leaves(folded().params), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        return
    with pytest.raises(ValueError, match=said):
        make()
