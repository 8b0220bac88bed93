"""What was pruned stays pruned, whatever the format that the rest is held in."""

import jax
import numpy as np
import pytest

import jaxsim as js
from jaxsim.formats import clipping
from jaxsim.formats.codebook import k_means

W = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
EYE = np.eye(16, dtype=np.float32)
FORMATS = {
    "signs": js.Grid(1),
    "signs a channel": js.Grid(1, per="channel"),
    "signs in groups": js.Grid(1, per="group", rows=5),
    "ternary": js.Grid(2),
    "powers": js.Grid(4, spacing="powers"),
    "affine": js.Grid(4, symmetric=False),
    "stochastic": js.Grid(4, symmetric=False, rounding="stochastic"),
    "k-means": js.Codebook(size=4),
    "vectors": js.Codebook(size=16, length=4),
    "vectors filled up": js.Codebook(size=8, length=3),
    "no zero": js.Codebook((-1.0, -0.5, 0.5, 1.0)),
    "nf4": js.nf4(),
    "float8": js.Floating(),
}
HARDWARE = {
    "slices": [js.slice_bits(1)],
    "pairs": [js.analog(rows=8)],
    "offsets": [js.slice_bits(1), js.analog(rows=6, mapping="offset")],
    "unit columns": [js.analog(rows=8, mapping="unit_column")],
}


def pruned(share=0.75, w=W, x=EYE):
    net = js.prune(share)(js.trace(lambda p, x: x @ p["w"], {"w": w}, x))
    return net, np.asarray(net.masks["w"]).astype(bool)


def read(net, *args):
    return np.asarray(net(*args, key=jax.random.key(0)))


@pytest.mark.parametrize("name", FORMATS)
def test_pruned_weights_are_zero_before_and_after_deployment(name):
    net, mask = pruned()
    q = js.quantize(FORMATS[name], None)(net)
    for held in (q, js.deploy(q, key=jax.random.key(0))):
        y = read(held, EYE)
        np.testing.assert_array_equal(y[~mask], 0)
        assert (y[mask] != 0).any()


@pytest.mark.parametrize("name", HARDWARE)
def test_hardware_around_signs_holds_the_same_zeros(name):
    net, mask = pruned()
    plain, held = (
        read(js.deploy(js.compose(js.quantize(1, None), *more)(net)), EYE)
        for more in ([], HARDWARE[name])
    )
    np.testing.assert_allclose(held, plain, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(held[~mask], 0, atol=1e-6)


def test_the_step_of_signs_is_the_mean_of_what_is_kept():
    net, mask = pruned()
    y = read(js.quantize(js.Grid(1, per="tensor"), None)(net), EYE)
    np.testing.assert_allclose(y, np.where(mask, np.sign(W) * np.abs(W[mask]).mean(), 0), rtol=1e-6)


def test_a_percentile_is_that_of_what_is_kept():
    """Of all weights it would be zero: nine in ten of them are."""
    net, mask = pruned(0.9)
    y = read(js.quantize(js.Grid(8, clip=clipping.percentile(50.0)), None)(net), EYE)
    assert y.max() == pytest.approx(np.percentile(np.abs(W[mask]), 50), rel=1e-5)
    y = read(js.quantize(js.Grid(8, clip=clipping.rms(1.0)), None)(net), EYE)
    assert y.max() == pytest.approx(np.sqrt((W[mask] ** 2).mean()), rel=1e-5)


def test_stored_bits_count_what_says_which_weights_are_pruned():
    net, _ = pruned()

    def bits(form, net=net):
        (site,) = js.quantize(form, None)(net).cost().sites
        return site.spent["weight_bits"]

    open_net = js.trace(lambda p, x: x @ p["w"], {"w": W}, EYE)
    assert bits(js.Grid(1), open_net) == W.size
    assert bits(js.Grid(1)) == 2 * W.size
    for form in (js.Codebook(size=4), js.Codebook(size=4, length=4)):
        assert bits(form) == bits(form, open_net) + W.size
    assert bits(js.nf4()) == bits(js.nf4(), open_net)


def test_vectors_are_fitted_to_what_is_kept_of_them():
    """Two shapes of vectors, each with other places pruned: two centers hold them exactly."""
    whole = np.array([[1, 2, 3], [-4, 5, -6]], np.float32)[np.arange(40) % 2]
    kept = np.random.default_rng(1).random(whole.shape) < 0.6
    centres, at = (np.asarray(a) for a in k_means(whole * kept, size=2, iterations=30, kept=kept))
    some = kept.any(1)
    np.testing.assert_allclose((centres[at] * kept)[some], (whole * kept)[some], atol=1e-5)


def test_stacked_and_tied_weights_are_masked_at_every_site():
    params = {"stack": np.random.default_rng(2).normal(size=(3, 4, 4)).astype("f")}

    def model(p, x):
        y, _ = jax.lax.scan(lambda h, w: (h @ w, None), x, p["stack"])
        return y @ p["stack"][0].T

    x = np.random.default_rng(3).normal(size=(2, 4)).astype("f")
    net = js.prune(0.5)(js.trace(model, params, x))
    w = np.asarray(net.masked_params()["stack"])
    q = js.quantize(1, None)(net)

    def signs(w):
        mean = np.abs(w).sum(0) / np.maximum((w != 0).sum(0), 1)
        return np.sign(w) * mean

    held = x
    for layer in w:
        held = held @ signs(layer)
    np.testing.assert_allclose(read(q, x), held @ signs(w[0].T), rtol=1e-4, atol=1e-5)
