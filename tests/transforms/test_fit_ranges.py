"""Ranges of weights cut by what their outputs lose: brute force in numpy, formats, refusals."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from tests.support.models import normal
from tests.support.networks import X, cnn, run
from tests.support.residual import IDS, residual

SHARES = 1 - np.arange(20) / 40
GROUPED = js.Grid(3, per="group", rows=4, symmetric=False)


@functools.cache
def layer():
    """Inputs of very different size that hang together, and weights that are large where they are
    small."""
    mix = np.asarray(normal(10, 10, seed=4)) * np.array([0.05, 3, *[1] * 8])
    x = np.asarray(normal(80, 10, seed=1)) @ (np.eye(10) * 2 + mix / 4) * np.r_[0.05, 3, [1] * 8]
    w = np.asarray(normal(10, 6)) * np.r_[4, [1] * 9][:, None]
    net = js.trace(lambda p, x: x @ p["w"], {"w": jnp.asarray(w, jnp.float32)}, x)
    return net, np.float64(np.float32(w)), np.float64(np.float32(x))


def rounded(w, share, bits, symmetric):
    """Weights [K, N] on the grid over a share of the range of each column."""
    if symmetric:
        top = 2 ** (bits - 1) - 1
        step = np.abs(w).max(0) / top * share
        return np.clip(np.rint(w / step), -top, top) * step
    lo, hi = np.minimum(w.min(0), 0), np.maximum(w.max(0), 0)
    step = (hi - lo) / (2**bits - 1)
    zero = np.rint(-lo / step)
    return (np.clip(np.rint(w / (step * share)) + zero, 0, 2**bits - 1) - zero) * step * share


def best(w, x, bits, symmetric):
    """Weights by the share of each column whose outputs err least, found one by one."""
    tried = np.stack([rounded(w, share, bits, symmetric) for share in SHARES])
    costs = np.square(np.einsum("mk,skn->smn", x, tried - w)).sum(1)
    chosen = costs.argmin(0)
    return np.take_along_axis(tried, chosen[None, None], 0)[0], chosen


def test_each_channel_has_the_share_that_changes_its_outputs_least():
    net, w, x = layer()
    found = js.fit_ranges([x[:40], x[40:]])(js.quantize(3, None)(net))
    expected, chosen = best(w, x, 3, True)
    assert len(set(chosen)) > 2
    np.testing.assert_allclose(run(found, x), x @ expected, rtol=1e-4, atol=1e-4)


def test_each_group_has_one_too_and_the_last_may_be_short():
    """Ten products in groups of at most four: tiles of four, four and two, filled up."""
    net, w, x = layer()
    found = js.fit_ranges(x)(js.quantize(GROUPED, None)(net))
    tiles = (np.s_[:4], np.s_[4:8], np.s_[8:])
    parts = [best(w[at], x[:, at], 3, False) for at in tiles]
    assert len({share for _, chosen in parts for share in chosen}) > 2
    expected = sum(x[:, at] @ v for at, (v, _) in zip(tiles, parts, strict=True))
    np.testing.assert_allclose(run(found, x), expected, rtol=1e-4, atol=1e-4)


def test_a_tensor_has_one_by_the_errors_of_all():
    net, w, x = layer()
    found = js.fit_ranges(x)(js.quantize(js.Grid(3), None)(net))
    step = np.abs(w).max() / 3
    tried = [np.clip(np.rint(w / (step * s)), -3, 3) * step * s for s in SHARES]
    costs = [np.square(x @ (v - w)).sum() for v in tried]
    assert np.argmin(costs) > 0
    np.testing.assert_allclose(run(found, x), x @ tried[np.argmin(costs)], rtol=1e-4, atol=1e-4)


def test_ranges_by_weights_alone_lose_more():
    """The known wrong criterion."""
    net, _, x = layer()
    exact, clip = run(net, x), js.clipping.least_squares()
    plain, alone = (js.quantize(js.Grid(3, per="channel", clip=c), None)(net) for c in (None, clip))
    errors = [np.square(run(n, x) - exact).sum() for n in (js.fit_ranges(x)(plain), alone, plain)]
    assert errors[0] < 0.9 * min(errors[1:])


@pytest.mark.parametrize("form", [js.nvfp4(), js.mx("e2m1")])
def test_blocks_of_short_elements_have_scales_that_outputs_choose(form):
    x = np.asarray(normal(90, 64, seed=2)) * np.where(np.arange(64) % 16 == 3, 0.02, 1.0)
    w = np.asarray(normal(64, 6)) * np.where(np.arange(64) % 16 == 3, 5.0, 1.0)[:, None]
    net = js.trace(lambda p, x: x @ p["w"], {"w": jnp.asarray(w)}, x)
    plain = js.quantize(form, None)(net)
    fitted = js.fit_ranges(x)(plain)
    exact = run(net, x)
    errors = [np.square(run(n, x) - exact).sum() for n in (fitted, plain)]
    assert errors[0] < 0.6 * errors[1]
    assert fitted.cores["w"][-1].settings["weights"].steps is not None


def test_slices_of_a_stack_have_ranges_of_their_own_and_no_output_errs_more():
    names = ["layers/*", "head"]
    plain = js.quantize(js.Grid(3, per="channel"), None, sites=names)(residual(tied=False))
    found = js.fit_ranges([IDS[:2], IDS[1:]], sites=names)(plain)
    lo, hi = found.cores["layers/up"][-1].settings["weights"].clip.args
    assert lo.shape == hi.shape == (2, 16)
    exact = run(residual(tied=False), IDS)
    errors = [np.square(run(n, IDS) - exact).sum() for n in (found, plain)]
    assert errors[0] < errors[1]
    chip = js.deploy(found)
    np.testing.assert_allclose(run(chip, IDS), run(found, IDS), rtol=1e-4, atol=1e-4)


def test_taps_of_a_kernel_and_what_stands_around_a_site():
    smoothed = js.smooth(X)(js.prune(0.3)(js.quantize(3, 8)(cnn())))
    found = js.fit_ranges(X)(smoothed)
    exact = run(js.prune(0.3)(cnn()), X)
    errors = [np.square(run(js.deploy(n, calibrate=X), X) - exact).sum() for n in (found, smoothed)]
    assert errors[0] < errors[1]


def test_it_comes_behind_awq_and_before_gptq_which_keeps_the_ranges():
    net, _, x = layer()
    found = js.fit_ranges(x)(js.awq(x)(js.quantize(3, None)(net)))
    after = js.round_weights(js.rounding.gptq(), x)(found)
    before, kept = (n.cores["w"][-1].settings["weights"].clip.args for n in (found, after))
    np.testing.assert_allclose(before, kept, rtol=1e-5)
    exact = run(net, x)
    errors = [np.square(run(n, x) - exact).sum() for n in (after, found)]
    assert errors[0] < errors[1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: js.fit_ranges(X)(cnn()), "put quantize"),
        (lambda: js.fit_ranges(X)(js.quantize(js.nf4(), None)(cnn())), "fit_ranges at Conv_0"),
        (lambda: js.fit_ranges(X)(js.quantize(1, None)(cnn())), "at least 2 bits"),
        (
            lambda: js.fit_ranges(X)(js.fit_ranges(X)(js.quantize(4, None)(cnn()))),
            "range of its weights is set",
        ),
        (lambda: js.fit_ranges(X, sites="no")(js.quantize(4, None)(cnn())), "matches no site"),
    ],
)
def test_what_cannot_be_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
