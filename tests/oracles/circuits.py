"""Expectation values by PennyLane's simulators, gate by gate."""

import numpy as np
import pennylane as qml


def encoded(theta):
    """RY on each wire."""
    for q in range(theta.shape[-1]):
        qml.RY(theta[..., q], wires=q)


def expectations(qfunc, theta):
    """<Z> of every wire on default.qubit, for angles [N, n]."""
    n = theta.shape[-1]

    @qml.qnode(qml.device("default.qubit", wires=n), interface=None)
    def node(theta):
        encoded(theta)
        qfunc()
        return [qml.expval(qml.PauliZ(q)) for q in range(n)]

    return np.stack(node(np.asarray(theta, float)), -1)


def encoded_again(qfuncs, theta):
    """The same where angles are encoded before each of several circuits."""
    n = theta.shape[-1]

    @qml.qnode(qml.device("default.qubit", wires=n), interface=None)
    def node(theta):
        for qfunc in qfuncs:
            encoded(theta)
            qfunc()
        return [qml.expval(qml.PauliZ(q)) for q in range(n)]

    return np.stack(node(np.asarray(theta, float)), -1)


def noisy_expectations(gates, channel, theta, where):
    """<Z> of every wire on default.mixed, `channel(wire)` behind gates or at the end."""
    n = theta.shape[-1]

    @qml.qnode(qml.device("default.mixed", wires=n), interface=None)
    def node(theta):
        encoded(theta)
        for gate in gates:
            qml.QubitUnitary(np.asarray(gate.matrix), wires=gate.wires)
            for wire in gate.wires if where == "gates" else ():
                channel(wire)
        for wire in range(n) if where == "end" else ():
            channel(wire)
        return [qml.expval(qml.PauliZ(q)) for q in range(n)]

    return np.array([node(row) for row in np.asarray(theta, float)])


def shifted_jacobian(value, weights):
    """Derivatives by the parameter-shift rule, for angles of single-qubit rotations."""
    out = []
    for i in np.ndindex(weights.shape):
        step = np.zeros_like(weights)
        step[i] = np.pi / 2
        out.append((value(weights + step) - value(weights - step)) / 2)
    return np.stack(out, -1)
