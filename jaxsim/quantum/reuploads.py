"""Angles that are encoded again between circuits: amplitudes and Pauli vectors, carried on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxsim.quantum.circuit import Circuit
from jaxsim.quantum.heisenberg import PAULIS, evolve_observables, pauli_coefficients
from jaxsim.quantum.noise import Channel


def carry_amplitudes(
    amplitudes: Float[Array, "N 2*2^n"], pairs: Float[Array, "N n 2"], matrix: Any
) -> Float[Array, "N 2*2^n"]:
    """Encodes angles on top of a state, then applies a circuit.

    Args:
      amplitudes: Real, then imaginary parts.
      pairs: Cosine and sine of half the angle of each wire.
      matrix: Unitary of the circuit, [2^n, 2^n].
    """
    rows, n = pairs.shape[:2]
    for q in range(n):
        cos, sin = (pairs[:, q, part, None, None] for part in (0, 1))
        held = amplitudes.reshape(rows, 2 * 2**q, 2, -1)
        zero, one = held[:, :, 0], held[:, :, 1]
        amplitudes = jnp.stack([cos * zero - sin * one, sin * zero + cos * one], 2)
    u = jnp.asarray(matrix)
    re, im = u.real.T, u.imag.T
    both = jnp.block([[re, im], [-im, re]]).astype(pairs.dtype)
    return amplitudes.reshape(rows, -1) @ both


def carry_paulis(
    vector: Float[Array, "N 4^n"], cos: Sequence[Array], sin: Sequence[Array]
) -> Float[Array, "N 4^n"]:
    """Encodes angles on top of a state, which may be mixed.

    Args:
      vector: Tr(P ρ) over all P in {I, X, Y, Z}^n, wire 0 the most significant digit.
      cos: Cosine of the angle of each wire, [N].
      sin: Sine, likewise.
    """
    rows = len(vector)
    for q, (c, s) in enumerate(zip(cos, sin, strict=True)):
        c, s = c[:, None, None], s[:, None, None]
        held = vector.reshape(rows, 4**q, 4, -1)
        one, x, y, z = (held[:, :, i] for i in range(4))
        vector = jnp.stack([one, c * x + s * z, y, c * z - s * x], 2)
    return vector.reshape(rows, -1)


def transfer_matrix(circuit: Circuit, channel: Channel | None) -> Float[Array, "4^n 4^n"]:
    """Computes what a circuit and its noise make of each Pauli component of a state.

    Args:
      circuit: Gates on n wires.
      channel: Noise behind gates; what comes at the end of all is left out. None for none.
    """
    during = None if channel is None or channel.where == "end" else channel
    paulis = np.ones((1, 1, 1), complex)
    for _ in range(circuit.n_wires):
        paulis = np.kron(paulis, PAULIS)
    return pauli_coefficients(evolve_observables(circuit, during, paulis), PAULIS)
