"""Angles that are encoded before each of several circuits."""

import jax
import jax.numpy as jnp
import numpy as np
import pennylane as qml
import pytest
from jax.test_util import check_grads

import jaxsim.quantum as jq
from tests.oracles.circuits import encoded, encoded_again
from tests.support.circuits import angles, random, strongly

expval = jax.jit(jq.expval)


def several(n, count=3):
    """Circuits that differ."""
    return [(strongly if i % 2 else random)(n, 1, seed=i)[0] for i in range(count)]


@pytest.mark.parametrize("method", ["gemm", "pauli"])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_expectations_are_those_of_pennylane(n, method):
    qfuncs, theta = several(n), angles(n, 20)
    expected = encoded_again(qfuncs, theta)
    kernel = jq.compile_circuit(qfuncs, n, method=method)
    found = expval(kernel, theta.astype(np.float32))
    assert np.abs(found - expected).max() < 2e-6
    with jax.enable_x64(True):
        assert np.abs(jq.expval(kernel, jnp.asarray(theta)) - expected).max() < 1e-12
    once = expval(jq.compile_circuit(qfuncs[-1], n), theta.astype(np.float32))
    assert np.abs(once - expected).max() > 0.1  # a kernel that encodes once is another function


def test_angles_add_up_where_nothing_stands_between():
    """cos 3θ: no circuit that encodes once has frequencies above one."""
    theta = np.linspace(-2, 2, 9)[:, None].astype(np.float32)
    for method in ("gemm", "pauli"):
        kernel = jq.compile_circuit([jq.Circuit(1, ())] * 3, method=method)
        np.testing.assert_allclose(expval(kernel, theta), np.cos(3 * theta), atol=2e-6)
    with pytest.raises(ValueError, match="nnz: method='gemm'"):
        jq.compile_circuit([jq.Circuit(1, ())] * 2).nnz  # noqa: B018
    single = jq.compile_circuit([jq.Circuit(1, ())])
    assert (single.uploads, single.method) == ((), "sparse")


@pytest.mark.parametrize("where", ["gates", "end"])
def test_noise_is_that_of_the_density_matrix(where):
    qfuncs, theta, gamma = several(2), angles(2, 6), 0.2
    circuits = [jq.read_qfunc(qfunc, 2) for qfunc in qfuncs]
    damped = lambda wire: qml.AmplitudeDamping(gamma, wires=wire)  # noqa: E731

    @qml.qnode(qml.device("default.mixed", wires=2), interface=None)
    def node(row):
        for circuit in circuits:
            encoded(row)
            for gate in circuit.gates:
                qml.QubitUnitary(np.asarray(gate.matrix), wires=gate.wires)
                for wire in gate.wires if where == "gates" else ():
                    damped(wire)
        for wire in range(2) if where == "end" else ():
            damped(wire)
        return [qml.expval(qml.PauliZ(q)) for q in range(2)]

    expected = np.array([node(row) for row in theta])
    kernel = jq.compile_circuit(qfuncs, 2, noise=jq.amplitude_damping(gamma, where))
    assert (kernel.unitary, kernel.method) == (None, "pauli")
    np.testing.assert_allclose(expval(kernel, theta), expected, atol=2e-6)
    chances = jq.probabilities(kernel, theta)
    np.testing.assert_allclose(chances.sum(-1), 1, atol=1e-5)
    up = chances.reshape(-1, 2, 2)
    np.testing.assert_allclose(up[:, 0].sum(-1) - up[:, 1].sum(-1), expected[:, 0], atol=2e-6)


def test_outcomes_are_the_squares_of_amplitudes():
    qfuncs, theta = several(3, 2), angles(3, 5)

    @qml.qnode(qml.device("default.qubit", wires=3), interface=None)
    def node(row):
        for qfunc in qfuncs:
            encoded(row)
            qfunc()
        return qml.probs(wires=range(3))

    expected = np.array([node(row) for row in theta])
    for method in ("gemm", "pauli"):
        kernel = jq.compile_circuit(qfuncs, 3, method=method)
        np.testing.assert_allclose(jq.probabilities(kernel, theta), expected, atol=2e-6)
    shots = jq.sample(kernel, theta[:1], 4000, jax.random.key(0), joint=True)
    assert np.abs(shots - expval(kernel, theta[:1])).max() < 0.08


@pytest.mark.parametrize("noise", [None, jq.depolarizing(0.1)])
def test_derivatives_pass_through_each_encoding(noise):
    weights = jnp.asarray(strongly(2, 2)[1], jnp.float32)

    def value(weights, theta):
        circuits = [jq.strongly_entangling(w[None]) for w in weights]
        return jq.expval(jq.compile_circuit(circuits, noise=noise), theta).sum()

    check_grads(jax.jit(value), (weights, jnp.array([0.3, -0.8])), 1, modes=["rev"], atol=1e-2)


@pytest.mark.parametrize("options", [{}, {"noise": jq.depolarizing(0.05)}, {"method": "pauli"}])
def test_a_layer_is_pennylanes_window_by_window(options):
    qfuncs, spec = several(4, 2), jq.QuanvSpec(dilation=2, stride=2)
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 5, 6, 2)), jnp.float32)
    kernel = jq.compile_circuit(qfuncs, 4, **options)
    found = jax.jit(lambda x: jq.quanv2d(x, kernel, spec))(x)
    if "noise" not in options:
        expected = jq.qnode_reference(qfuncs, spec)(x)
        np.testing.assert_allclose(found, expected, atol=2e-6)
    for row, column in ((0, 0), (1, 1)):
        at = x[:, 2 * row : 2 * row + 3 : 2, 2 * column : 2 * column + 3 : 2, 1].reshape(2, 4)
        window = expval(kernel, np.pi * at)
        np.testing.assert_allclose(found[:, row, column, 4:], window, atol=2e-6)


@pytest.mark.parametrize(
    ("given", "options", "sentence"),
    [
        ([], {}, r"0 circuits of \[\] wires"),
        ([jq.Circuit(1, ()), jq.Circuit(2, ())], {}, r"2 circuits of \[1, 2\] wires"),
        ([jq.Circuit(2, ())] * 2, {"method": "sparse"}, "no polynomial of degree one"),
        (
            [jq.Circuit(2, ())] * 2,
            {"method": "gemm", "noise": jq.depolarizing(0.1)},
            "has no unitary",
        ),
        ([jq.Circuit(6, ())] * 2, {"noise": jq.depolarizing(0.1)}, "n_wires=6: .* at most 5"),
        ([lambda: None] * 2, {}, "n_wires=None"),
        ([jq.Circuit(1, ())] * 2, {"params": (1.0,)}, "several circuits take none"),
    ],
)
def test_what_does_not_fit_is_said(given, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        jq.compile_circuit(given, **options)
