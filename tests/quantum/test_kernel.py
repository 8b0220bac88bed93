"""A compiled circuit has the expectation values and derivatives of the circuit."""

import jax
import jax.numpy as jnp
import numpy as np
import pennylane as qml
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxsim.quantum as jq
from jaxsim.quantum import ansatz
from jaxsim.quantum.circuit import unitary
from tests.oracles.circuits import expectations, shifted_jacobian
from tests.support.circuits import angles, random, strongly

METHODS = ("gemm", "pauli", "sparse")
expval = jax.jit(jq.expval)


@pytest.mark.parametrize("family", [strongly, random])
@pytest.mark.parametrize("n", range(1, 7))
def test_expectations_are_those_of_pennylane(n, family):
    qfunc, _ = family(n)
    theta = angles(n, 200)
    expected = expectations(qfunc, theta)
    for method in METHODS:
        kernel = jq.compile_circuit(qfunc, n, method=method)
        found = jq.expval(kernel, jnp.asarray(theta, jnp.float32))
        assert np.abs(found - expected).max() < 1e-6
        with jax.enable_x64(True):
            found = jq.expval(kernel, jnp.asarray(theta))
            assert np.abs(found - expected).max() < 1e-12


@pytest.mark.parametrize(("depth", "method"), [(1, "sparse"), (4, "sparse"), (16, "gemm")])
def test_the_method_is_chosen_by_the_terms(depth, method):
    kernel = jq.compile_circuit(random(4, depth)[0], 4)
    assert kernel.method == method
    assert (kernel.nnz <= 64) == (method == "sparse")
    noisy = jq.compile_circuit(random(4, depth)[0], 4, noise=jq.amplitude_damping(0.1))
    assert (noisy.unitary, noisy.method) == (None, "sparse")


def test_a_noisy_circuit_of_many_terms_is_one_product():
    kernel = jq.compile_circuit(strongly(5)[0], 5, noise=jq.amplitude_damping(0.1))
    assert kernel.nnz > 400
    assert kernel.method == "pauli"


@pytest.mark.parametrize(
    ("template", "ours", "axes"),
    [
        (qml.StronglyEntanglingLayers, ansatz.strongly_entangling, (3,)),
        (qml.BasicEntanglerLayers, ansatz.basic_entangling, ()),
    ],
)
@pytest.mark.parametrize("n", range(1, 6))
def test_our_ansatz_is_pennylanes_template(n, template, ours, axes):
    weights = np.random.default_rng(n).normal(size=(3, n, *axes))
    theirs = qml.matrix(lambda: template(weights, wires=range(n)), wire_order=range(n))()
    assert np.abs(unitary(ours(weights)) - theirs).max() < 1e-12
    traced = jax.jit(lambda w: unitary(ours(w)))(weights.astype(np.float32))
    assert np.abs(traced - theirs).max() < 2e-6


def test_no_gates_leave_the_cosine_of_each_angle():
    theta = angles(3, 20)
    kernel = jq.compile_circuit(jq.Circuit(3, ()))
    np.testing.assert_allclose(expval(kernel, theta), np.cos(theta), atol=1e-6)


def test_wire_zero_is_the_most_significant():
    """CNOT(0, 1) multiplies the cosines on wire 1 and leaves wire 0."""
    theta = angles(2, 20)
    kernel = jq.compile_circuit(lambda: qml.CNOT(wires=[0, 1]), 2)
    found = expval(kernel, theta)
    expected = np.stack([np.cos(theta[:, 0]), np.cos(theta).prod(1)], -1)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    flipped = jq.compile_circuit(lambda: qml.PauliX(0), 2)
    np.testing.assert_allclose(jq.probabilities(flipped, jnp.zeros(2)), [0, 0, 1, 0], atol=1e-7)


