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
      name: Name that `draw` prints.
      wires: Wires that it acts on, k of them; the first is the most significant bit of `matrix`.
      matrix: Unitary, [2^k, 2^k], complex; traced where its angles are.
      angles: Angles in radians that `draw` prints; empty for a gate without any.

    Examples:
      >>> import numpy as np
      >>> import jaxsim.quantum as jq
      >>> flip = jq.Gate("X", (0,), np.array([[0, 1], [1, 0]]))
      >>> jq.Circuit(1, (flip,)).n_wires
      1
    """

    name: str
    wires: tuple[int, ...]
    matrix: Complex[Array, "2^k 2^k"] | np.ndarray
    angles: tuple[Any, ...] = ()


class Circuit(NamedTuple):
    """Gates in the order in which they are applied; wire 0 is the most significant bit.

    Attributes:
      n_wires: Number of wires n, 1 to 9.
      gates: Gates in order.

    Examples:
      >>> import numpy as np
      >>> import jaxsim.quantum as jq
      >>> flip = jq.Gate("X", (0,), np.array([[0, 1], [1, 0]]))
      >>> kernel = jq.compile_circuit(jq.Circuit(1, (flip,)))
      >>> jq.expval(kernel, np.zeros(1)).tolist()  # |1>
      [-1.0]
    """

    n_wires: int
    gates: tuple[Gate, ...]


def read_qfunc(qfunc: Callable[..., Any], n_wires: int, *params: Any) -> Circuit:
    """Reads the gates of a PennyLane quantum function.

    Templates are decomposed until every operation has a matrix. What a template draws at random it
    draws here: `qml.RandomLayers` from its own `seed`, so that every run has the same gates.

    Args:
      qfunc: Function that applies operations, without encoding and measurement. Wires are
        numbered from 0.
      n_wires: Number of wires n, 1 to 9.
      *params: Arguments of `qfunc`; traced ones keep their derivatives.

    Returns:
      A circuit of unitary gates.

    Raises:
      ValueError: n_wires out of range, a measurement, a wire beyond n_wires, or an operation that
        is not unitary.

    Examples:
      >>> import pennylane as qml
      >>> import jaxsim.quantum as jq
      >>> circuit = jq.read_qfunc(lambda angle: qml.RX(angle, wires=1), 2, 0.5)
      >>> circuit.n_wires, circuit.gates[0].name, circuit.gates[0].wires
      (2, 'RX', (1,))
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
        if not np.allclose(matrix @ matrix.conj().T, np.eye(len(matrix)), atol=1e-6, rtol=0):
            raise ValueError(f"qfunc: {operation} is not unitary")
    angles = tuple(a for a in operation.parameters if np.ndim(a) == 0)
    return Gate(operation.name, wires, matrix, angles)


def checked_circuit(circuit: Circuit) -> Circuit:
    """Checks a circuit and writes its wires as Python's integers.

    Args:
      circuit: Gates on wires 0 to n - 1, numbered by any kind of integer.

    Returns:
      The same circuit.

    Raises:
      ValueError: n_wires out of range, a wire outside the circuit or twice in a gate, or a matrix
        that does not fit its gate's wires.
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
    """Chooses numpy, in double precision on the host, or jax.numpy where something is traced.

    Args:
      arrays: Arrays to compute with.
    """
    return jnp if any(map(is_traced, arrays)) else np


def on_axes(xp: ModuleType, matrix: Any, tensor: Any, axes: Sequence[int]) -> Any:
    """Applies a matrix to some axes of size 2, the first one the most significant.

    Args:
      xp: Module numpy or jax.numpy.
      matrix: Matrix [2^k, 2^k].
      tensor: Array with axes of size 2.
      axes: The k axes to apply it to.
    """
    k = len(axes)
    square = matrix.reshape((2,) * 2 * k)
    applied = xp.tensordot(square, tensor, (tuple(range(k, 2 * k)), tuple(axes)))
    return xp.moveaxis(applied, tuple(range(k)), tuple(axes))


def unitary(circuit: Circuit) -> Any:
    """Multiplies the gates of a circuit into its matrix [2^n, 2^n].

    In double precision on the host unless angles are traced.

    Args:
      circuit: Gates on n wires.
    """
    xp = namespace([gate.matrix for gate in circuit.gates])
    n = circuit.n_wires
    dtype = xp.result_type(*(gate.matrix for gate in circuit.gates), xp.complex64)
    columns = xp.eye(2**n, dtype=dtype).reshape((2,) * n + (2**n,))
    for gate in circuit.gates:
        columns = on_axes(xp, gate.matrix, columns, gate.wires)
    return columns.reshape(2**n, 2**n)
