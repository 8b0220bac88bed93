import functools

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from jaxsim.transforms.equalize import pairs
from jaxsim.transforms.rescaling import layers, trials_of
from tests.support.models import normal
from tests.support.networks import X, cnn, run
from tests.support.variables import initial
from tests.transforms.test_fold_norms import uneven


class Chain(nn.Module):
    """Convolutions with a norm and a depthwise one between; pixels flattened into a dense layer."""

    @nn.compact
    def __call__(self, x):
        norm = functools.partial(nn.BatchNorm, use_running_average=True)
        x = nn.relu(norm()(nn.Conv(4, (3, 3), use_bias=False)(x)))
        x = nn.leaky_relu(nn.Conv(4, (3, 3), feature_group_count=4)(x), 0.1)
        x = nn.relu(nn.Conv(5, (1, 1), (3, 3))(x))
        x = nn.gelu(nn.Dense(7)(x.reshape(len(x), -1)))
        return nn.Dense(3)(x)


@functools.cache
def chain():
    model = Chain()
    return js.trace(model, uneven(initial(model, X)), X)


@functools.cache
def even():
    return js.equalize(X)(chain())


JOINED = [("Conv_0", "Conv_1", 1), ("Conv_1", "Conv_2", 2), ("Conv_2", "Dense_0", 5)]


def test_layers_joined_by_functions_that_let_factors_through_are_found_and_no_others():
    """gelu lets none through, so the two dense layers are no pair."""
    found = pairs(chain(), layers(chain(), "equalize", "*"), trials_of(chain(), X), 1e-5)
    names = [(p.first.name.split("/")[0], p.second.name.split("/")[0]) for p in found]
    assert names == [pair[:2] for pair in JOINED]


def test_the_function_stays():
    for x in (X, normal(3, 6, 6, 3, seed=9)):
        expected = run(chain(), x)
        np.testing.assert_allclose(
            run(even(), x), expected, rtol=0, atol=1e-4 * np.abs(expected).max()
        )


def ranges(net):
    """Of each pair, the largest magnitude of each channel in the first and the second kernel."""
    kernels = {name: np.abs(net.params[name]["kernel"]) for name in ("Conv_0", "Conv_1", "Conv_2")}
    dense = np.abs(net.params["Dense_0"]["kernel"]).reshape(4, 5, 7)
    return [
        (kernels["Conv_0"].max((0, 1, 2)), kernels["Conv_1"].max((0, 1, 2))),
        (kernels["Conv_1"].max((0, 1, 2)), kernels["Conv_2"].max((0, 1, 3))),
        (kernels["Conv_2"].max((0, 1, 2)), dense.max((0, 2))),
    ]


def test_channels_have_equal_ranges_in_both_layers_afterwards():
    assert all(np.abs(np.log(r1 / r2)).max() > 0.1 for r1, r2 in ranges(chain()))
    for r1, r2 in ranges(even()):
        np.testing.assert_allclose(r1, r2, rtol=1e-3)


def test_one_pair_is_rescaled_by_the_formula_of_the_paper():
    params = {"a": {"kernel": normal(4, 6), "bias": normal(6)}, "b": {"kernel": normal(6, 3)}}

    def fn(params, x):
        return nn.relu(x @ params["a"]["kernel"] + params["a"]["bias"]) @ params["b"]["kernel"]

    net = js.equalize(normal(9, 4))(js.trace(fn, params, normal(9, 4)))
    r1, r2 = np.abs(params["a"]["kernel"]).max(0), np.abs(params["b"]["kernel"]).max(1)
    s = np.sqrt(r2 / r1)
    np.testing.assert_allclose(net.params["a"]["kernel"], params["a"]["kernel"] * s, rtol=1e-4)
    np.testing.assert_allclose(net.params["a"]["bias"], params["a"]["bias"] * s, rtol=1e-4)
    np.testing.assert_allclose(
        net.params["b"]["kernel"], params["b"]["kernel"] / s[:, None], rtol=1e-4
    )


def test_one_scale_a_kernel_serves_an_equalised_network_better():
    spread = 10.0 ** np.linspace(-1.5, 1.5, 6)
    params = {"a": normal(8, 6) * spread, "b": normal(6, 5) / spread[:, None]}
    x = normal(40, 8, seed=3)
    net = js.trace(lambda p, x: nn.relu(x @ p["a"]) @ p["b"], params, x)
    exact, stored = run(net, x), js.quantize(js.Grid(6, per="tensor"), None)
    plain, evened = (
        np.square(run(stored(n), x) - exact).mean() for n in (net, js.equalize(x)(net))
    )
    assert evened < 0.1 * plain


def test_dead_channels_and_pruned_weights_do_no_harm():
    params = {"a": normal(4, 3).at[:, 1].set(0), "b": normal(3, 2)}
    x = normal(9, 4)
    net = js.prune(0.3)(js.trace(lambda p, x: nn.relu(x @ p["a"]) @ p["b"], params, x))
    found = js.equalize(x)(net)
    np.testing.assert_allclose(run(found, x), run(net, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: js.equalize(X, epsilon=-1), "epsilon=-1"),
        (lambda: js.equalize(X)(js.quantize()(cnn())), "put it before quantize"),
        (lambda: js.equalize(X, sites="Conv_0*")(cnn()), "no two of the sites"),
        (lambda: js.equalize(X * jnp.nan)(cnn()), "NaN or infinite"),
    ],
)
def test_what_cannot_be_equalised_is_refused_by_name(make, said):
    with pytest.raises(ValueError, match=said):
        make()
