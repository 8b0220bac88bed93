import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from jaxsim.cores.wrapper import Wrapper
from jaxsim.formats.rounding import gptq, rounded
from tests.support.models import normal
from tests.support.networks import SITES, X, answer, cnn, run, stack

GRIDS = {
    "channel": js.Grid(3, per="channel"),
    "tensor": js.Grid(3, per="tensor"),
    "affine": js.Grid(3, per="channel", symmetric=False),
    "least squares": js.Grid(3, per="channel", clip=js.clipping.least_squares()),
    "groups": js.Grid(3, per="group", rows=5),
}
WIDE = cnn(features=24, classes=8)
"""Of 840 weights, so that many change."""
FEW = js.rounding.adaround(300, rate=0.03)


def error(net, plain, x):
    return float(np.square(run(net, x) - run(plain, x)).mean())


def codes(net):
    """The codes of each site, and their steps."""
    states = js.deploy(net, calibrate=X).states
    return {name: (np.asarray(s.inner), np.asarray(s.scale)) for name, s in states.items()}


@pytest.mark.parametrize(
    ("grid", "rounding"),
    [*((grid, gptq()) for grid in GRIDS.values()), (GRIDS["affine"], FEW)],
    ids=[*GRIDS, "adaround"],
)
def test_deployed_codes_are_the_rounded_weights_on_the_grid_they_had(grid, rounding):
    before = js.quantize(grid, 8)(WIDE)
    after = js.round_weights(rounding, X)(before)
    was, now = codes(before), codes(after)
    changed = 0
    for name in SITES:
        np.testing.assert_allclose(now[name][1], was[name][1], rtol=1e-6)
        changed += np.sum(now[name][0] != was[name][0])
        assert np.abs(now[name][0]).max() <= 4
    assert changed > 20
    # rounding what lies on the grid changes nothing more
    exact = dataclasses.replace(after, cores={})
    pinned = {n: (*chain[:-1], _weights_only(chain[-1])) for n, chain in after.cores.items()}
    np.testing.assert_allclose(
        run(dataclasses.replace(after, cores=pinned), X), run(exact, X), rtol=1e-4, atol=1e-5
    )


def _weights_only(wrapper):
    return Wrapper.of(wrapper.factory, **{**wrapper.settings, "inputs": None})


@pytest.mark.parametrize("rounding", [gptq(), FEW], ids=["gptq", "adaround"])
def test_outputs_come_closer_than_by_rounding_to_nearest(rounding):
    x = normal(64, 6, 6, 3, seed=5)
    plain, quantised = WIDE, js.quantize(3, None)(WIDE)
    found = js.round_weights(rounding, x)(quantised)
    assert error(found, plain, x) < 0.6 * error(quantised, plain, x)


def test_one_layer_is_rounded_as_its_own_inputs_ask():
    """The result is that of the rule on the moments of the inputs, in numpy."""
    w, x = normal(6, 3), normal(40, 6, seed=1) @ normal(6, 6, seed=2)
    net = js.quantize(3, 8)(js.trace(lambda p, x: x @ p["w"], {"w": w}, x))
    found = js.round_weights(gptq(), x)(net).params["w"]
    scale = jnp.abs(w).max(0, keepdims=True) / 3 * jnp.ones_like(w)
    layer = js.rounding.Layer(
        w[None], (x.T @ x / 40)[None], scale[None], 0 * w[None], w[None] != 0, -3.0, 3.0
    )
    np.testing.assert_allclose(found, rounded(gptq(), layer)[0], rtol=1e-5)


