"""Channels scaled before rounding, of stacked layers too: exponents, folds, refusals."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from tests.support.models import normal
from tests.support.networks import X, cnn, run
from tests.support.residual import IDS, residual

SPREAD = np.asarray([1, 1, 30, 1, 1, 1, 12, 1.0])


def outliers():
    x = np.asarray(normal(60, 8, seed=1) * SPREAD)
    w = np.asarray(normal(8, 5))
    return js.trace(lambda p, x: x @ p["w"], {"w": jnp.asarray(w)}, x), w, x


def test_the_exponent_is_the_one_that_changes_the_outputs_least():
    """By brute force in numpy, with a quantizer of its own."""
    net, w, x = outliers()
    found = js.awq(x, steps=10)(js.quantize(3, None)(net))
    size, costs, factors = np.abs(x).mean(0), [], []
    for exponent in np.arange(10) / 10:
        by = size**exponent
        by = by / np.sqrt(by.max() * by.min())
        step = np.abs(w * by[:, None]).max(0) / 3
        held = np.clip(np.rint(w * by[:, None] / step), -3, 3) * step / by[:, None]
        costs.append(np.square(x @ (held - w)).sum())
        factors.append(by)
    best = int(np.argmin(costs))
    assert best > 0
    channels = found.cores["w"][0].settings["channels"]
    np.testing.assert_allclose(channels[0], factors[best], rtol=1e-4)
    error = np.square(run(found, x) - x @ w).sum()
    np.testing.assert_allclose(error, costs[best], rtol=1e-3)


def test_sites_of_many_inputs_are_estimated_by_sums_of_them():
    """The exponent by brute force, as above, of more inputs than rows are kept."""
    spread = np.where(np.arange(300) % 50 == 0, 25.0, 1.0)
    x, w = np.asarray(normal(500, 300, seed=2) * spread), np.asarray(normal(300, 40, seed=3))
    net = js.trace(lambda p, x: x @ p["w"], {"w": jnp.asarray(w)}, x[:4])
    plain = js.quantize(3, None)(net)
    size, costs = np.abs(x).mean(0), []
    for exponent in np.arange(8) / 8:
        by = size**exponent
        by = by / np.sqrt(by.max() * by.min())
        step = np.abs(w * by[:, None]).max(0) / 3
        held = np.clip(np.rint(w * by[:, None] / step), -3, 3) * step / by[:, None]
        costs.append(np.square(x @ (held - w)).sum())
    found = js.awq([x[:250], x[250:]], steps=8)(plain)
    error = np.square(run(found, x) - x @ w).sum()
    assert error < 0.5 * costs[0]
    assert error < 1.02 * min(costs)


@functools.cache
def coded(bits=3):
    return js.quantize(js.Grid(bits, per="channel"), None, sites=["layers/*", "head"])(
        residual(tied=False)
    )


@functools.cache
def scaled():
    return js.awq([IDS[:2], IDS[1:]])(coded())


def test_scales_are_folded_into_what_makes_the_channels_and_the_function_stays():
    found = scaled()
    assert all(len(chain) == 1 for chain in found.cores.values())
    exact = run(residual(tied=False), IDS)
    floats = run(dataclasses.replace(found, cores={}), IDS)
    assert np.abs(floats - exact).max() <= 1e-5 * np.abs(exact).max()
    was, now = coded().params, found.params
    by = np.asarray(was["layers"]["scale"] / now["layers"]["scale"])
    assert np.abs(np.log(by)).max() > 0.1
    for name in ("gate", "up"):  # one input, one scale; `up` makes the channels of `down` too
        ratio = np.asarray(now["layers"][name] / was["layers"][name])
        if name == "up":
            hidden = now["layers"]["down"] / was["layers"]["down"]
            ratio = ratio * np.asarray(hidden)[:, None, :, 0]
        np.testing.assert_allclose(ratio, np.broadcast_to(by[..., None], ratio.shape), rtol=1e-4)


def test_outputs_come_closer_than_by_rounding_to_nearest_in_any_format():
    net, w, x = outliers()
    for form in (js.nf4(), js.mx("e2m1"), js.Grid(3, per="group", rows=4, symmetric=False)):
        if form == js.mx("e2m1"):
            net = js.trace(lambda p, x: x @ p["w"], {"w": np.tile(w, (4, 1))}, np.tile(x, (1, 4)))
            x = np.tile(x, (1, 4))
        plain = js.quantize(form, None)(net)
        error = [np.square(run(n, x) - run(net, x)).mean() for n in (plain, js.awq(x)(plain))]
        assert error[1] < error[0], form


def test_what_no_kernel_makes_alone_is_divided_at_each_read():
    """Of a tied head the table is looked up too, so neither it nor the norm may take the scale."""
    net = js.awq(IDS)(js.quantize(3, None)(residual()))
    assert net.cores["table"][0].name == "smooth_scaling"
    np.testing.assert_array_equal(net.params["table"], residual().params["table"])
    np.testing.assert_array_equal(net.params["last"], residual().params["last"])
    found = js.awq(X)(js.quantize(3, None)(cnn()))
    assert found.cores["Conv_0/kernel"][0].settings["channels"].shape == (1, 3)


def test_it_composes_with_pruning_rounding_and_arrays():
    net = js.prune(0.3, sites=["layers/*", "head"])(residual(tied=False))
    chip = js.awq(IDS)(js.quantize(4, 8, sites=["layers/*", "head"])(net))
    np.testing.assert_array_equal(chip.masks["head"], net.masks["head"])
    chip = js.round_weights(js.rounding.gptq(), IDS, by_site="rounded")(chip)
    chip = js.deploy(js.analog(sites=["layers/*", "head"])(chip), calibrate=IDS)
    exact = run(net, IDS)
    assert np.abs(run(chip, IDS) - exact).max() < 0.5 * np.abs(exact).max()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: js.awq(X, steps=1), "steps=1"),
        (lambda: js.awq(X)(cnn()), "put quantize before it"),
        (lambda: js.awq(X)(js.quantize(None, 8)(cnn())), "its weights are floats"),
        (lambda: js.awq(X)(js.smooth(X)(js.quantize(8, 8)(cnn()))), "cannot follow smooth_scaling"),
        (
            lambda: js.awq(X)(js.round_weights(js.rounding.gptq(), X)(js.quantize(4, None)(cnn()))),
            "range of its weights is set",
        ),
    ],
)
def test_what_cannot_be_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
