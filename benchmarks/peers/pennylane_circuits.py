"""Quanvolutions by PennyLane, and the circuits that both sides run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxsim.quantum as jq


def pennylane_layer(qfunc: Callable[..., Any], spec: jq.QuanvSpec) -> Callable[..., Any]:
    """Windows by slices, then one vmapped QNode; arguments of `qfunc` come last."""
    import pennylane as qml

    d, s = np.broadcast_to(spec.dilation, 2)[0], np.broadcast_to(spec.stride, 2)[0]

    @qml.qnode(qml.device("default.qubit", wires=4), interface="jax")
    def node(angles: Any, *params: Any) -> Any:
        for q in range(4):
            qml.RY(angles[q], wires=q)
        qfunc(*params)
        return [qml.expval(qml.PauliZ(q)) for q in range(4)]

    def layer(x: Any, *params: Any) -> Any:
        rows, columns = jq.out_shape(x.shape[1:], spec)
        taps = [
            x[:, i * d : i * d + (rows - 1) * s + 1 : s, j * d : j * d + (columns - 1) * s + 1 : s]
            for i in (0, 1)
            for j in (0, 1)
        ]
        angles = jnp.pi * jnp.stack(taps, -1).reshape(-1, 4)
        out = jax.vmap(lambda a: jnp.stack(node(a, *params)))(angles)
        return out.reshape(len(x), rows, columns, 4)

    return jax.jit(layer)


def random_circuit(depth: int, wires: int = 4, seed: int = 0) -> Callable[[], Any]:
    """PennyLane's random layers."""
    import pennylane as qml

    weights = np.random.default_rng([seed, depth, wires]).uniform(0, 2 * np.pi, (depth, wires))
    return lambda: qml.RandomLayers(weights, wires=range(wires), seed=42 + seed)


def entangling_layers(weights: Any) -> None:
    """PennyLane's strongly entangling layers on four wires; weights [layers, 4, 3]."""
    import pennylane as qml

    qml.StronglyEntanglingLayers(weights, wires=range(4))


def noisy_circuit(gates: Any, rate: float) -> Callable[[Any], Any]:
    """A density matrix of four wires: depolarizing noise behind each wire of every gate."""
    import pennylane as qml

    @qml.qnode(qml.device("default.mixed", wires=4), interface=None)
    def node(angles: Any) -> Any:
        for q in range(4):
            qml.RY(angles[q], wires=q)
        for gate in gates:
            qml.QubitUnitary(gate.matrix, wires=gate.wires)
            for wire in gate.wires:
                qml.DepolarizingChannel(rate, wires=wire)
        return [qml.expval(qml.PauliZ(q)) for q in range(4)]

    return node
