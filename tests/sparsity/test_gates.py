"""Gates have the expectations of their papers, and end in masks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import integrate, stats

import jaxsim as js
from jaxsim.network.params import by_name
from jaxsim.train.loop import fit
from tests.support.networks import SITES, X, cnn, run

sp = js.sparsity
LABELS = np.arange(8) % 3
RUN = {"epochs": 20, "key": jax.random.key(0), "batch_size": 4, "quiet": True}
KINDS = {
    "L0": (sp.hard_concrete(), 1e-3),
    "STR": (sp.soft_threshold(-2.0), 1.0),
    "variational": (sp.variational_dropout(), 1e-4),
}


@pytest.mark.parametrize("log_alpha", [-3.0, 0.0, 2.0])
def test_the_expected_number_of_open_gates_is_what_is_drawn(log_alpha):
    gates = sp.hard_concrete(log_alpha)
    w = {"w": jnp.ones((200, 200))}
    state = gates.init(w)
    drawn = gates.apply(w, state, jax.random.key(0))["w"]
    expected = 1 / (1 + np.exp(-(log_alpha - 2 / 3 * np.log(0.1 / 1.1))))
    np.testing.assert_allclose(float(gates.penalty(w, state)) / drawn.size, expected, rtol=1e-5)
    error = np.sqrt(expected * (1 - expected) / drawn.size)
    assert abs(float((drawn != 0).mean()) - expected) < 4 * error
    assert float(drawn.min()) >= 0
    assert float(drawn.max()) <= 1


def test_soft_thresholds_are_the_paper_s_formula():
    gates, w = sp.soft_threshold(-1.0), {"w": jnp.linspace(-1, 1, 9)}
    t = 1 / (1 + np.e)
    expected = np.sign(w["w"]) * np.maximum(np.abs(w["w"]) - t, 0)
    state = gates.init(w)
    np.testing.assert_allclose(gates.apply(w, state, None)["w"], expected, atol=1e-6)
    np.testing.assert_array_equal(gates.stays(w, state)["w"], expected != 0)


@pytest.mark.parametrize("log_alpha", [-2.0, 0.0, 2.0])
def test_the_variational_penalty_is_the_divergence_up_to_its_constant(log_alpha):
    """½ log α + E log|1 + √α ε| - c, the paper's own constant making it 0 at infinity."""
    alpha = np.exp(log_alpha)

    def integrand(e):
        return stats.norm.pdf(e) * np.log(abs(1 + np.sqrt(alpha) * e))

    corner = -1 / np.sqrt(alpha)
    mean = sum(
        integrate.quad(integrand, *ends, limit=200)[0] for ends in ((-12, corner), (corner, 12))
    )
    # as α → ∞ E log|√α ε| = ½ log α + E log|ε|, E log|ε| = -(γ + log 2) / 2
    limit = -(np.euler_gamma + np.log(2)) / 2
    exact = mean - log_alpha / 2 - limit
    gates, w = sp.variational_dropout(log_alpha), {"w": jnp.ones(1)}
    assert abs(float(gates.penalty(w, gates.init(w))) - exact) < 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_gates_train_and_end_in_masks_of_the_network_they_began_with(kind):
    gates, strength = KINDS[kind]
    net = sp.gated(cnn(), gates)
    tx = optax.chain(sp.penalized(gates, strength), optax.adam(2e-2))
    trained = fit(net, X, LABELS, optimizer=tx, rngs=("gates",), **RUN)
    penalty = jax.jit(gates.penalty)
    before, after = (
        penalty({n: by_name(of.params["params"])[n] for n in SITES}, of.params["gates"])
        for of in (net, trained)
    )
    assert after < before
    own = sp.closed(trained, cnn(), gates)
    assert set(own.masks) == set(SITES)
    answers = [run(n, X) for n in (own, trained)]
    assert answers[0].shape == (8, 3)
    if kind != "variational":  # whose mean keeps what its masks leave out
        np.testing.assert_allclose(*answers, rtol=1e-4, atol=1e-5)
    exact = sp.closed(trained, cnn(), gates, sparsity=0.7)
    size = sum(m.size for m in exact.masks.values())
    assert sum(int(m.sum()) for m in exact.masks.values()) == size - round(0.7 * size)


def test_the_penalty_s_gradient_is_added_and_nothing_else():
    gates = sp.hard_concrete(0.5)
    net = sp.gated(cnn(), gates, sites="Dense*")
    tx = sp.penalized(gates, 0.1)
    zero = jax.tree.map(jnp.zeros_like, net.params)
    updates, _ = tx.update(zero, tx.init(net.params), net.params)
    assert set(updates["gates"]) == {"Dense_0/kernel"}
    p = 1 / (1 + np.exp(-(0.5 - 2 / 3 * np.log(0.1 / 1.1))))
    for g in updates["gates"].values():
        np.testing.assert_allclose(g, 0.1 * p * (1 - p), rtol=1e-5)
    assert not any(np.any(u) for u in jax.tree.leaves(updates["params"]))


