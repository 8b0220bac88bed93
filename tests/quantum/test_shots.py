"""Shots have the mean, the spread and the correlations that quantum mechanics gives them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pennylane as qml
import pytest

import jaxsim.quantum as jq
from tests.support.circuits import angles, strongly

DRAWS, SHOTS = 2000, 200
sample = jax.jit(jq.sample, static_argnums=2, static_argnames="joint")


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("noise", [None, jq.depolarizing(0.05)])
def test_spread_and_mean_are_those_of_a_binomial(joint, noise):
    kernel = jq.compile_circuit(strongly(4)[0], 4, noise=noise)
    theta = angles(4, 1)[0].astype(np.float32)
    exact = np.asarray(jax.jit(jq.expval)(kernel, theta))
    many = np.tile(theta, (DRAWS, 1))
    draws = np.asarray(sample(kernel, many, SHOTS, jax.random.key(3), joint=joint))
    spread = np.sqrt((1 - exact**2) / SHOTS)
    np.testing.assert_allclose(draws.std(0), spread, rtol=0.15)
    assert (np.abs(draws.mean(0) - exact) < 4 * spread / np.sqrt(DRAWS)).all()


@pytest.mark.parametrize("joint", [False, True])
def test_joint_shots_are_correlated(joint):
    """A Bell pair: wires agree in every shot, or each has shots of its own."""
    kernel = jq.compile_circuit(lambda: [qml.Hadamard(0), qml.CNOT(wires=[0, 1])], 2)
    draws = sample(kernel, np.zeros((DRAWS, 2), np.float32), SHOTS, jax.random.key(0), joint=joint)
    correlation = np.corrcoef(np.asarray(draws).T)[0, 1]
    assert correlation > 0.999 if joint else abs(correlation) < 4 / np.sqrt(DRAWS)


def test_a_key_decides_the_draw():
    kernel = jq.compile_circuit(strongly(2)[0], 2)
    theta = jnp.ones((50, 2))
    draw = jax.jit(functools.partial(jq.sample, kernel, theta, 100))
    a, b, c = (draw(jax.random.key(k)) for k in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)


@pytest.mark.parametrize("joint", [False, True])
def test_a_derivative_of_shots_is_refused(joint):
    kernel = jq.compile_circuit(strongly(2)[0], 2)

    def total(theta):
        return jq.sample(kernel, theta, 10, jax.random.key(0), joint=joint).sum()

    with pytest.raises(ValueError, match="shots: a sampled expectation value has no derivative"):
        jax.grad(total)(jnp.ones(2))
