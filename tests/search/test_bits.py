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
from jaxsim.search.bits import Assignment, Sensitivity, rounding_errors
from tests.oracles import quantiser
from tests.support import models
from tests.support.networks import DEEP_SITES, X, cnn, deep_cnn, stack
from tests.support.printed import header, rows

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
    w = np.asarray(net.params["Conv_0"]["kernel"])
    for i, bits in enumerate((2, 5)):
        codes, step, _ = quantiser.quantise(js.Grid(bits), w, (0, 1, 2))
        assert found["Conv_0/kernel"][i] == pytest.approx(((codes * step - w) ** 2).sum(), rel=1e-4)


def test_curvature_ranks_sites_as_measuring_them_does():
    net = deep_cnn()
    hessian = js.hessian_sensitivity(net, loss, key=jax.random.key(0), bits=[3, 4], samples=32)
    measured = js.ablation_sensitivity(net, loss, bits=[3, 4])
    assert hessian.sites == measured.sites == DEEP_SITES
    rank = stats.spearmanr(hessian.loss.ravel(), np.abs(measured.loss).ravel()).statistic
    assert rank >= 0.6


def test_ablation_is_the_loss_with_one_site_rounded():
    net = cnn()
    found = js.ablation_sensitivity(net, loss, bits=[2])
    expected = loss(js.quantize(2, None, sites="Dense*")(net)) - loss(net)
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


PAIR = {"a": models.normal(4, 5), "b": models.normal(5, 4)}
TWO = js.trace(lambda p, x: x @ p["a"] @ p["b"], PAIR, models.normal(2, 4))


def traces(loss, samples, seed=0):
    """The estimated traces of both blocks, from what is made of them."""
    found = js.hessian_sensitivity(
        TWO, loss, key=jax.random.key(seed), bits=[3], samples=samples
    ).loss[:, 0]
    errors = rounding_errors(TWO, [3])
    return [loss * 2 * 20 / errors[name][0] for loss, name in zip(found, "ab", strict=True)]


@pytest.mark.parametrize("samples", [1, 3])
def test_a_diagonal_hessian_is_known_exactly_and_a_concave_one_is_none(samples):
    """Of 3 a² + ½ Σ k b², by hand: 6 for each of 20 entries, and Σ k = 0 + … + 19."""
    weights = jnp.arange(20.0).reshape(5, 4)

    def bowl(net):
        a, b = net.params["a"], net.params["b"]
        return 3 * jnp.sum(a**2) + jnp.sum(weights * b**2) / 2

    np.testing.assert_allclose(traces(bowl, samples), [120, 190], rtol=1e-5)
    assert traces(lambda net: -bowl(net), samples) == [0, 0]


def test_signs_of_parameters_and_of_samples_are_drawn_apart():
    """Σa Σb has no trace: with signs in common each sample would give 20.

    Its estimate is a mean of products of two sums of 20 signs, of standard deviation 20.
    """

    def cross(net):
        return jnp.sum(net.params["a"]) * jnp.sum(net.params["b"])

    # lifted by a trace of 200 that is exact, as what is below zero would be cut
    def lifted(net):
        return cross(net) + 5 * jnp.sum(net.params["a"] ** 2) + 5 * jnp.sum(net.params["b"] ** 2)

    found = np.asarray(traces(lifted, 400)) - 200
    assert np.abs(found).max() < 5 * 20 / np.sqrt(400)
    single = [traces(lifted, 1, seed)[0] for seed in range(4)]
    assert single[0] == traces(lifted, 1, 0)[0]
    assert len(set(single)) > 1
    few = np.asarray([traces(lifted, 3, seed)[0] for seed in range(3)]) - 200
    products = {i * j for i in range(-20, 21, 2) for j in range(-20, 21, 2)}
    assert any(min(abs(m - p) for p in products) > 0.1 for m in few)  # no mean of equal samples


def test_stacked_sites_count_all_their_layers_and_a_weight_counts_once():
    facts = js.ablation_sensitivity(stack(), lambda net: jnp.zeros(()), bits=[8, 2, 8])
    assert facts.sites == ("w", "head")
    assert facts.bits == (2, 8)
    assert facts.weights.tolist() == [3 * 4 * 4, 4 * 2]
    assert facts.macs.tolist() == [3 * 5 * 4 * 4, 5 * 4 * 2]


