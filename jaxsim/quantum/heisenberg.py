"""Observables carried backwards through a circuit, noise included, and their Pauli coefficients.

The encoding makes a product state without Y components, so that of an observable only its part
over {I, X, Z}^n is ever read: 3^n real numbers, whatever the circuit and its noise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Array, Complex, Float

from jaxsim.quantum.circuit import Circuit, namespace, on_axes
from jaxsim.quantum.noise import Channel

PAULIS = np.array(
    [[[1, 0], [0, 1]], [[0, 1], [1, 0]], [[0, -1j], [1j, 0]], [[1, 0], [0, -1]]], complex
)
"""I, X, Y and Z."""
ENCODED = np.real(PAULIS[[0, 1, 3]])
"""I, X and Z: what a state can have along, that RY has made of |0>."""


def signs(n: int) -> np.ndarray:
    """Lists the sign of each basis state under Z of each wire [2^n, n]; wire 0 is the highest bit.

    Args:
      n: Number of wires.
    """
    return 1.0 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n - 1, -1, -1)) & 1)


def evolve_observables(
    circuit: Circuit, channel: Channel | None, observables: Complex[np.ndarray, "m 2^n 2^n"]
) -> Complex[Array, "m 2^n 2^n"]:
    """Evolves observables back through a circuit and its noise (Heisenberg picture).

    Args:
      circuit: Gates on n wires.
      channel: Noise on the way, or None.
      observables: Matrices of what is read after the circuit.

    Returns:
      Σ over paths of K† … O … K: exact, as any channel acts on an observable by its adjoint.
    """
    n, count = circuit.n_wires, len(observables)
    operators = [] if channel is None else [_adjoint(channel)]
    xp = namespace([*(gate.matrix for gate in circuit.gates), *operators])
    dtype = xp.result_type(*(gate.matrix for gate in circuit.gates), *operators, xp.complex64)
    evolved = xp.asarray(observables, dtype).reshape((count,) + (2,) * 2 * n)

    def through_gate(matrix: Any, wires: tuple[int, ...]) -> Any:
        rows = [1 + w for w in wires]
        left = on_axes(xp, matrix.conj().T, evolved, rows)
        return on_axes(xp, matrix.T, left, [n + r for r in rows])

    def through_channel(wire: int) -> Any:
        (adjoint,) = operators
        return on_axes(xp, adjoint, evolved, [1 + wire, 1 + n + wire])

    if channel is not None and channel.where == "end":
        for wire in range(n):
            evolved = through_channel(wire)
    for gate in reversed(circuit.gates):
        if channel is not None and channel.where == "gates":
            for wire in gate.wires:
                evolved = through_channel(wire)
        evolved = through_gate(gate.matrix, gate.wires)
    return evolved.reshape(count, 2**n, 2**n)


def _adjoint(channel: Channel) -> Any:
    """O → Σ K† O K of one wire as a matrix on the rows and columns of O."""
    if channel.adjoint is not None:
        return channel.adjoint
    k = channel.operators
    xp = namespace([k])
    return xp.einsum("mca,mdb->abcd", xp.conj(k), k).reshape(4, 4)


def diagonals(values: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m d d"]:
    """Makes observables of what they are in each basis state.

    Args:
      values: A value for each basis state.
    """
    return values[:, :, None] * np.eye(values.shape[1])


def pauli_coefficients(
    observables: Complex[Array, "m 2^n 2^n"], letters: np.ndarray = ENCODED
) -> Float[Array, "m l^n"]:
    """Computes Tr(P O) / 2^n over all products P of letters; wire 0 is the most significant digit.

    Args:
      observables: Matrices on n wires, complex.
      letters: Pauli matrices of one wire, [l, 2, 2].
    """
    xp = namespace([observables])
    count, size = observables.shape[:2]
    n = size.bit_length() - 1
    left = observables.reshape((count,) + (2,) * 2 * n)
    for remaining in range(n, 0, -1):
        left = xp.tensordot(left, letters / 2, ((1, 1 + remaining), (2, 1)))
    return left.reshape(count, len(letters) ** n).real
