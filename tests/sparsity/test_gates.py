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
from tests.support.networks import SITES, X, cnn

sp = js.sparsity
LABELS = np.arange(8) % 3
RUN = {"epochs": 20, "key": jax.random.key(0), "batch_size": 4, "quiet": True}
KINDS = {
    "L0": (sp.hard_concrete(), 1e-3),
    "STR": (sp.soft_threshold(-2.0), 1e-3),
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
    before, after = (
        gates.penalty({n: by_name(of.params["params"])[n] for n in SITES}, of.params["gates"])
        for of in (net, trained)
    )
    assert after < before
    own = sp.closed(trained, cnn(), gates)
    assert set(own.masks) == set(SITES)
    assert own(X).shape == (8, 3)
    if kind != "variational":  # whose mean keeps what its masks leave out
        np.testing.assert_allclose(own(X), trained(X), rtol=1e-4, atol=1e-5)
    exact = sp.closed(trained, cnn(), gates, sparsity=0.7)
    size = sum(m.size for m in exact.masks.values())
    assert sum(int(m.sum()) for m in exact.masks.values()) == size - round(0.7 * size)


def test_the_penalty_s_gradient_is_added_and_nothing_else():
    gates = sp.hard_concrete(0.5)
    net = sp.gated(cnn(), gates, sites="Dense*")
    tx = sp.penalized(gates, 0.1)
    zero = jax.tree.map(jnp.zeros_like, net.params)
    updates, _ = tx.update(zero, tx.init(net.params), net.params)
    assert set(updates["gates"]) == {"Dense_0/kernel", "Dense_1/kernel"}
    p = 1 / (1 + np.exp(-(0.5 - 2 / 3 * np.log(0.1 / 1.1))))
    for g in updates["gates"].values():
        np.testing.assert_allclose(g, 0.1 * p * (1 - p), rtol=1e-5)
    assert not any(np.any(u) for u in jax.tree.leaves(updates["params"]))


def test_a_gated_network_composes_with_quantisation():
    net = js.quantize(8, 8)(sp.gated(cnn(), sp.hard_concrete()))
    assert np.abs(net(X) - cnn()(X)).max() < 0.2 * np.abs(cnn()(X)).max()


def test_gates_refuse_networks_that_are_transformed():
    with pytest.raises(ValueError, match="give the float network"):
        sp.gated(js.prune(0.5)(cnn()), sp.hard_concrete())
    with pytest.raises(ValueError, match="start=nan"):
        sp.hard_concrete(float("nan"))
    with pytest.raises(ValueError, match="strength=-1"):
        sp.penalized(sp.hard_concrete(), -1)
    assert dataclasses.is_dataclass(cnn())