def test_a_gated_network_composes_with_quantisation():
    net = js.quantize(8, 8)(sp.gated(cnn(), sp.hard_concrete()))
    y, exact = (np.asarray(run(n, X)) for n in (net, cnn()))
    assert np.abs(y - exact).max() < 0.2 * np.abs(exact).max()


def test_gates_refuse_networks_that_are_transformed():
    with pytest.raises(ValueError, match="give the float network"):
        sp.gated(js.prune(0.5)(cnn()), sp.hard_concrete())
    with pytest.raises(ValueError, match="start=nan"):
        sp.hard_concrete(float("nan"))
    with pytest.raises(ValueError, match="strength=-1"):
        sp.penalized(sp.hard_concrete(), -1)
    assert dataclasses.is_dataclass(cnn())


def one_layer(**values):
    """Weights and gates of one layer each."""
    return {"w": jnp.asarray(values["w"], jnp.float32)}, {
        "w": jnp.asarray(values["g"], jnp.float32)
    }


def test_mean_gates_are_stretched_and_cut():
    """σ(log α) · 1.2 - 0.1: of 1/13 below 0, of 12/13 above 1, of 1/2 a half, of 3/4 0.8."""
    gates = sp.hard_concrete()
    odds = [np.log(p / (1 - p)) for p in (1 / 13, 12 / 13, 1 / 2, 3 / 4)]
    w, g = one_layer(w=[2, 3, -4, 5], g=odds)
    np.testing.assert_allclose(gates.apply(w, g, None)["w"], [0, 3, -2, 4], atol=1e-6)
    np.testing.assert_allclose(gates.score(w, g)["w"], [0, 3, 2, 4], atol=1e-6)
    assert gates.stays(w, g)["w"].tolist() == [False, True, True, True]
    # an edge of σ at 1/12 is a gate of exactly 0
    for p, stays in ((0.084, True), (0.083, False)):
        w, g = one_layer(w=[1], g=[np.log(p / (1 - p))])
        assert bool(gates.stays(w, g)["w"][0]) == stays
    np.testing.assert_array_equal(gates.init(w)["w"], [2.0])


def test_drawn_gates_are_the_concrete_distribution_at_its_temperature():
    """Below σ at 1/12 a gate is 0, above 11/12 it is 1; between, u is σ(2/3 · logit s - log α)."""
    gates, (w, g) = sp.hard_concrete(), one_layer(w=np.ones(20_000), g=np.full(20_000, 0.5))
    drawn = np.asarray(gates.apply(w, g, jax.random.key(0))["w"])
    for z in (0.0, 0.3, 0.8):
        s = (z + 0.1) / 1.2
        below = 1 / (1 + np.exp(-(2 / 3 * np.log(s / (1 - s)) - 0.5)))
        assert np.mean(drawn <= z) == pytest.approx(below, abs=4 * np.sqrt(0.25 / 20_000))
    assert np.mean(drawn == 1) == pytest.approx(
        1 / (1 + np.exp(2 / 3 * np.log(11) - 0.5)), abs=4 * np.sqrt(0.25 / 20_000)
    )


def test_soft_thresholds_by_hand():
    """σ(0) is a half; the penalty is half of 1.5² + 0.25² + (-2)² and of the threshold's square."""
    gates = sp.soft_threshold(0.5)
    w = {"a": jnp.array([1.5, -0.25]), "b": jnp.array([-2.0])}
    g = {"a": jnp.float32(0), "b": jnp.log(jnp.float32(3))}  # 1/2 and 3/4
    found = gates.apply(w, g, None)
    assert found["a"].tolist() == [1.0, 0.0]
    assert found["b"].tolist() == pytest.approx([-1.25])
    expected = (1.5**2 + 0.25**2 + 4 + np.log(3) ** 2) / 2
    assert float(gates.penalty(w, g)) == pytest.approx(expected)
    score = gates.score(w, g)
    assert [*score["a"].tolist(), *score["b"].tolist()] == pytest.approx([1, -0.25, 1.25])
    assert gates.stays(w, g)["a"].tolist() == [True, False]
    assert {n: float(s) for n, s in gates.init(w).items()} == {"a": 0.5, "b": 0.5}


