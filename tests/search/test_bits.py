import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import jaxsim as js
from jaxsim.search.bits import Sensitivity, rounding_errors
from tests.oracles import quantiser
from tests.support import models
from tests.support.networks import SITES, X, cnn

WIDTHS = (2, 3, 4, 8)


def loss(net):
    return jnp.mean((net(X) - models.normal(len(X), 3)) ** 2)


def brute(sensitivity, size, budget):
    """The least loss over all choices within a budget."""
    best = np.inf
    for choice in itertools.product(range(len(sensitivity.bits)), repeat=len(size)):
        bits = np.asarray(sensitivity.bits)[list(choice)]
        if bits @ size <= budget * size.sum() * (1 + 1e-9):
            best = min(best, sensitivity.loss[np.arange(len(size)), choice].sum())
    return best


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([2.0, 2.5, 3.0, 4.7, 8.0]), st.booleans())
def test_the_choice_is_the_best_of_all(seed, budget, by_macs):
    """Five sites of four widths: 1024 choices, all of them tried."""
    rng = np.random.default_rng(seed)
    losses = np.sort(rng.exponential(size=(5, 4)), 1)[:, ::-1] * rng.exponential(size=(5, 1))
    sizes = rng.integers(10, 1000, (2, 5))
    sensitivity = Sensitivity(tuple("abcde"), WIDTHS, losses, *sizes)
    weigh = "macs" if by_macs else "weights"
    found = js.assign_bits(sensitivity, mean_bits=budget, weigh=weigh)
    size = sizes[int(by_macs)]
    assert found.cost <= budget * (1 + 1e-6)
    assert found.loss == pytest.approx(brute(sensitivity, size, budget), rel=1e-6)


def test_traces_are_those_of_the_dense_hessian():
    """Within five standard errors of Hutchinson's estimate; and the error it is multiplied by."""
    x, y = models.normal(30, 4), models.normal(30, 2)
    params = {"a": models.normal(4, 5), "b": models.normal(5, 2)}
    net = js.trace(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], params, x)

    def fitted(net):
        return jnp.mean((net(x) - y) ** 2)

    samples = 400
    found = js.hessian_sensitivity(net, fitted, key=jax.random.key(0), bits=[3], samples=samples)

    def flat(v):
        p = {"a": v[:20].reshape(4, 5), "b": v[20:].reshape(5, 2)}
        return jnp.mean((jnp.tanh(x @ p["a"]) @ p["b"] - y) ** 2)

    at = jnp.concatenate([params["a"].ravel(), params["b"].ravel()])
    hessian = np.asarray(jax.hessian(flat)(at))
    for i, (name, part) in enumerate({"a": slice(0, 20), "b": slice(20, 30)}.items()):
        own = hessian[part, part]
        # Var zᵀHz over this block's signs, and over those of the other parameters.
        within = 2 * ((own - np.diag(np.diag(own))) ** 2).sum()
        between = (hessian[part] ** 2).sum() - (own**2).sum()
        error = np.sqrt((within + between) / samples)
        codes, step, _ = quantiser.quantise(js.Grid(3), params[name], 0)
        scale = 0.5 * float(((codes * step - params[name]) ** 2).sum()) / params[name].size
        expected = scale * np.trace(own)
        assert found.loss[i, 0] == pytest.approx(expected, abs=float(5 * scale * error))


def test_rounding_errors_are_those_of_the_codes():
    net = cnn()
    found = rounding_errors(net, (2, 5))
    w = np.asarray(net.params["Conv_1"]["kernel"])
    for i, bits in enumerate((2, 5)):
        codes, step, _ = quantiser.quantise(js.Grid(bits), w, (0, 1, 2))
        assert found["Conv_1/kernel"][i] == pytest.approx(((codes * step - w) ** 2).sum(), rel=1e-4)


def test_curvature_ranks_sites_as_measuring_them_does():
    net = cnn()
    hessian = js.hessian_sensitivity(net, loss, key=jax.random.key(0), bits=[3, 4], samples=32)
    measured = js.ablation_sensitivity(net, loss, bits=[3, 4])
    assert hessian.sites == measured.sites == tuple(SITES)
    rank = stats.spearmanr(hessian.loss.ravel(), np.abs(measured.loss).ravel()).statistic
    assert rank >= 0.6


def test_ablation_is_the_loss_with_one_site_rounded():
    net = cnn()
    found = js.ablation_sensitivity(net, loss, bits=[2])
    expected = loss(js.quantize(2, None, sites="Conv_1*")(net)) - loss(net)
    assert found.loss[1, 0] == pytest.approx(float(expected), rel=1e-3)


def test_ablation_compiles_once():
    seen = []

    def counted(net):
        seen.append(None)
        return loss(net)

    js.ablation_sensitivity(cnn(), counted, bits=[2, 3, 4])
    assert len(seen) == 1


def test_an_assignment_quantises_each_site_to_its_bits():
    net = cnn()
    sensitivity = js.hessian_sensitivity(net, loss, key=jax.random.key(0), bits=[2, 4, 8])
    found = js.assign_bits(sensitivity, mean_bits=4)
    chip = found.transform(inputs=None)(net)
    for name, bits in found.bits.items():
        assert chip.cores[name][0].settings["weights"].bits == bits
    assert re.search(r"Conv_0/kernel\W+\d", str(found))


@pytest.mark.parametrize(
    ("message", "call"),
    {
        "bits=9": lambda n, s: js.ablation_sensitivity(n, loss, bits=[9]),
        r"bits=\(\)": lambda n, s: js.ablation_sensitivity(n, loss, bits=[]),
        "samples=0": lambda n, s: js.hessian_sensitivity(n, loss, key=jax.random.key(0), samples=0),
        "give the float network": lambda n, s: js.ablation_sensitivity(js.quantize()(n), loss),
        "mean_bits=1": lambda n, s: js.assign_bits(s, mean_bits=1),
        "weigh='time'": lambda n, s: js.assign_bits(s, mean_bits=4, weigh="time"),
    }.items(),
)
def test_bad_arguments_are_refused(message, call):
    sensitivity = Sensitivity(("a",), (2, 4), np.ones((1, 2)), np.ones(1, int), np.ones(1, int))
    with pytest.raises(ValueError, match=message):
        call(cnn(), sensitivity)