@pytest.mark.parametrize("method", ["gemm", "pauli"])
def test_derivatives_are_those_of_the_parameter_shift_rule(method):
    _, weights = strongly(4)
    theta = angles(4, 1)[0]

    def exact(weights):
        qfunc = lambda: qml.StronglyEntanglingLayers(weights, wires=range(4))  # noqa: E731
        return expectations(qfunc, theta[None])[0]

    def ours(weights):
        kernel = jq.compile_circuit(jq.strongly_entangling(weights), method=method)
        return jq.expval(kernel, jnp.asarray(theta, jnp.float32))

    found = np.asarray(jax.jit(jax.jacobian(ours))(weights.astype(np.float32))).reshape(4, -1)
    expected = shifted_jacobian(exact, weights)
    assert expected.shape == (4, 24)
    assert np.abs(found - expected).max() < 1e-5


def test_traced_arguments_of_a_pennylane_function_have_derivatives():
    def qfunc(a, b):
        qml.RX(a, wires=0)
        qml.CRY(b, wires=[0, 1])

    def ours(args):
        y = jq.expval(jq.compile_circuit(qfunc, 2, params=args), jnp.array([0.3, 0.8]))
        return y, y

    args = (np.float32(0.4), np.float32(1.1))
    both = jax.jit(jax.jacobian(ours, has_aux=True))
    found = np.stack(both(args)[0], -1)
    step = 1e-3
    for i in range(2):
        up, down = (tuple(a + s * (i == j) for j, a in enumerate(args)) for s in (step, -step))
        ahead, behind = (np.asarray(both(end)[1]) for end in (up, down))
        difference = (ahead - behind) / (2 * step)
        np.testing.assert_allclose(found[:, i], difference, atol=2e-4)


@given(seed=st.integers(0, 10**6), n=st.integers(1, 4), layers=st.integers(1, 4))
@settings(max_examples=25)
def test_any_circuit_keeps_the_bounds_of_its_coefficients(seed, n, layers):
    """Parseval over the part that is read, and |<Z>| ≤ 1; all methods agree."""
    weights = np.random.default_rng(seed).normal(size=(layers, n, 3))
    kernel = jq.compile_circuit(jq.strongly_entangling(weights), method="gemm")
    assert (np.sum(np.square(kernel.coeffs), 1) <= 1 + 1e-12).all()
    theta = angles(n, 5, seed)
    found = jq.expval(kernel, theta)
    assert np.abs(found).max() <= 1 + 1e-6
    for method in ("pauli", "sparse"):
        other = jq.compile_circuit(jq.strongly_entangling(weights), method=method)
        np.testing.assert_allclose(jq.expval(other, theta), found, atol=2e-6)


def test_probabilities_have_the_expectations_as_their_marginals():
    kernel = jq.compile_circuit(strongly(3)[0], 3)
    theta = angles(3, 10)
    chance = np.asarray(jax.jit(jq.probabilities)(kernel, theta)).reshape(10, 2, 2, 2)
    np.testing.assert_allclose(chance.sum((1, 2, 3)), 1, atol=1e-6)
    marginal = chance.sum((1, 3))
    np.testing.assert_allclose(
        marginal[:, 0] - marginal[:, 1], expval(kernel, theta)[:, 1], atol=1e-6
    )


def test_kernels_that_differ_in_angles_share_a_compilation():
    evaluate = jax.jit(lambda kernel, theta: jq.expval(kernel, theta))
    theta = jnp.zeros(4)
    ys = [
        evaluate(jq.compile_circuit(strongly(4, seed=s)[0], 4, method="gemm"), theta)
        for s in range(3)
    ]
    assert evaluate._cache_size() == 1
    assert not np.allclose(ys[0], ys[1])


def test_a_drawing_shows_every_gate():
    circuit = jq.read_qfunc(
        lambda: [qml.Hadamard(0), qml.RX(0.5, wires=2), qml.CNOT(wires=[0, 2]), qml.Hadamard(1)], 3
    )
    assert jq.draw(circuit).splitlines() == [
        "0: ─Hadamard──●───────────",
        "1: ───────────│──Hadamard─",
        "2: ─RX(0.5)───X───────────",
    ]


