import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from jaxsim.cores.observers import moments
from jaxsim.cores.wrapper import Wrapper
from jaxsim.formats.rounding import Layer, gptq, rounded
from jaxsim.transforms.by_site import solve_by_site
from tests.support.models import normal
from tests.support.networks import X, cnn, stack

XS = [normal(20, 4, seed=4), normal(20, 4, seed=5)]


def rounding(by_site, xs=XS, net=None):
    coarse = js.quantize(3, None)(stack() if net is None else net)
    return js.round_weights(gptq(), xs, by_site=by_site)(coarse)


def test_on_float_inputs_the_result_is_that_of_all_sites_at_once():
    together, apart = rounding(None), rounding("float")
    for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(apart), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_convolutions_are_walked_as_they_are_measured_at_once():
    net = js.quantize(3, None)(cnn())
    together, apart = (js.round_weights(gptq(), X, by_site=by)(net) for by in (None, "float"))
    for a, b in zip(jax.tree.leaves(together.params), jax.tree.leaves(apart.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_each_slice_is_measured_on_what_the_slices_rounded_before_it_leave():
    """By hand: rounds a layer, then multiplies by the rounded one."""
    found = rounding("rounded")
    x = np.concatenate(XS)
    for i, w in enumerate(stack().params["w"]):
        scale = jnp.abs(w).max(0, keepdims=True) / 3 * jnp.ones_like(w)
        numbers = (w, x.T @ x / len(x), scale, 0 * w, w != 0)
        q = rounded(gptq(), Layer(*(a[None] for a in numbers), -3.0, 3.0))[0]
        np.testing.assert_allclose(found.params["w"][i], q, rtol=1e-4, atol=1e-6)
        x = np.tanh(x @ np.asarray(q))
    assert np.abs(found.params["w"][2] - rounding("float").params["w"][2]).max() > 0.01


def test_pruning_follows_what_was_pruned_before():
    by = {how: js.prune_layers(XS, 0.5, by_site=how)(stack()) for how in (None, "float", "pruned")}
    for name in ("w", "head"):
        np.testing.assert_array_equal(by["float"].masks[name], by[None].masks[name])
        np.testing.assert_allclose(by["float"].params[name], by[None].params[name], atol=1e-5)
        assert float(by["pruned"].masks[name].mean()) == 0.5
    assert np.abs(by["pruned"].params["w"][2] - by["float"].params["w"][2]).max() > 0.01


def test_masks_and_weights_that_are_computed_stay_what_they_are():
    def fn(p, x):
        return jnp.tanh(x @ p["a"]) @ (p["b"] / jnp.linalg.norm(p["b"], axis=0))

    params, x = {"a": normal(4, 6), "b": normal(6, 3)}, normal(40, 4, seed=4)
    net = js.prune(0.5, sites="a")(js.trace(fn, params, x))
    found = rounding("rounded", x, net)
    assert (np.asarray(found.masked_params()["a"] == 0) >= np.asarray(net.masks["a"] == 0)).all()
    np.testing.assert_array_equal(found.params["b"], params["b"])
    coarse = js.quantize(3, None)(net)
    errors = [float(((n(x) - net(x)) ** 2).mean()) for n in (coarse, found)]
    assert errors[1] < errors[0]


def test_the_moments_of_one_slice_are_in_memory():
    def fn(params, x):
        return jax.lax.scan(lambda x, p: (jnp.tanh(x @ p[0]) @ p[1], None), x, params)[0]

    net = js.trace(fn, (normal(3, 4, 6), normal(3, 6, 4)), XS[0])
    probes = {s.name: (Wrapper.of(moments, weights=js.Grid(8)),) for s in net.sites}
    held = []

    def solve(site, op, state):
        squares = {
            a.unsafe_buffer_pointer()
            for a in jax.live_arrays()
            if a.shape in {(1, 4, 4), (1, 6, 6)}
        }
        held.append(len(squares))
        return state.w, ()

    # anything an earlier test left is not ours
    before = sum(a.shape in {(1, 4, 4), (1, 6, 6)} for a in jax.live_arrays())
    solve_by_site(net, net.sites, probes, XS, solve, follow="float", what="test")
    assert len(held) == 6
    assert max(held) <= before + 1


def test_inputs_that_are_too_few_are_told_with_the_numbers():
    x = normal(3, 4)
    with pytest.warns(UserWarning, match=r"3 inputs, fewer than the 4 numbers of each"):
        rounding(None, x)
    with pytest.warns(UserWarning, match=r"prune_layers: \w+ was measured on 3 inputs"):
        js.prune_layers(x, 0.5, by_site="pruned")(stack())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rounding("float")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: js.round_weights(gptq(), XS, by_site="pruned"), "by_site='pruned'"),
        (lambda: js.prune_layers(XS, 0.5, by_site="rounded"), "by_site='rounded'"),
        (lambda: rounding("float", [XS[0], XS[1][:3]]), "batches of one shape"),
        (
            lambda: rounding(
                "float",
                XS,
                js.trace(lambda p, x: jnp.tanh(x @ p) @ p, normal(4, 4), XS[0]),
            ),
            "reads the same weight",
        ),
    ],
)
def test_what_cannot_be_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
