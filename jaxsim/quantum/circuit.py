"""A circuit as a list of gates: read from a PennyLane function, or built by an ansatz."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex

from jaxsim.numerics.checks import checked_int, is_traced, is_whole

MAX_WIRES = 9
"""Most wires of a circuit: its matrix has 4^n entries."""


class Gate(NamedTuple):
    """One unitary on a few wires.

    Attributes:
      name: for people.
      wires: that it acts on, the first one the most significant bit of `matrix`.
      matrix: [2^k, 2^k], complex; traced where its angles are.
      angles: for people; empty for a gate without any.
    """

    name: str
    wires: tuple[int, ...]
    matrix: Complex[Array, "2^k 2^k"] | np.ndarray
    angles: tuple[Any, ...] = ()


class Circuit(NamedTuple):
    """Gates in the order in which they are applied; wire 0 is the most significant bit.

    Attributes:
      n_wires: number of wires n.
      gates: what is applied to them.
    """

    n_wires: int
    gates: tuple[Gate, ...]


def read_qfunc(qfunc: Callable[..., Any], n_wires: int, *params: Any) -> Circuit:
    """The gates of a PennyLane quantum function.

    Templates are decomposed until every operation has a matrix. What a template draws at random it
    draws here: `qml.RandomLayers` from its own `seed`, so that every run has the same gates.

    Args:
      qfunc: applies operations; no encoding and no measurement. Wires are numbered from 0.
      n_wires: number of wires n, 1 to 9.
      *params: its arguments; traced ones keep their derivatives.

    Raises:
      ValueError: n_wires out of range, a measurement, a wire beyond n_wires, or an operation that
        is not unitary.
    """
    import pennylane as qml  # takes seconds to import, and only this front end needs it

    n_wires = checked_int("n_wires", n_wires, 1, MAX_WIRES)
    tape: Any = qml.tape.make_qscript(qfunc)(*params)  # pyright: ignore[reportAttributeAccessIssue]
    if tape.measurements:
        raise ValueError(
            f"qfunc: it measures {tape.measurements[0]}; give gates only, <Z> of every wire is read"
        )
    gates: list[Gate] = []

    def add(operation: Any) -> None:
        if operation.has_matrix:
            gates.append(_gate(operation, n_wires))
        elif operation.has_decomposition and not isinstance(operation, qml.operation.Channel):
            for part in operation.decomposition():
                add(part)
        else:
            raise ValueError(f"qfunc: {operation} has no matrix; allowed: unitary operations")

    for operation in tape.operations:
        if isinstance(operation, qml.operation.StatePrepBase):
            raise ValueError(f"qfunc: {operation.name} prepares a state; the encoding does that")
        add(operation)
    return Circuit(n_wires, tuple(gates))


def _gate(operation: Any, n_wires: int) -> Gate:
    wires = tuple(operation.wires.tolist())
    for wire in wires:
        if not is_whole(wire) or not 0 <= wire < n_wires:
            raise ValueError(f"qfunc: wire {wire!r} of {operation}; allowed: 0 to {n_wires - 1}")
    wires = tuple(map(int, wires))
    matrix = operation.matrix()
    if np.ndim(matrix) != 2:
        shapes = [list(np.shape(p)) for p in operation.parameters]
        raise ValueError(
            f"qfunc: {operation.name} on wires {list(wires)} has parameters of shapes {shapes}, a "
            "batch; a gate takes one number each: batch theta, or use jax.vmap"
        )
    if not is_traced(matrix):
        matrix = np.asarray(matrix, complex)
        if not np.allclose(matrix @ matrix.conj().T, np.eye(len(matrix)), atol=1e-6):
            raise ValueError(f"qfunc: {operation} is not unitary")
    angles = tuple(a for a in operation.parameters if np.ndim(a) == 0)
    return Gate(operation.name, wires, matrix, angles)


def checked_circuit(circuit: Circuit) -> Circuit:
    """A circuit whose wires are Python's integers, whatever numbers they were given as.

    Raises:
      ValueError: n_wires out of range, a wire that is none of the circuit's or appears twice in a
        gate, or a matrix that does not fit its gate's wires.
    """
    n, gates = checked_int("n_wires", circuit.n_wires, 1, MAX_WIRES), list[Gate]()
    for gate in circuit.gates:
        given = (int(w) if isinstance(w, bool | np.bool_) else w for w in gate.wires)
        wires = tuple(checked_int(f"wires of {gate.name}", w, 0, n - 1) for w in given)
        if len(set(wires)) != len(wires):
            raise ValueError(f"wires of {gate.name}={wires}: must differ")
        size = 2 ** len(wires)
        if np.shape(gate.matrix) != (size, size):
            raise ValueError(
                f"matrix of {gate.name}: expected [{size}, {size}] for {len(wires)} wires, got "
                f"{list(np.shape(gate.matrix))}"
            )
        gates.append(gate._replace(wires=wires))
    return Circuit(n, tuple(gates))


def namespace(arrays: Sequence[Any]) -> ModuleType:
    """Where to compute: on the host in double precision, unless something is traced."""
    return jnp if any(map(is_traced, arrays)) else np


def on_axes(xp: ModuleType, matrix: Any, tensor: Any, axes: Sequence[int]) -> Any:
    """A matrix applied to some axes of size 2, the first one the most significant.

    Args:
      xp: numpy or jax.numpy.
      matrix: [2^k, 2^k].
      tensor: any array.
      axes: k of its axes.
    """
    k = len(axes)
    square = matrix.reshape((2,) * 2 * k)
    applied = xp.tensordot(square, tensor, (tuple(range(k, 2 * k)), tuple(axes)))
    return xp.moveaxis(applied, tuple(range(k)), tuple(axes))


def unitary(circuit: Circuit) -> Any:
    """The circuit's matrix [2^n, 2^n]: double precision on the host unless angles are traced."""
    xp = namespace([gate.matrix for gate in circuit.gates])
    n = circuit.n_wires
    dtype = xp.result_type(*(gate.matrix for gate in circuit.gates), xp.complex64)
    columns = xp.eye(2**n, dtype=dtype).reshape((2,) * n + (2**n,))
    for gate in circuit.gates:
        columns = on_axes(xp, gate.matrix, columns, gate.wires)
    return columns.reshape(2**n, 2**n)