def test_a_drawing_of_traced_angles_names_them():
    drawn = []

    @jax.jit
    def trace(weights):
        drawn.append(jq.draw(jq.basic_entangling(weights)))
        return weights

    trace(jnp.ones((1, 1)))
    assert drawn == ["0: ─RX(θ)─"]


def measured():
    qml.RX(0.1, wires=0)
    return qml.expval(qml.PauliZ(0))


BAD = {
    "n_wires=0: must be an int from 1 to 9": lambda: jq.compile_circuit(strongly(2)[0], 0),
    "n_wires=None: a quantum function": lambda: jq.compile_circuit(strongly(2)[0]),
    "n_wires=10: must": lambda: jq.compile_circuit(strongly(2)[0], 10),
    "qfunc: it measures": lambda: jq.compile_circuit(measured, 1),
    "wire 2 of": lambda: jq.compile_circuit(lambda: qml.RX(0.1, wires=2), 2),
    "wire 'a' of": lambda: jq.compile_circuit(lambda: qml.RX(0.1, wires="a"), 2),
    "has no matrix": lambda: jq.compile_circuit(lambda: qml.BitFlip(0.1, wires=0), 1),
    "has no matrix; allowed": lambda: jq.compile_circuit(lambda: qml.measure(0), 1),
    "prepares a state": lambda: jq.compile_circuit(lambda: qml.BasisState([1], wires=[0]), 1),
    "is not unitary": lambda: jq.compile_circuit(
        lambda: qml.QubitUnitary(np.array([[1, 0], [0, 2.0]]), wires=0, unitary_check=False), 1
    ),
    "method='fast'": lambda: jq.compile_circuit(strongly(2)[0], 2, method="fast"),
    "method='gemm': a noisy circuit": lambda: jq.compile_circuit(
        strongly(2)[0], 2, noise=jq.depolarizing(0.1), method="gemm"
    ),
    "method='sparse': which": lambda: jax.jit(
        lambda w: jq.compile_circuit(jq.strongly_entangling(w), method="sparse").coeffs
    )(jnp.ones((1, 2, 3))),
    "noise=0.1: must": lambda: jq.compile_circuit(strongly(2)[0], 2, noise=0.1),
    "n_wires=3, params": lambda: jq.compile_circuit(jq.Circuit(2, ()), 3),
    r"theta\[5\]: its last axis must be 2": lambda: jq.expval(
        jq.compile_circuit(strongly(2)[0], 2), jnp.zeros(5)
    ),
    r"weights\[2, 3\]: must be \[L, n, 3\]": lambda: jq.strongly_entangling(np.ones((2, 3))),
    r"weights\[1, 10\]: must be": lambda: jq.basic_entangling(np.ones((1, 10))),
    "seed=-1: must": lambda: jq.random_layers(np.ones((1, 2)), -1),
    "p=0.8: must be": lambda: jq.depolarizing(0.8),
    "p=-0.1: must be": lambda: jq.depolarizing(-0.1),
    "gamma=1.5: must be": lambda: jq.amplitude_damping(1.5),
    "where='middle'": lambda: jq.depolarizing(0.1, "middle"),
    r"operators: Σ K† K is off the identity by 0.75": lambda: jq.kraus([np.eye(2) / 2]),
    r"operators\[2, 2\]: must be": lambda: jq.kraus(np.eye(2)),
    "shots=0: must": lambda: jq.sample(
        jq.compile_circuit(jq.Circuit(1, ())), jnp.zeros(1), 0, jax.random.key(0)
    ),
    "key=None: shots": lambda: jq.sample(
        jq.compile_circuit(jq.Circuit(1, ())), jnp.zeros(1), 10, None
    ),
    "outcomes of a noisy circuit of 6 wires": lambda: jq.probabilities(
        jq.compile_circuit(jq.Circuit(6, ()), noise=jq.depolarizing(0.1)), jnp.zeros(6)
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()
