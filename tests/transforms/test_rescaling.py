"""What is looked at before layers are rescaled together, each by a small example."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from jaxsim.transforms.equalize import Pair, axis_of, equalized
from jaxsim.transforms.rescaling import (
    TOLERANCE,
    Layer,
    Norm,
    Trials,
    factors,
    layers,
    norms,
    on_outputs,
    trials_of,
)
from jaxsim.transforms.site_weights import solve_params
from tests.support.models import normal


def test_output_channels_are_multiplied_layer_by_layer_of_a_stack():
    kernel, by = np.ones((2, 3, 5, 4)), np.arange(8.0).reshape(2, 4)
    np.testing.assert_array_equal(on_outputs(kernel, by), by[:, None, None] * kernel)
    np.testing.assert_array_equal(on_outputs(np.ones(4), by[0]), by[0])


def layer(channels=4, stack=(), kernel="params/a", bias=None):
    return Layer("a", kernel, bias, stack, channels)


def test_factors_differ_by_channel_and_lie_between_one_over_e_and_e():
    found = factors(layer(500, (2,)))
    assert found.shape == (2, 500)
    assert found.dtype == np.float32
    assert np.exp(-1) < found.min() < 0.38
    assert 2.68 < found.max() < np.e
    # even on a logarithmic scale: half of them enlarge
    assert abs(np.log(found).mean()) < 0.08
    assert len(np.unique(found)) > 990
    np.testing.assert_array_equal(found, factors(layer(500, (2,))))


def holding(params, buffers):
    return types.SimpleNamespace(masked_params=lambda: params, buffers=buffers)


def test_norms_are_found_where_linen_and_where_nnx_keep_them():
    one = jnp.ones(2)
    held = holding(
        {"a": {"scale": one, "bias": one}, "c": {"bias": one}, "d": {"mean": one, "var": one}},
        {
            "batch_stats": {"a": {"mean": one, "var": one}, "b": {"mean": one, "other": one}},
            "c": {"mean": one, "var": one},
        },
    )
    assert norms(held) == [
        Norm(
            "batch_stats/a",
            "params/a/scale",
            "params/a/bias",
            "buffers/batch_stats/a/mean",
            "buffers/batch_stats/a/var",
        ),
        Norm("c", None, "params/c/bias", "buffers/c/mean", "buffers/c/var"),
    ]


def test_layers_have_their_channels_last_a_bias_of_their_own_and_no_other_reader():
    params = {
        "a": {"kernel": normal(3, 4), "bias": normal(4)},
        "b": {"kernel": normal(4, 5), "bias": normal(3)},  # of another size: no bias of its own
        "tied": {"kernel": normal(5, 5)},
        "vector": {"kernel": normal(5)},  # of one output, which no axis is
    }

    def fn(p, x):
        y = x @ p["a"]["kernel"] + p["a"]["bias"]
        y = y @ p["b"]["kernel"] + p["b"]["bias"].sum()
        return y @ p["tied"]["kernel"] @ p["tied"]["kernel"] @ p["vector"]["kernel"]

    net = js.trace(fn, params, normal(2, 3))
    assert layers(net, "equalize", "*") == [
        Layer("a/kernel", "params/a/kernel", "params/a/bias", (), 4),
        Layer("b/kernel", "params/b/kernel", None, (), 5),
    ]
    with pytest.raises(ValueError, match=r"smooth cannot follow the cores at a/kernel: put it"):
        layers(js.quantize(8, 8, sites="a/*")(net), "smooth", "*")


def two_outputs():
    """10 and 2 of one input, and integers that are not looked at."""
    fn = lambda p, x: (x @ p["w"], x @ p["v"], jnp.arange(3))  # noqa: E731
    w, v = jnp.array([[5.0, 2.5]]), jnp.array([[1.0]])
    return js.trace(fn, {"w": w, "v": v}, jnp.array([[2.0]]))


def test_outputs_are_off_by_a_share_of_the_largest_of_each():
    trials = trials_of(two_outputs(), jnp.array([[2.0]]))
    assert [y.tolist() for y in trials.expected] == [[[10, 5]], [[2]]]
    off = trials.off
    assert off({}) == 0
    np.testing.assert_allclose(off({"params/w": np.float32([[5.0, 3.0]])}), 1 / 10)
    np.testing.assert_allclose(off({"params/v": np.float32([[0.75]])}), 0.5 / 2)
    both = {"params/w": np.float32([[5.0, 3.0]]), "params/v": np.float32([[0.75]])}
    np.testing.assert_allclose(off(both), 0.25)


@pytest.mark.parametrize(("off", "same"), [(TOLERANCE, True), (1.01 * TOLERANCE, False)])
def test_outputs_may_be_off_by_a_ten_thousandth(monkeypatch, off, same):
    assert TOLERANCE == 1e-4
    monkeypatch.setattr(Trials, "off", lambda *_: off)
    assert Trials(None, (), []).same({}) is same


@pytest.mark.parametrize(
    ("shape", "stack", "axis"),
    [
        ((4, 7), (), -2),
        ((3, 3, 4, 7), (), -2),
        ((12, 7), (), -2),  # three pixels, flattened with their channels
        ((6, 7), (), None),
        ((3, 3, 1, 4), (), -1),  # depthwise
        ((3, 3, 1, 8), (), None),
        ((3, 3, 2, 4), (), None),
        ((2, 4, 7), (2,), None),  # a layer of a stack behind one that is none
    ],
)
def test_channels_go_into_the_axis_that_their_number_fits(shape, stack, axis):
    second = Layer("b", "params/b", None, stack, shape[-1])
    assert axis_of({"params/b": np.ones(shape)}, layer(), second) == axis


def test_ranges_of_a_pair_are_their_geometric_mean():
    """Ranges 4 and 9, and 2 and 8: both 6, and both 4; a channel that is not read stays."""
    first = np.float32([[4, -1, 3], [1, 2, 1]])
    second = np.float32([[9, 1], [1, -8], [0, 0]])
    held = {"params/a": first, "params/b": second, "params/c": np.float32([1, 1, 1])}
    pair = Pair(layer(3), Layer("b", "params/b", None, (), 2), ("params/c",))
    after = equalized(held, [pair])
    np.testing.assert_allclose(after["params/a"], first * [1.5, 2, 1], rtol=1e-6)
    np.testing.assert_allclose(after["params/b"], second / [[1.5], [2], [1]], rtol=1e-6)
    np.testing.assert_allclose(after["params/c"], [1.5, 2, 1], rtol=1e-6)


def test_a_chain_is_evened_out_until_nothing_moves():
    """Of one channel: ranges 1, 1, 1e6 end alike, at their geometric mean."""
    held = {f"params/{n}": np.float64([[size]]) for n, size in zip("abc", (1, 1, 1e6), strict=True)}
    a, b, c = (Layer(n, f"params/{n}", None, (), 1) for n in "abc")
    after = equalized(held, [Pair(a, b, ()), Pair(b, c, ())])
    for name in held:
        np.testing.assert_allclose(after[name], 100, rtol=1e-3)


def test_parameters_are_solved_for_where_weights_are_multiples_of_them():
    """Twice and six times the first two of three numbers; the third stays."""
    read = jnp.array([1.0, 1.0, 0.0])
    of = lambda p: {"s": 2 * read * p["w"], "t": 6 * read * p["w"]}  # noqa: E731
    params = {"w": jnp.array([1.0, 2.0, 3.0])}
    targets = {"s": jnp.array([10.0, 14.0, 0]), "t": jnp.array([30.0, 42.0, 0])}
    np.testing.assert_allclose(solve_params(of, params, targets)["w"], [5, 7, 3], rtol=1e-6)
