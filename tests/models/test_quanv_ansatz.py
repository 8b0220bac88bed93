"""Each ansatz of a quantum layer is the circuit that it names, with the angles that it has."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim.quantum as jq
from jaxsim.models.quanv import QuanvConv

X = jnp.asarray(np.random.default_rng(0).uniform(size=(1, 3, 3, 1)), jnp.float32)
CIRCUITS = {
    "strongly_entangling": (jq.strongly_entangling, (2, 4, 3)),
    "basic": (jq.basic_entangling, (2, 4)),
    "random": (lambda w: jq.random_layers(w, 7), (2, 4)),
}


@pytest.mark.parametrize("name", CIRCUITS)
def test_a_layer_is_its_circuit(name):
    build, shape = CIRCUITS[name]
    weights = np.random.default_rng(7).uniform(0, 2 * np.pi, shape)
    expected = jq.quanv2d(X, jq.compile_circuit(build(weights)), jq.QuanvSpec())
    fixed = QuanvConv(ansatz=name, layers=2, seed=7, trainable=False)
    found = fixed.apply({}, X)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    trained = QuanvConv(ansatz=name, layers=2, seed=7)
    params = {"params": {"weights": jnp.asarray(weights, jnp.float32)}}
    np.testing.assert_allclose(jax.jit(trained.apply)(params, X), expected, atol=1e-5)
    others = [jq.quanv2d(X, jq.compile_circuit(b(np.resize(weights, s))), jq.QuanvSpec())
              for n, (b, s) in CIRCUITS.items() if n != name]  # fmt: skip
    assert all(np.abs(other - expected).max() > 1e-2 for other in others)


def test_angles_start_anywhere_in_a_turn():
    layer, keys = QuanvConv(kernel_size=1, layers=2), jax.random.split(jax.random.key(0), 150)
    made = jax.jit(jax.vmap(lambda key: layer.init(key, X[:, :1, :1])))(keys)
    w = np.ravel(made["params"]["weights"])
    assert w.size == 150 * 2 * 3
    assert 0 <= w.min() < 0.1
    assert 2 * np.pi - 0.1 < w.max() < 2 * np.pi
    assert w.mean() == pytest.approx(np.pi, abs=4 * 2 * np.pi / np.sqrt(12 * w.size))
