"""Noise folded into coefficients is the noise of a density matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pennylane as qml
import pytest

import jaxsim.quantum as jq
from tests.oracles.circuits import expectations, noisy_expectations
from tests.support.circuits import angles, random, strongly

expval = jax.jit(jq.expval)
BIT_FLIP = [np.sqrt(0.8) * np.eye(2), np.sqrt(0.2) * np.array([[0, 1], [1, 0]])]
CHANNELS = {
    "depolarising": (jq.depolarizing, lambda p: lambda w: qml.DepolarizingChannel(p, wires=w)),
    "amplitude damping": (
        jq.amplitude_damping,
        lambda p: lambda w: qml.AmplitudeDamping(p, wires=w),
    ),
    "user": (
        lambda p, where: jq.kraus(BIT_FLIP, where),
        lambda p: lambda w: qml.BitFlip(0.2, wires=w),
    ),
}


@pytest.mark.parametrize("where", ["gates", "end"])
@pytest.mark.parametrize("name", CHANNELS)
def test_noise_is_that_of_the_density_matrix(name, where):
    ours, theirs = CHANNELS[name]
    theta = angles(3, 20)
    for p in (0.01, 0.1):
        for qfunc in (strongly(3, 1)[0], random(3)[0]):
            gates = jq.read_qfunc(qfunc, 3).gates
            expected = noisy_expectations(gates, theirs(p), theta, where)
            for method in ("pauli", "sparse"):
                kernel = jq.compile_circuit(qfunc, 3, noise=ours(p, where), method=method)
                assert np.abs(np.asarray(expval(kernel, theta)) - expected).max() < 1e-6


def test_depolarising_at_the_end_scales():
    qfunc, _ = strongly(6)
    theta, p = angles(6, 10), 0.1
    kernel = jq.compile_circuit(qfunc, 6, noise=jq.depolarizing(p, "end"))
    expected = (1 - 4 * p / 3) * expectations(qfunc, theta)
    np.testing.assert_allclose(expval(kernel, theta), expected, atol=1e-6)


def test_a_sweep_over_noise_compiles_once_and_has_a_derivative():
    theta = jnp.asarray(angles(3, 4), jnp.float32)
    _, weights = strongly(3)

    @jax.jit
    def noisy(p):
        circuit = jq.strongly_entangling(weights)
        return jq.expval(jq.compile_circuit(circuit, noise=jq.depolarizing(p, "end")), theta)

    exact = np.asarray(expval(jq.compile_circuit(jq.strongly_entangling(weights)), theta))
    for p in (0.0, 0.1, 0.3):
        np.testing.assert_allclose(noisy(p), (1 - 4 * p / 3) * exact, atol=1e-6)
    assert noisy._cache_size() == 1
    slope = jax.jit(jax.jacobian(noisy))(0.1)
    np.testing.assert_allclose(slope, -4 / 3 * exact, atol=1e-5)


def test_outcomes_of_a_noisy_circuit_have_its_expectations():
    kernel = jq.compile_circuit(strongly(2)[0], 2, noise=jq.amplitude_damping(0.2))
    theta = angles(2, 10)
    chance = np.asarray(jax.jit(jq.probabilities)(kernel, theta))
    assert chance.min() > -1e-6
    np.testing.assert_allclose(chance.sum(1), 1, atol=1e-6)
    expected = chance @ np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]])
    np.testing.assert_allclose(expected, expval(kernel, theta), atol=1e-6)


@pytest.mark.parametrize("where", ["gates", "end"])
@pytest.mark.parametrize(
    ("channel", "most"), [(jq.depolarizing, 0.75), (jq.amplitude_damping, 1.0)]
)
def test_derivatives_by_the_strength_are_right_at_both_ends(channel, most, where):
    """Against differences in double precision: a channel is polynomial in its strength."""
    circuit = jq.strongly_entangling(np.random.default_rng(0).normal(size=(2, 2, 3)))
    theta = np.array([[0.3, 0.7]])

    def value(strength):
        return jq.expval(jq.compile_circuit(circuit, noise=channel(strength, where)), theta)

    slope_at = jax.jit(jax.jacobian(value))

    def coefficients(strength):
        return np.asarray(jq.compile_circuit(circuit, noise=channel(strength, where)).coeffs)

    terms = np.array([1, np.sin(0.3), np.cos(0.3)])[:, None]
    terms = (terms * [1, np.sin(0.7), np.cos(0.7)]).reshape(-1)
    for at, step in ((0.0, 1e-6), (most, -1e-6)):
        slope = slope_at(at)[0]
        ends = (coefficients(at + k * step) @ terms for k in (0, 1, 2))
        f0, f1, f2 = ends
        np.testing.assert_allclose(slope, (4 * f1 - 3 * f0 - f2) / (2 * step), rtol=1e-3, atol=2e-3)


def test_adjoints_of_channels_are_those_of_their_operators():
    for strength in (0.0, 0.3, 0.75):
        for channel in (jq.depolarizing(strength), jq.amplitude_damping(strength)):
            k = np.asarray(channel.operators)
            by_hand = np.einsum("mca,mdb->abcd", k.conj(), k).reshape(4, 4)
            np.testing.assert_allclose(channel.adjoint, by_hand, atol=1e-12)
