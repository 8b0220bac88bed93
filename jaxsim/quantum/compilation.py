"""Circuits, compiled to what evaluates them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from jaxsim.numerics.checks import is_traced
from jaxsim.quantum.circuit import MAX_WIRES, Circuit, checked_circuit, read_qfunc, unitary
from jaxsim.quantum.heisenberg import (
    PAULIS,
    diagonals,
    evolve_observables,
    pauli_coefficients,
    signs,
)
from jaxsim.quantum.kernel import MOST_OUTCOMES, ZERO, CircuitKernel
from jaxsim.quantum.noise import Channel
from jaxsim.quantum.reuploads import transfer_matrix

Method = Literal["auto", "gemm", "pauli", "sparse"]
SPARSE = 400
"""Most terms of a polynomial that is evaluated one by one: its program grows with them."""
_NO_UNITARY = "a noisy circuit has no unitary; use 'pauli' or 'auto'"


def compile_circuit(
    qfunc: Callable[..., Any] | Circuit | Sequence[Callable[..., Any] | Circuit],
    n_wires: int | None = None,
    *,
    params: Sequence[Any] = (),
    noise: Channel | None = None,
    method: Method = "auto",
) -> CircuitKernel:
    """Compiles a circuit; pure, so that angles and noise may be traced and have derivatives.

    Args:
      qfunc: PennyLane quantum function without encoding and measurement, or a `Circuit`. Of several
        in a sequence each has the same angles encoded before it: data re-uploading.
      n_wires: Number of wires n, 1 to 9; None for a `Circuit`, which has its own.
      params: Arguments of `qfunc`, where it is one function. Traced.
      noise: Channel of `jaxsim.quantum`, or None; it is folded into the coefficients and costs
        nothing later. Behind gates or, of the last circuit alone, at the end; encoding is exact.
      method: How to evaluate; "auto" takes "sparse" up to 400 terms, and a quarter as many as the
        matrix has entries where there is one; otherwise "gemm", or "pauli" for a noisy circuit.
        Traced circuits, and several, cannot be "sparse"; several are "pauli" up to 5 wires.

    Raises:
      ValueError: What `read_qfunc` raises, no circuit or several of different wires, or a method
        that is unknown or does not fit.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim.quantum as jq
      >>> kernel = jq.compile_circuit(jq.basic_entangling(jnp.zeros((1, 2))))  # one controlled NOT
      >>> z = jq.expval(kernel, jnp.array([jnp.pi, 0.0]))  # |10> becomes |11>
      >>> [round(a, 3) for a in z.tolist()]
      [-1.0, -1.0]
      >>> none = jq.Circuit(1, ())  # angles that are encoded twice add up
      >>> round(float(jq.expval(jq.compile_circuit([none, none]), jnp.array([0.5]))[0]), 3)
      0.54
    """
    if noise is not None and not isinstance(noise, Channel):
        raise ValueError(f"noise={noise!r}: must be a channel of jaxsim.quantum, or None")
    if method not in ("auto", "gemm", "pauli", "sparse"):
        raise ValueError(f"method={method!r}: must be 'auto', 'gemm', 'pauli' or 'sparse'")
    *earlier, circuit = _circuits(qfunc, n_wires, params)
    if earlier:
        return _compile_several(earlier, circuit, noise, method)
    n = circuit.n_wires
    matrix = unitary(circuit) if noise is None else None
    if is_traced(matrix) and method in ("auto", "gemm"):
        return CircuitKernel(matrix, None, None, n, "gemm")
    outcomes = None
    if noise is not None and n <= MOST_OUTCOMES:
        outcomes = pauli_coefficients(evolve_observables(circuit, noise, diagonals(np.eye(2**n))))
        coeffs = signs(n).T @ outcomes
    else:
        coeffs = pauli_coefficients(evolve_observables(circuit, noise, diagonals(signs(n).T)))
    return _choose_method(matrix, coeffs, outcomes, n, method)


def _circuits(qfunc: Any, n_wires: int | None, params: Sequence[Any]) -> list[Circuit]:
    """Reads one circuit, or several of as many wires."""
    if not isinstance(qfunc, Circuit) and isinstance(qfunc, Sequence):
        if len(params):
            raise ValueError(f"params={params!r}: several circuits take none")
        found = [_circuit(each, n_wires, ()) for each in qfunc]
        wires = sorted({circuit.n_wires for circuit in found})
        if len(wires) != 1:
            raise ValueError(
                f"qfunc: {len(found)} circuits of {wires} wires; must be of one number"
            )
        return found
    return [_circuit(qfunc, n_wires, params)]


def _circuit(qfunc: Any, n_wires: int | None, params: Sequence[Any]) -> Circuit:
    if isinstance(qfunc, Circuit):
        circuit = checked_circuit(qfunc)
        if n_wires not in (None, circuit.n_wires) or len(params):
            raise ValueError(f"n_wires={n_wires}, params={params!r}: a Circuit has its own")
        return circuit
    if n_wires is None:
        raise ValueError(f"n_wires=None: a quantum function needs it, from 1 to {MAX_WIRES}")
    return read_qfunc(qfunc, n_wires, *params)


def _compile_several(
    earlier: Sequence[Circuit], last: Circuit, noise: Channel | None, method: Method
) -> CircuitKernel:
    """The kernel of circuits before each of which the angles are encoded."""
    n = last.n_wires
    if method == "auto":
        method = "gemm" if noise is None else "pauli"
    if method == "sparse":
        raise ValueError("method='sparse': several circuits are no polynomial of degree one")
    if method == "gemm":
        if noise is not None:
            raise ValueError(f"method='gemm': {_NO_UNITARY}")
        return CircuitKernel(
            unitary(last), None, None, n, "gemm", uploads=tuple(map(unitary, earlier))
        )
    if n > MOST_OUTCOMES:
        raise ValueError(
            f"n_wires={n}: Pauli components of several circuits, which noise needs, are kept for "
            f"at most {MOST_OUTCOMES} wires"
        )
    observables = evolve_observables(last, noise, diagonals(np.eye(2**n)))
    outcomes = pauli_coefficients(observables, PAULIS)
    uploads = tuple(transfer_matrix(circuit, noise) for circuit in earlier)
    return CircuitKernel(None, signs(n).T @ outcomes, outcomes, n, "pauli", uploads=uploads)


def _choose_method(
    matrix: Any, coeffs: Any, outcomes: Any, n: int, method: Method
) -> CircuitKernel:
    """The kernel, with the method that evaluates it."""
    terms: tuple[tuple[int, int], ...] = ()
    traced = is_traced(coeffs)
    if not traced:
        terms = tuple((int(k), int(p)) for k, p in np.argwhere(np.abs(coeffs) > ZERO))
    if method == "sparse" and traced:
        raise ValueError("method='sparse': which terms are zero is not known of traced angles")
    if method == "gemm" and matrix is None:
        raise ValueError(f"method='gemm': {_NO_UNITARY}")
    if method == "auto":
        dense = "pauli" if matrix is None else "gemm"
        few = len(terms) <= (SPARSE if matrix is None else min(SPARSE, 4**n // 4))
        method = "sparse" if few and not traced else dense
    kept = terms if method == "sparse" else ()
    return CircuitKernel(matrix, coeffs, outcomes, n, method, kept)