def test_several_batches_count_as_one():
    net = js.quantize(3, 8)(cnn())
    whole, parts = (js.round_weights(gptq(), x)(net) for x in (X, [X[:3], X[3:]]))
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(parts.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_the_slices_of_a_stack_are_layers_of_their_own():
    """Each scanned layer is rounded by what flows into it, on a range of its own."""
    x = normal(30, 4, seed=4)
    net = js.quantize(3, 8)(stack())
    found = js.round_weights(gptq(), x)(net)
    hidden = x
    for i, w in enumerate(stack().params["w"]):
        one = js.quantize(3, 8)(js.trace(lambda p, x: x @ p["w"], {"w": w}, hidden))
        alone = js.round_weights(gptq(), hidden)(one)
        np.testing.assert_allclose(found.params["w"][i], alone.params["w"], rtol=1e-4, atol=1e-6)
        hidden = jnp.tanh(hidden @ w)
    was, now = js.deploy(net, calibrate=x).states["w"], js.deploy(found, calibrate=x).states["w"]
    np.testing.assert_allclose(now.scale, was.scale, rtol=1e-6)
    values = np.asarray(now.inner) * np.asarray(now.scale)
    np.testing.assert_allclose(values, found.params["w"], rtol=1e-4, atol=1e-6)


def test_a_weight_used_twice_has_one_rounding_for_what_flows_in_both_times():
    w, x = normal(5, 5), normal(30, 5, seed=2)
    net = js.quantize(3, 8)(js.trace(lambda p, x: jnp.tanh(x @ p["w"]) @ p["w"], {"w": w}, x))
    found = js.round_weights(gptq(), x)(net)
    hidden = jnp.tanh(x @ w)
    both = jnp.concatenate([x, hidden])
    one = js.quantize(3, 8)(js.trace(lambda p, x: x @ p["w"], {"w": w}, both))
    np.testing.assert_allclose(
        found.params["w"], js.round_weights(gptq(), both)(one).params["w"], rtol=1e-5
    )


def test_a_weight_used_in_two_layouts_on_two_grids_has_codes_at_each():
    """No value of the parameter lies on both grids, so it stays and each site is corrected."""
    w, x = normal(5, 5), normal(30, 5, seed=2)
    net = js.quantize(3, 8)(js.trace(lambda p, x: jnp.tanh(x @ p["w"]) @ p["w"].T, {"w": w}, x))
    found = js.round_weights(gptq(), x)(net)
    np.testing.assert_array_equal(found.params["w"], w)
    was, now = js.deploy(net, calibrate=x).states, js.deploy(found, calibrate=x).states
    moved = [int(np.sum(now[name].inner != was[name].inner)) for name in ("w", "w#2")]
    for name in ("w", "w#2"):
        np.testing.assert_allclose(now[name].scale, was[name].scale, rtol=1e-6)
    assert sum(moved) > 0


def test_a_weight_scaled_by_another_parameter_is_solved_for():
    params, x = {"v": normal(6, 4), "gain": jnp.arange(1.0, 5.0)}, normal(30, 6, seed=2)
    net = js.quantize(3, 8)(js.trace(lambda p, x: x @ (p["v"] * p["gain"]), params, x))
    found = js.round_weights(gptq(), x)(net)
    state = js.deploy(found, calibrate=x).states["v"]
    values = np.asarray(state.inner) * np.asarray(state.scale)
    np.testing.assert_allclose(found.params["v"] * params["gain"], values, rtol=1e-4)


def test_a_normalized_weight_is_corrected_at_its_site():
    params, x = {"v": normal(6, 4)}, normal(30, 6, seed=2)
    net = js.trace(lambda p, x: x @ (p["v"] / jnp.linalg.norm(p["v"], axis=0)), params, x)
    plain = js.quantize(3, 8)(net)
    found = js.round_weights(gptq(), x)(plain)
    np.testing.assert_array_equal(found.params["v"], params["v"])
    assert jnp.linalg.norm(found(x) - net(x)) < jnp.linalg.norm(plain(x) - net(x))


def test_pruned_weights_stay_zero():
    net = js.compose(js.prune(0.5), js.quantize(3, 8))(cnn())
    found = js.round_weights(gptq(), X)(net)
    for name, (now, _) in codes(found).items():
        kept = np.asarray(net.masks[name])
        assert not np.any(now[~kept])
        assert np.any(now[kept])


def test_bfloat16_parameters_give_the_same_codes():
    w, x = normal(16, 8).astype(jnp.bfloat16), normal(40, 16).astype(jnp.bfloat16)
    net = js.quantize(8, 8)(js.trace(lambda p, x: x @ p["w"], {"w": w}, x))
    found = js.round_weights(gptq(), x)(net)
    assert found.params["w"].dtype == jnp.bfloat16
    state = js.deploy(found, calibrate=x).states["w"]
    again = js.deploy(js.round_weights(gptq(), x)(found), calibrate=x).states["w"]
    np.testing.assert_array_equal(state.inner, again.inner)


def test_hardware_that_follows_stores_the_same_codes():
    net = js.round_weights(gptq(), X)(js.quantize(4, 8)(cnn()))
    plain = answer(net, X)
    for more in (js.slice_bits(2), js.analog(), js.block(3)):
        np.testing.assert_allclose(answer(more(net), X), plain, rtol=1e-5, atol=1e-6)


def test_only_the_chosen_sites_are_rounded():
    net = js.quantize(3, 8)(cnn())
    found = js.round_weights(gptq(), X, sites="Dense*")(net)
    np.testing.assert_array_equal(found.params["Conv_0"]["kernel"], net.params["Conv_0"]["kernel"])
    assert np.any(found.params["Dense_0"]["kernel"] != net.params["Dense_0"]["kernel"])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda net: js.round_weights("gptq", X)(net), "rounding='gptq'"),
        (lambda net: js.round_weights(gptq(), X)(cnn()), "its weights are floats"),
        (lambda net: js.round_weights(gptq(), [])(net), r"inputs=\[\]"),
        (lambda net: js.round_weights(gptq(), X)(js.deploy(net, calibrate=X)), "deploy"),
        (lambda net: js.round_weights(gptq(), X * jnp.nan)(net), "NaN or infinite"),
        (
            lambda net: js.round_weights(gptq(), X)(js.correct_bias(X)(net)),
            "round_weights cannot follow correct_bias",
        ),
        (
            lambda net: js.round_weights(gptq(), X)(js.quantize(js.Grid(1), 8)(cnn())),
            "evenly spaced codes",
        ),
    ],
)
def test_what_cannot_be_rounded_is_refused_by_name(make, said):
    with pytest.raises(ValueError, match=said):
        make(js.quantize(3, 8)(cnn()))


def test_a_site_that_never_ran_is_refused():
    def fn(params, x, flag):
        return jax.lax.cond(flag, lambda x: x @ params["a"], lambda x: x @ params["b"], x)

    params = {"a": normal(4, 4), "b": normal(4, 4, seed=1)}
    x = normal(6, 4)
    net = js.quantize(3, None)(js.trace(fn, params, x, jnp.array(True)))
    with pytest.raises(ValueError, match="b did not run"):
        js.round_weights(gptq(), (x, jnp.array(True)))(net)