def test_noisy_weights_by_hand():
    """log α = log σ² - log w²: of σ = e^{1/2} and w = 1 one; of w = e^{-1} three, which goes."""
    gates = sp.variational_dropout(1.0, most=2.9)
    w, g = one_layer(w=[1, np.exp(-1), -np.exp(2)], g=[1, 1, 1])
    np.testing.assert_allclose(gates.score(w, g)["w"], [-1, -3, 3], atol=1e-5)
    assert gates.stays(w, g)["w"].tolist() == [True, False, True]
    assert sp.variational_dropout().stays(w, {"w": g["w"] - 0.1})["w"].tolist() == [True] * 3
    assert sp.variational_dropout().stays(w, {"w": g["w"] + 0.1})["w"].tolist() == [
        True,
        False,
        True,
    ]
    np.testing.assert_array_equal(gates.apply(w, g, None)["w"], w["w"])
    np.testing.assert_array_equal(gates.init(w)["w"], [1, 1, 1])
    np.testing.assert_array_equal(sp.variational_dropout().init(w)["w"], [-10] * 3)
    # log α is no more than 10 and no less, however small or large a weight is
    w, g = one_layer(w=[0, 1e9], g=[0, 0])
    np.testing.assert_allclose(gates.score(w, g)["w"], [-10, 10])
    k1, k2, k3 = 0.63576, 1.87320, 1.48695  # of the paper
    by_hand = [k1 - k1 / (1 + np.exp(-(k2 + k3 * a))) + np.log1p(np.exp(-a)) / 2 for a in (10, -10)]
    assert float(gates.penalty(w, g)) == pytest.approx(sum(by_hand), rel=1e-5)


def test_the_penalty_of_a_weight_of_zero_has_a_slope():
    gates = sp.variational_dropout(0.0)
    w, g = one_layer(w=[0, 1], g=[0, 0])
    assert np.isfinite(jax.jit(jax.grad(gates.penalty))(w, g)["w"]).all()


def test_noise_has_the_deviation_of_its_gate():
    gates = sp.variational_dropout()
    w, g = one_layer(w=np.full(20_000, 3.0), g=np.full(20_000, 2 * np.log(0.25)))
    drawn = np.asarray(gates.apply(w, g, jax.random.key(1))["w"])
    assert drawn.mean() == pytest.approx(3, abs=4 * 0.25 / np.sqrt(20_000))
    assert drawn.std() == pytest.approx(0.25, rel=4 / np.sqrt(40_000))


@pytest.mark.parametrize("gates", [sp.hard_concrete(0.0), sp.variational_dropout(0.0)])
def test_layers_have_draws_of_their_own(gates):
    w = {"a": jnp.ones((40, 50)), "b": jnp.ones((40, 50))}
    one, same, other = (gates.apply(w, gates.init(w), jax.random.key(k)) for k in (0, 0, 1))
    np.testing.assert_array_equal(one["a"], same["a"])
    drawn = np.stack([np.ravel(x) for x in (one["a"], one["b"], other["a"])])
    assert np.abs(np.corrcoef(drawn)[np.triu_indices(3, 1)]).max() < 4 / np.sqrt(2000)


def tiny():
    params = {"a": jnp.array([[2.0, -3.0]]), "b": jnp.array([[1.0], [0.25]])}
    return js.trace(lambda p, x: x @ p["a"] @ p["b"], params, jnp.ones((1, 1)))


def test_a_gated_network_reads_means_but_where_its_stream_is_drawn():
    gates = sp.hard_concrete(0.0)
    net = sp.gated(tiny(), gates, sites="a")
    assert set(net.params["gates"]) == {"a"}
    one = jnp.ones((1, 1))
    # gates of a half: (1, -1.5) · (1, 0.25)
    assert float(net(one)[0, 0]) == pytest.approx(1 - 1.5 * 0.25)
    drawn = {float(net(one, rngs={"gates": jax.random.key(k)})[0, 0]) for k in range(4)}
    assert len(drawn) > 1
    assert float(sp.closed(net, tiny(), gates).params["a"][0, 0]) == 1


def test_closing_leaves_out_what_gates_do_or_the_lowest_scores():
    gates = sp.soft_threshold(0.0)
    net = sp.gated(tiny(), gates)
    closed = sp.closed(net, tiny(), gates)
    assert closed.masks["a"].tolist() == [[True, True]]
    assert closed.masks["b"].tolist() == [[True], [False]]
    np.testing.assert_array_equal(closed.params["a"], [[1.5, -2.5]])
    np.testing.assert_array_equal(closed.params["b"], [[0.5], [0]])
    half = sp.closed(net, tiny(), gates, sparsity=0.25)
    assert sum(int(m.sum()) for m in half.masks.values()) == 3
    each = sp.closed(net, tiny(), gates, sparsity=0.5, distribution=sp.uniform())
    assert each.masks["a"].tolist() == [[False, True]]
    assert each.masks["b"].tolist() == [[True], [False]]
    with pytest.raises(ValueError, match="sparsity=1"):
        sp.closed(net, tiny(), gates, sparsity=1)
    for bad in (
        lambda: sp.soft_threshold(float("inf")),
        lambda: sp.variational_dropout(float("nan")),
        lambda: sp.variational_dropout(most=float("nan")),
    ):
        with pytest.raises(ValueError, match="must be a finite number"):
            bad()
    with pytest.raises(ValueError, match="before any transform"):
        sp.gated(js.quantize(8, 8)(tiny()), gates)
    sp.penalized(gates, 0)
