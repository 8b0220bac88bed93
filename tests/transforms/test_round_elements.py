"""Weights rounded to short elements in blocks by their outputs, scales of blocks set."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jaxsim as js
from jaxsim.cores import grouped
from jaxsim.formats.microscaling import ELEMENTS, element_levels
from jaxsim.formats.rounding import Layer, adaround, cost, gptq, nearest
from tests.oracles import rounding as oracle
from tests.support.models import normal
from tests.support.networks import run

MIX = normal(64, 64, seed=9)
FORMS = {"nvfp4": js.nvfp4(), "e2m1": js.mx("e2m1"), "e4m3": js.mx("e4m3"), "int8": js.mx("int8")}


@functools.cache
def net():
    """Two scanned layers of 64, and a head."""
    params = {"w": normal(2, 64, 64, seed=1) / 8, "head": normal(64, 5, seed=2)}

    def model(p, x):
        x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p["w"])
        return x @ p["head"]

    return js.trace(model, params, X[:2])


X = normal(96, 64, seed=3) @ MIX / 8


@pytest.mark.parametrize("kind", [*ELEMENTS])
def test_levels_are_all_that_a_code_can_be(kind):
    names = {"e4m3": "float8_e4m3fn", "e5m2": "float8_e5m2"}
    if kind == "int8":
        expected = np.arange(-127, 128) / 64
    else:
        dtype = getattr(ml_dtypes, names.get(kind, f"float{ELEMENTS[kind].bits}_{kind}fn"))
        codes = np.arange(2 ** ELEMENTS[kind].bits, dtype=np.uint8).view(dtype).astype(np.float64)
        expected = np.unique(codes[np.isfinite(codes)])
    np.testing.assert_array_equal(element_levels(ELEMENTS[kind]), expected)


def layer():
    w, x = normal(1, 24, 4, seed=5), normal(60, 24, seed=6) @ normal(24, 24, seed=7)
    scale = jnp.repeat(jnp.abs(w.reshape(1, 3, 8, 4)).max(2), 8, 1) / 6
    levels = jnp.asarray(element_levels(ELEMENTS["e2m1"]))
    zero, free = jnp.zeros(w.shape), jnp.ones(w.shape, bool)
    return Layer(w, (x.T @ x / 60)[None], scale, zero, free, -6.0, 6.0, levels)


def test_the_surgeon_of_the_paper_takes_the_nearest_element(monkeypatch):
    of = layer()
    levels = np.asarray(of.levels, np.float64)

    def codes_near(w, scale, zero, lo, hi):
        return levels[np.abs(w / scale - levels[:, None]).argmin(0)]

    monkeypatch.setattr(oracle, "codes_near", codes_near)
    matrices = [np.asarray(a[0], np.float64) for a in of[:4]]
    expected = oracle.surgeon(*matrices, -6, 6, 0.01, list(range(24)))
    found = gptq(0.01, by_activation=False)(of)
    np.testing.assert_allclose(found[0], expected, rtol=1e-5, atol=1e-6)
    assert (cost(of, found) < 0.8 * cost(of, nearest(of))).all()


def test_learned_roundings_are_elements_beside_the_weight():
    of = layer()
    found = adaround(1000)(of)
    steps = np.asarray(found / of.scale)
    assert np.abs(steps[..., None] - np.asarray(of.levels)).min(-1).max() < 1e-5
    assert cost(of, found).sum() < 0.9 * cost(of, nearest(of)).sum()
    moved = np.abs(np.asarray(found - of.w)) / np.asarray(of.scale)
    assert (moved <= 2).all()  # the widest gap


@pytest.mark.parametrize("by_site", [None, "rounded"])
@pytest.mark.parametrize("form", [*FORMS.values()], ids=[*FORMS])
def test_deployed_elements_are_the_rounded_weights(form, by_site, monkeypatch):
    """Multiplied at once, as the parameters are: in pieces, sums would be in another order."""
    monkeypatch.setattr(grouped, "_pieces", lambda op, state, x: [grouped._whole(op)])
    plain = js.quantize(form, None)(net())
    found = js.round_weights(gptq(), X, by_site=by_site)(plain)
    exact = run(net(), X)
    error = [np.square(run(n, X) - exact).mean() for n in (plain, found)]
    assert error[1] < 0.75 * error[0]
    # What the hardware holds is bit for bit what the parameters are.
    np.testing.assert_array_equal(run(js.deploy(found, keep_floats=False), X), run(found, X))
    bare = js.trace(net().fn.function, found.params, X[:2])
    np.testing.assert_allclose(run(bare, X), run(found, X), rtol=1e-5, atol=1e-6)


def test_scales_of_blocks_are_of_their_format_and_serve_better_than_those_of_the_largest():
    to_nearest = jax.tree_util.Partial(nearest)
    found = js.round_weights(to_nearest, X, by_site="float")(js.quantize(js.nvfp4(), None)(net()))
    form = found.cores["w"][-1].settings["weights"]
    scales = np.asarray(form.steps)
    np.testing.assert_array_equal(scales, scales.astype(ml_dtypes.float8_e4m3fn).astype(np.float32))
    w = np.asarray(net().params["w"])[0].reshape(4, 16, 64)
    steps = scales[0].reshape(4, 1, 64) * float(form.tensor[0])
    size = np.square(X).mean(0).reshape(4, 16, 1)
    levels = element_levels(ELEMENTS["e2m1"])

    def costs(steps):
        held = levels[np.abs(w[..., None] / steps[..., None] - levels).argmin(-1)] * steps
        return (np.square(held - w) * size).sum(1)

    largest = np.abs(w).max(1, keepdims=True) / 6 / float(form.tensor[0])
    plain = largest.astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * float(form.tensor[0])
    assert (costs(steps) <= costs(plain) * (1 + 1e-5)).all()
    assert costs(steps).sum() < 0.9 * costs(plain).sum()


def test_smoothed_inputs_lose_less_and_weights_are_rounded_behind():
    """Channels of other sizes side by side in a block; what smooths is at the site."""
    wide = X * jnp.where(jnp.arange(64) % 9 == 0, 40.0, 1.0)
    exact = run(net(), wide)
    plain = js.quantize(js.nvfp4(), js.nvfp4(), sites="w")(net())
    smooth = js.smooth(wide, 0.8, sites="w")(plain)
    found = js.round_weights(gptq(), wide, by_site="rounded", sites="w")(smooth)
    plain, smooth, error = (np.square(run(n, wide) - exact).mean() for n in (plain, smooth, found))
    assert error < 0.8 * smooth < 0.8 * plain
    chip = js.deploy(found, keep_floats=False)
    np.testing.assert_allclose(run(chip, wide), run(found, wide), rtol=1e-5, atol=1e-5)


def test_what_is_rounded_is_saved_and_not_scaled_any_more(tmp_path):
    plain = js.quantize(js.nvfp4(), js.nvfp4())(net())
    found = js.deploy(js.round_weights(gptq(), X)(plain))
    js.save(tmp_path / "chip", found)
    again = js.load(tmp_path / "chip", js.round_weights(gptq(), X)(plain))
    np.testing.assert_array_equal(run(again, X), run(found, X))
    with pytest.raises(ValueError, match="scales of its blocks are set by round_weights"):
        js.awq(X)(js.round_weights(gptq(), X)(plain))
    with pytest.raises(ValueError, match=r"scales of its blocks are set .* and smoothing"):
        js.smooth(X)(js.round_weights(gptq(), X)(plain))
