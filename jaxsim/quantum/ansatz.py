"""Circuits built of layers: rotations of every wire, then controlled NOTs."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxsim.numerics.checks import checked_int
from jaxsim.quantum.circuit import MAX_WIRES, Circuit, Gate, namespace

CNOT = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]], complex)
_PAULI = np.array([[[0, 1], [1, 0]], [[0, -1j], [1j, 0]], [[1, 0], [0, -1]]])


def strongly_entangling(weights: Float[Array, "L n 3"]) -> Circuit:
    """Builds layers of general rotations and a ring of controlled NOTs whose reach grows.

    Args:
      weights: Angles φ, θ, ω of RZ(ω) RY(θ) RZ(φ) in radians, [layers, wires, 3].

    Returns:
      A circuit of n wires.

    Raises:
      ValueError: Weights of another shape.

    Source: Schuld et al. (2018), arXiv 1804.00633; the reach is that of PennyLane's
      `StronglyEntanglingLayers`.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim.quantum as jq
      >>> circuit = jq.strongly_entangling(jnp.zeros((2, 3, 3)))
      >>> circuit.n_wires, len(circuit.gates)
      (3, 12)
    """
    weights, n = _check_weights(weights, 3)
    gates: list[Gate] = []
    for layer, angles in enumerate(weights):
        turns = _general(angles)
        gates += [Gate("Rot", (q,), turns[q], tuple(angles[q])) for q in range(n)]
        reach = layer % (n - 1) + 1 if n > 1 else 0
        gates += [Gate("CNOT", (q, (q + reach) % n), CNOT) for q in range(n) if n > 1]
    return Circuit(n, tuple(gates))


def basic_entangling(weights: Float[Array, "L n"]) -> Circuit:
    """Builds layers of rotations about X and a ring of controlled NOTs.

    Args:
      weights: Angles in radians, [layers, wires].

    Returns:
      A circuit of n wires.

    Raises:
      ValueError: Weights of another shape.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim.quantum as jq
      >>> [gate.name for gate in jq.basic_entangling(jnp.zeros((1, 2))).gates]
      ['RX', 'RX', 'CNOT']
    """
    weights, n = _check_weights(weights, None)
    gates: list[Gate] = []
    for angles in weights:
        gates += [_turn("X", q, angles[q]) for q in range(n)]
        pairs = [(q, (q + 1) % n) for q in range(n)] if n > 2 else [(0, 1)] if n == 2 else []
        gates += [Gate("CNOT", pair, CNOT) for pair in pairs]
    return Circuit(n, tuple(gates))


def random_layers(weights: Float[Array, "L n"], seed: int) -> Circuit:
    """Builds layers of rotations about random axes of random wires, controlled NOTs between.

    The gates are drawn by numpy's PCG64 from `seed`: not those that `qml.RandomLayers` draws, which
    `compile_circuit` takes as they are. After each rotation comes a controlled NOT of a random
    pair with probability 0.3.

    Args:
      weights: Angles in radians, [layers, n]: n rotations a layer; the wires and axes are random.
      seed: Seed of the gates, at least 0.

    Returns:
      A circuit of n wires.

    Raises:
      ValueError: Weights of another shape, or a seed that is none.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim.quantum as jq
      >>> circuit = jq.random_layers(jnp.zeros((2, 4)), seed=0)
      >>> circuit.n_wires, sum(gate.name != "CNOT" for gate in circuit.gates)
      (4, 8)
    """
    weights, n = _check_weights(weights, None)
    rng = np.random.default_rng(checked_int("seed", seed, 0))
    gates: list[Gate] = []
    for angles in weights:
        for q in range(n):
            gates.append(_turn("XYZ"[rng.integers(3)], int(rng.integers(n)), angles[q]))
            if n > 1 and rng.random() < 0.3:
                control, target = rng.permutation(n)[:2]
                gates.append(Gate("CNOT", (int(control), int(target)), CNOT))
    return Circuit(n, tuple(gates))


def _check_weights(weights: Any, angles: int | None) -> tuple[Any, int]:
    """Weights as an array, and the number of wires."""
    shape = np.shape(weights)
    last = () if angles is None else (angles,)
    if len(shape) != 2 + len(last) or shape[2:] != last or not 1 <= shape[1] <= MAX_WIRES:
        wanted = "[L, n]" if angles is None else f"[L, n, {angles}]"
        raise ValueError(f"weights{list(shape)}: must be {wanted} with n from 1 to {MAX_WIRES}")
    if namespace([weights]) is np:
        weights = np.asarray(weights, float)
    return weights, shape[1]


def _general(angles: Any) -> Any:
    """RZ(ω) RY(θ) RZ(φ) for angles [..., 3], as [..., 2, 2]."""
    xp = namespace([angles])
    phi, theta, omega = angles[..., 0], angles[..., 1], angles[..., 2]
    plus, minus = xp.exp(-0.5j * (phi + omega)), xp.exp(-0.5j * (phi - omega))
    cos, sin = xp.cos(theta / 2), xp.sin(theta / 2)
    rows = [plus * cos, -minus.conj() * sin, minus * sin, plus.conj() * cos]
    return xp.stack(rows, -1).reshape(*theta.shape, 2, 2)


def _turn(axis: str, wire: int, angle: Any) -> Gate:
    """A rotation about one axis."""
    xp = namespace([angle])
    pauli = _PAULI["XYZ".index(axis)]
    if xp is jnp:
        pauli = pauli.astype(jnp.result_type(angle, jnp.complex64))
    matrix = xp.cos(angle / 2) * np.eye(2) - 1j * xp.sin(angle / 2) * pauli
    return Gate(f"R{axis}", (wire,), matrix, (angle,))
