"""Numbers of NumPy and JAX are taken wherever Python's are."""

import jax.numpy as jnp
import numpy as np
import pennylane as qml
import pytest

import jaxsim.quantum as jq

ANGLES = jnp.asarray([[0.3, 0.7]])
NOT = np.array([[0, 1], [1, 0]], complex)
CNOT = np.eye(4)[[0, 1, 3, 2]].astype(complex)
NUMBERS = [np.int64(1), np.uint8(1), np.array(1), jnp.int32(1), np.bool_(True), True]


def value(circuit):
    return np.asarray(jq.expval(jq.compile_circuit(circuit), ANGLES))


def gates(first, second):
    return jq.Circuit(2, (jq.Gate("X", (first,), NOT), jq.Gate("CNOT", (first, second), CNOT)))


@pytest.mark.parametrize("one", NUMBERS, ids=lambda n: type(n).__name__)
def test_wires_and_counts(one):
    zero = type(one)(0) if isinstance(one, np.generic | bool) else one * 0
    np.testing.assert_array_equal(value(gates(one, zero)), value(gates(1, 0)))
    assert np.abs(value(gates(0, 1)) - value(gates(1, 0))).max() > 0.1


def rotated(angle, wire):
    def qfunc():
        qml.RX(angle, wires=wire)
        qml.CNOT(wires=[0, 1])

    return value(jq.read_qfunc(qfunc, 2))


@pytest.mark.parametrize("angle", [np.float32(1), *NUMBERS], ids=lambda n: type(n).__name__)
def test_angles_of_gates(angle):
    np.testing.assert_allclose(rotated(angle, 0), rotated(1.0, 0), rtol=1e-6)
    assert np.abs(rotated(angle, 0) - rotated(0.5, 0)).max() > 1e-3


def test_a_batch_of_angles_is_refused_by_its_own_reason():
    with pytest.raises(ValueError, match="batch"):
        rotated(np.ones(3), 0)


@pytest.mark.parametrize(
    ("wires", "matrix", "message"),
    [
        ((2,), NOT, "wires of G=2"),
        ((-1,), NOT, "wires of G=-1"),
        ((0.5,), NOT, "wires of G=0.5"),
        ((0, 0), CNOT, "must differ"),
        ((0,), CNOT, r"expected \[2, 2\] for 1 wires, got \[4, 4\]"),
    ],
)
def test_a_gate_that_does_not_fit_is_refused(wires, matrix, message):
    with pytest.raises(ValueError, match=message):
        value(jq.Circuit(2, (jq.Gate("G", wires, matrix),)))