SHARED = js.trace(lambda p, x: jnp.tanh(x @ p["a"] @ p["b"]) @ p["a"], PAIR, models.normal(2, 4))


def test_a_weight_that_is_used_twice_is_one_choice_and_rounded_at_both():
    """Products [2, 4] @ [4, 5] at two places, one of them between."""

    def change(net):
        return jnp.sum((net(models.normal(2, 4)) - SHARED(models.normal(2, 4))) ** 2)

    found = js.ablation_sensitivity(SHARED, change, bits=[3])
    assert found.sites == ("a", "b")
    assert found.macs.tolist() == [2 * (2 * 4 * 5), 2 * 5 * 4]
    assigned = Assignment({"a": 3}, 0.0, 0.0).transform(inputs=None)(SHARED)
    assert set(assigned.cores) == {"a", "a#2"}
    assert found.loss[0, 0] == pytest.approx(float(change(assigned)), rel=1e-4)


KNAPSACK = Sensitivity(
    sites=("a", "b", "c"),
    bits=(2, 4, 8),
    # per added bit the first site gains most, but to give it 8 leaves nothing for the others
    loss=np.array([[60.0, 45.0, 0.0], [40.0, 3.0, 2.0], [35.0, 2.0, 1.0]]),
    weights=np.array([10, 10, 10]),
    macs=np.array([1, 10, 100]),
)


def test_the_best_choice_is_not_the_greedy_one():
    """Of mean 4: to give site a 8 bits leaves 2 for the others, a loss of 75; 4 each loses 50."""
    found = js.assign_bits(KNAPSACK, mean_bits=4)
    assert found == Assignment({"a": 4, "b": 4, "c": 4}, 50.0, pytest.approx(4.0))
    by_macs = js.assign_bits(KNAPSACK, mean_bits=4, weigh="macs")
    assert by_macs.bits == {"a": 8, "b": 8, "c": 2}
    assert (by_macs.loss, by_macs.cost) == (37.0, pytest.approx((8 + 80 + 200) / 111))


@pytest.mark.parametrize(
    ("budget", "bits"), [(2, [2, 2, 2]), (8 / 3, [2, 4, 2]), (2.66, [2, 2, 2]), (8, [8, 8, 8])]
)
def test_a_budget_may_be_spent_to_the_last_bit(budget, bits):
    found = js.assign_bits(KNAPSACK, mean_bits=budget)
    assert list(found.bits.values()) == bits


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_the_choice_does_not_depend_on_the_unit_of_the_loss(scale):
    scaled = KNAPSACK._replace(loss=KNAPSACK.loss * scale)
    assert js.assign_bits(scaled, mean_bits=4).bits == {"a": 4, "b": 4, "c": 4}


def test_sites_that_lose_nothing_are_assigned_too():
    nothing = KNAPSACK._replace(loss=0 * KNAPSACK.loss)
    assert js.assign_bits(nothing, mean_bits=4).loss == 0


def test_the_printed_assignment_says_the_bits_of_each_site():
    found = Assignment({"a": 3, "b": 8}, 1.2345678, 5.4321)
    assert "expected loss 1.235, cost 5.432" in " ".join(str(found).split())
    assert header(found) == ["site", "bits"]
    assert rows(found) == [["a", "3"], ["b", "8"]]


@pytest.mark.parametrize("bits", [[2], [8]])
def test_the_narrowest_and_widest_bits_are_taken(bits):
    assert js.ablation_sensitivity(TWO, lambda net: jnp.zeros(()), bits=bits).bits == tuple(bits)


def test_one_bit_is_too_few():
    with pytest.raises(ValueError, match="bits=1: must be an int from 2 to 8"):
        js.ablation_sensitivity(TWO, lambda net: jnp.zeros(()), bits=[1])
    with pytest.raises(ValueError, match=r"mean_bits=1\.99"):
        js.assign_bits(KNAPSACK, mean_bits=1.99)


def test_a_column_of_zeros_rounds_to_zeros_and_no_top_leaves_weights_as_they_are():
    w = jnp.array([[1.0, 0.0], [0.3, 0.0], [-0.6, 0.0]])
    net = js.trace(lambda p, x: x @ p["w"], {"w": w}, jnp.ones((2, 3)))
    # on the grid -1, 0, 1: errors 0, 0.3 and 0.4
    assert rounding_errors(net, [2])["w"][0] == pytest.approx(0.3**2 + 0.4**2, rel=1e-5)
